"""Fields of JSON documents, checked one by one: what does not fit raises InputError with file and field."""

import json
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxalign.data.languages import language_of
from jaxalign.errors import InputError
from jaxalign.files import AnyPath, read_json

Value = TypeVar("Value", str, int, bool, float, list, dict)
KINDS = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
    list: "an array",
    dict: "an object",
}


def field(document: Mapping[str, Any], name: str, kind: type[Value], where: str) -> Value:
    """document[name], which must be there and of its kind; a whole number is a number too, true is neither."""
    if name not in document:
        raise InputError(f"{where}: no field {name!r}; is the file complete?")
    value = document[name]
    # A whole number of JSON may be larger than any float.
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}, field {name!r}: {KINDS[kind]} is needed, found {json.dumps(value)[:60]}")
    return value


def texts(document: Mapping[str, Any], name: str, where: str) -> list[str]:
    """document[name], which must be an array of texts."""
    values = field(document, name, list, where)
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"{where}, field {name!r}: an array of texts is needed, found {json.dumps(values)[:60]}")
    return values


def languages(document: Mapping[str, Any], name: str, where: str) -> list[str]:
    """Codes of the languages in document[name], an array."""
    return [language_of(language, f"{where}, {name}").code for language in texts(document, name, where)]


def whole_numbers(document: Mapping[str, Any], name: str, where: str) -> list[int]:
    """document[name], which must be an array of whole numbers."""
    values = field(document, name, list, where)
    if not all(type(value) is int for value in values):
        raise InputError(f"{where}, field {name!r}: whole numbers are needed, found {json.dumps(values)[:60]}")
    return values


def share(value: Any, where: str) -> float:
    """A number between 0 and 1, a rounding error above 1 allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 + 1e-4:
        raise InputError(f"{where}: a number between 0 and 1 is needed, found {json.dumps(value)[:60]}")
    return float(value)


def read_object(path: AnyPath) -> dict[str, Any]:
    """The JSON object that a file holds."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: a JSON object is needed")
    return document
