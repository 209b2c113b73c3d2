"""Question pairs: a question in one language as the prompt, the same question in another as the response.

A source of pairs, whatever it is, gives rows, and a row becomes a pair by the names of its fields:

    source, target                       two texts without instruction
    prompt, response                     as they are
    input, answer                        the study's: as they are
    question, answer or query, response  an English question and its answer (GSM8K, MetaMathQA), as they are
    instruction, input, output           Alpaca's: the prompt is instruction and input, each on lines of its own
    conversations or messages            ShareGPT's and OpenAI's, of one question and one answer
    translation                          {"de": text, "en": text}, without instruction

source_language and target_language are codes. Prompts that are taken as they are may name them in their instruction.

Files are read by their suffixes:

    .json .jsonl  an array of objects (the study's format), or one object a line
    .csv          a header with the names of fields; quoted as spreadsheets quote, newlines inside quotes kept
    .tsv          the same, or, as corpora have it, a row a line, where a quotation mark is a character like others
    .de .sw ...   QAlign's format: line i of DIR/train.de and of DIR/train.en is the same question

A folder is a data set that TFDS (ArrayRecord files, no TensorFlow) or Hugging Face's `save_to_disk` prepared, or all
the files of pairs in it. Rows of the split `train` of a data set are read as above, and also:

    Translation (opus, wmt) or a column translation      the other language's text, and the target's
    translations (ted_multi_translate)                   each source language's text, and the target's, where both are
    id, question (xquad)                                 split `test` of DIR/de/3.0.0, joined by id with DIR/en/3.0.0
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign.data.fields import Rows, is_visible, json_rows, numbered, object_of, text_of, value_of
from jaxalign.data.languages import LANGUAGES, code_of, did_you_mean, known_language, language_of
from jaxalign.errors import InputError, gather
from jaxalign.files import lines_of, read_json, read_text

Instruction = Literal["after", "before"]
LANGUAGE_FIELDS = ("source_language", "target_language")
_PARALLEL, _RENDERED, _TRANSLATION = ("source", "target"), ("prompt", "response"), ("translation",)
_ANSWERED = (("question", "answer"), ("query", "response"))
_CHATS = (("conversations",), ("messages",))
READINGS = (_PARALLEL, _RENDERED, ("input", "answer"), *_ANSWERED, ("instruction", "output"), *_CHATS, _TRANSLATION)
"""The fields that must be there for each way to read a row."""
_PART_OF_A_PROMPT = ("instruction", "system", "history", "tools", "images", "videos", "audios", "kto_tag")
"""Fields of LLaMA-Factory's rows that change what is asked, or how the answer is meant."""
_KNOWN = {name for names in (*READINGS, LANGUAGE_FIELDS, _PART_OF_A_PROMPT) for name in names}
_language_field = cache(
    re.compile(
        r"(?:(source|src)[ _-]?|(target|tgt|trg)[ _-]?|.*[ _-])?(?:lang(?:uage)?|locale)(?:[ _-]?(?:code|id|name))?",
        re.IGNORECASE,
    ).fullmatch
)
"""A name that says that its field tells a language: of the source, of the target, or of one of them."""


@dataclass(frozen=True)
class QuestionPair:
    """prompt: the user turn, translation instruction included. response: the question in the target language."""

    prompt: str
    response: str
    source_language: str
    target_language: str


@dataclass(frozen=True)
class Rendering:
    """Where the instruction stands beside bare texts, and the languages taken from a data set that has several."""

    instruction: Instruction = "after"
    sources: tuple[str, ...] = ("zh", "de")
    target: str = "en"


_AFTER_LINE = re.compile(r"^Translate the input from (.+?) to (.+?):[^\S\n]*$", re.MULTILINE)
_BEFORE_START = re.compile(r"Translate the following sentences from (.+?) to (.+?)\.\s")


def with_instruction(text: str, source: str, target: str, instruction: Instruction) -> str:
    """The prompt for a source text, the instruction after it (the study) or before it (QAlign, arXiv 2401.07817)."""
    names = [LANGUAGES[code].name for code in (source, target)]
    if instruction == "after":
        return f"{text}\nTranslate the input from {names[0]} to {names[1]}:\n"
    if instruction == "before":
        # QAlign took its names from ISO 639-3, where Swahili is this; its nine other languages have the plain names.
        names = [name if name != "Swahili" else "Swahili (macrolanguage)" for name in names]
        return f"Translate the following sentences from {names[0]} to {names[1]}. {text}"
    raise InputError(f"instruction: {instruction!r} is none of after, before")


def instruction_languages(prompt: str, where: str) -> tuple[str, str] | None:
    """The (source, target) codes that a prompt's instruction names; None if it has no instruction."""
    lines, start = _AFTER_LINE.findall(prompt), _BEFORE_START.match(prompt)
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
    """Codes of every source and target language, and of `earlier` ones, in the study's order: those seen in tuning."""
    seen = {code for pair in pairs for code in (pair.source_language, pair.target_language)}.union(earlier)
    return [code for code in LANGUAGES if code in seen]


# From a row to a pair


def pair_of(row: Any, rendering: Rendering, where: str) -> QuestionPair:
    """The pair of one row.

    The names of the fields that are filled in decide; two texts with their languages (source, target; prompt, response)
    come before all else. A row that can be read in two ways is refused, as is a field that contradicts the reading: any
    that tells another language than the pair's (English for an answered question); what would belong to the prompt.
    Other fields are passed over.
    """
    row = object_of(row, where)
    reading = _reading_of(row, where)
    texts, names = row, reading
    if reading == _TRANSLATION:
        texts, names = _into(rendering.target, row, f"{where}, field 'translation'"), _PARALLEL
    if reading in _CHATS:
        ask, answer = _turns(row[reading[0]], f"{where}, field {reading[0]!r}")
    else:
        ask, answer = (partial(text_of, texts, name, where) for name in names)

    def prompt() -> str:
        if reading[0] != "instruction" or not _is_filled(row.get("input")):
            return ask()
        return f"{ask()}\n{text_of(row, 'input', where)}"

    def languages() -> tuple[str, str]:
        told = None if names == _PARALLEL else instruction_languages(prompt(), f"{where}, field {reading[0]!r}")
        found = _languages(texts, reading, told, where)
        _check_languages(row, reading, found, told, where)
        return found

    reads: list[Callable[[], Any]] = [prompt, answer, languages]
    text, response, (source, target) = gather(reads)
    if names == _PARALLEL:
        text = with_instruction(text, source, target, rendering.instruction)
    return QuestionPair(text, response, source, target)


def _reading_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The fields that prompt and response are read from; if none are whole, those of which most are there."""
    filled = frozenset(name for name in row if name in _KNOWN and _is_filled(row[name]))
    whole = _whole_readings(filled)
    if len(whole) > 1:
        raise InputError(
            f"{where}: the pair may be {' and '.join(whole[0])}, or {' and '.join(whole[1])}; leave one of the two out"
        )
    if not whole:
        reading = max(READINGS, key=lambda names: (len(filled & {*names}), len(row.keys() & {*names})))
        if not row.keys() & {*reading}:
            raise _not_pairs(row, f"{where}: a row")
        return reading
    added = [name for name in _PART_OF_A_PROMPT if name in filled and name not in whole[0]]
    if added and whole[0] != _PARALLEL:
        raise InputError(
            f"{where}: the pair is {' and '.join(whole[0])}, but field {added[0]!r} changes what is asked; write it "
            f"into {whole[0][0]!r}, or leave it out of the row"
        )
    return whole[0]


@cache
def _whole_readings(filled: frozenset[str]) -> list[tuple[str, ...]]:
    whole = [reading for reading in READINGS if filled.issuperset(reading)]
    if filled.issuperset(LANGUAGE_FIELDS):
        return [reading for reading in whole if reading in (_PARALLEL, _RENDERED)] or whole
    return whole


def _is_filled(value: Any) -> bool:
    """Rows of tables and data sets have all fields, and nothing in those that are not theirs."""
    return is_visible(value) if isinstance(value, str) else bool(value) or not isinstance(value, list | dict | None)


def _not_pairs(names: Iterable[str], where: str) -> InputError:
    return InputError(
        f"{where} of {', '.join(sorted(map(str, names))) or 'no fields'}; pairs are read from "
        f"{'; '.join(', '.join(reading) for reading in READINGS)}; with source_language and target_language"
    )


def _parallel_row(text: str, response: str, source: str, target: str) -> dict[str, str]:
    return dict(zip((*_PARALLEL, *LANGUAGE_FIELDS), (text, response, source, target), strict=True))


def _into(target: str, row: Mapping[str, Any], where: str) -> dict[str, str]:
    """The row of a translation, a text in each of two languages, into the target."""
    texts = object_of(row["translation"], where)
    codes = {language_of(name, where).code: name for name in texts}
    sources = [code for code in codes if code != target]
    if len(texts) != 2 or len(sources) != 1 or target not in codes:
        raise InputError(
            f"{where}: a text in {target} (config.build.target) and one in another language are needed, found "
            f"{', '.join(map(str, texts)) or 'none'}"
        )
    return _parallel_row(texts[codes[sources[0]]], texts[codes[target]], sources[0], target)


def _turns(turns: Any, where: str) -> list[Callable[[], str]]:
    """The readers of question and answer of a conversation. An empty turn of system is passed over."""
    roles, texts = [], []
    for number, turn in enumerate(value_of(turns, list, where)):
        place = f"{where}, row {number}"
        role = turn[_one_of(object_of(turn, place), ("role", "from"), place)]
        if role != "system" or any(_is_filled(turn.get(text)) for text in ("content", "value")):
            roles.append(role)
            texts.append(partial(text_of, turn, _one_of(turn, ("content", "value"), place), place))
    known = (("human", "user"), ("gpt", "assistant"))
    if len(roles) != 2 or not all(str(role).lower() in names for role, names in zip(roles, known, strict=True)):
        raise InputError(
            f"{where}: a pair is one turn of human or user and one of gpt or assistant, found {roles}; write longer "
            "ones as input and answer"
        )
    return texts


def _one_of(turn: Mapping[str, Any], names: tuple[str, str], where: str) -> str:
    filled = [name for name in names if _is_filled(turn.get(name))]
    if len(filled) != 1:
        raise InputError(f"{where}: one of the fields {' and '.join(names)} is needed, found {len(filled)} filled in")
    return filled[0]


def _languages(
    row: Mapping[str, Any], reading: tuple[str, ...], told: tuple[str, str] | None, where: str
) -> tuple[str, str]:
    """Source and target, which the row's fields tell, or the instruction of a prompt that is taken as it is: `told`."""
    if reading in _ANSWERED:
        return "en", "en"
    if reading in (_PARALLEL, _TRANSLATION) or any(_is_filled(row.get(name)) for name in LANGUAGE_FIELDS):

        def code(name: str) -> str:
            return language_of(text_of(row, name, where), f"{where}, field {name!r}").code

        source, target = gather(partial(code, name) for name in LANGUAGE_FIELDS)
        return source, target
    if told is None:
        raise InputError(
            f"{where}: the {reading[0]} has no line 'Translate the input from X to Y:' and the row no source_language "
            "and target_language; give one of the two"
        )
    return told


def _check_languages(
    row: Mapping[str, Any], reading: tuple[str, ...], found: tuple[str, str], told: tuple[str, str] | None, where: str
) -> None:
    """Refuses a row of which the instruction or a field tells another language than the pair's.

    Where a field does not tell of which side, as `language`, it may be either's, and for a pair that tells its own
    languages also what is none, as "de-en".
    """
    wrong = [f"its instruction says {' into '.join(told)}"] if told not in (None, found) else []
    for name in row:
        field = _language_field(str(name))
        if field is None or not _is_filled(row[name]):
            continue
        sides = found[:1] if field[1] else found[1:] if field[2] else found
        code = code_of(str(row[name]))
        if code not in sides and (field[1] or field[2] or reading in _ANSWERED or known_language(code)):
            wrong.append(f"{name} is {code}")
    if wrong:
        answered = ", an English question and its answer" if reading in _ANSWERED else ""
        raise InputError(
            f"{where}: {' and '.join(reading)} are read as {' into '.join(found)}{answered}, but {', '.join(wrong)}; "
            "mend that, or leave it out (a translation has source and target, or its instruction in input and its "
            "response in answer)"
        )


# From files to rows

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
"""Of files of pairs, besides the language codes of aligned text."""


def read_pairs(paths: Sequence[Path], rendering: Rendering = Rendering()) -> list[QuestionPair]:
    """All pairs of the files, in file order, texts unchanged."""
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
    if not path.is_dir() or _is_data_set(path):
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in FILE_SUFFIXES or _side(file) not in (None, "en"))
    if not files:
        raise InputError(
            f"{path}: neither files of pairs ({', '.join(FILE_SUFFIXES)}, train.de) nor a data set of TFDS or Hugging "
            "Face"
        )
    return files


def _rows_of(path: Path, rendering: Rendering) -> Rows:
    if path.is_dir():
        return _data_set_rows(path, rendering)
    if path.suffix in (".json", ".jsonl"):
        return json_rows(path)
    if path.suffix in (".csv", ".tsv"):
        return _table_rows(path)
    if _side(path):
        return _aligned_rows(path)
    if not path.suffix and not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(
        f"{path}: unknown suffix {path.suffix!r}{did_you_mean(path.suffix, FILE_SUFFIXES)}: {', '.join(FILE_SUFFIXES)} "
        "and the study's languages (train.de, train.deu_Latn)"
    )


def _table_rows(path: Path) -> Rows:
    text, note, header = "\n".join(lines_of(read_text(path))), "", []
    table: Iterable[list[str] | int] = _quoted_rows(text, ",")
    if path.suffix == ".tsv":
        table, note = _tab_separated(path, text)
    for number, cells in enumerate(table, -1):
        where = f"{path}, row {max(0, number)}"
        if isinstance(cells, int):
            error = f" (line {cells}): a quoted cell ends in a quotation mark; those inside are doubled"
            yield where, InputError(where + error)
        elif number < 0:
            header = cells
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise InputError(f"{path}: the header has {', '.join(map(repr, twice))} more than once; keep one")
        elif len(cells) != len(header):
            yield where, InputError(f"{where}: {len(cells)} columns, but the header has {len(header)}{note}")
        else:
            yield where, dict(zip(header, cells, strict=True))


_DOUBLED = re.compile(r'(?:^|\t)"[^"\t\n]*+(?:""[^"\t\n]*+)++"(?=\t|$)', re.MULTILINE)
_QUOTED_HEADER = re.compile(r'(?:^|\t)"[^\t]*')


def _tab_separated(path: Path, text: str) -> tuple[list[list[str] | int], str]:
    """The cells of a .tsv, and what to say of its quotation marks where a row is wrong.

    The marks are a spreadsheet's if it could have written every row so (cells that have one are quoted as a whole, with
    the marks inside doubled) and some were written so for a reason: doubled marks, a tab or line end inside a cell, or
    that the header or all rows below it are quoted. Otherwise they are text. Where rows of both kinds meet, or where
    just the cells with a comma are quoted, as Excel does, the file is refused.
    """
    either = "save it as .csv, where all quotation marks are a spreadsheet's, or as .jsonl"
    lines = text.split("\n")
    plain, quoted = [line.split("\t") for line in lines if line], list(_quoted_rows(text, "\t"))
    doubled = _DOUBLED.search(text) or _QUOTED_HEADER.search(lines[0])
    if quoted and isinstance(quoted[-1], int):
        if doubled:
            raise InputError(
                f"{path}: quotation marks are text in line {quoted[-1]}, but a spreadsheet's around "
                f"{doubled[0].strip()[:60]!r}; {either}"
            )
        return [*plain], f"; line {quoted[-1]} shows that quotation marks are text here"
    below = [cell for row in plain[1:] for cell in row]
    if doubled or any(len(row) != len(plain[0]) for row in plain) or all(cell.startswith('"') for cell in below):
        return quoted, ""
    marked = {cell for cell in below if cell.startswith('"')}
    # Spreadsheets quote cells with a comma, too.
    if marked and marked == {cell for cell in below if "," in cell}:
        raise InputError(f"{path}: is {min(marked)!r} in quotation marks, or quoted for its comma? {either}")
    return [*plain], ""


def _quoted_rows(text: str, delimiter: str) -> Iterator[list[str] | int]:
    """The cells of every row but blank ones, of a table that a spreadsheet wrote; ends with the number, from 1, of a
    line that none wrote.

    In a .csv a cell that is not quoted may have quotation marks inside. In a .tsv no spreadsheet wrote these, nor a
    quoted cell that ends in another whole row than it begins in. (Python's csv ends a line at any \\r.)
    """
    bare = r'[^"\t\n]*' if delimiter == "\t" else rf'(?!")[^{delimiter}\n]*'
    cell = re.compile(rf'(?:"([^"]*+(?:""[^"]*+)*+)"|({bare}))({delimiter}|\n|\Z)')
    cells: list[str] = []
    position, start, width, end = 0, 0, 0, delimiter
    while end:  # it is empty at the end of the text
        found = cell.match(text, position)
        if found is None:
            yield text.count("\n", 0, position) + 1
            return
        cells.append(found[2] if found[1] is None else found[1].replace('""', '"'))
        position, end = found.end(), found[3]
        if end == delimiter:
            continue
        lines = text[start : found.start(3)].split("\n")
        if lines != [""]:
            width = width or len(cells)
            if delimiter == "\t" and len(lines) > 1 and all(line.count("\t") == width - 1 for line in lines):
                yield text.count("\n", 0, start) + 1
                return
            yield cells
        cells, start = [], position


def _aligned_rows(path: Path) -> Rows:
    """Line-aligned text: `path` is the source side, its sibling .en (or else the only other one) the target."""
    beside = (file for file in sorted(path.parent.iterdir()) if file.stem == path.stem and file.is_file())
    found = [file for file in beside if _side(file) not in (None, _side(path))]
    english = [file for file in found if _side(file) == "en"]
    if len(english or found) != 1:
        raise InputError(
            f"{path}: its target side must lie beside it, as {path.stem}.en or as the only other; found "
            f"{' and '.join(file.name for file in found) or 'none'}"
        )
    sides = path, (english or found)[0]
    texts = [lines_of(read_text(side)) for side in sides]
    if len(texts[0]) != len(texts[1]):
        raise InputError(f"{path}: {len(texts[0])} lines, but {sides[1]} has {len(texts[1])}; line i must match line i")
    codes = [str(_side(side)) for side in sides]
    for number, both in enumerate(zip(*texts, strict=True)):
        row: Any = _parallel_row(*both, *codes)
        for side, text in zip(sides, both, strict=True):
            if not is_visible(text):
                row = InputError(f"{side}, row {number}: empty line; leave the line out of both sides")
                break
        yield f"{path}, row {number}", row


def _side(path: Path) -> str | None:
    """The code of the language that a file's suffix names; None for other suffixes."""
    language = known_language(path.suffix[1:])
    return language.code if language else None


# From data sets to rows


def _is_data_set(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def _data_set_rows(folder: Path, rendering: Rendering) -> Rows:
    info = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").is_file() else None
    if isinstance(info, dict) and info and all(isinstance(entry, dict) for entry in info.values()):
        raise InputError(
            f"{folder}: its dataset_info.json lists data sets of LLaMA-Factory; name the files of pairs one by one"
        )
    is_hugging_face = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    names, languages, rows = (_hugging_face if is_hugging_face else _tfds)(folder)
    if languages:
        return _translated(folder, languages, rows, rendering)
    if any(names.issuperset(reading) for reading in READINGS):
        return numbered(folder, rows)
    if names >= {"id", "question"}:
        return _joined_by_id(folder, rendering)
    raise _not_pairs(names, f"{folder}: a data set")


Contents = tuple[set[str], list[str], Iterable[Any]]
"""Of a data set the names of its fields, and its rows; or, where each is a text by language, the languages too."""


def _tfds(folder: Path) -> Contents:
    features, rows = tfds_features(folder), tfds_rows(folder, "train")
    names = set(features)
    if "translations" in names:
        talks = (row["translations"] for row in rows)
        texts = (dict(zip(talk["language"], talk["translation"], strict=True)) for talk in talks)
        return names, list(features["translations"].languages), texts
    if type(features).__name__ == "Translation":
        # OPUS's lines have kept their ends.
        return names, list(names), ({name: text.removesuffix("\n") for name, text in row.items()} for row in rows)
    return names, [], rows


def _hugging_face(folder: Path) -> Contents:
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
    others = names - {"translation"}
    if others == names or any(others.issuperset(reading) for reading in READINGS):
        return others, [], rows
    feature = rows.features["translation"]
    languages = getattr(feature, "languages", feature)
    if not isinstance(languages, dict | list | tuple):
        raise InputError(f"{folder}: the column 'translation' does not hold a text per language")
    return names, list(languages), (row["translation"] for row in rows)


def tfds_features(folder: Path) -> Mapping[str, Any]:
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
    if isinstance(value, np.ndarray | list):
        return [_decoded(item) for item in value] if np.ndim(value) or isinstance(value, list) else value.item()
    return value.decode("utf-8") if isinstance(value, bytes) else value


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{folder}: the data set does not load ({reason}); is it whole, and (TFDS) in ArrayRecord files?"
        ) from None


def _translated(
    folder: Path, languages: Sequence[str], rows: Iterable[Mapping[str, str]], rendering: Rendering
) -> Rows:
    """Rows from the other language of two, or from each chosen source, into the target. rows: language -> text."""
    there = [code for code in LANGUAGES if code in map(code_of, languages)]
    target = rendering.target
    if target not in there:
        raise InputError(f"{folder}: no text in {target}; set config.build.target to one of {' '.join(there)}")
    others = [code for code in there if code != target]
    sources = others if len(languages) == 2 else rendering.sources
    if not sources or not set(sources) <= set(others):
        raise InputError(
            f"{folder}: no translation from {' '.join(sources) or 'a language of the study'} into {target}; "
            f"set config.build.sources to some of {' '.join(others)}"
        )
    for where, row in numbered(folder, rows):
        # Where a row has a language under several names, the study's own is the one meant, or else the first in order:
        # zh before zh-CN before zh-TW.
        names = sorted(row, key=lambda name: (name not in LANGUAGES, name), reverse=True)
        texts = {code_of(name): row[name] for name in names}
        for source in sources:
            if source in texts and target in texts:
                yield where, _parallel_row(texts[source], texts[target], source, target)


def _joined_by_id(folder: Path, rendering: Rendering) -> Rows:
    """Each question of one language's data set with that of the target's, which lies beside it."""
    source = language_of(folder.parent.name, str(folder)).code
    root = folder.parent.parent
    named = [other.name for other in root.iterdir() if code_of(other.name) == rendering.target]
    target_folder = root / (named[0] if len(named) == 1 else rendering.target) / folder.name
    if source == rendering.target or not _is_data_set(target_folder):
        raise InputError(
            f"{folder}: {target_folder} is needed beside it, in another language: the questions are joined by id; "
            "config.build.target names the language"
        )
    targets = {row["id"]: row for row in tfds_rows(target_folder, "test")}
    for where, row in numbered(folder, tfds_rows(folder, "test")):
        if row["id"] in targets:
            yield where, _parallel_row(row["question"], targets[row["id"]]["question"], source, rendering.target)
        else:
            yield where, InputError(f"{where}, field 'id': {row['id']!r} is not in {target_folder}")
