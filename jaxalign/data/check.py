"""What is wrong with files of data, and what a set of question pairs holds.

Errors are those of the readers that tuning and evaluation use: all of them, where these stop at the first file.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.languages import LANGUAGES, known_language
from jaxalign.data.pairs import QuestionPair, Rendering, languages_of, pair_files, read_pair_file, without_instruction
from jaxalign.data.prompts import (
    Exemplars,
    collisions,
    label_candidates,
    label_words,
    question,
    read_exemplars,
    variants_of,
)
from jaxalign.data.tasks import TASKS, Task, TaskData, TaskRow, is_paws_x, read_task_file, task_file_named
from jaxalign.data.tokenizer import AT_ONCE, Tokenizer, render_all
from jaxalign.errors import InputError, messages_of
from jaxalign.log import warn

_CONTROL_CHARACTER = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def errors_of(path: Path, rendering: Rendering) -> dict[str, list[str]]:
    """File -> its errors, none where it is good. What another file is to blame for is told once.

    path: a task's file (told by its name), a file or data set or folder of pairs, or a whole data folder.
    """
    errors: dict[str, list[str]] = {}
    told: set[str] = set()
    try:
        is_data = any((path / name).is_dir() for name in (*(task.folder for task in TASKS.values()), "paws_x_wiki"))
        reads = _data_folder_reads(path, rendering) if is_data else _reads(path, rendering)
    except InputError as error:
        return {str(path): messages_of(error)}
    for file, read in reads.items():
        found = []
        try:
            read()
        except InputError as error:
            found = [message for message in messages_of(error) if message not in told]
        errors[str(file)] = found
        told.update(found)
    return errors


def _reads(path: Path, rendering: Rendering, data: TaskData | None = None) -> dict[Path, Callable[[], Any]]:
    """File -> its reader. data: the folder that a task's file lies in, where it is known."""
    named, folder = task_file_named(path), path.resolve().parent
    if named is None:
        return {file: partial(read_pair_file, file, rendering) for file in pair_files(path)}
    if folder.name != named.task.folder:
        return {path: partial(read_task_file, path, *named)}
    data = data or TaskData(folder.parent)
    return {path: partial(data.rows, named.task, named.language, split=named.split)}


def _data_folder_reads(folder: Path, rendering: Rendering) -> dict[Path, Callable[[], Any]]:
    """Of its task files, files of pairs beside them, PAWS-X and exemplars."""
    data, reads = TaskData(folder.resolve()), {}
    for task in TASKS.values():
        for file in sorted((folder / task.folder).glob("*.json")):
            reads |= _reads(file, rendering, data)
    if is_paws_x(folder):
        for version in sorted((folder / "paws_x_wiki").iterdir()):
            if (language := known_language(version.name)) is not None:
                reads[version] = partial(data.rows, TASKS["paws"], language.code)
    if (folder / "exemplars.json").is_file():

        def read_and_warn() -> None:
            exemplars, cells = read_exemplars(folder / "exemplars.json"), []
            for task, language in exemplars.cells:
                with suppress(InputError):  # of a task's file, which is told of by itself
                    cells.append(data.rows(TASKS[task], language))
            warn_of_exemplars(exemplars, cells)

        reads[folder / "exemplars.json"] = read_and_warn
    return reads


def warn_of_exemplars(exemplars: Exemplars, cells: Iterable[Sequence[TaskRow]]) -> None:
    """Warnings of exemplars that show one class alone, and of test rows that are an exemplar of their own prompt.

    Both are counted over the cells, each the rows of one task in one language, compared as `normal` writes them.
    """
    one_class, shown, count = [], [], 0
    for rows in cells:
        name = f"{rows[0].task} {rows[0].language}"
        cell = exemplars.of(rows[0].task, rows[0].language)
        if len({exemplar.label for exemplar in cell}) == 1:
            one_class.append(f"{name} ({cell[0].label})")
        texts = {tuple(map(normal, exemplar.fields)) for exemplar in cell}
        shown += [f"{name} row {row.row}" for row in rows if tuple(map(normal, row.fields)) in texts]
        count += len(rows)
    if one_class:
        warn(f"{exemplars.file}: all exemplars are of one class in {len(one_class)} cells, first {one_class[0]}")
    if shown:
        warn(
            f"{exemplars.file}: {len(shown)} of {count} test rows are an exemplar of their own prompt, which shows "
            f"their answer; first {', '.join(shown[:2])}"
        )


def normal(text: str) -> str:
    """NFKC, without case, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def describe_languages(pairs: Sequence[QuestionPair], length: Callable[[str], int]) -> dict[str, dict[str, Any]]:
    """Language -> counts, lengths and scripts of its texts; a prompt counts without its instruction.

    length: of a text, in tokens or characters. "scripts" {script: share of the letters}; "in_other_scripts" counts the
    texts of which less than half the letters are the language's own.
    """
    prompts, responses = defaultdict(list), defaultdict(list)
    for pair in pairs:
        prompts[pair.source_language].append(without_instruction(pair.prompt))
        responses[pair.target_language].append(pair.response)
    described = {}
    for code in languages_of(pairs):
        texts, script = prompts[code] + responses[code], LANGUAGES[code].script
        own = ("Han", "Hiragana", "Katakana") if script == "Japanese" else (script,)
        shares = [script_shares([text]) for text in texts]
        described[code] = {
            "prompts": len(prompts[code]),
            "responses": len(responses[code]),
            "length": summary([length(text) for text in texts]),
            "scripts": script_shares(texts),
            # Text of digits alone is in no other script.
            "in_other_scripts": sum(bool(each) and sum(each.get(name, 0.0) for name in own) < 0.5 for each in shares),
        }
    return described


def summary(lengths: Sequence[int]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum."""
    median, p95 = np.percentile(lengths, [50, 95])
    return {"mean": float(np.mean(lengths)), "median": float(median), "p95": float(p95), "max": int(max(lengths))}


def script_shares(texts: Iterable[str]) -> dict[str, float]:
    """Script -> share of the letters, the largest first; of text without letters, nothing."""
    letters: Counter[str] = Counter()
    for text in texts:
        for character, count in Counter(text).items():
            if character.isalpha():
                letters[script_of(character)] += count
    return {script: count / letters.total() for script, count in letters.most_common()}


@cache
def script_of(letter: str) -> str:
    """The script of a letter, by the first word of its Unicode name that tells one: Latin, Han, Hiragana, ..."""
    words = unicodedata.name(letter, "Unknown").replace("-", " ").split()
    word = next(word for word in words if word not in ("FULLWIDTH", "HALFWIDTH", "MODIFIER", "FEMININE", "MASCULINE"))
    return "Han" if word in ("CJK", "IDEOGRAPHIC") else word.capitalize()


def rendered_lengths(pairs: Sequence[QuestionPair], template: str, tokenizer: Tokenizer) -> list[int]:
    """Positions that each pair takes in a row: special tokens among them, the last token is only a target."""
    return [sum(map(len, sides)) - 1 for sides in render_all(pairs, template, tokenizer)]


def token_lengths(pairs: Sequence[QuestionPair], tokenizer: Tokenizer) -> dict[str, int]:
    """Tokens of each text that `describe_languages` measures."""
    texts = list({text: None for pair in pairs for text in (without_instruction(pair.prompt), pair.response)})
    parts = (texts[first : first + AT_ONCE] for first in range(0, len(texts), AT_ONCE))
    return {text: len(ids) for part in parts for text, ids in zip(part, tokenizer.batch_ids(part), strict=True)}


def doubles(pairs: Sequence[QuestionPair]) -> dict[str, int]:
    """How many pairs repeat an earlier one, and how many prompts have several different responses."""
    responses = defaultdict(set)
    for pair in pairs:
        responses[pair.prompt].add(pair.response)
    return {
        "repeated_pairs": len(pairs) - len(set(pairs)),
        "prompts_of_several_responses": sum(len(found) > 1 for found in responses.values()),
    }


def control_characters(pairs: Sequence[QuestionPair]) -> dict[str, int]:
    """ "U+000D" -> how many such characters stand in prompts and responses; line ends (U+000A) are not counted."""
    counts: Counter[str] = Counter()
    for pair in pairs:
        counts.update(_CONTROL_CHARACTER.findall(pair.prompt) + _CONTROL_CHARACTER.findall(pair.response))
    return {f"U+{ord(character):04X}": count for character, count in sorted(counts.items())}


def rows_among(pairs: Sequence[QuestionPair], task: Task, rows: Sequence[TaskRow]) -> list[int]:
    """Which of a task's rows of one language stand in the pairs, by index; wording that differs is not found.

    A row stands in a text if the text is its question, or if each of its fields is the text, a line of it, or a line
    after a cue. Compared are NFKC forms without case and with single spaces.
    """
    (language,) = {row.language for row in rows}
    cues = [cue for cue in task.cues[language].values() if cue]
    texts = [without_instruction(pair.prompt) for pair in pairs if pair.source_language == language]
    texts += [pair.response for pair in pairs if pair.target_language == language]
    by_unit: Mapping[str, set[int]] = defaultdict(set)
    for index, text in enumerate(texts):
        lines = text.split("\n")
        after_cues = [line.removeprefix(cue) for line in lines for cue in cues if line.startswith(cue)]
        for unit in (text, *lines, *after_cues):
            by_unit[normal(unit)].add(index)
    whole = set(map(normal, texts))
    return [
        index
        for index, row in enumerate(rows)
        if normal(question(task, language, row.fields)) in whole
        or set.intersection(*(by_unit.get(normal(field), set()) for field in row.fields))
    ]


def describe_labels(tasks: Sequence[Task], languages: Sequence[str], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Label words that share first tokens, and words that have none, under this tokenizer.

    A record per task, variant and language that has either; the English words are told of once.
    """
    records = []
    for task in tasks:
        for variant in variants_of(task):
            for language in languages if variant == "in_language" else ["en"]:
                words = label_words(task, language, variant)
                candidates = label_candidates(words, tokenizer)
                shared = {
                    f"{words[first]}/{words[second]}": tokenizer.backend.convert_ids_to_tokens(ids)
                    for (first, second), ids in collisions(candidates).items()
                }
                missing = [words[name] for name, ids in candidates.items() if not ids]
                if shared or missing:
                    place = {"task": task.name, "variant": variant, "language": language}
                    records.append({**place, "shared": shared, "without_tokens": missing})
    return records
