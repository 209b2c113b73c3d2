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

Files and folders of question pairs, read by suffix:

    .json .jsonl  an array of objects (the study's format), or one object a line; their fields as `pairs` says
    .csv          a header with the names of fields; quoted as spreadsheets quote, newlines inside quotes kept
    .tsv          the same, or, as corpora have it, a row a line, where a quotation mark is a character like others
    .de .sw ...   QAlign's format: line i of DIR/train.de and of DIR/train.en is the same question

Which kind a .tsv is, its quotation marks say. They are a spreadsheet's if it could have written every row so (cells
that have one are quoted as a whole, with the marks inside doubled) and some were written so for a reason: doubled
marks, a tab or line end inside a cell, or that the header or all rows below it are quoted. Otherwise they are text.
Where rows of both kinds meet, or where just the cells with a comma are quoted, as Excel does, the file is refused.

A folder is a prepared data set of TFDS or of Hugging Face (see data_sets), or all the files of pairs in it.

Question pairs of prepared data sets: folders that TFDS or Hugging Face `datasets` wrote.

Of TFDS (ArrayRecord files, no TensorFlow), by features; rows of the split `train`:

    Translation (opus, wmt)                              the other language's text, and the target's
    translations (ted_multi_translate)                   each source language's text, and the target's, where both are
    id, question (xquad)                                 split `test` of DIR/de/3.0.0, joined by id with DIR/en/3.0.0

    others                                               whatever `pairs` reads of rows

Of Hugging Face, saved by `save_to_disk`, by columns: `translation`, a text per language, or whatever `pairs` reads.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxalign.data.fields import Rows, is_visible, json_rows, numbered, object_of, text_of, value_of
from jaxalign.data.languages import LANGUAGES, code_of, did_you_mean, known_language, language_of
from jaxalign.errors import InputError, gather
from jaxalign.files import lines_of, read_json, read_text

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
            partial(text_of if name in _PARALLEL else _language_code, row, name, where)
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


def _language_code(row: Mapping[str, Any], name: str, where: str) -> str:
    return language_of(text_of(row, name, where), f"{where}, field {name!r}").code


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
    said = []
    for number, turn in enumerate(value_of(turns, list, where)):
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
    source, target = gather(partial(_language_code, row, name, where) for name in LANGUAGE_FIELDS)
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


FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
"""Of files of pairs, besides the language codes of aligned text."""


def read_pairs(paths: Sequence[Path], rendering: Rendering = Rendering()) -> list[QuestionPair]:
    """All pairs of the files, in file order, texts unchanged.

    Bad files and rows raise InputError: unknown language, missing or empty field, unequal line counts, no pair at all.
    """
    return [pair for path in paths for file in pair_files(path) for pair in read_pair_file(file, rendering)]


def read_pair_file(path: Path, rendering: Rendering) -> list[QuestionPair]:
    """The pairs of one file or data set; InputErrors with every bad row and field of it."""
    pairs = gather(partial(pair_of, row, rendering, where) for where, row in _rows_of(path, rendering))
    if not pairs:
        raise InputError(f"{path}: no question pairs there")
    return pairs


def pair_files(path: Path) -> list[Path]:
    """The path itself, or, of a folder that is no data set, the files of pairs in it in order of name.

    Of aligned text files the English side is a target, so the other names the pair.
    """
    if not path.is_dir() or is_data_set(path):
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in FILE_SUFFIXES or _side(file) not in (None, "en"))
    if not files:
        raise InputError(
            f"{path}: neither files of pairs ({', '.join(FILE_SUFFIXES)}, train.de) nor a data set of TFDS or Hugging "
            "Face"
        )
    return files


def _rows_of(path: Path, rendering: Rendering) -> Rows:
    readers = {".json": json_rows, ".jsonl": json_rows, ".csv": _csv_rows, ".tsv": _tsv_rows}
    if path.is_dir():
        return read_data_set(path, rendering)
    if path.suffix in readers:
        return readers[path.suffix](path)
    if _side(path):
        return _aligned_rows(path)
    if not path.suffix and not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(
        f"{path}: unknown suffix {path.suffix!r}{did_you_mean(path.suffix, readers)}: {', '.join(readers)} and the "
        "study's languages (train.de, train.deu_Latn)"
    )


def _csv_rows(path: Path) -> Rows:
    return _table_rows(path, _quoted_rows("\n".join(lines_of(read_text(path))), ","))


def _tsv_rows(path: Path) -> Rows:
    """As the top of this file says."""
    lines = lines_of(read_text(path))
    text, plain = "\n".join(lines), [line.split("\t") for line in lines if line]
    doubled = _DOUBLED.search(text) or _QUOTED_HEADER.search(lines[0])
    try:
        quoted = list(_quoted_rows(text, "\t"))
    except _NotQuoted as error:
        if doubled:
            raise InputError(
                f"{path}: quotation marks are text in line {error}, but a spreadsheet's around "
                f"{doubled[0].strip()[:60]!r}; {_EITHER}"
            ) from None
        return _table_rows(path, iter(plain), f"; line {error} shows that quotation marks are text here")
    below = [cell for row in plain[1:] for cell in row]
    if doubled or any(len(row) != len(plain[0]) for row in plain) or all(cell.startswith('"') for cell in below):
        return _table_rows(path, iter(quoted))
    cells = {cell for row in plain for cell in row}
    marked = {cell for cell in cells if cell.startswith('"')}
    # Spreadsheets quote cells with a comma, too.
    if marked and marked == {cell for cell in cells if "," in cell}:
        raise InputError(f"{path}: is {min(marked)!r} in quotation marks, or quoted for its comma? {_EITHER}")
    return _table_rows(path, iter(plain))


_DOUBLED = re.compile(r'(?:^|\t)"[^"\t\n]*+(?:""[^"\t\n]*+)++"(?=\t|$)', re.MULTILINE)
_QUOTED_HEADER = re.compile(r'(?:^|\t)"[^\t]*')
_EITHER = "save it as .csv, where all quotation marks are a spreadsheet's, or as .jsonl"


class _NotQuoted(Exception):
    """A line that no spreadsheet wrote; its number, from 1."""


def _quoted_rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """The cells of every row but blank ones, of a table that a spreadsheet wrote.

    In a .csv a cell that is not quoted may have quotation marks inside. In a .tsv these raise _NotQuoted, and so does a
    quoted cell that ends in another whole row than it begins in.
    """
    bare = r'[^"\t\n]*' if delimiter == "\t" else rf'(?!")[^{delimiter}\n]*'
    cell = re.compile(rf'(?:"([^"]*+(?:""[^"]*+)*+)"|({bare}))({delimiter}|\n|\Z)')
    cells: list[str] = []
    position, start, width, end = 0, 0, 0, delimiter
    while end:  # it is empty at the end of the text
        found = cell.match(text, position)
        if found is None:
            raise _NotQuoted(text.count("\n", 0, position) + 1)
        cells.append(found[2] if found[1] is None else found[1].replace('""', '"'))
        position, end = found.end(), found[3]
        if end == delimiter:
            continue
        lines = text[start : found.start(3)].split("\n")
        if lines != [""]:
            width = width or len(cells)
            if delimiter == "\t" and len(lines) > 1 and all(line.count("\t") == width - 1 for line in lines):
                raise _NotQuoted(text.count("\n", 0, start) + 1)
            yield cells
        cells, start = [], position


def _table_rows(path: Path, table: Iterator[list[str]], note: str = "") -> Rows:
    """The first row has the names of the fields. note: what to say of quotation marks where a row is wrong."""
    header, row = None, -1
    try:
        for cells in table:
            if header is None:
                header = cells
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    raise InputError(f"{path}: the header has {', '.join(map(repr, twice))} more than once; keep one")
                continue
            row += 1
            where = f"{path}, row {row}"
            if len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
            else:
                yield where, InputError(f"{where}: {len(cells)} columns, but the header has {len(header)}{note}")
    except _NotQuoted as error:
        raise InputError(
            f"{path}, row {row + 1} (line {error}): a quoted cell ends in a quotation mark; those inside are doubled"
        ) from None


def _aligned_rows(path: Path) -> Rows:
    """Line-aligned text: `path` is the source side, its sibling .en (or else the only other one) the target."""
    sibling = _target_side(path)
    sources, targets = (lines_of(read_text(side)) for side in (path, sibling))
    if len(sources) != len(targets):
        raise InputError(f"{path}: {len(sources)} lines, but {sibling} has {len(targets)}; line i must match line i")
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        empty = [side for side, text in ((path, source), (sibling, target)) if not is_visible(text)]
        if empty:
            error = InputError(f"{empty[0]}, row {number}: empty line; leave the line out of both sides")
        row = parallel_row(source, target, str(_side(path)), str(_side(sibling)))
        yield f"{path}, row {number}", error if empty else row


def _target_side(path: Path) -> Path:
    beside = (file for file in sorted(path.parent.iterdir()) if file.stem == path.stem)
    found = [file for file in beside if _side(file) not in (None, _side(path)) and file.is_file()]
    english = [file for file in found if _side(file) == "en"]
    for sides in (english, found):
        if len(sides) == 1:
            return sides[0]
    names = " and ".join(sibling.name for sibling in found) or "none"
    raise InputError(
        f"{path}: its target side must lie beside it, as {path.stem}.en or as the only other; found {names}"
    )


def _side(path: Path) -> str | None:
    """The code of the language that a file's suffix names; None for other suffixes."""
    language = known_language(path.suffix[1:])
    return language.code if language else None


class Directions(NamedTuple):
    """The languages, by code, whose texts become prompts, and the one whose texts are the responses."""

    sources: Sequence[str]
    target: str


def is_data_set(folder: Path) -> bool:
    """Whether a folder is a prepared data set of TFDS or Hugging Face."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_data_set(folder: Path, rendering: Rendering) -> Rows:
    """The rows of a data set, one for each pair; what is no such set, or broken, raises InputError."""
    info = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").is_file() else None
    if isinstance(info, dict) and info and all(isinstance(entry, dict) for entry in info.values()):
        files = [f"{folder}/{entry['file_name']}" for entry in info.values() if "file_name" in entry]
        raise InputError(
            f"{folder}: its dataset_info.json lists data sets of LLaMA-Factory; name the files of pairs one by one "
            f"({', '.join(files) or 'it names none that lie here'}), which are read by the names of their own fields"
        )
    is_hugging_face = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    return (_read_hugging_face if is_hugging_face else _read_tfds)(folder, rendering)


# TFDS


def tfds_features(folder: Path) -> Mapping[str, Any]:
    """Name -> feature."""
    with _loading(folder):
        return _builder(folder).info.features


def tfds_rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split, texts decoded, sequences as lists."""
    with _loading(folder):
        builder = _builder(folder)
        if split not in builder.info.splits:
            raise InputError(f"{folder}: no split {split!r}; there are {', '.join(builder.info.splits) or 'none'}")
        for row in builder.as_data_source(split):
            yield _decoded(row)


def _builder(folder: Path) -> Any:
    # Slow to import, and only these folders need it.
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder)


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _decoded(value.tolist())
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _read_tfds(folder: Path, rendering: Rendering) -> Rows:
    features = tfds_features(folder)
    names = set(features)
    if makes_pairs(names):
        return numbered(folder, tfds_rows(folder, "train"))
    if names >= {"id", "question"}:
        return _joined_by_id(folder, rendering)
    if "translations" in names:
        directions = _directions(features["translations"].languages, rendering, folder)
        talks = (row["translations"] for row in tfds_rows(folder, "train"))
        texts = (dict(zip(talk["language"], talk["translation"], strict=True)) for talk in talks)
        return _translated(folder, texts, directions)
    if type(features).__name__ == "Translation":
        directions = _directions(features, rendering, folder)
        # OPUS's lines have kept their ends.
        rows = ({name: text.removesuffix("\n") for name, text in row.items()} for row in tfds_rows(folder, "train"))
        return _translated(folder, rows, directions)
    raise not_pairs(names, f"{folder}: a data set")


def _joined_by_id(folder: Path, rendering: Rendering) -> Rows:
    """Each question of one language's data set with that of the target's, which lies beside it."""
    source = language_of(folder.parent.name, str(folder)).code
    root = folder.parent.parent
    named = [other.name for other in root.iterdir() if code_of(other.name) == rendering.target]
    target_folder = root / (named[0] if len(named) == 1 else rendering.target) / folder.name
    if source == rendering.target or not is_data_set(target_folder):
        raise InputError(
            f"{folder}: {target_folder} is needed beside it, in another language: the questions are joined by id; "
            "config.build.target names the language"
        )
    targets = {row["id"]: row for row in tfds_rows(target_folder, "test")}

    for where, row in numbered(folder, tfds_rows(folder, "test")):
        if row["id"] in targets:
            yield where, parallel_row(row["question"], targets[row["id"]]["question"], source, rendering.target)
        else:
            yield where, InputError(f"{where}, field 'id': {row['id']!r} is not in {target_folder}")


# Hugging Face


def _read_hugging_face(folder: Path, rendering: Rendering) -> Rows:
    if find_spec("datasets") is None:
        raise InputError(f"{folder}: saved by Hugging Face datasets; pip install 'jaxalign[datasets]' to read it")
    # Slow to import, and only these folders need it.
    import datasets

    with _loading(folder):
        rows: Any = datasets.load_from_disk(str(folder))
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise InputError(f"{folder}: no split 'train'; there are {', '.join(rows)}: name the folder of one")
        rows = rows["train"]
    names = set(rows.column_names)
    if makes_pairs(names - {"translation"}):
        return numbered(folder, rows)
    if "translation" in names:
        feature = rows.features["translation"]
        languages = getattr(feature, "languages", feature)
        if not isinstance(languages, dict | list | tuple):
            raise InputError(f"{folder}: the column 'translation' does not hold a text per language")
        directions = _directions(languages, rendering, folder)
        return _translated(folder, (row["translation"] for row in rows), directions)
    raise not_pairs(names, f"{folder}: a data set")


# Both


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever a broken data set makes of the libraries, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{folder}: the data set does not load ({reason}); is it whole, and (TFDS) in ArrayRecord files?"
        ) from None


def _translated(folder: Path, rows: Iterable[Mapping[str, str]], directions: Directions) -> Rows:
    """A pair of every row for each source language that it has, if it has the target. rows: language -> text."""
    for index, row in enumerate(rows):
        # Where a row has a language under several names, the study's own is the one meant, or else the first in order:
        # zh before zh-CN before zh-TW.
        names = sorted(row, key=lambda name: (name not in LANGUAGES, name), reverse=True)
        texts = {code_of(name): row[name] for name in names}
        for source in directions.sources:
            if source in texts and directions.target in texts:
                sides = texts[source], texts[directions.target]
                yield f"{folder}, row {index}", parallel_row(*sides, source, directions.target)


def _directions(names: Iterable[str], rendering: Rendering, folder: Path) -> Directions:
    """Into the target: from the other language of two, or from the chosen sources of more."""
    names = list(names)
    there = [code for code in LANGUAGES if code in map(code_of, names)]
    if rendering.target not in there:
        raise InputError(
            f"{folder}: no text in {rendering.target}; set config.build.target to one of {' '.join(there)}"
        )
    others = [code for code in there if code != rendering.target]
    sources = others if len(names) == 2 else rendering.sources
    if not sources or not set(sources) <= set(others):
        raise InputError(
            f"{folder}: no translation from {' '.join(sources) or 'a language of the study'} into {rendering.target}; "
            f"set config.build.sources to some of {' '.join(others)}"
        )
    return Directions(sources, rendering.target)
