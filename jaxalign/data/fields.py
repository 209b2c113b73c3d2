"""Fields of JSON documents and rows: there and of their kind, or an InputError that names file, row and field."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxalign.errors import InputError, listed
from jaxalign.files import AnyPath, filled_lines, json_line, read_json

Value = TypeVar("Value", str, int, bool, float, list, dict)
Rows = Iterator[tuple[str, Any]]
"""Of each row its place, and the row or, if it cannot be read, the InputError that `object_of` then raises."""
_KINDS = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}
_KINDS |= {list: "an array", dict: "an object"}
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile(r"\r+(?=\n|\Z)")
# White space, control characters, Unicode's Default_Ignorable_Code_Point (zero-width spaces, fillers, marks of
# direction, variation selectors) and the blank of Braille.
_UNSEEN = re.compile(
    r"[\s\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*"
)


def field(document: Mapping[str, Any], name: str, kind: type[Value], where: str) -> Value:
    """document[name], which must be there and of its kind; a whole number is a number too, true is neither."""
    if name not in document:
        raise InputError(f"{where}: no field {name!r}; there are {listed([*map(repr, document)]) or 'none'}")
    return value_of(document[name], kind, f"{where}, field {name!r}")


def array(document: Mapping[str, Any], name: str, kind: type[Value], where: str) -> list[Value]:
    """document[name], which must be an array of values of one kind."""
    values = field(document, name, list, where)
    return [value_of(value, kind, f"{where}, field {name!r}, item {index}") for index, value in enumerate(values)]


def value_of(value: Any, kind: type[Value], where: str) -> Value:
    # A whole number of JSON may be larger than any float.
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: {_KINDS[kind]} is needed, found {_shown(value)}")
    return value


def object_of(value: Any, where: str) -> Mapping[str, Any]:
    """The row or document, which must be an object; an error that stands in its place is raised."""
    if isinstance(value, InputError):
        raise value
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: an object is needed, found {_shown(value)}")
    return value


def read_object(path: AnyPath) -> Mapping[str, Any]:
    """The JSON object that a file holds."""
    return object_of(read_json(path), str(path))


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)[:60]


def json_rows(path: Path) -> Rows:
    """The rows of an array of objects, of one object a line, or of one object alone, whatever the suffix promises."""
    lines = list(filled_lines(path))
    first = lines[0].strip() if lines else ""
    if first[:1] != "[" and (path.suffix == ".jsonl" or (len(lines) > 1 and first[:1] + first[-1:] == "{}")):
        for index, line in enumerate(lines):
            where = f"{path}, row {index}"
            try:
                row = json_line(line, where)
            except InputError as error:
                row = error
            yield where, row
        return
    document = read_json(path)
    yield from numbered(path, [document] if isinstance(document, dict) else value_of(document, list, str(path)))


def numbered(path: Path, rows: Iterable[Any]) -> Rows:
    return ((f"{path}, row {index}", row) for index, row in enumerate(rows))


def text_of(row: Mapping[str, Any], name: str, where: str, mend: str = "fill it in or leave the row out") -> str:
    """The text of a field. mend: what to do about an empty one, which has no visible character.

    A line end and a byte-order mark are no text: a `\\r` before a `\\n` or at the end, and U+FEFF at the start, are
    left out. All else is unchanged.
    """
    text = field(row, name, str, where)
    if not is_visible(text):
        unseen = f"no visible character in {text[:20]!r}" if text.strip() else "empty"
        raise InputError(f"{where}, field {name!r}: {unseen}; {mend}")
    # What can be printed has none of these; asking that first takes a third of the time of reading many rows.
    return text if text.isprintable() else whole_text(text, f"{where}, field {name!r}")


def is_visible(text: str) -> bool:
    return _UNSEEN.fullmatch(text) is None


def whole_text(text: str, where: str) -> str:
    """A text without the marks of its file, as `text_of` says; half a character of UTF-16 raises InputError."""
    if half := _HALF_A_PAIR.search(text):
        raise InputError(f"{where}: {half[0]!r} is half a character (UTF-16); save the whole text as UTF-8")
    text = text.lstrip("\ufeff")
    return _LINE_END.sub("", text) if "\r" in text else text
