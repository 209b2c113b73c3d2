"""Files and folders of question pairs, read by suffix:

    .json .jsonl  an array of objects (the study's format), or one object a line; their fields as `pairs` says
    .csv          a header with the names of fields; quoted as spreadsheets quote, newlines inside quotes kept
    .tsv          the same, or, as corpora have it, a row a line, where a quotation mark is a character like others
    .de .sw ...   QAlign's format: line i of DIR/train.de and of DIR/train.en is the same question

Which kind a .tsv is, its quotation marks say. They are a spreadsheet's if it could have written every row so (cells
that have one are quoted as a whole, with the marks inside doubled) and some were written so for a reason: doubled
marks, a tab or line end inside a cell, or that the header or all rows below it are quoted. Otherwise they are text.
Where rows of both kinds meet, or where just the cells with a comma are quoted, as Excel does, the file is refused.

A folder is a prepared data set of TFDS or of Hugging Face (see data_sets), or all the files of pairs in it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxalign.data.data_sets import is_data_set, read_data_set
from jaxalign.data.fields import Rows, is_visible, json_rows
from jaxalign.data.languages import did_you_mean, known_language
from jaxalign.data.pairs import QuestionPair, Rendering, makes_pairs, pair_of, parallel_row
from jaxalign.errors import InputError, gather
from jaxalign.files import lines_of, read_text

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
"""Of files of pairs, besides the language codes of aligned text."""


def read_pairs(paths: Sequence[Path], rendering: Rendering = Rendering()) -> list[QuestionPair]:  # noqa: B008 - frozen
    """All pairs of the files, in file order, texts unchanged.

    Bad files and rows raise InputError: unknown language, missing or empty field, unequal line counts, no pair at all.
    """
    return [pair for path in paths for file in pair_files(path) for pair in read_pair_file(file, rendering)]


def read_pair_file(path: Path, rendering: Rendering) -> list[QuestionPair]:
    """The pairs of one file or data set; InputErrors with every bad row and field of it."""

    def pair(row: Callable[[], Any], where: str) -> QuestionPair:
        return pair_of(row(), rendering, where)

    pairs = gather(partial(pair, row, where) for where, row in _rows_of(path, rendering))
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
    as_json = partial(json_rows, is_row=makes_pairs)
    readers = {".json": as_json, ".jsonl": as_json, ".csv": _csv_rows, ".tsv": _tsv_rows}
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
            yield where, partial(_row_of_cells, header, cells, where, note)
    except _NotQuoted as error:
        raise InputError(
            f"{path}, row {row + 1} (line {error}): a quoted cell ends in a quotation mark; those inside are doubled"
        ) from None


def _row_of_cells(header: list[str], cells: list[str], where: str, note: str) -> Mapping[str, str]:
    if len(cells) != len(header):
        raise InputError(f"{where}: {len(cells)} columns, but the header has {len(header)}{note}")
    return dict(zip(header, cells, strict=True))


def _aligned_rows(path: Path) -> Rows:
    """Line-aligned text: `path` is the source side, its sibling .en (or else the only other one) the target."""
    sibling = _target_side(path)
    sources, targets = (lines_of(read_text(side)) for side in (path, sibling))
    if len(sources) != len(targets):
        raise InputError(f"{path}: {len(sources)} lines, but {sibling} has {len(targets)}; line i must match line i")
    codes = str(_side(path)), str(_side(sibling))

    def row_of(number: int, source: str, target: str) -> Mapping[str, str]:
        for side, text in ((path, source), (sibling, target)):
            if not is_visible(text):
                raise InputError(f"{side}, row {number}: empty line; leave the line out of both sides")
        return parallel_row(source, target, *codes)

    for number, texts in enumerate(zip(sources, targets, strict=True)):
        yield f"{path}, row {number}", partial(row_of, number, *texts)


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
