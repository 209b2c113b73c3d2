"""A cell of the grid: one task in one language, answered in one kind of words, ready to be scored.

Scores of a cell -> one record per example, as `predictions.jsonl` holds it, and their summary for `results.json`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxalign.data.prompts import (
    Exemplars,
    LabelQuery,
    PromptStyle,
    Variant,
    collisions,
    label_queries,
    label_words,
    scored_candidates,
    variants_of,
)
from jaxalign.data.tasks import TASKS, Task, TaskData, TaskRow, correct_by_class, correct_by_reference
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.evaluation.score import LabelScores
from jaxalign.statistics import wilson_interval


class CellKey(NamedTuple):
    """What names a cell."""

    task: str
    language: str
    variant: Variant

    @property
    def name(self) -> str:
        return "_".join(self)


@dataclass(frozen=True)
class GridData:
    """Where the examples come from, which of them, and how they are asked."""

    tasks: TaskData
    exemplars: Exemplars
    tokenizer: Tokenizer
    rows: slice
    style: PromptStyle
    seed: int
    """Breaks exact ties, nothing else."""


@dataclass(frozen=True)
class Cell:
    key: CellKey
    style: PromptStyle
    rows: list[TaskRow]
    queries: list[LabelQuery]
    candidates: dict[str, list[int]]
    """class -> candidate ids of its label word, in the task's order of classes"""

    @property
    def task(self) -> Task:
        return TASKS[self.key.task]

    def inputs_sha256(self) -> str:
        """A digest of all that is scored: token ids of prompts, words and labels, gold answers."""
        golds = [(row.row, row.answer, row.gold_class) for row in self.rows]
        asked = [(query.prompt, [(word.ids, word.scored_from) for word in query.words]) for query in self.queries]
        return hashlib.sha256(json.dumps([asked, self.candidates, golds]).encode()).hexdigest()


def cell_keys(tasks: Sequence[Task], languages: Sequence[str], variants: Sequence[Variant]) -> list[CellKey]:
    """All cells in the order of their records: by task, then variant, then language; a task has only its variants."""
    return [
        CellKey(task.name, language, variant)
        for task in tasks
        for variant in variants
        if variant in variants_of(task)
        for language in languages
    ]


def render_cell(data: GridData, key: CellKey, rows: list[TaskRow]) -> Cell:
    """Turns the rows of a cell into queries and candidate sets."""
    task = TASKS[key.task]
    candidates = scored_candidates(task, key.language, data.tokenizer, key.variant, data.style)
    for name, ids in candidates.items():
        if not ids:
            word = label_words(task, key.language, key.variant)[name]
            raise InputError(f"{task.name}, {key.language}: the tokenizer has no token for the label word {word!r}")
    queries = label_queries(rows, data.exemplars, data.tokenizer, key.variant, data.style)
    return Cell(key, data.style, rows, queries, candidates)


NEAR_TIE = 2e-5
"""Masses nearer than this may change places with batch, order or mesh, and the prediction with them."""


def best_class(scores: Mapping[str, float], seed: int, row: TaskRow) -> str:
    """The class of largest score; among exactly equal ones, a hash of (seed, task, language, row) chooses."""
    largest = max(scores.values())
    tied = [name for name, score in scores.items() if score == largest]
    key = f"{seed} {row.task} {row.language} {row.row}"
    return tied[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(tied)]


def right_by_mass(cell: Cell, scores: LabelScores, seed: int) -> list[bool]:
    """Of each row, whether `prefix_mass` answers it right by the corrected rule."""
    masses = (dict(zip(cell.candidates, row, strict=True)) for row in scores.prefix_mass.tolist())
    chosen = (best_class(each, seed, row) for each, row in zip(masses, cell.rows, strict=True))
    return [correct_by_class(row, name) for row, name in zip(cell.rows, chosen, strict=True)]


def records_of(cell: Cell, scores: LabelScores, seed: int) -> list[dict[str, Any]]:
    """One record per example, its prediction by `prefix_mass`, judged by both rules.

    Args:
      scores: of the cell's queries, [rows, classes].
    """
    records = []
    scored = zip(cell.rows, cell.queries, scores.prefix_mass.tolist(), scores.whole_word.tolist(), strict=True)
    for row, query, masses, words in scored:
        prefix_mass = dict(zip(cell.candidates, masses, strict=True))
        prediction = best_class(prefix_mass, seed, row)
        records.append(
            {
                "task": row.task,
                "language": row.language,
                "row": row.row,
                "prompts": cell.style,
                "variant": cell.key.variant,
                "prefix_mass": prefix_mass,
                "whole_word": dict(zip(cell.candidates, words, strict=True)),
                "prediction": prediction,
                "gold_class": row.gold_class,
                "correct_reference": correct_by_reference(cell.task, row, prediction),
                "correct_corrected": correct_by_class(row, prediction),
                "prompt_tokens": len(query.prompt),
            }
        )
    return records


def summary(cell: Cell, records: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The cell's accuracies, the 95 % Wilson interval of the corrected one, near ties, and shared candidates."""
    count = len(records)
    correct = sum(record["correct_corrected"] for record in records)
    by_word = [
        best_class(record["whole_word"], seed, row) == row.gold_class
        for row, record in zip(cell.rows, records, strict=True)
    ]
    return {
        **cell.key._asdict(),
        "prompts": cell.style,
        "count": count,
        "accuracy_corrected": correct / count,
        "accuracy_reference": sum(record["correct_reference"] for record in records) / count,
        "accuracy_whole_word": sum(by_word) / count,
        "interval_corrected": list(wilson_interval(correct, count)),
        "near_ties": sum(margin(record["prefix_mass"]) < NEAR_TIE for record in records),
        "shared_candidates": [
            {"classes": list(classes), "ids": ids} for classes, ids in collisions(cell.candidates).items()
        ],
    }


def margin(scores: Mapping[str, float]) -> float:
    """How far the largest score lies above the next."""
    second, first = sorted(scores.values())[-2:]
    return first - second
