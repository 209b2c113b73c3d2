"""Finished cells on disk, each with all that it was made from: what lets a stopped run continue."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json
from jaxalign.hosts import HostsDiffer, processes

CELL_ERRORS = (InputError, jax.errors.JaxRuntimeError)
"""What may be wrong with one cell while others are fine: its data, or memory at its lengths."""


class OtherOrigin(InputError):
    """A finished cell that was made from something else: no fault of the cell, but of the command."""


def line_of_one_cell(error: Exception) -> str:
    """An error of a cell as a record holds it: the runtime's go on for pages. Raises what is not that cell's alone."""
    # Where one of several processes has no memory left, the others are in the middle of a program that it left.
    is_one_process_s = isinstance(error, jax.errors.JaxRuntimeError) and processes() > 1
    if is_one_process_s or isinstance(error, OtherOrigin | HostsDiffer):
        raise error
    return str(error).split("\n")[0]


def finished(path: Path, made_from: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of a cell that an earlier run finished; one made from something else raises OtherOrigin."""
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
