"""Fields of rows that users wrote: text that is there and whole, or an InputError that names file, row and field."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jaxalign.data.languages import language_of
from jaxalign.errors import InputError
from jaxalign.files import filled_lines, json_line, read_json

Rows = Iterator[tuple[str, Callable[[], Any]]]
"""Of each row its place, and a call that returns it or raises InputError: so all bad rows can be told of."""
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile(r"\r+(?=\n|\Z)")
# White space, control characters, Unicode's Default_Ignorable_Code_Point (zero-width spaces, fillers, marks of
# direction, variation selectors) and the blank of Braille.
_UNSEEN = re.compile(
    r"[\s\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*"
)


def json_rows(path: Path, is_row: Callable[[Iterable[str]], bool] = lambda _: False) -> Rows:
    """An array of objects, or one object a line, whatever the suffix promises.

    is_row: whether one object alone, with keys of these names, is a row.
    """
    lines = list(filled_lines(path))
    first = lines[0].strip() if lines else ""
    if first[:1] != "[" and (path.suffix == ".jsonl" or (len(lines) > 1 and first[:1] + first[-1:] == "{}")):
        for index, line in enumerate(lines):
            where = f"{path}, row {index}"
            yield where, partial(json_line, line, where)
        return
    document = read_json(path)
    if isinstance(document, dict) and is_row(document):
        document = [document]
    if not isinstance(document, list):
        raise InputError(
            f"{path}: a JSON array of rows is needed, found {kind(document)}; that is an array of objects, or one "
            "object a line"
        )
    yield from numbered(path, document)


def numbered(path: Path, rows: Iterable[Any]) -> Rows:
    """Rows that are there already, with their places."""
    for index, row in enumerate(rows):
        yield f"{path}, row {index}", lambda row=row: row


def object_of(item: Any, where: str) -> Mapping[str, Any]:
    """The row, which must be a JSON object."""
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: an object is needed, found {kind(item)}")
    return item


def text_of(item: Mapping[str, Any], name: str, where: str, mend: str = "fill it in or leave the row out") -> str:
    """The text of a field. mend: what to do about an empty one, which has no visible character.

    A line end and a byte-order mark are no text: a `\\r` before a `\\n` or at the end, and U+FEFF at the start, are
    left out. All else is unchanged.
    """
    if name not in item:
        raise InputError(f"{where}: no field {name!r}; the row has {', '.join(map(repr, item)) or 'none'}")
    text = item[name]
    if not isinstance(text, str):
        raise InputError(f"{where}, field {name!r}: text is needed, found {kind(text)}")
    if not is_visible(text):
        unseen = f"no visible character in {text[:20]!r}" if text.strip() else "empty"
        raise InputError(f"{where}, field {name!r}: {unseen}; {mend}")
    # What can be printed has none of these; asking that first takes a third of the time of reading many rows.
    return text if text.isprintable() else whole_text(text, f"{where}, field {name!r}")


def is_visible(text: str) -> bool:
    """Whether a text has a character that one can see."""
    return _UNSEEN.fullmatch(text) is None


def whole_text(text: str, where: str) -> str:
    """A text without the marks of its file, as `text_of` says; half a character of UTF-16 raises InputError."""
    if half := _HALF_A_PAIR.search(text):
        raise InputError(f"{where}: {half[0]!r} is half a character (UTF-16); save the whole text as UTF-8")
    text = text.lstrip("\ufeff")
    return _LINE_END.sub("", text) if "\r" in text else text


def language_code_of(item: Mapping[str, Any], name: str, where: str) -> str:
    """The language code in a field."""
    return language_of(text_of(item, name, where), f"{where}, field {name!r}").code


def kind(value: Any) -> str:
    """What a JSON value is, in words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    named = {dict: "an object", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return named.get(type(value), type(value).__name__)
