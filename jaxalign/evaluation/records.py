"""Scores of a cell -> one record per example, as `predictions.jsonl` holds it, and their summary for `results.json`."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.prompts import collisions
from jaxalign.data.tasks import TaskRow, correct_by_class, correct_by_reference
from jaxalign.evaluation.cells import Cell
from jaxalign.evaluation.score_labels import LabelScores
from jaxalign.statistics import wilson_interval

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
