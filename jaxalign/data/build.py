"""Question-translation data from a task's parallel train files, in the study's format, and its control conditions.

A row is the question in the source language, with its cues and open answer quote, and the translation instruction;
its answer is the same question in the target language, with that language's cues:

    input    Prämisse: ...\\nHypothese: ...\\nAntwort: "\\nTranslate the input from German to English:\\n
    answer   Premise: ...\\nHypothesis: ...\\nAnswer: "

SNLI's pattern is that of the study's released files. Those of emotion and PAWS are assumed: the released files of
the two were not available to check, so they follow SNLI's with their own evaluation cues.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxalign.data.languages import language_of
from jaxalign.data.pairs import Instruction, QuestionPair, instruction_languages, with_instruction
from jaxalign.data.prompts import question
from jaxalign.data.tasks import Task, TaskRow, read_task_rows
from jaxalign.errors import InputError
from jaxalign.files import write_json

Control = Literal["none", "copy", "mispaired", "answers"]
ALL_ROWS = slice(None)


def build_examples(
    data: Path,
    task: Task,
    sources: Sequence[str],
    target: str = "en",
    *,
    rows: slice = ALL_ROWS,
    instruction: Instruction = "after",
    control: Control = "none",
    seed: int = 0,
) -> list[QuestionPair]:
    """The rows of one training file, from `data/{folder}/{task}_{language}{rows}_train.json`.

    sources, target: languages. One source keeps the file's order; several are joined and shuffled with the seed.
    rows: which rows of each source, so that slice(0, 10_000) of two sources makes 20,000.
    control: "none", or a condition that lacks one ingredient of question translation:
      "copy"       English to English: translation's format without another language;
      "mispaired"  each question answered by another row's translation: languages without their alignment;
      "answers"    English questions with their answers: the task without translation. Unlabelled rows are left out.
    copy and answers read English alone, so sources and target must say so. Wrong combinations, missing files and
    too few rows raise InputError.
    """
    sources = [language_of(source, "build.sources").code for source in sources]
    target = language_of(target, "build.target").code
    _check_languages(sources, target, control)
    if control == "answers":
        return _answers(data, task, rows)
    parts = [_translations(data, task, source, target, rows, instruction) for source in sources]
    if control == "mispaired":
        parts = [
            _mispaired(part, random.Random(f"{seed} {source}")) for part, source in zip(parts, sources, strict=True)
        ]
    if len(parts) == 1:
        return parts[0]
    mixture = [pair for part in parts for pair in part]
    random.Random(seed).shuffle(mixture)
    return mixture


def write_pairs(file: Path, pairs: Sequence[QuestionPair]) -> None:
    """Writes the study's JSON: rows of input and answer; the languages too where no instruction in the input tells."""
    rows = []
    for pair in pairs:
        row = {"input": pair.prompt, "answer": pair.response}
        if instruction_languages(pair.prompt, str(file)) is None:
            row |= {"source_language": pair.source_language, "target_language": pair.target_language}
        rows.append(row)
    write_json(file, rows)


def _check_languages(sources: Sequence[str], target: str, control: Control) -> None:
    if control not in ("none", "copy", "mispaired", "answers"):
        raise InputError(f"control: {control!r} is none of none, copy, mispaired, answers")
    if not sources or len(set(sources)) != len(sources):
        raise InputError(f"sources: different languages are needed, found {','.join(sources) or 'none'}")
    english_only = control in ("copy", "answers")
    if english_only and (list(sources) != ["en"] or target != "en"):
        raise InputError(f"control: {control} reads English alone; set sources and target to en")
    if not english_only and target in sources:
        raise InputError(f"sources: {target} is the target too; leave it out (English to English is control=copy)")


def _translations(
    data: Path, task: Task, source: str, target: str, rows: slice, instruction: Instruction
) -> list[QuestionPair]:
    """Pairs of one source, in file order."""
    parallel = zip(_chosen_rows(data, task, source, rows), _chosen_rows(data, task, target, rows), strict=True)
    return [
        QuestionPair(
            prompt=with_instruction(question(task, source, ours.fields), source, target, instruction),
            response=question(task, target, theirs.fields),
            source_language=source,
            target_language=target,
        )
        for ours, theirs in parallel
    ]


def _chosen_rows(data: Path, task: Task, language: str, rows: slice) -> list[TaskRow]:
    """The rows, all of them there: a shorter source would silently weigh less in a mixture."""
    read = read_task_rows(data, task, language, "train", rows)
    if rows.stop is not None and read[-1].row + 1 < rows.stop:
        raise InputError(f"rows: up to {rows.stop}, but {task.name} in {language} has {read[-1].row + 1} train rows")
    return read


def _answers(data: Path, task: Task, rows: slice) -> list[QuestionPair]:
    return [
        QuestionPair(question(task, "en", row.fields), row.gold_class + '"', "en", "en")
        for row in _chosen_rows(data, task, "en", rows)
        if row.gold_class
    ]


def _mispaired(pairs: list[QuestionPair], rng: random.Random) -> list[QuestionPair]:
    """The same prompts and the same responses, no prompt with a response that reads as its own does.

    Rows in random order, equal responses side by side, responses moved on by the length of the longest such run:
    a row could only meet its own text again in a run longer than half the rows.
    """
    order = list(range(len(pairs)))
    rng.shuffle(order)
    runs = defaultdict(list)
    for index in order:
        runs[pairs[index].response].append(index)
    order = [index for run in runs.values() for index in run]
    shift = max(map(len, runs.values()))
    if 2 * shift > len(pairs):
        raise InputError(f"control: mispaired needs different targets, but {shift} of {len(pairs)} rows share one")
    donor = {index: order[(place + shift) % len(order)] for place, index in enumerate(order)}
    return [
        QuestionPair(pair.prompt, pairs[donor[index]].response, pair.source_language, pair.target_language)
        for index, pair in enumerate(pairs)
    ]
