"""Finished cells on disk, each with all that it was made from: what lets a stopped run continue."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json

CELL_ERRORS = (InputError, jax.errors.JaxRuntimeError)
"""What may be wrong with one cell while others are fine: its data, or memory at its lengths."""


class OtherOrigin(InputError):
    """A finished cell that was made from something else: no fault of the cell, but of the command."""


def finished(path: Path, made_from: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The records of a cell that an earlier run finished, or None; one made from something else raises OtherOrigin."""
    if not path.is_file():
        return None
    saved = read_json(path)
    for key in {**made_from, **saved["made_from"]}:
        then, now = saved["made_from"].get(key), made_from.get(key)
        if then != now:
            raise OtherOrigin(
                f"{path}: made with {key}={json.dumps(then, ensure_ascii=False)}, now "
                f"{json.dumps(now, ensure_ascii=False)}; choose another output folder or delete this one"
            )
    return saved["records"]


def save(path: Path, made_from: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a finished cell, whole or not at all."""
    write_json(path, {"made_from": made_from, "records": records})
