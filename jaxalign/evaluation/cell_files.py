"""Finished cells on disk, each with all that it was made from: what lets a stopped run continue."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json
from jaxalign.holding import check_held
from jaxalign.runtime import EndsAll, of_the_first, processes

CELL_ERRORS = (InputError, jax.errors.JaxRuntimeError)
"""What may be wrong with one cell while others are fine: its data, or memory at its lengths."""


class OtherOrigin(InputError):
    """A finished cell that was made from something else: no fault of the cell, but of the command."""


def cell_failure(error: Exception) -> str:
    """What failed, in one line as a record holds it: the runtime's errors go on for pages.

    Raises an error that is not this cell's alone.
    """
    if isinstance(error, OtherOrigin | EndsAll):
        raise error
    line = str(error).split("\n")[0]
    if isinstance(error, jax.errors.JaxRuntimeError) and processes() > 1:
        # Where one process has no memory left, the others are in the middle of a program that it left.
        raise EndsAll(line) from error
    return line


def finished(path: Path, made_from: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of a cell that an earlier run finished; one made from something else raises OtherOrigin."""
    match read_json(path):
        case {"made_from": dict(saved), "records": list(records)}:
            pass
        case _:
            raise InputError(f"{path}: not a finished cell as it was written; delete the file to compute it again")
    for key in {**made_from, **saved}:
        then, now = saved.get(key), made_from.get(key)
        if then != now:
            raise OtherOrigin(
                f"{path}: made with {key}={json.dumps(then, ensure_ascii=False)}, now "
                f"{json.dumps(now, ensure_ascii=False)}; choose another output folder or delete this one"
            )
    return records


def finished_on_the_first(path: Path, made_from: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """`finished` on process 0, whose disk counts; None on the others, which raise what it raises."""
    records = error = None
    if jax.process_index() == 0:
        try:
            records = finished(path, made_from)
        except InputError as own:
            error = own
    is_refused, is_of_other_origin = of_the_first([error is not None, isinstance(error, OtherOrigin)])
    if is_refused:
        kind = OtherOrigin if is_of_other_origin else InputError
        raise error or kind(f"{path}: the first host cannot use it, and says why")
    return records


def save(path: Path, made_from: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a finished cell, whole or not at all."""
    check_held()
    write_json(path, {"made_from": made_from, "records": records})
