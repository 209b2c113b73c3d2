"""Tasks x languages to predictions: records on disk, one finished cell at a time.

`out/cells/{task}_{language}.json` holds a finished cell. The same command started again reads it instead of scoring,
so a run that was stopped continues; a cell made with other settings or prompts is refused, naming what differs.
When all cells are there, `predictions.jsonl`, `results.json` and `timing.json` are written from them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from jaxalign.data.label_sets import label_candidates
from jaxalign.data.prompts import Exemplars, few_shot_prompt, label_words
from jaxalign.data.tasks import Task, TaskRow, read_task_rows, task_named
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.evaluation.score_labels import Scorer
from jaxalign.files import read_json, write_json, write_json_lines
from jaxalign.model.fingerprint import weights_sha256
from jaxalign.statistics import wilson_interval

VARIANT = "english"
"""Answers are English words in every language, as in the study's main results."""

TASK_VERSIONS = {"emotion": 1, "snli": 1, "paws": 1}
"""Raised when a task's prompts, candidate sets or scoring change: only scores of equal version compare."""


@dataclass(frozen=True)
class GridData:
    """Where the examples come from, and which of them."""

    folder: Path
    exemplars: Exemplars
    tokenizer: Tokenizer
    rows: slice
    seed: int
    """Breaks exact ties, nothing else."""


@dataclass(frozen=True)
class Cell:
    """One task in one language, ready to be scored."""

    task: Task
    language: str
    rows: list[TaskRow]
    prompts: list[list[int]]
    candidates: dict[str, list[int]]
    """class -> candidate ids of its label word, in the task's order of classes"""

    @property
    def name(self) -> str:
        return f"{self.task.name}_{self.language}"

    def inputs_sha256(self) -> str:
        """A digest of all that is scored: token ids of prompts and labels, gold answers."""
        golds = [(row.row, row.answer, row.gold_class) for row in self.rows]
        inputs = json.dumps([self.prompts, self.candidates, golds])
        return hashlib.sha256(inputs.encode()).hexdigest()


def render_cell(data: GridData, task: Task, language: str) -> Cell:
    """Reads the rows of a cell and turns them into prompts and candidate sets."""
    rows = read_task_rows(data.folder, task, language, "test", data.rows)
    prompts = [data.tokenizer.prompt_ids(few_shot_prompt(row, data.exemplars, VARIANT)) for row in rows]
    words = label_words(task, language, VARIANT)
    candidates = label_candidates(words, data.tokenizer)
    for name, ids in candidates.items():
        if not ids:
            raise InputError(f"{task.name}, {language}: the tokenizer has no token for the label word {words[name]!r}")
    return Cell(task, language, rows, prompts, candidates)


def heaviest_class(masses: Mapping[str, float], seed: int, row: TaskRow) -> str:
    """The class of largest mass; among exactly equal ones, a hash of (seed, task, language, row) chooses."""
    largest = max(masses.values())
    tied = [name for name, mass in masses.items() if mass == largest]
    key = f"{seed} {row.task} {row.language} {row.row}"
    return tied[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(tied)]


def predict(cell: Cell, masses: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """One record per example, as `predictions.jsonl` holds it.

    `correct_corrected` compares with the class of the aligned English row. `correct_reference` does what the study's
    scripts do: it maps the predicted class to the script's word of the language and compares with the row's own answer,
    which differs in three SNLI files.

    Args:
      masses: float32 [rows, classes].
    """
    records = []
    for row, prompt, scores in zip(cell.rows, cell.prompts, masses.tolist(), strict=True):
        prefix_mass = dict(zip(cell.candidates, scores, strict=True))
        prediction = heaviest_class(prefix_mass, seed, row)
        records.append(
            {
                "task": row.task,
                "language": row.language,
                "row": row.row,
                "prompts": "study",
                "variant": VARIANT,
                "prefix_mass": prefix_mass,
                "whole_word": None,
                "prediction": prediction,
                "gold_class": row.gold_class,
                "correct_reference": cell.task.label_words[row.language][prediction] == row.answer,
                "correct_corrected": prediction == row.gold_class,
                "prompt_tokens": len(prompt),
            }
        )
    return records


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One cell's accuracies with the 95 % Wilson interval of the corrected one."""
    first, count = records[0], len(records)
    correct = sum(record["correct_corrected"] for record in records)
    return {
        **{key: first[key] for key in ("task", "language", "variant", "prompts")},
        "count": count,
        "accuracy_corrected": correct / count,
        "accuracy_reference": sum(record["correct_reference"] for record in records) / count,
        "interval_corrected": list(wilson_interval(correct, count)),
    }


def finished_cell(path: Path, made_from: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The records of a cell that an earlier run finished, or None; one made from something else raises InputError."""
    if not path.is_file():
        return None
    saved = read_json(path)
    for key in {**made_from, **saved["made_from"]}:
        then, now = saved["made_from"].get(key), made_from.get(key)
        if then != now:
            raise InputError(
                f"{path}: made with {key}={json.dumps(then, ensure_ascii=False)}, now "
                f"{json.dumps(now, ensure_ascii=False)}; choose another output folder or delete this one"
            )
    return saved["records"]


def evaluate_grid(
    out: Path,
    scorer: Scorer,
    variables: Any,
    data: GridData,
    tasks: Sequence[str],
    languages: Sequence[str],
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores every cell that is not finished yet and writes the three files of an evaluation.

    Args:
      out: the folder that receives them; only process 0 writes.
      tasks, languages: the cells, in the order of the records.
      settings: what masses depend on beyond prompts and weights (model, adapter, precision), JSON values; a finished
        cell is reused only if they, the prompts and the weights are equal.
      description: what `results.json` says besides its cells: model, adapter, tuned_on, config, command, versions.

    Returns:
      The content of `results.json`.
    """
    variables = scorer.place(variables)
    settings = {**settings, "weights_sha256": weights_sha256(variables)}
    cells = [render_cell(data, task_named(task), language) for task in tasks for language in languages]
    records = {cell.name: reuse_cell(out, cell, data, settings) for cell in cells}
    # Every process must score the same cells; what process 0 finds on its disk counts.
    found = multihost_utils.broadcast_one_to_all(np.array([records[cell.name] is not None for cell in cells]))
    examples = {"scored": 0, "reused": sum(len(cell.rows) for cell, done in zip(cells, found, strict=True) if done)}
    total = sum(len(cell.rows) for cell in cells)
    is_writer = jax.process_index() == 0
    # None: shown where stderr is a terminal.
    shown = {"unit": "example", "disable": None if is_writer else True}
    with tqdm(total=total, initial=examples["reused"], **shown) as progress:
        for cell, done in zip(cells, found, strict=True):
            if done:
                continue
            progress.set_description(cell.name)
            masses = scorer.masses(variables, cell.prompts, list(cell.candidates.values()), progress.update)
            records[cell.name] = predict(cell, masses, data.seed)
            examples["scored"] += len(cell.rows)
            if is_writer:
                saved = {"made_from": made_from(cell, data, settings), "records": records[cell.name]}
                write_json(cell_path(out, cell), saved)
    ordered = [records[cell.name] or [] for cell in cells]
    results = {
        "cells": [summarise(cell_records) for cell_records in ordered if cell_records],
        "task_version": {task: TASK_VERSIONS[task] for task in tasks},
        **description,
    }
    if is_writer:
        write_json_lines(out / "predictions.jsonl", (record for cell_records in ordered for record in cell_records))
        write_json(out / "timing.json", {"examples": examples, **asdict(scorer.counts)})
        write_json(out / "results.json", results)
    return results


def cell_path(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.name}.json"


def made_from(cell: Cell, data: GridData, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a finished cell depends on, by name. The order of keys is the order in which differences are named."""
    rows = f"{data.rows.start or 0}:{'end' if data.rows.stop is None else data.rows.stop}"
    return {**settings, "rows": rows, "seed": data.seed, "inputs_sha256": cell.inputs_sha256()}


def reuse_cell(out: Path, cell: Cell, data: GridData, settings: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    return finished_cell(cell_path(out, cell), made_from(cell, data, settings))
