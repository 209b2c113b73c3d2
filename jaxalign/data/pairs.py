"""Question pairs: a question in one language as the prompt, the same question in another as the response.

Here a row of a file or a data set becomes a pair; `pair_files` and `data_sets` find the rows.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jaxalign.data.fields import language_code_of, object_of, text_of
from jaxalign.data.languages import LANGUAGES, language_of
from jaxalign.errors import InputError, gather

Instruction = Literal["after", "before"]
ANSWERED_FIELDS = (("question", "answer"), ("query", "response"))
"""Names of a question's field and of its answer's."""
PARALLEL_FIELDS = ("source", "target", "source_language", "target_language")
RENDERED_FIELDS = ("prompt", "response", "source_language", "target_language")


@dataclass(frozen=True)
class QuestionPair:
    """prompt: the user turn, translation instruction included. response: the question in the target language.

    Languages are codes.
    """

    prompt: str
    response: str
    source_language: str
    target_language: str


@dataclass(frozen=True)
class Rendering:
    """How pairs are made of bare texts.

    instruction: where it stands. sources, target: codes of the languages that are taken from a data set which has
    several; files tell theirs in every row.
    """

    instruction: Instruction = "after"
    sources: tuple[str, ...] = ("zh", "de")
    target: str = "en"


# QAlign took its names from ISO 639-3, where Swahili is this; its nine other languages have the plain names.
_QALIGN_NAMES = {"sw": "Swahili (macrolanguage)"}
_AFTER_LINE = re.compile(r"^Translate the input from (.+?) to (.+?):$", re.MULTILINE)
_BEFORE_START = re.compile(r"Translate the following sentences from (.+?) to (.+?)\. ")


def with_instruction(text: str, source: str, target: str, instruction: Instruction) -> str:
    """The prompt for a source text, with the instruction after it (the study) or before it (QAlign, arXiv 2401.07817).

    source and target are language codes.
    """
    if instruction == "after":
        return f"{text}\nTranslate the input from {LANGUAGES[source].name} to {LANGUAGES[target].name}:\n"
    if instruction == "before":
        names = [_QALIGN_NAMES.get(code, LANGUAGES[code].name) for code in (source, target)]
        return f"Translate the following sentences from {names[0]} to {names[1]}. {text}"
    raise InputError(f"instruction: {instruction!r} is none of after, before")


def instruction_languages(prompt: str, where: str) -> tuple[str, str] | None:
    """The (source, target) codes that a prompt's instruction names; None if it has no instruction.

    A language that is not the study's raises InputError that begins with `where`.
    """
    lines = _AFTER_LINE.findall(prompt)
    start = _BEFORE_START.match(prompt)
    if not lines and not start:
        return None
    # A text may quote an instruction; the study's own is the last line that reads like one.
    source, target = lines[-1] if lines or start is None else start.groups()
    return language_of(source, where).code, language_of(target, where).code


def without_instruction(prompt: str) -> str:
    """The source text of a prompt that `with_instruction` made; any other prompt as it is."""
    lines, start = list(_AFTER_LINE.finditer(prompt)), _BEFORE_START.match(prompt)
    if lines and not prompt[lines[-1].end() :].strip():
        return prompt[: lines[-1].start()].removesuffix("\n")
    return prompt[start.end() :] if start else prompt


def languages_of(pairs: Iterable[QuestionPair], earlier: Iterable[str] = ()) -> list[str]:
    """Codes of every source and target language, in the study's order: the languages seen by what is tuned on them.

    earlier: codes of what it was tuned on before.
    """
    seen = {code for pair in pairs for code in (pair.source_language, pair.target_language)}.union(earlier)
    return [code for code in LANGUAGES if code in seen]


def study_pair(item: Any, where: str) -> QuestionPair:
    """The pair of a row with the study's fields input and answer, or of an answered question.

    The languages are read from the instruction in the input, or from fields source_language and target_language.
    """
    item = object_of(item, where)
    if (answered := answered_question(item, where)) is not None:
        return answered

    def prompt_and_languages() -> tuple[str, str, str]:
        prompt = text_of(item, "input", where)
        return prompt, *_study_languages(item, prompt, where)

    reads: list[Any] = [prompt_and_languages, partial(text_of, item, "answer", where)]
    (prompt, source, target), response = gather(reads)
    return QuestionPair(prompt, response, source, target)


def _study_languages(item: Mapping[str, Any], prompt: str, where: str) -> tuple[str, str]:
    told = instruction_languages(prompt, f"{where}, field 'input'")
    if told and "source_language" not in item and "target_language" not in item:
        return told
    if not told and "source_language" not in item:
        raise InputError(
            f"{where}: the input has no line 'Translate the input from X to Y:' and the row no source_language and "
            "target_language; give one of the two"
        )
    source, target = gather(
        partial(language_code_of, item, name, where) for name in ("source_language", "target_language")
    )
    if told and told != (source, target):
        raise InputError(f"{where}: the input's instruction says {told}, the language fields say {(source, target)}")
    return source, target


def answered_question(item: Mapping[str, Any], where: str) -> QuestionPair | None:
    """An English question as the prompt, with no instruction, and its answer as the response; None if it is neither."""
    for names in ANSWERED_FIELDS:
        if names[0] in item:
            prompt, response = gather(partial(text_of, item, name, where) for name in names)
            return QuestionPair(prompt, response, "en", "en")
    return None


def parallel_pair(item: Any, instruction: Instruction, where: str) -> QuestionPair:
    """The pair of one row with the fields source, target, source_language and target_language."""
    text, response, source, target = _four_fields(item, PARALLEL_FIELDS, where)
    return QuestionPair(with_instruction(text, source, target, instruction), response, source, target)


def rendered_pair(item: Any, where: str) -> QuestionPair:
    """The pair of one row with the fields of QuestionPair."""
    return QuestionPair(*_four_fields(item, RENDERED_FIELDS, where))


def _four_fields(item: Any, names: tuple[str, ...], where: str) -> list[str]:
    """Two texts and two language codes."""
    item = object_of(item, where)
    reads = (text_of, text_of, language_code_of, language_code_of)
    return gather(partial(read, item, name, where) for read, name in zip(reads, names, strict=True))
