"""Question pairs: a question in one language as the prompt, the same question in another as the response.

Here a row of any source becomes a pair, by the names of its fields; `pair_files` and `data_sets` find the rows:

    source, target                       two texts without instruction
    prompt, response                     as they are
    input, answer                        the study's: as they are
    question, answer or query, response  an English question and its answer (GSM8K, MetaMathQA), as they are
    instruction, input, output           Alpaca's: the prompt is instruction and input, each on lines of its own
    conversations or messages            ShareGPT's and OpenAI's, of one question and one answer
    translation                          {"de": text, "en": text}, without instruction

source_language and target_language are codes. Prompts that are taken as they are may name them in their instruction.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, Literal

from jaxalign.data.fields import is_visible, kind, language_code_of, object_of, text_of
from jaxalign.data.languages import LANGUAGES, code_of, known_language, language_of
from jaxalign.errors import InputError, gather

Instruction = Literal["after", "before"]
LANGUAGE_FIELDS = ("source_language", "target_language")
_PARALLEL, _RENDERED = ("source", "target"), ("prompt", "response")
_ANSWERED = (("question", "answer"), ("query", "response"))
_CHATS = (("conversations",), ("messages",))
_TRANSLATION = ("translation",)
READINGS = (_PARALLEL, _RENDERED, ("input", "answer"), *_ANSWERED, ("instruction", "output"), *_CHATS, _TRANSLATION)
"""The fields that must be there for each way to read a row."""
_PART_OF_A_PROMPT = ("instruction", "system", "history", "tools", "images", "videos", "audios", "kto_tag")
"""Fields of LLaMA-Factory's rows that change what is asked, or how the answer is meant."""
_KNOWN = {name for names in (*READINGS, LANGUAGE_FIELDS, _PART_OF_A_PROMPT) for name in names}
_LANGUAGE_FIELD = re.compile(
    r"(?:(source|src)[ _-]?|(target|tgt|trg)[ _-]?|.*[ _-])?(?:lang(?:uage)?|locale)(?:[ _-]?(?:code|id|name))?",
    re.IGNORECASE,
)
"""A name that says that its field tells a language: of the source, of the target, or of one of them."""
_ROLES = (("human", "user"), ("gpt", "assistant"))


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
_AFTER_LINE = re.compile(r"^Translate the input from (.+?) to (.+?):[^\S\n]*$", re.MULTILINE)
_BEFORE_START = re.compile(r"Translate the following sentences from (.+?) to (.+?)\.\s")


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


def pair_of(row: Any, rendering: Rendering, where: str) -> QuestionPair:
    """The pair of one row. `where` begins the message of each InputError.

    The names of the fields that are filled in decide; two texts with their languages (source, target; prompt, response)
    come before all else. A row that can be read in two ways is refused, as is a field that contradicts the reading: any
    that tells another language than the pair's (English for an answered question); what would belong to the prompt.
    Other fields are passed over.
    """
    row = object_of(row, where)
    reading = _reading_of(row, where)
    pair = _pair_read(row, reading, rendering, where)
    _check_languages(row, reading, pair, where)
    return pair


def _pair_read(row: Mapping[str, Any], reading: tuple[str, ...], rendering: Rendering, where: str) -> QuestionPair:
    if reading == _TRANSLATION:
        row, reading = _into(rendering.target, row["translation"], f"{where}, field 'translation'"), _PARALLEL
    if reading == _PARALLEL:
        text, response, source, target = gather(
            partial(text_of if name in _PARALLEL else language_code_of, row, name, where)
            for name in (*_PARALLEL, *LANGUAGE_FIELDS)
        )
        return QuestionPair(with_instruction(text, source, target, rendering.instruction), response, source, target)

    def side(index: int) -> str:
        return _turn(row, reading[0], index, where) if reading in _CHATS else text_of(row, reading[index], where)

    def prompt_and_languages() -> tuple[str, str, str]:
        prompt = side(0)
        if reading[0] == "instruction" and _is_filled(row.get("input")):
            prompt = f"{prompt}\n{text_of(row, 'input', where)}"
        return prompt, *_languages(row, prompt, reading, where)

    reads: list[Any] = [prompt_and_languages, partial(side, 1)]
    (prompt, source, target), response = gather(reads)
    return QuestionPair(prompt, response, source, target)


def parallel_row(text: str, response: str, source: str, target: str) -> dict[str, str]:
    """The row of two texts in languages of these codes."""
    return dict(zip((*_PARALLEL, *LANGUAGE_FIELDS), (text, response, source, target), strict=True))


def _into(target: str, texts: Any, where: str) -> dict[str, str]:
    """The row of a translation into the target. texts: in each of two languages."""
    codes = {language_of(name, where).code: name for name in object_of(texts, where)}
    sources = [code for code in codes if code != target]
    if len(texts) != 2 or len(sources) != 1 or target not in codes:
        raise InputError(
            f"{where}: a text in {target} (config.build.target) and one in another language are needed, found "
            f"{', '.join(map(str, texts)) or 'none'}"
        )
    return parallel_row(texts[codes[sources[0]]], texts[codes[target]], sources[0], target)


def makes_pairs(names: Iterable[str]) -> bool:
    """Whether a pair can be read from fields of these names."""
    return any({*names}.issuperset(reading) for reading in READINGS)


def not_pairs(names: Iterable[str], where: str) -> InputError:
    """What to say of fields that no pair can be read from."""
    return InputError(
        f"{where} of {', '.join(sorted(map(str, names))) or 'no fields'}; pairs are read from "
        f"{'; '.join(', '.join(reading) for reading in READINGS)}; with source_language and target_language"
    )


def _reading_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The fields that prompt and response are read from; if none are whole, those of which most are there."""
    filled = frozenset(name for name in _known_fields(tuple(row)) if _is_filled(row[name]))
    whole = _whole_readings(filled)
    if len(whole) > 1:
        raise InputError(
            f"{where}: the pair may be {' and '.join(whole[0])}, or {' and '.join(whole[1])}; leave one of the two out"
        )
    if not whole:
        reading = max(READINGS, key=lambda names: (len(filled & {*names}), len(row.keys() & {*names})))
        if not row.keys() & {*reading}:
            raise not_pairs(row, f"{where}: a row")
        return reading
    added = [name for name in _PART_OF_A_PROMPT if name in filled and name not in whole[0]]
    if added and whole[0] != _PARALLEL:
        raise InputError(
            f"{where}: the pair is {' and '.join(whole[0])}, but field {added[0]!r} changes what is asked; write it "
            f"into {whole[0][0]!r}, or leave it out of the row"
        )
    return whole[0]


@lru_cache(maxsize=1000)
def _known_fields(names: tuple[Any, ...]) -> list[Any]:
    return [name for name in names if name in _KNOWN]


@cache
def _whole_readings(filled: frozenset[str]) -> list[tuple[str, ...]]:
    whole = [reading for reading in READINGS if filled.issuperset(reading)]
    if filled.issuperset(LANGUAGE_FIELDS):
        return [reading for reading in whole if reading in (_PARALLEL, _RENDERED)] or whole
    return whole


def _is_filled(value: Any) -> bool:
    """Rows of tables and data sets have all fields, and nothing in those that are not theirs."""
    return is_visible(value) if isinstance(value, str) else bool(value) or not isinstance(value, list | dict | None)


def _turn(row: Mapping[str, Any], name: str, index: int, where: str) -> str:
    """What is said first, or in answer, in a conversation of one question. An empty turn of system is passed over."""
    turns, where = row[name], f"{where}, field {name!r}"
    if not isinstance(turns, list):
        raise InputError(f"{where}: an array of turns is needed, found {kind(turns)}")
    said = []
    for number, turn in enumerate(turns):
        place = f"{where}, row {number}"
        role, text = (
            _one_of(object_of(turn, place), names, place) for names in (("role", "from"), ("content", "value"))
        )
        if turn.get(role) != "system" or _is_filled(turn.get(text)):
            said.append((turn.get(role), partial(text_of, turn, text, place)))
    roles = [role for role, _ in said]
    if len(said) != 2 or not all(str(role).lower() in names for role, names in zip(roles, _ROLES, strict=True)):
        raise InputError(
            f"{where}: a pair is one turn of human or user and one of gpt or assistant, found {roles}; write longer "
            "ones as input and answer"
        )
    return said[index][1]()


def _one_of(turn: Mapping[str, Any], names: tuple[str, str], where: str) -> str:
    """The name under which a turn has what may stand under one of two."""
    filled = [name for name in names if _is_filled(turn.get(name))]
    if len(filled) > 1:
        raise InputError(f"{where}: fields {' and '.join(map(repr, filled))} are two names of one thing; leave one out")
    return next(iter(filled), names[0] if names[0] in turn else names[1])


def _languages(row: Mapping[str, Any], prompt: str, reading: tuple[str, ...], where: str) -> tuple[str, str]:
    """The languages of a prompt that is taken as it is and of its response, which all that tells them must agree on."""
    told = instruction_languages(prompt, f"{where}, field {reading[0]!r}")
    if reading in _ANSWERED:
        if told not in (None, ("en", "en")):
            raise _not_english(reading, f"its instruction says {told}", where)
        return "en", "en"
    if not any(_is_filled(row.get(name)) for name in LANGUAGE_FIELDS):
        if told:
            return told
        raise InputError(
            f"{where}: the {reading[0]} has no line 'Translate the input from X to Y:' and the row no source_language "
            "and target_language; give one of the two"
        )
    source, target = gather(partial(language_code_of, row, name, where) for name in LANGUAGE_FIELDS)
    if told and told != (source, target):
        raise InputError(
            f"{where}: the {reading[0]}'s instruction says {told}, the language fields say {(source, target)}"
        )
    return source, target


@lru_cache(maxsize=1000)
def _language_fields(names: tuple[Any, ...]) -> list[tuple[Any, re.Match[str]]]:
    """Those of a row's fields that tell a language; groups 1 and 2 say of which side."""
    return [(name, match) for name in names if (match := _LANGUAGE_FIELD.fullmatch(str(name)))]


def _check_languages(row: Mapping[str, Any], reading: tuple[str, ...], pair: QuestionPair, where: str) -> None:
    """Refuses a row of which a field tells another language than the pair's.

    Where a field does not tell of which side, as `language`, it may be either's, and for a pair that tells its own
    languages also what is none, as "de-en".
    """
    source, target, wrong = pair.source_language, pair.target_language, []
    for name, field in _language_fields(tuple(row)):
        sides = [source] if field[1] else [target] if field[2] else [source, target]
        if row[name] in sides or not _is_filled(row[name]):
            continue
        code = code_of(str(row[name]))
        told = field[1] or field[2] or reading in _ANSWERED or known_language(code)
        if told and code not in sides:
            wrong.append(f"{name} is {code}")
    if wrong and reading in _ANSWERED:
        raise _not_english(reading, ", ".join(wrong), where)
    if wrong:
        raise InputError(
            f"{where}: the row is read as {source} into {target}, but {', '.join(wrong)}; mend the field, or "
            "leave it out of the row"
        )


def _not_english(reading: tuple[str, ...], said: str, where: str) -> InputError:
    return InputError(
        f"{where}: {' and '.join(reading)} are an English question and its answer, but {said}; a translation has "
        "source and target, or its instruction in input and its response in answer"
    )
