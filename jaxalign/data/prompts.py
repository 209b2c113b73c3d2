"""Few-shot prompts: the study's byte for byte, or with its slips mended.

A prompt is its exemplars and the query, joined by single newlines; each is its field lines (cue + text) and an answer
line (cue + quote + label word + quote), the query's ending right after its opening quote:

    It starts off a bit slow, but ...        exemplar, field line (a review's cue is empty)
    Emotion: "positive"                      exemplar, answer line
    ...
    Never again.                             query
    Emotion: "                               the model's next token is the answer

A slip is a cue that is the wrong word (`jaxalign/data/mended.py`), a cue that one exemplar has instead of its
language's, or spaces after an answer. Texts of exemplars and rows are data and stay as they are, also the fourth Hindi
paws exemplar, whose two sentences mean the same and are labelled different: no cue mends it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jaxalign.data.fields import object_of, text_of, whole_text
from jaxalign.data.languages import language_of
from jaxalign.data.mended import MENDED_CUES
from jaxalign.data.tasks import TASKS, Task, TaskRow, task_named
from jaxalign.errors import InputError
from jaxalign.files import read_json

Variant = Literal["english", "in_language", "irrelevant"]
"""The words that answer: the English class names, the language's own words, or `ox` and `horse`."""

PromptStyle = Literal["study", "mended"]
"""Whether a prompt keeps the study's slips or mends them."""

_IRRELEVANT_WORDS = {"positive": "ox", "negative": "horse"}


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


def variants_of(task: Task) -> tuple[Variant, ...]:
    """The variants of a task: all three for emotion, else english, as the study released no script of the others."""
    return ("english", "in_language", "irrelevant") if task.name == "emotion" else ("english",)


def label_words(task: Task, language: str, variant: Variant) -> dict[str, str]:
    """class -> label word shown in the exemplars and scored; a variant that the task lacks raises InputError.

    The irrelevant words are English in every language, as in the study.
    """
    if variant not in get_args(Variant):
        raise InputError(f"variant: {variant!r} is none of {', '.join(get_args(Variant))}")
    if variant not in variants_of(task):
        raise InputError(f"variant: {variant} labels exist for emotion only, not for {task.name}; use english")
    if variant == "english":
        return {name: name for name in task.classes}
    return dict(task.label_words[language] if variant == "in_language" else _IRRELEVANT_WORDS)


def cues_of(task: Task, language: str, style: PromptStyle) -> dict[str, str]:
    """Field name or "answer" -> the text before that field's value; an unknown style raises InputError."""
    if style not in get_args(PromptStyle):
        raise InputError(f"prompts: {style!r} is none of {', '.join(get_args(PromptStyle))}")
    mended = MENDED_CUES if style == "mended" else {}
    return {name: mended.get((task.name, language, name), cue) for name, cue in task.cues[language].items()}


def question(
    task: Task,
    language: str,
    fields: tuple[str, ...],
    overrides: Mapping[str, str] | None = None,
    style: PromptStyle = "study",
) -> str:
    """The item up to and with its open answer quote: a query, and each side of a question translation.

    overrides: other cues than the language's own, by field name or "answer".
    """
    cues = {**cues_of(task, language, style), **(overrides or {})}
    lines = [cues[name] + text for name, text in zip(task.fields, fields, strict=True)]
    return "\n".join([*lines, cues["answer"] + '"'])


def few_shot_prefix(
    task: Task, language: str, exemplars: Exemplars, variant: Variant, style: PromptStyle = "study"
) -> str:
    """The answered exemplars of a prompt, without the newline before the query."""
    words = label_words(task, language, variant)
    shown = exemplars.of(task.name, language)
    if style == "mended":
        shown = [replace(exemplar, overrides={}, trailing="") for exemplar in shown]
    return "\n".join(
        question(task, language, exemplar.fields, exemplar.overrides, style)
        + words[exemplar.label]
        + '"'
        + exemplar.trailing
        for exemplar in shown
    )


def few_shot_prompt(row: TaskRow, exemplars: Exemplars, variant: Variant, style: PromptStyle = "study") -> str:
    """The whole prompt for one row, ending right after the query's opening answer quote."""
    task = TASKS[row.task]
    prefix = few_shot_prefix(task, row.language, exemplars, variant, style)
    return prefix + "\n" + question(task, row.language, row.fields, style=style)


_BEYOND_TEXT = """\
Beyond the text, for emotion: in-language Thai prompts end with the start of both label words, which the study
tokenises apart (with SentencePiece that puts a BOS and a ▁ in mid-sequence) and mended prompts do not; and only mended
scoring of `ox` and `horse` counts the first tokens of a byte-level vocabulary.
"""


@dataclass(frozen=True)
class Difference:
    """One text that the two styles write differently.

    where: a cue's name where every item of the cell differs, or the exemplar and the place in it.
    """

    task: str
    language: str
    where: str
    study: str
    mended: str


def differences(exemplars: Exemplars) -> list[Difference]:
    """All that the prompts of the two styles differ in, found by comparing, in the order of the exemplars' cells."""
    found = []
    for (name, language), cell in exemplars.cells.items():
        study, mended = (cues_of(TASKS[name], language, style) for style in get_args(PromptStyle))
        texts = {f"{cue} cue": (study[cue], mended[cue]) for cue in study}
        for number, exemplar in enumerate(cell, 1):
            own = {f"exemplar {number}, {cue} cue": (text, mended[cue]) for cue, text in exemplar.overrides.items()}
            texts |= own | {f"exemplar {number}, after the answer": (exemplar.trailing, "")}
        found += [Difference(name, language, where, *pair) for where, pair in texts.items() if pair[0] != pair[1]]
    return found


def differences_table(exemplars: Exemplars) -> str:
    """The differences as a Markdown table, spaces made visible, and below it what differs beyond the text."""
    rows = [
        (item.task, item.language, item.where, _visible(item.study), _visible(item.mended))
        for item in differences(exemplars)
    ]
    header = ("task", "language", "where", "study", "mended")
    table = "".join(f"| {' | '.join(row)} |\n" for row in (header, ("---",) * len(header), *rows))
    return f"{table}\n{_BEYOND_TEXT}"


def _visible(text: str) -> str:
    return f"`{text.replace(' ', '␣')}`" if text else "nothing"


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
        task = task_named(name)
        if not isinstance(languages, dict):
            raise InputError(f"{file}, {name}: an object of languages is needed")
        for language, entry in languages.items():
            code = language_of(language, f"{file}, {name}").code
            if (name, code) in cells:
                raise InputError(f"{file}, {name}: {language!r} and an entry before it are one language; keep one")
            cells[name, code] = _entry(entry, task, code, f"{file}, {name}, {language}")
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
    exemplar = object_of(exemplar, where)
    names = (*task.exemplar_fields, "label")
    exemplar = {**exemplar, **{name: text_of(exemplar, name, where, "write the exemplar's own") for name in names}}
    if exemplar["label"] not in task.classes:
        raise InputError(f"{where}, field 'label': {exemplar['label']!r} is none of {', '.join(task.classes)}")
    overrides, trailing = exemplar.get("overrides", {}), exemplar.get("trailing", "")
    cue_names = {*task.exemplar_fields, "answer"}
    if not isinstance(overrides, dict) or not overrides.keys() <= cue_names:
        raise InputError(f"{where}, field 'overrides': an object of {', '.join(sorted(cue_names))} is needed")
    if not all(isinstance(text, str) for text in (trailing, *overrides.values())):
        raise InputError(f"{where}: overrides and trailing must be text")
    overrides = {name: whole_text(text, f"{where}, overrides") for name, text in overrides.items()}
    return Exemplar(
        fields=tuple(exemplar[name] for name in task.exemplar_fields),
        label=exemplar["label"],
        overrides=_renamed(overrides, dict(zip(task.exemplar_fields, task.fields, strict=True))),
        trailing=whole_text(trailing, f"{where}, field 'trailing'"),
    )


def _renamed(cues: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {names.get(name, name): cue for name, cue in cues.items()}
