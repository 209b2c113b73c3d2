"""From a clone of the study's repository to a data folder: its test and train files, and its few-shot exemplars.

github.com/Shimao-Zhang/LLM-Multilingual-Learner keeps exemplars, cues and label words inside its evaluation scripts.
They are read here as syntax trees; nothing of the clone is executed. Each exemplar text is checked to render, with
the cues and labels of this package, to exactly the prompt prefix that the script spells out.
"""

import ast
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.prompts import Exemplar, question
from jaxalign.data.tasks import ALL_ROWS, TASKS, Task, read_task_rows
from jaxalign.errors import InputError
from jaxalign.files import read_text, whole_folder, write_json

# task -> variant -> script. "english_answer" is the one whose prefixes the exemplars are taken from.
_SCRIPTS = {
    "emotion": {
        "english_answer": "emotion_eval_2shot_enout.py",
        "in_language": "emotion_eval_2shot.py",
        "irrelevant": "emotion_eval_2shot_irrelative.py",
    },
    "snli": {"english_answer": "snli_eval_6shot_enout.py"},
    "paws": {"english_answer": "paws_eval_4shot_enout.py"},
}
_LENS_SCRIPT = "zsm_emotion_2shot.py"

# task -> class -> the script's variable that holds the class's words.
_WORDS = {
    "emotion": {"positive": "positive_answers", "negative": "negative_answers"},
    "snli": {"entailment": "positive_answers", "neutral": "neutral_answers", "contradiction": "negative_answers"},
    "paws": {"same": "positive_answers", "different": "negative_answers"},
}
_IRRELEVANT_WORDS = {"positive": "positive_answers_irrelative", "negative": "negative_answers_irrelative"}

_FORMAT = {
    "exemplars": "in prompt order: the task's fields, label (a class), and the scripts' slips, kept in prompts: "
    "overrides (cues that differ from keywords) and trailing (text after the closing quote)",
    "keywords": "the cue before each field and before the answer",
    "labels": "class -> in-language word of the script; null where the script has none",
    "test_file_labels": "class -> word of the test file, found row by row against English",
    "prefix_sha256": "variant -> sha256 of the rendered exemplars in UTF-8, without the newline before the query",
    "source": "github.com/Shimao-Zhang/LLM-Multilingual-Learner, evaluation scripts",
}


@dataclass(frozen=True)
class Script:
    """What one evaluation script says, by variable name or language."""

    path: Path
    tables: Mapping[str, Mapping[str, str]]
    """variable -> language -> text, for every variable that is assigned a plain dictionary"""
    queries: Mapping[str, str]
    """language -> the text that follows the exemplars, with a NUL for each field's value"""

    def table(self, name: str) -> Mapping[str, str]:
        if name not in self.tables:
            raise InputError(f"{self.path}: no dictionary {name!r} there; is it another version of the script?")
        return self.tables[name]

    def text(self, name: str, language: str) -> str:
        if language not in self.table(name):
            raise InputError(f"{self.path}: {name} has no {language!r}; is it another version of the script?")
        return self.tables[name][language]

    def english(self, variables: Mapping[str, str]) -> dict[str, str]:
        """class -> English word, from class -> variable."""
        return {name: self.text(variable, "en") for name, variable in variables.items()}


def import_study(clone: Path, out: Path) -> None:
    """Writes `out`, a folder for evaluation and training: ap_emotion/, snli/, paws/ and exemplars.json.

    Data files are copied byte for byte, those that the clone has. A folder that is no such clone, a test file that
    is missing or an `out` that exists with something in it raise InputError, and `out` is not made.
    """
    names = [name for scripts in _SCRIPTS.values() for name in scripts.values()] + [_LENS_SCRIPT]
    for name in names:
        if not (clone / name).is_file():
            raise InputError(
                f"{clone}: no {name}; a clone of github.com/Shimao-Zhang/LLM-Multilingual-Learner is needed"
            )
    with whole_folder(out) as partial:
        for task in TASKS.values():
            (partial / task.folder).mkdir()
            for file in sorted((clone / "data" / task.folder).glob("*.json")):
                shutil.copyfile(file, partial / task.folder / file.name)
        write_json(partial / "exemplars.json", study_exemplars(clone))


def study_exemplars(clone: Path) -> dict[str, Any]:
    """The document of exemplars.json: task -> language -> entry, and a note "_format" on what an entry holds."""
    document: dict[str, Any] = {"_format": _FORMAT}
    lens_languages = read_script(clone / _LENS_SCRIPT).table("prompt_prefix").keys()
    for task in TASKS.values():
        scripts = {variant: read_script(clone / name) for variant, name in _SCRIPTS[task.name].items()}
        document[task.name] = {}
        for language in LANGUAGES:
            document[task.name][language] = entry = _entry(task, language, scripts)
            entry["test_file_labels"] = found = _file_labels(clone / "data", task, language)
            if task.name == "emotion":
                entry["logit_lens_supported_by_reference"] = language in lens_languages
            else:
                # Of classes whose words differ in script and test file; none where the script has no words.
                different = {
                    name: {"script": word, "test_file": found[name]}
                    for name, word in (entry["labels"] or {}).items()
                    if word != found[name]
                }
                entry["label_mismatch"] = different or None
    return document


def read_script(path: Path) -> Script:
    """The dictionaries and query templates of a script; one that is no Python raises InputError."""
    try:
        tree = ast.parse(read_text(path))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: not Python ({error.msg})") from None
    tables, queries = {}, {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as value):
                if all(isinstance(part, ast.Constant) for part in [*value.keys, *value.values]):
                    tables[name] = ast.literal_eval(value)
            case ast.If(
                test=ast.Compare(left=ast.Name(id="target_lang"), comparators=[ast.Constant(value=str(language))]),
                body=[ast.Assign(targets=[ast.Name(id="input")], value=ast.ListComp(elt=prompt)), *_],
            ):
                queries[language] = _query(prompt)
    return Script(path, tables, queries)


def _query(prompt: ast.expr) -> str:
    """A sum of texts as one text: constants as they are, the exemplars (a subscript) as nothing, a value as a NUL."""
    match prompt:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _query(left) + _query(right)
        case ast.Constant(value=str(text)):
            return text
        case ast.Subscript():
            return ""
        case _:
            return "\0"


def _entry(task: Task, language: str, scripts: Mapping[str, Script]) -> dict[str, Any]:
    """A language's exemplars with their cues, labels and prefix hashes."""
    main = scripts["english_answer"]
    expected = "\n" + question(task, language, ("\0",) * len(task.fields))  # prompts are rendered with the task's cues
    if (found := main.queries.get(language)) != expected:
        raise InputError(
            f"{main.path}: the query for {language!r} is {found!r}, not {expected!r}; is it another version?"
        )
    exemplars = _parse_prefix(main, task, language)
    words: dict[str, Mapping[str, str | None]] = {"english_answer": main.english(_WORDS[task.name])}
    labels = {name: main.table(variable).get(language) or None for name, variable in _WORDS[task.name].items()}
    names = dict(zip((*task.fields, "answer"), (*task.exemplar_fields, "answer"), strict=True))
    entry: dict[str, Any] = {
        "exemplars": [_as_json(exemplar, names) for exemplar in exemplars],
        "keywords": {names[name]: cue for name, cue in task.cues[language].items()},
        # PAWS has English words alone: an empty text, or none, for every other language.
        "labels": labels if all(labels.values()) else None,
        "english_labels": words["english_answer"],
        "exemplar_count": len(exemplars),
        "field_order": list(task.exemplar_fields),
    }
    if task.name == "emotion":
        irrelevant = scripts["irrelevant"]
        words |= {"in_language": labels, "irrelevant": irrelevant.english(_IRRELEVANT_WORDS)}
        tables = {name: irrelevant.table(variable) for name, variable in _IRRELEVANT_WORDS.items()}
        own = {name: table[language] for name, table in tables.items() if language in table}
        entry |= {"irrelevant_labels": words["irrelevant"], "irrelevant_labels_in_language": own or None}
    entry["prefix_sha256"] = {}
    for variant, script in scripts.items():
        rendered = "\n".join(
            f'{question(task, language, item.fields, item.overrides)}{words[variant][item.label]}"{item.trailing}'
            for item in exemplars
        )
        if rendered != script.text("prompt_prefix", language):
            raise InputError(f"{script.path}: prompt_prefix[{language!r}] is not what its exemplars render to")
        entry["prefix_sha256"][variant] = hashlib.sha256(rendered.encode("utf-8")).hexdigest()
    return entry


def _parse_prefix(script: Script, task: Task, language: str) -> list[Exemplar]:
    """The exemplars of a prefix with English labels, cues that differ from the task's kept as overrides."""
    cues = task.cues[language]
    classes = {word: name for name, word in script.english(_WORDS[task.name]).items()}
    lines = script.text("prompt_prefix", language).split("\n")
    size = len(task.fields) + 1
    exemplars = []
    for start in range(0, len(lines), size):
        *field_lines, answer_line = lines[start : start + size]
        answer = re.fullmatch(r'([^"]*)"([^"]+)"( *)', answer_line)
        if len(field_lines) != len(task.fields) or not answer or answer[2] not in classes:
            raise InputError(f"{script.path}: prompt_prefix[{language!r}], line {start}: no exemplar of {task.name}")
        found = {"answer": answer[1]}
        for name, line in zip(task.fields, field_lines, strict=True):
            # The usual cue, or else whatever ends with the line's first colon.
            slip = None if line.startswith(cues[name]) else re.match(r"[^:：]*(?:: |：)", line)
            found[name] = slip[0] if slip else cues[name] if line.startswith(cues[name]) else ""
        texts = [line.removeprefix(found[name]) for name, line in zip(task.fields, field_lines, strict=True)]
        overrides = {name: found[name] for name in (*task.fields, "answer") if found[name] != cues[name]}
        exemplars.append(Exemplar(tuple(texts), classes[answer[2]], overrides, trailing=answer[3]))
    return exemplars


def _as_json(exemplar: Exemplar, names: Mapping[str, str]) -> dict[str, Any]:
    item: dict[str, Any] = dict(zip(names.values(), exemplar.fields, strict=False)) | {"label": exemplar.label}
    if exemplar.overrides:
        item["overrides"] = {names[name]: cue for name, cue in exemplar.overrides.items()}
    return item | ({"trailing": exemplar.trailing} if exemplar.trailing else {})


def _file_labels(data: Path, task: Task, language: str) -> dict[str, str]:
    """class -> the one word of the test file in all rows where English has the class."""
    words: dict[str, set[str]] = {name: set() for name in task.classes}
    for row in read_task_rows(data, task, language, "test", ALL_ROWS):
        words[row.gold_class].add(row.answer)
    for name, found in words.items():
        if len(found) != 1:
            raise InputError(
                f"{data}: {task.name} in {language}, class {name}: one word is needed, not {sorted(found)}"
            )
    return {name: found.pop() for name, found in words.items()}
