"""Fields of rows that users wrote: text that is there and whole, or an InputError that names file, row and field."""

import re
from collections.abc import Mapping
from typing import Any

from jaxalign.data.languages import language_of
from jaxalign.errors import InputError

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def object_of(item: Any, where: str) -> Mapping[str, Any]:
    """The row, which must be a JSON object."""
    if not isinstance(item, dict):
        raise InputError(f"{where}: an object is needed, found {kind(item)}")
    return item


def text_of(item: Mapping[str, Any], name: str, where: str, mend: str = "fill it in or leave the row out") -> str:
    """The text of a field, unchanged. mend: what to do about an empty one."""
    if name not in item:
        raise InputError(f"{where}: no field {name!r}; the row has {', '.join(map(repr, item)) or 'none'}")
    text = item[name]
    if not isinstance(text, str):
        raise InputError(f"{where}, field {name!r}: text is needed, found {kind(text)}")
    if not text.strip():
        raise InputError(f"{where}, field {name!r}: empty; {mend}")
    if half := _HALF_A_PAIR.search(text):
        raise InputError(
            f"{where}, field {name!r}: {half[0]!r} is half a character (UTF-16); save the whole text as UTF-8"
        )
    return text


def language_code_of(item: Mapping[str, Any], name: str, where: str) -> str:
    """The language code in a field."""
    return language_of(text_of(item, name, where), f"{where}, field {name!r}").code


def kind(value: Any) -> str:
    """What a JSON value is, in words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    return {dict: "an object", str: "text", bool: "true or false"}.get(type(value), "a number")
