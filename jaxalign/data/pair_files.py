"""Files and folders of question pairs, read by suffix:

    .json         the study's format: an array of {"input", "answer"}, the instruction already in the input
    .jsonl        one object a line: source, target, source_language, target_language
    .csv .tsv     a header with those four names; quoted as spreadsheets quote, newlines inside quotes kept
    .de .sw ...   QAlign's format: line i of DIR/train.de and of DIR/train.en is the same question

The objects of .json and .jsonl may also be English questions with their answers, which are tuned on as they are:
{"question", "answer"} (GSM8K) or {"query", "response"} (MetaMathQA).

A folder is a prepared data set of TFDS or of Hugging Face (see data_sets), or all the files of pairs in it.
"""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jaxalign.data.data_sets import Reads, is_data_set, read_data_set
from jaxalign.data.fields import object_of
from jaxalign.data.languages import did_you_mean, known_language
from jaxalign.data.pairs import (
    Instruction,
    QuestionPair,
    Rendering,
    answered_question,
    parallel_pair,
    study_pair,
    with_instruction,
)
from jaxalign.errors import InputError, gather
from jaxalign.files import filled_lines, json_line, read_json, read_text

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
"""Of files of pairs, besides the language codes of aligned text."""


def read_pairs(paths: Sequence[Path], rendering: Rendering = Rendering()) -> list[QuestionPair]:  # noqa: B008 - frozen
    """All pairs of the files, in file order, texts unchanged.

    Bad files and rows raise InputError: unknown language, missing or empty field, unequal line counts, no pair at all.
    """
    return [pair for path in paths for file in pair_files(path) for pair in read_pair_file(file, rendering)]


def read_pair_file(path: Path, rendering: Rendering) -> list[QuestionPair]:
    """The pairs of one file or data set; InputErrors with every bad row and field of it."""
    pairs = gather(_reads_of(path, rendering))
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


def _reads_of(path: Path, rendering: Rendering) -> Reads:
    readers: dict[str, Callable[[Path, Instruction], Reads]] = {
        ".json": _read_study_json,
        ".jsonl": _read_json_lines,
        ".csv": _read_table,
        ".tsv": _read_table,
    }
    if path.is_dir():
        return read_data_set(path, rendering)
    if path.suffix in readers:
        return readers[path.suffix](path, rendering.instruction)
    if _side(path):
        return _read_aligned(path, rendering.instruction)
    raise InputError(
        f"{path}: unknown suffix {path.suffix!r}{did_you_mean(path.suffix, readers)}: {', '.join(readers)} and the "
        "study's languages (train.de, train.deu_Latn)"
    )


def _read_study_json(path: Path, instruction: Instruction) -> Reads:
    document = read_json(path)
    if not isinstance(document, list):
        raise InputError(f"{path}: an array of objects with input and answer is needed; one object a line is .jsonl")
    for row, item in enumerate(document):
        yield partial(study_pair, item, f"{path}, row {row}")


def _read_json_lines(path: Path, instruction: Instruction) -> Reads:
    for row, line in enumerate(filled_lines(path)):
        yield partial(_pair_of_line, line, instruction, f"{path}, row {row}")


def _pair_of_line(line: str, instruction: Instruction, where: str) -> QuestionPair:
    item = object_of(json_line(line, where), where)
    return answered_question(item, where) or parallel_pair(item, instruction, where)


def _read_table(path: Path, instruction: Instruction) -> Reads:
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
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    raise InputError(f"{path}: the header has {', '.join(map(repr, twice))} more than once; keep one")
                continue
            row += 1
            yield partial(_pair_of_cells, header, cells, instruction, f"{path}, row {row}")
    except csv.Error as error:
        raise InputError(
            f"{path}, row {row + 1} (line {table.line_num}): {error}; quotes are doubled inside quotes"
        ) from None


def _pair_of_cells(header: list[str], cells: list[str], instruction: Instruction, where: str) -> QuestionPair:
    if len(cells) != len(header):
        raise InputError(f"{where}: {len(cells)} columns, but the header has {len(header)}")
    return parallel_pair(dict(zip(header, cells, strict=True)), instruction, where)


def _read_aligned(path: Path, instruction: Instruction) -> Reads:
    """Line-aligned text: `path` is the source side, its sibling .en (or else the only other one) the target."""
    sibling = _target_side(path)
    sources, targets = _lines(path), _lines(sibling)
    if len(sources) != len(targets):
        raise InputError(f"{path}: {len(sources)} lines, but {sibling} has {len(targets)}; line i must match line i")
    for row, texts in enumerate(zip(sources, targets, strict=True)):
        yield partial(_pair_of_lines, (path, sibling), texts, row, instruction)


def _pair_of_lines(
    sides: tuple[Path, Path], texts: tuple[str, str], row: int, instruction: Instruction
) -> QuestionPair:
    for side, text in zip(sides, texts, strict=True):
        if not text.strip():
            raise InputError(f"{side}, row {row}: empty line; leave the line out of both sides")
    source, target = map(_side, sides)
    assert source and target
    return QuestionPair(with_instruction(texts[0], source, target, instruction), texts[1], source, target)


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


def _lines(path: Path) -> list[str]:
    """Lines ended by \\n only: str.splitlines would also break at U+2028 and U+0085, which occur inside texts."""
    return read_text(path).removesuffix("\n").split("\n")
