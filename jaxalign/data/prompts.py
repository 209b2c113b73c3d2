"""Few-shot prompts, the study's byte for byte or with its slips mended, and what is scored after them.

A prompt is its exemplars and the query, joined by single newlines; each is its field lines (cue + text) and an answer
line (cue + quote + label word + quote), the query's ending right after its opening quote:

    It starts off a bit slow, but ...        exemplar, field line (a review's cue is empty)
    Emotion: "positive"                      exemplar, answer line
    ...
    Never again.                             query
    Emotion: "                               the model's next token is the answer

A slip is a cue that is the wrong word (MENDED_CUES), a cue that one exemplar has instead of its language's, or spaces
after an answer. Texts of exemplars and rows are data and stay as they are, also the fourth Hindi paws exemplar, whose
two sentences mean the same and are labelled different: no cue mends it.

A label's score is the sum of the next-token probabilities over its candidates: the first tokens with which a model may
begin to write the word. The rule is that of the study's evaluation scripts (Zhang et al. 2024), itself from Wendler et
al. 2024 (arXiv 2402.10588). Both Thai words for positive and negative begin with เชิง, so whatever may begin the one may
begin the other. Words that share a start are told apart after it:

    ... อารมณ์: "เชิง          the prompt, with the start
                   บวก | ลบ    the remainders, whose candidates are scored

Whole words are written after the prompt without the start, closing quote included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jaxalign.data.fields import field, object_of, read_object, text_of, value_of, whole_text
from jaxalign.data.languages import language_of
from jaxalign.data.tasks import TASKS, Task, TaskRow, task_named
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError

Variant = Literal["english", "in_language", "irrelevant"]
"""The words that answer: the English class names, the language's own words, or `ox` and `horse`."""

PromptStyle = Literal["study", "mended"]
"""Whether a prompt keeps the study's slips or mends them."""


@dataclass(frozen=True)
class Exemplar:
    """One answered item of a few-shot prefix.

    overrides: field name or "answer" -> cue that this exemplar has instead of the task's (slips of the study).
    trailing: text after the answer's closing quote (a slip of the study: 13 spaces in English emotion).
    """

    fields: tuple[str, ...]
    label: str
    overrides: Mapping[str, str] = attribute(default_factory=dict)
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
    """class -> label word shown in the exemplars and scored; the irrelevant ones are English, as in the study."""
    if variant not in variants_of(task):
        raise InputError(f"variant: {task.name} has no {variant} labels; choose {' or '.join(variants_of(task))}")
    if variant == "irrelevant":
        return {"positive": "ox", "negative": "horse"}
    return dict(task.label_words[language]) if variant == "in_language" else {name: name for name in task.classes}


def cues_of(task: Task, language: str, style: PromptStyle) -> dict[str, str]:
    """Field name or "answer" -> the text before that field's value."""
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
    asked = [question(task, language, exemplar.fields, exemplar.overrides, style) for exemplar in shown]
    return "\n".join(
        f'{text}{words[exemplar.label]}"{exemplar.trailing}' for text, exemplar in zip(asked, shown, strict=True)
    )


def few_shot_prompt(row: TaskRow, exemplars: Exemplars, variant: Variant, style: PromptStyle = "study") -> str:
    """The whole prompt for one row, ending right after the query's opening answer quote."""
    task = TASKS[row.task]
    prefix = few_shot_prefix(task, row.language, exemplars, variant, style)
    return prefix + "\n" + question(task, row.language, row.fields, style=style)


class Difference(NamedTuple):
    """where: a cue's name where every item of the cell differs, or the exemplar and the place in it."""

    task: str
    language: str
    where: str
    study: str
    mended: str


def differences(exemplars: Exemplars) -> list[Difference]:
    """All texts that the two styles write differently, in the order of the exemplars' cells."""
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
    lines = ["| task | language | where | study | mended |", "| --- | --- | --- | --- | --- |"]
    for *place, study, mended in differences(exemplars):
        texts = [f"`{text.replace(' ', '␣')}`" if text else "nothing" for text in (study, mended)]
        lines.append(f"| {' | '.join([*place, *texts])} |")
    return "\n".join(lines) + (
        "\n\nBeyond the text, for emotion: in-language Thai prompts end with the start of both label words, which the "
        "study\ntokenises apart (with SentencePiece that puts a BOS and a ▁ in mid-sequence) and mended prompts do "
        "not; and only mended\nscoring of `ox` and `horse` counts the first tokens of a byte-level vocabulary.\n"
    )


def read_exemplars(file: Path) -> Exemplars:
    """Exemplars from a JSON file: task -> language -> {"exemplars": [...]}; names beginning with "_" are notes.

    An exemplar has the task's fields ("text" for a review), "label" (a class) and, where it needs them, "overrides"
    and "trailing". An entry may repeat the task's cues as "keywords", but not tell others: prompts have the table's.
    """
    cells = {}
    for name, languages in read_object(file).items():
        if name.startswith("_"):
            continue
        task, where = task_named(name), f"{file}, {name}"
        for language, entry in object_of(languages, where).items():
            code = language_of(language, where).code
            if (name, code) in cells:
                raise InputError(f"{where}: {language!r} and an entry before it are one language; keep one")
            cells[name, code] = _exemplars_of(entry, task, code, f"{where}, {language}")
    return Exemplars(file, cells)


def _exemplars_of(entry: Any, task: Task, language: str, where: str) -> tuple[Exemplar, ...]:
    shown = field(object_of(entry, where), "exemplars", list, where)
    if not shown:
        raise InputError(f"{where}, field 'exemplars': it is empty")
    names = dict(zip(task.fields, task.exemplar_fields, strict=True))
    table = {names.get(name, name): cue for name, cue in task.cues[language].items()}
    if entry.get("keywords", table) != table:
        raise InputError(f"{where}: keywords {entry['keywords']} differ from the task's cues {table}; use overrides")
    return tuple(_exemplar(exemplar, task, f"{where}, exemplar {index}") for index, exemplar in enumerate(shown))


def _exemplar(exemplar: Any, task: Task, where: str) -> Exemplar:
    item, names = object_of(exemplar, where), (*task.exemplar_fields, "label")
    *texts, label = [text_of(item, name, where, "write the exemplar's own") for name in names]
    if label not in task.classes:
        raise InputError(f"{where}, field 'label': {label!r} is none of {', '.join(task.classes)}")
    names = dict(zip((*task.exemplar_fields, "answer"), (*task.fields, "answer"), strict=True))
    overrides = value_of(item.get("overrides", {}), dict, f"{where}, field 'overrides'")
    if not overrides.keys() <= names.keys():
        raise InputError(f"{where}, field 'overrides': an object of {', '.join(sorted(names))} is needed")

    def slip(text: Any, place: str) -> str:
        return whole_text(value_of(text, str, f"{where}, {place}"), f"{where}, {place}")

    return Exemplar(
        fields=tuple(texts),
        label=label,
        overrides={names[name]: slip(cue, "overrides") for name, cue in overrides.items()},
        trailing=slip(item.get("trailing", ""), "field 'trailing'"),
    )


# A cue is mended where it is the wrong word: another sense of the English one, a verb where the answer is meant, a word
# of another language. A cue that is one fair choice among several stays, and so does one for which no certain word was
# found. Left so: Swahili `Nguzo: ` (a pillar, also said for a premise); Hindi `आधार: `, Thai `ฐาน: ` and Bengali
# `ভিত্তি: ` (the basis of a conclusion), Russian `Предпосылка: ` and Bulgarian `Предпоставка: ` (a presupposition, also
# a premise); Slovene `Stavek 1: ` (a clause, in common speech a sentence).
MENDED_CUES: Mapping[tuple[str, str, str], str] = {
    # (task, language, field name or "answer"): cue
    ("snli", "fr", "answer"): "Réponse: ",  # répondre: to answer
    ("snli", "ru", "answer"): "Ответ: ",  # отвечать: to answer
    ("snli", "sl", "premise"): "Premisa: ",  # predpogoj: a prerequisite
    ("snli", "sl", "answer"): "Odgovor: ",  # odgovori: answer! or answers
    ("snli", "ms", "answer"): "Jawapan: ",  # jawab: to answer
    ("snli", "is", "answer"): "Svar: ",  # svaraðu: answer!
    ("snli", "sw", "hypothesis"): "Nadharia tete: ",  # left in English
    ("paws", "fr", "answer"): "Réponse: ",
    ("paws", "es", "sentence1"): "Oración 1: ",  # sentencia: a judge's sentence
    ("paws", "es", "sentence2"): "Oración 2: ",
    ("paws", "ru", "sentence1"): "Предложение 1: ",  # приговор: a judge's sentence
    ("paws", "ru", "sentence2"): "Предложение 2: ",
    ("paws", "ru", "answer"): "Ответ: ",  # ответить: to answer
    ("paws", "sl", "answer"): "Odgovor: ",
    ("paws", "ms", "answer"): "Jawapan: ",
    ("paws", "is", "answer"): "Svar: ",
}


def candidate_ids(word: str, tokenizer: Tokenizer, first_tokens: bool = True) -> list[int]:
    """Sorted, distinct token ids that may begin `word` (non-empty); possibly none, if the vocabulary lacks it.

    Every prefix of the word (in code points), bare or after ▁, that is a vocabulary entry by that exact spelling; for a
    word that begins outside ASCII also the byte piece <0xHH> of its first UTF-8 byte; but no control token, which is no
    text. A byte-level vocabulary spells neither form, so there the first token of each prefix is taken as well, unless
    `first_tokens` is False.
    """
    prefixes = [word[:length] for length in range(1, len(word) + 1)]
    pieces = [*prefixes, *("▁" + prefix for prefix in prefixes)]
    if not word[0].isascii():
        pieces.append(f"<0x{word[0].encode('utf-8')[0]:02X}>")
    found = {tokenizer.vocabulary[piece] for piece in pieces if piece in tokenizer.vocabulary}
    if first_tokens and tokenizer.is_byte_level:
        found |= {id for prefix in prefixes for id in tokenizer.ids(prefix)[:1]}
    return sorted(found - tokenizer.control_ids)


def label_candidates(words: Mapping[str, str], tokenizer: Tokenizer, first_tokens: bool = True) -> dict[str, list[int]]:
    return {name: candidate_ids(word, tokenizer, first_tokens) for name, word in words.items()}


def collisions(candidates: Mapping[str, list[int]]) -> dict[tuple[str, str], list[int]]:
    """Pairs of classes that share candidates -> the shared ids, sorted; pairs that share none are left out.

    A shared id adds the same mass to both labels: it cancels in the prediction but inflates both scores.
    """
    shared = {
        (first, second): sorted(set(candidates[first]) & set(candidates[second]))
        for first, second in combinations(candidates, 2)
    }
    return {pair: ids for pair, ids in shared.items() if ids}


@dataclass(frozen=True)
class Continuation:
    """A label word written after a prompt.

    ids: tokens of prompt, word and closing quote as one text, with a BOS where the tokenizer adds one.
    scored_from: how many of them the tokenised prompt begins with as well; the log-probabilities of the others, each
      given all before it, are the word's score. A tokenizer that merges the opening quote with the word's first letter
      makes this one less than the prompt's length.
    """

    ids: list[int]
    scored_from: int


@dataclass(frozen=True)
class LabelQuery:
    """prompt: token ids after which the next token gives the label masses.

    words: one continuation per class, in the task's order of classes; empty where only masses are wanted.
    """

    prompt: list[int]
    words: tuple[Continuation, ...]


def shared_start(task: Task, language: str, variant: Variant) -> str:
    """What all label words begin with: เชิง for Thai in-language emotion, "" everywhere else."""
    words = label_words(task, language, variant).values()
    return reduce(lambda start, word: start[: common_length(start, word)], words)


def scored_candidates(
    task: Task, language: str, tokenizer: Tokenizer, variant: Variant, style: PromptStyle
) -> dict[str, list[int]]:
    """class -> candidate ids after the prompt of a `LabelQuery`, of what remains of the word after the shared start.

    The study's script for irrelevant words does not take the first tokens that a byte-level vocabulary needs.
    """
    start = shared_start(task, language, variant)
    words = label_words(task, language, variant)
    remainders = {name: word.removeprefix(start) for name, word in words.items()}
    return label_candidates(remainders, tokenizer, first_tokens=not (style == "study" and variant == "irrelevant"))


def label_queries(
    rows: Sequence[TaskRow], exemplars: Exemplars, tokenizer: Tokenizer, variant: Variant, style: PromptStyle
) -> list[LabelQuery]:
    """The query of each row, in their order; a row's query does not depend on the others."""
    texts = [few_shot_prompt(row, exemplars, variant, style) for row in rows]
    words = [list(label_words(TASKS[row.task], row.language, variant).values()) for row in rows]
    tokenised = tokenizer.batch_prompt_ids(texts)
    answered = [text + word + '"' for text, own in zip(texts, words, strict=True) for word in own]
    written = iter(tokenizer.batch_prompt_ids(answered))
    queries = []
    for row, text, ids, own in zip(rows, texts, tokenised, words, strict=True):
        continuations = [Continuation(word, common_length(ids, word)) for word in (next(written) for _ in own)]
        prompt = ids
        if start := shared_start(TASKS[row.task], row.language, variant):
            # The study appends what an ordinary call makes of the start alone: with SentencePiece a BOS and a ▁ in
            # mid-sequence.
            prompt = ids + tokenizer.prompt_ids(start) if style == "study" else tokenizer.prompt_ids(text + start)
        queries.append(LabelQuery(prompt, tuple(continuations)))
    return queries


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    if second[: len(first)] == first:  # nearly always, and much quicker than one by one
        return len(first)
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return len(second)
