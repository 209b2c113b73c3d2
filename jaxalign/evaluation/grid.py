"""Cells to records on disk, one finished cell at a time.

`out/cells/{name}.json` holds a finished cell, with all that it was made from. The same command started again reads it
instead of asking the model, so a run that was stopped continues; a cell made with other settings or prompts is refused,
naming what differs. A cell that fails is listed, and the others go on. At the end the records of all cells, their
summaries and the timing are written.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from jaxalign.errors import InputError
from jaxalign.evaluation.cells import TASK_VERSIONS, GridCell
from jaxalign.files import read_json, write_json, write_json_lines
from jaxalign.holding import check_held
from jaxalign.log import is_hidden
from jaxalign.model.weights import weights_sha256
from jaxalign.runtime import FatalForAllHosts, assert_same_on_hosts, from_process_0, processes

CELL_ERRORS = (InputError, jax.errors.JaxRuntimeError)
"""What may be wrong with one cell while others are fine: its data, or memory at its lengths."""


class OtherOrigin(InputError):
    """A finished cell that was made from something else: no fault of the cell, but of the command."""


class Grid(NamedTuple):
    """Where cells are written, and how their files are called."""

    out: Path
    records: str = "predictions.jsonl"
    prefix: str = ""
    """of results.json, timing.json and, in the former, `cells`"""
    examples: str = "examples"
    """in timing.json, how many were `asked` and reused"""
    asked: str = "scored"


def open_grid(out: Path) -> Grid:
    """The files of open answers; those of label scoring beside them are not touched."""
    return Grid(out, "answers.jsonl", "open_", "answers", "decoded")


def run_grid(
    grid: Grid,
    cells: Sequence[GridCell],
    asker: Any,
    variables: Any,
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """Asks every cell that is not finished yet and writes the three files.

    Args:
      cells: in the order of the records; only process 0 writes.
      asker: as `GridCell.ask` takes it.
      settings: what answers depend on beyond prompts and weights (model, adapter, precision), JSON values; a finished
        cell is reused only if they, the prompts and the weights are equal.
      description: what the results say besides cells: model, adapter, tuned_on, bos, config, command, versions.

    Returns:
      The content of the file of results; on another process than 0, without the cells that were finished before.

    Raises:
      OtherOrigin: a finished cell was made from something else.
    """
    started = time.perf_counter()
    variables = asker.runner.place(variables)
    settings = {**settings, "weights_sha256": weights_sha256(variables)}
    counts = {grid.asked: 0, "reused": 0}
    found: dict[str, list[dict[str, Any]]] = {}
    summaries: dict[str, dict[str, Any]] = {}
    failures: dict[str, dict[str, str]] = {}
    is_writer = jax.process_index() == 0
    paths = {cell.name: grid.out / "cells" / f"{cell.name}.json" for cell in cells}
    was_finished = dict(zip(paths, from_process_0([path.is_file() for path in paths.values()]), strict=True))
    with tqdm(total=sum(map(len, cells)), unit="example", disable=is_hidden()) as progress:
        # Finished cells first: one that was made from something else is refused before anything is asked.
        for cell in sorted(cells, key=lambda cell: not was_finished[cell.name]):
            progress.set_description(cell.name)
            try:
                queries, path = cell.queries(), paths[cell.name]
                made_from = {**settings, **cell.origin(queries)}
                assert_same_on_hosts(cell.name, made_from)
                if was_finished[cell.name]:
                    records = finished_on_the_first(path, made_from)
                    counts["reused"] += len(cell)
                    progress.update(len(cell))
                else:
                    records = cell.ask(asker, variables, queries, progress.update)
                    counts[grid.asked] += len(cell)
                    if is_writer:
                        check_held()
                        write_json(path, {"made_from": made_from, "records": records})
            except CELL_ERRORS as error:
                failures[cell.name] = {**cell.labels, "error": cell_failure(error)}
                continue
            if records is not None:
                found[cell.name], summaries[cell.name] = records, cell.summary(records)
    done = [name for name in paths if name in found]
    results = {
        f"{grid.prefix}cells": [summaries[name] for name in done],
        "failures": [failures[name] for name in paths if name in failures],
        "task_version": {cell.labels["task"]: TASK_VERSIONS[cell.labels["task"]] for cell in cells},
        **description,
    }
    if is_writer:
        write_json_lines(grid.out / grid.records, (record for name in done for record in found[name]))
        timing = asker.timing(counts[grid.asked], time.perf_counter() - started)
        write_json(grid.out / f"{grid.prefix}timing.json", {grid.examples: counts, **timing})
        write_json(grid.out / f"{grid.prefix}results.json", results)
    return results


def cell_failure(error: Exception) -> str:
    """What failed, in one line: the runtime's errors go on for pages. Raises an error that is not this cell's alone."""
    if isinstance(error, OtherOrigin | FatalForAllHosts):
        raise error
    line = str(error).split("\n")[0]
    if isinstance(error, jax.errors.JaxRuntimeError) and processes() > 1:
        # Where one process has no memory left, the others are in the middle of a program that it left.
        raise FatalForAllHosts(line) from error
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
    is_refused, is_of_other_origin = from_process_0([error is not None, isinstance(error, OtherOrigin)])
    if is_refused:
        kind = OtherOrigin if is_of_other_origin else InputError
        raise error or kind(f"{path}: the first host cannot use it, and says why")
    return records
