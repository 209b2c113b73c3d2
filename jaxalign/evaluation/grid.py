"""Tasks x variants x languages to predictions: records on disk, one finished cell at a time.

`out/cells/{task}_{language}_{variant}.json` holds a finished cell. The same command started again reads it instead of
scoring, so a run that was stopped continues; a cell made with other settings or prompts is refused, naming what
differs. A cell that cannot be scored is listed, and the others go on. At the end `predictions.jsonl`, `results.json`
and `timing.json` are written.

Finished cells on disk, each with all that it was made from: what lets a stopped run continue.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from jaxalign.data.tasks import TASKS, TaskRow, read_task_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import Cell, CellKey, GridData, records_of, render_cell, summary
from jaxalign.evaluation.score import Scorer
from jaxalign.files import read_json, write_json, write_json_lines
from jaxalign.holding import check_held
from jaxalign.log import is_hidden
from jaxalign.model.weights import weights_sha256
from jaxalign.runtime import EndsAll, agree, of_the_first, processes

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


TASK_VERSIONS = {"emotion": 1, "snli": 1, "paws": 1}
"""Raised when a task's prompts, candidate sets or scoring change: only scores of equal version compare."""


def evaluate_grid(
    out: Path,
    scorer: Scorer,
    variables: Any,
    data: GridData,
    keys: Sequence[CellKey],
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores every cell that is not finished yet and writes the three files of an evaluation.

    Args:
      out: the folder that receives them; only process 0 writes.
      keys: the cells, in the order of the records.
      settings: what scores depend on beyond prompts and weights (model, adapter, precision), JSON values; a finished
        cell is reused only if they, the prompts and the weights are equal.
      description: what `results.json` says besides its cells: model, adapter, tuned_on, bos, config, command, versions.

    Returns:
      The content of `results.json`; on another process than 0, without the cells that were finished before.

    Raises:
      OtherOrigin: a finished cell was made from something else.
    """
    started = time.perf_counter()
    variables = scorer.runner.place(variables)
    settings = {**settings, "weights_sha256": weights_sha256(variables)}
    outcomes: dict[CellKey, Outcome] = {}
    counts = {"scored": 0, "reused": 0}
    rows, errors = read_rows(data, keys)
    is_writer = jax.process_index() == 0
    agree("the test rows or exemplars", [list(rows.items()), sorted(data.exemplars.cells.items())])
    was_finished = of_the_first([cell_path(out, key).is_file() for key in rows])
    with tqdm(total=sum(map(len, rows.values())), unit="example", disable=is_hidden()) as progress:
        # Finished cells first: one that was made from something else is refused before anything is scored.
        for key, is_finished in sorted(zip(rows, was_finished, strict=True), key=lambda each: not each[1]):
            progress.set_description(key.name)
            records = None
            try:
                cell = render_cell(data, key, rows[key])
                path, made_from = cell_path(out, key), origin(cell, data, settings)
                agree(key.name, made_from)
                if not is_finished:
                    scores = scorer.score(variables, cell.queries, list(cell.candidates.values()), progress.update)
                    records = records_of(cell, scores, data.seed)
                    counts["scored"] += len(records)
                    if is_writer:
                        save(path, made_from, records)
                elif (records := finished_on_the_first(path, made_from)) is not None:
                    counts["reused"] += len(records)
                    progress.update(len(records))
            except CELL_ERRORS as error:
                errors[key] = cell_failure(error)
                continue
            if records is not None:
                outcomes[key] = Outcome(records, summary(cell, records, data.seed))
    done = [outcomes[key] for key in keys if key in outcomes]
    results = {
        "cells": [outcome.summary for outcome in done],
        "failures": [{**key._asdict(), "error": errors[key]} for key in keys if key in errors],
        "task_version": {key.task: TASK_VERSIONS[key.task] for key in keys},
        **description,
    }
    if is_writer:
        write_json_lines(out / "predictions.jsonl", (record for outcome in done for record in outcome.records))
        write_json(out / "timing.json", timing(scorer, counts, time.perf_counter() - started))
        write_json(out / "results.json", results)
    return results


class Outcome(NamedTuple):
    """What a finished cell adds to the files."""

    records: list[dict[str, Any]]
    summary: dict[str, Any]


def read_rows(data: GridData, keys: Sequence[CellKey]) -> tuple[dict[CellKey, list[TaskRow]], dict[CellKey, str]]:
    """The chosen rows of every cell, and what is wrong with those that cannot be read."""
    rows, errors = {}, {}
    for key in keys:
        try:
            rows[key] = read_task_rows(data.folder, TASKS[key.task], key.language, "test", data.rows)
        except InputError as error:
            errors[key] = cell_failure(error)
    return rows, errors


def cell_path(out: Path, key: CellKey) -> Path:
    return out / "cells" / f"{key.name}.json"


def origin(cell: Cell, data: GridData, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a finished cell depends on, by name. The order of keys is the order in which differences are named."""
    rows = f"{data.rows.start or 0}:{'end' if data.rows.stop is None else data.rows.stop}"
    return {
        **settings,
        "rows": rows,
        "seed": data.seed,
        "prompts": data.style,
        "task_version": TASK_VERSIONS[cell.key.task],
        "inputs_sha256": cell.inputs_sha256(),
    }


def timing(scorer: Scorer, examples: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """What varies from run to run. Tokens and positions are those of this run's cells; padding is a share of positions.

    "seconds" of the phases hold no compilation; "examples_per_second" neither.
    """
    counts, runner = scorer.counts, scorer.runner
    compile_seconds = {name: runner.compile_seconds.get(name, 0.0) for name in counts.seconds}
    running = sum(counts.seconds.values()) - sum(compile_seconds.values())
    computed = counts.prompt_tokens_computed + counts.word_tokens_computed
    return {
        "examples": dict(examples),
        "prompt_tokens_asked": counts.prompt_tokens_asked,
        "prompt_tokens_computed": counts.prompt_tokens_computed,
        "word_tokens_computed": counts.word_tokens_computed,
        "positions_computed": counts.positions_computed,
        "padding_share": 1 - computed / counts.positions_computed if counts.positions_computed else 0.0,
        "compilations": {name: runner.compilations[name] for name in counts.seconds},
        "compile_seconds": compile_seconds,
        "seconds": {name: spent - compile_seconds[name] for name, spent in counts.seconds.items()},
        "seconds_in_all": seconds,
        "examples_per_second": examples["scored"] / running if running else 0.0,
    }
