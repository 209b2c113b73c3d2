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
from jaxalign.data.prompts import Exemplar, Exemplars, Variant, few_shot_prefix, label_words, question
from jaxalign.data.tasks import TASKS, Task, TaskData
from jaxalign.errors import InputError
from jaxalign.files import read_text, whole_folder, write_json

# task -> (variant, script); exemplars are taken from the first.
_SCRIPTS: dict[str, list[tuple[Variant, str]]] = {
    "emotion": [
        ("english", "emotion_eval_2shot_enout.py"),
        ("in_language", "emotion_eval_2shot.py"),
        ("irrelevant", "emotion_eval_2shot_irrelative.py"),
    ],
    "snli": [("english", "snli_eval_6shot_enout.py")],
    "paws": [("english", "paws_eval_4shot_enout.py")],
}
_FORMAT = {
    "exemplars": "in prompt order: the task's fields, label (a class), and the scripts' slips, kept in prompts: "
    "overrides (cues that differ from keywords) and trailing (text after the closing quote)",
    "keywords": "the cue before each field and before the answer",
    "prefix_sha256": "variant -> sha256 of the rendered exemplars in UTF-8, without the newline before the query",
    "source": "github.com/Shimao-Zhang/LLM-Multilingual-Learner, evaluation scripts",
}


@dataclass(frozen=True)
class Script:
    """By language the exemplars of one script, and the text that follows them, with a NUL for each field's value."""

    path: Path
    prefixes: Mapping[str, str]
    queries: Mapping[str, str]


def import_study(clone: Path, out: Path) -> None:
    """Writes `out`, a folder for evaluation and training: ap_emotion/, snli/, paws/ and exemplars.json.

    Data files are copied byte for byte. After an InputError `out` is not made.
    """
    for name in (name for scripts in _SCRIPTS.values() for _, name in scripts):
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
    data = TaskData(clone / "data")
    for task in TASKS.values():
        scripts: dict[Variant, Script] = {variant: read_script(clone / name) for variant, name in _SCRIPTS[task.name]}
        document[task.name] = {}
        for language in LANGUAGES:
            data.rows(task, language)  # they are all there, and can be read
            document[task.name][language] = _entry(task, language, scripts)
    return document


def read_script(path: Path) -> Script:
    """The prefixes and query templates of a script; one that is no Python, or has none, raises InputError."""
    try:
        tree = ast.parse(read_text(path))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: not Python ({error.msg})") from None
    prefixes, queries = {}, {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id="prompt_prefix")], value=ast.Dict() as value):
                if all(isinstance(part, ast.Constant) for part in [*value.keys, *value.values]):
                    prefixes = ast.literal_eval(value)
            case ast.If(
                test=ast.Compare(left=ast.Name(id="target_lang"), comparators=[ast.Constant(value=str(language))]),
                body=[ast.Assign(targets=[ast.Name(id="input")], value=ast.ListComp(elt=prompt)), *_],
            ):
                queries[language] = _query(prompt)
    if missing := [language for language in LANGUAGES if language not in prefixes]:
        raise InputError(f"{path}: no prompt_prefix for {' '.join(missing)}; is it another version of the script?")
    return Script(path, prefixes, queries)


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


def _entry(task: Task, language: str, scripts: Mapping[Variant, Script]) -> dict[str, Any]:
    main = scripts["english"]
    expected = "\n" + question(task, language, ("\0",) * len(task.fields))  # prompts are rendered with the task's cues
    if (found := main.queries.get(language)) != expected:
        raise InputError(
            f"{main.path}: the query for {language!r} is {found!r}, not {expected!r}; is it another version?"
        )
    shown = _parse_prefix(main, task, language)
    exemplars, prefixes = Exemplars(main.path, {(task.name, language): tuple(shown)}), {}
    for variant, script in scripts.items():
        rendered = few_shot_prefix(task, language, exemplars, variant)
        if rendered != script.prefixes[language]:
            raise InputError(f"{script.path}: prompt_prefix[{language!r}] is not what its exemplars render to")
        prefixes["english_answer" if variant == "english" else variant] = rendered
    names = dict(zip((*task.fields, "answer"), (*task.exemplar_fields, "answer"), strict=True))
    items = []
    for exemplar in shown:
        item: dict[str, Any] = dict(zip(task.exemplar_fields, exemplar.fields, strict=True)) | {"label": exemplar.label}
        if exemplar.overrides:
            item["overrides"] = {names[name]: cue for name, cue in exemplar.overrides.items()}
        if exemplar.trailing:
            item["trailing"] = exemplar.trailing
        items.append(item)
    return {
        "exemplars": items,
        "keywords": {names[name]: cue for name, cue in task.cues[language].items()},
        "prefix_sha256": {name: hashlib.sha256(text.encode("utf-8")).hexdigest() for name, text in prefixes.items()},
    }


def _parse_prefix(script: Script, task: Task, language: str) -> list[Exemplar]:
    """The exemplars of a prefix with English labels, cues that differ from the task's kept as overrides."""
    cues, classes = task.cues[language], label_words(task, language, "english")
    lines = script.prefixes[language].split("\n")
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
            slip = re.match(r"[^:：]*(?:: |：)", line)
            found[name] = cues[name] if line.startswith(cues[name]) else slip[0] if slip else ""
        texts = [line.removeprefix(found[name]) for name, line in zip(task.fields, field_lines, strict=True)]
        overrides = {name: found[name] for name in (*task.fields, "answer") if found[name] != cues[name]}
        exemplars.append(Exemplar(tuple(texts), answer[2], overrides, trailing=answer[3]))
    return exemplars
