"""Question pairs: a question in one language as the prompt, the same question in another as the response.

Read by file suffix:

    .json         the study's format: an array of {"input", "answer"}, the instruction already in the input
    .jsonl        one object a line: source, target, source_language, target_language
    .csv .tsv     a header with those four names; quoted as spreadsheets quote, newlines inside quotes kept
    .de .sw ...   QAlign's format: line i of DIR/train.de and of DIR/train.en is the same question

The objects of .json and .jsonl may also be English questions with their answers, which are tuned on as they are:
{"question", "answer"} (GSM8K) or {"query", "response"} (MetaMathQA).

A folder is a prepared TFDS data set with the fields of QuestionPair (see question_translation), or all the files of
pairs in it.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.data.languages import LANGUAGES, Language, language_named, language_of, nearest
from jaxalign.errors import InputError
from jaxalign.files import read_json, read_json_lines, read_text

Instruction = Literal["after", "before"]
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
"""Of files of pairs, besides the language codes of aligned text."""
ANSWERED_FIELDS = (("question", "answer"), ("query", "response"))
"""Names of a question's field and of its answer's."""


@dataclass(frozen=True)
class QuestionPair:
    """prompt: the user turn, translation instruction included. response: the question in the target language.

    Languages are codes.
    """

    prompt: str
    response: str
    source_language: str
    target_language: str


# QAlign took its names from ISO 639-3, where Swahili is this; its nine other languages have the plain names.
_QALIGN_NAMES = {"sw": "Swahili (macrolanguage)"}
_QALIGN_CODES = {name: code for code, name in _QALIGN_NAMES.items()}
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
    return _named(source, where).code, _named(target, where).code


def _named(name: str, where: str) -> Language:
    return LANGUAGES[_QALIGN_CODES[name]] if name in _QALIGN_CODES else language_named(name, where)


def read_pairs(paths: Sequence[Path], instruction: Instruction = "after") -> list[QuestionPair]:
    """All pairs of the files, in file order, texts unchanged.

    instruction: how prompts are rendered for files that hold bare texts; the study's JSON has it written out.
    Bad files and rows raise InputError: unknown language, missing or empty field, unequal line counts, no pair at all.
    """
    pairs = []
    for path in (file for named in paths for file in pair_files(named)):
        read = list(_reader(path)(path, instruction))
        if not read:
            raise InputError(f"{path}: no question pairs there")
        pairs += read
    return pairs


def languages_of(pairs: Iterable[QuestionPair], earlier: Iterable[str] = ()) -> list[str]:
    """Codes of every source and target language, in the study's order: the languages seen by what is tuned on them.

    earlier: codes of what it was tuned on before.
    """
    seen = {code for pair in pairs for code in (pair.source_language, pair.target_language)}.union(earlier)
    return [code for code in LANGUAGES if code in seen]


def pair_files(path: Path) -> list[Path]:
    """The path itself, or, of a folder that is no TFDS data set, the files of pairs in it in order of name.

    Of aligned text files the English side is a target, so the other names the pair.
    """
    if not path.is_dir() or (path / "dataset_info.json").is_file():
        return [path]
    suffixes = {*FILE_SUFFIXES, *(f".{code}" for code in LANGUAGES if code != "en")}
    files = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    if not files:
        raise InputError(f"{path}: neither files of pairs ({', '.join(FILE_SUFFIXES)}, train.de) nor a TFDS data set")
    return files


Reader = Callable[[Path, Instruction], Iterator[QuestionPair]]


def _reader(path: Path) -> Reader:
    readers: dict[str, Reader] = {
        ".json": _read_study_json,
        ".jsonl": _read_json_lines,
        ".csv": _read_table,
        ".tsv": _read_table,
    }
    if path.is_dir():
        return _read_data_set
    if path.suffix in readers:
        return readers[path.suffix]
    if path.suffix[1:] in LANGUAGES:
        return _read_aligned
    known = [*readers, *(f".{code}" for code in LANGUAGES)]
    raise InputError(
        f"{path}: unknown suffix {path.suffix!r}; did you mean {nearest(path.suffix, known)!r}? Read are "
        f"{', '.join(readers)} and language codes (train.de)"
    )


def _read_study_json(path: Path, instruction: Instruction) -> Iterator[QuestionPair]:
    document = read_json(path)
    if not isinstance(document, list):
        raise InputError(f"{path}: an array of objects with input and answer is needed; one object a line is .jsonl")
    for row, item in enumerate(document):
        where = f"{path}, row {row}"
        if (answered := _answered_question(item, where)) is not None:
            yield answered
            continue
        prompt, response = _text(item, "input", where), _text(item, "answer", where)
        source, target = _study_languages(item, prompt, where)
        yield QuestionPair(prompt, response, source, target)


def _study_languages(item: Mapping[str, Any], prompt: str, where: str) -> tuple[str, str]:
    told = instruction_languages(prompt, f"{where}, field 'input'")
    if told and "source_language" not in item and "target_language" not in item:
        return told
    if not told and "source_language" not in item:
        raise InputError(
            f"{where}: the input has no line 'Translate the input from X to Y:' and the row no source_language and "
            "target_language; give one of the two"
        )
    given = _language(item, "source_language", where), _language(item, "target_language", where)
    if told and told != given:
        raise InputError(f"{where}: the input's instruction says {told}, the language fields say {given}")
    return given


def _read_json_lines(path: Path, instruction: Instruction) -> Iterator[QuestionPair]:
    for row, item in read_json_lines(path):
        where = f"{path}, row {row}"
        yield _answered_question(item, where) or _parallel_pair(item, instruction, where)


def _read_table(path: Path, instruction: Instruction) -> Iterator[QuestionPair]:
    # Spreadsheets write a byte-order mark; it is no part of the first column's name.
    text = read_text(path).removeprefix("\ufeff")
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header, row = None, -1
    try:
        for cells in table:
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            row += 1
            if len(cells) != len(header):
                raise InputError(f"{path}, row {row}: {len(cells)} columns, but the header has {len(header)}")
            yield _parallel_pair(dict(zip(header, cells, strict=True)), instruction, f"{path}, row {row}")
    except csv.Error as error:
        raise InputError(
            f"{path}, row {row + 1} (line {table.line_num}): {error}; quotes are doubled inside quotes"
        ) from None


def _answered_question(item: Any, where: str) -> QuestionPair | None:
    """An English question as the prompt, with no instruction, and its answer as the response; None if it is neither."""
    for question, answer in ANSWERED_FIELDS:
        if isinstance(item, dict) and question in item:
            return QuestionPair(_text(item, question, where), _text(item, answer, where), "en", "en")
    return None


def _parallel_pair(item: Any, instruction: Instruction, where: str) -> QuestionPair:
    """The pair of one row with the fields source, target, source_language and target_language."""
    texts = _text(item, "source", where), _text(item, "target", where)
    source, target = _language(item, "source_language", where), _language(item, "target_language", where)
    return QuestionPair(with_instruction(texts[0], source, target, instruction), texts[1], source, target)


def _read_aligned(path: Path, instruction: Instruction) -> Iterator[QuestionPair]:
    """Line-aligned text: `path` is the source side, its sibling .en (or else the only other one) the target."""
    sibling = _target_side(path)
    source, target = path.suffix[1:], sibling.suffix[1:]
    sources, targets = _lines(path), _lines(sibling)
    if len(sources) != len(targets):
        raise InputError(f"{path}: {len(sources)} lines, but {sibling} has {len(targets)}; line i must match line i")
    for row, (text, response) in enumerate(zip(sources, targets, strict=True)):
        for side, value in ((path, text), (sibling, response)):
            if not value.strip():
                raise InputError(f"{side}, row {row}: empty line; leave the line out of both sides")
        yield QuestionPair(with_instruction(text, source, target, instruction), response, source, target)


def _target_side(path: Path) -> Path:
    siblings = [path.with_suffix(f".{code}") for code in LANGUAGES if f".{code}" != path.suffix]
    found = [sibling for sibling in siblings if sibling.is_file()]
    english = path.with_suffix(".en")
    if english in found:
        return english
    if len(found) == 1:
        return found[0]
    names = " and ".join(sibling.name for sibling in found) or "none"
    raise InputError(
        f"{path}: its target side must lie beside it, as {english.name} or as the only other; found {names}"
    )


def _lines(path: Path) -> list[str]:
    """Lines ended by \\n only: str.splitlines would also break at U+2028 and U+0085, which occur inside texts."""
    return read_text(path).removesuffix("\n").split("\n")


def _read_data_set(path: Path, instruction: Instruction) -> Iterator[QuestionPair]:
    """The train split of a TFDS data set, whose prompts are rendered already."""
    # Slow to import, and only these folders need it.
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(path)
    for row, item in enumerate(builder.as_data_source("train")):
        where = f"{path}, row {row}"
        texts = {name: value.decode("utf-8") for name, value in item.items()}
        prompt, response = _text(texts, "prompt", where), _text(texts, "response", where)
        source, target = _language(texts, "source_language", where), _language(texts, "target_language", where)
        yield QuestionPair(prompt, response, source, target)


def _text(item: Any, name: str, where: str) -> str:
    if not isinstance(item, dict):
        raise InputError(f"{where}: an object is needed")
    if name not in item:
        raise InputError(f"{where}: no field {name!r}; the row has {', '.join(map(repr, item)) or 'none'}")
    if not isinstance(item[name], str):
        raise InputError(f"{where}, field {name!r}: text is needed")
    if not item[name].strip():
        raise InputError(f"{where}, field {name!r}: empty; fill it in or leave the row out")
    return item[name]


def _language(item: Mapping[str, Any], name: str, where: str) -> str:
    return language_of(_text(item, name, where), f"{where}, field {name!r}").code
