"""Few-shot prompts of the study, byte for byte.

A prompt is its exemplars and the query, joined by single newlines; each is its field lines (cue + text) and an answer
line (cue + quote + label word + quote), the query's ending right after its opening quote:

    It starts off a bit slow, but ...        exemplar, field line (a review's cue is empty)
    Emotion: "positive"                      exemplar, answer line
    ...
    Never again.                             query
    Emotion: "                               the model's next token is the answer
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxalign.data.languages import language_of
from jaxalign.data.tasks import TASKS, Task, TaskRow, task_named
from jaxalign.errors import InputError
from jaxalign.files import read_json

Variant = Literal["english", "in_language"]


@dataclass(frozen=True)
class Exemplar:
    """One answered item of a few-shot prefix.

    overrides: field name or "answer" -> cue that this exemplar has instead of the task's (slips of the study).
    trailing: text after the answer's closing quote (a slip of the study: 13 spaces in English emotion).
    """

    fields: tuple[str, ...]
    label: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    trailing: str = ""


@dataclass(frozen=True)
class Exemplars:
    """The few-shot exemplars of one file: (task, language) -> exemplars in prompt order."""

    file: Path
    cells: Mapping[tuple[str, str], tuple[Exemplar, ...]]

    def of(self, task: str, language: str) -> tuple[Exemplar, ...]:
        """The exemplars of a task in a language; a file without them raises InputError."""
        if (task, language) not in self.cells:
            raise InputError(f"{self.file}: no exemplars for task {task!r} in language {language!r}")
        return self.cells[task, language]


def label_words(task: Task, language: str, variant: Variant) -> dict[str, str]:
    """class -> label word shown in the exemplars and scored: the English class names, or the language's own words.

    In-language labels exist for emotion alone: the study never released a script that uses the others.
    """
    if variant == "english":
        return {name: name for name in task.classes}
    if variant != "in_language":
        raise InputError(f"variant: {variant!r} is none of english, in_language")
    if task.name != "emotion":
        raise InputError(f"variant: in_language labels exist for emotion only, not for {task.name}; use english")
    return dict(task.label_words[language])


def question(task: Task, language: str, fields: tuple[str, ...], cues: Mapping[str, str] | None = None) -> str:
    """The item up to and with its open answer quote: a query, and each side of a question translation.

    cues: other cues than the task's own, by field name or "answer".
    """
    cues = {**task.cues[language], **(cues or {})}
    lines = [cues[name] + text for name, text in zip(task.fields, fields, strict=True)]
    return "\n".join([*lines, cues["answer"] + '"'])


def few_shot_prefix(task: Task, language: str, exemplars: Exemplars, variant: Variant) -> str:
    """The answered exemplars of a prompt, without the newline before the query."""
    words = label_words(task, language, variant)
    return "\n".join(
        question(task, language, exemplar.fields, exemplar.overrides) + words[exemplar.label] + '"' + exemplar.trailing
        for exemplar in exemplars.of(task.name, language)
    )


def few_shot_prompt(row: TaskRow, exemplars: Exemplars, variant: Variant) -> str:
    """The whole prompt for one row, ending right after the query's opening answer quote."""
    task = TASKS[row.task]
    prefix = few_shot_prefix(task, row.language, exemplars, variant)
    return prefix + "\n" + question(task, row.language, row.fields)


def read_exemplars(file: Path) -> Exemplars:
    """Exemplars from a JSON file: task -> language -> {"exemplars": [...]}; names beginning with "_" are notes.

    An exemplar has the task's fields ("text" for a review), "label" (a class) and, where it needs them, "overrides"
    and "trailing". An entry may repeat the task's cues as "keywords"; cues that differ from the task's table raise
    InputError, since prompts are rendered with the table. Other keys of an entry are for its readers.
    """
    document = read_json(file)
    if not isinstance(document, dict):
        raise InputError(f"{file}: an object of tasks is needed")
    cells = {}
    for name, languages in document.items():
        if name.startswith("_"):
            continue
        if not isinstance(languages, dict):
            raise InputError(f"{file}, {name}: an object of languages is needed")
        task = task_named(name)
        for language, entry in languages.items():
            where = f"{file}, {name}, {language}"
            language_of(language, where)
            cells[name, language] = _entry(entry, task, language, where)
    return Exemplars(file, cells)


def _entry(entry: Any, task: Task, language: str, where: str) -> tuple[Exemplar, ...]:
    if not isinstance(entry, dict) or not isinstance(entry.get("exemplars"), list) or not entry["exemplars"]:
        raise InputError(f"{where}: an object with a non-empty array 'exemplars' is needed")
    table = _renamed(task.cues[language], dict(zip(task.fields, task.exemplar_fields, strict=True)))
    if entry.get("keywords", table) != table:
        raise InputError(f"{where}: keywords {entry['keywords']} differ from the task's cues {table}; use overrides")
    return tuple(
        _exemplar(exemplar, task, f"{where}, exemplar {index}") for index, exemplar in enumerate(entry["exemplars"])
    )


def _exemplar(exemplar: Any, task: Task, where: str) -> Exemplar:
    if not isinstance(exemplar, dict):
        raise InputError(f"{where}: an object is needed")
    for name in (*task.exemplar_fields, "label"):
        if not isinstance(exemplar.get(name), str) or not exemplar[name]:
            raise InputError(f"{where}, field {name!r}: text is needed")
    if exemplar["label"] not in task.classes:
        raise InputError(f"{where}, field 'label': {exemplar['label']!r} is none of {', '.join(task.classes)}")
    overrides, trailing = exemplar.get("overrides", {}), exemplar.get("trailing", "")
    cue_names = {*task.exemplar_fields, "answer"}
    if not isinstance(overrides, dict) or not overrides.keys() <= cue_names:
        raise InputError(f"{where}, field 'overrides': an object of {', '.join(sorted(cue_names))} is needed")
    if not all(isinstance(text, str) for text in (trailing, *overrides.values())):
        raise InputError(f"{where}: overrides and trailing must be text")
    return Exemplar(
        fields=tuple(exemplar[name] for name in task.exemplar_fields),
        label=exemplar["label"],
        overrides=_renamed(overrides, dict(zip(task.exemplar_fields, task.fields, strict=True))),
        trailing=trailing,
    )


def _renamed(cues: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {names.get(name, name): cue for name, cue in cues.items()}
