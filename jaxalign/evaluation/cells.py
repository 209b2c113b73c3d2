"""A cell of the grid: what a model is asked of one task in one language, the records of its answers, and their summary.

`GridCell` is what the grid (grid.py) knows of one. Label cells are here: one task in one language, answered in one kind
of words. Open answers, which have to be decoded, are in open_cells.py.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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
from jaxalign.evaluation.score import LabelScores, Scorer
from jaxalign.model.ragged import OnRows
from jaxalign.runtime import assert_same_on_hosts
from jaxalign.statistics import wilson_interval

TASK_VERSIONS = {"emotion": 1, "snli": 1, "paws": 1, "mgsm": 2, "msvamp": 2, "translation": 1}
"""Raised when a task's prompts, candidate sets, limits or scoring change: only scores of equal version compare."""

Records = Sequence[Mapping[str, Any]]


class GridCell(Protocol):
    """What a model is asked of one task in one language, as the grid knows it."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]:
        """What names it in the results, its `task` first."""
        ...

    def __len__(self) -> int: ...

    def queries(self) -> Sequence[Any]:
        """What is asked, made anew each time: all cells' together may be too large to keep."""
        ...

    def origin(self, queries: Any) -> dict[str, Any]:
        """All that records depend on besides the model, in the order in which differences are named."""
        ...

    def ask(self, asker: Any, variables: Any, queries: Any, on_rows: OnRows = ...) -> list[dict[str, Any]]:
        """One record per question, by a `Scorer` or a `Generator` with the model's variables."""
        ...

    def summary(self, records: Records) -> dict[str, Any]:
        """The cell's entry in the file of results."""
        ...


def digest(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


class CellKey(NamedTuple):
    task: str
    language: str
    variant: Variant

    @property
    def name(self) -> str:
        return "_".join(self)


def cell_keys(tasks: Sequence[Task], languages: Sequence[str], variants: Sequence[Variant]) -> list[CellKey]:
    """All cells in the order of their records: by task, then variant, then language; a task has only its variants."""
    return [
        CellKey(task.name, language, variant)
        for task in tasks
        for variant in variants
        if variant in variants_of(task)
        for language in languages
    ]


@dataclass(frozen=True)
class GridData:
    """Where label cells' examples come from, which of them, and how they are asked."""

    tasks: TaskData
    exemplars: Exemplars
    tokenizer: Tokenizer
    rows: slice
    style: PromptStyle
    seed: int
    """Breaks exact ties, nothing else."""


@dataclass(frozen=True)
class LabelCell:
    """The test rows of a task in one language, answered by label words."""

    key: CellKey
    data: GridData
    rows: list[TaskRow]
    candidates: dict[str, list[int]]
    """class -> candidate ids of its label word, in the task's order of classes"""
    error: InputError | None = None
    """why there are neither rows nor candidates; it cannot be asked then"""

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def labels(self) -> Mapping[str, str]:
        return self.key._asdict()

    def __len__(self) -> int:
        return len(self.rows)

    def queries(self) -> list[LabelQuery]:
        if self.error is not None:
            raise self.error
        data = self.data
        return label_queries(self.rows, data.exemplars, data.tokenizer, self.key.variant, data.style)

    def origin(self, queries: Sequence[LabelQuery]) -> dict[str, Any]:
        rows = self.data.rows
        golds = [(row.row, row.answer, row.gold_class) for row in self.rows]
        asked = [(query.prompt, [(word.ids, word.scored_from) for word in query.words]) for query in queries]
        return {
            "rows": f"{rows.start or 0}:{'end' if rows.stop is None else rows.stop}",
            "seed": self.data.seed,
            "prompts": self.data.style,
            "task_version": TASK_VERSIONS[self.key.task],
            "inputs_sha256": digest([asked, self.candidates, golds]),
        }

    def ask(
        self, asker: Scorer, variables: Any, queries: Sequence[LabelQuery], on_rows: OnRows = lambda rows: None
    ) -> list[dict[str, Any]]:
        return self.records(queries, asker.score(variables, queries, list(self.candidates.values()), on_rows))

    def records(self, queries: Sequence[LabelQuery], scores: LabelScores) -> list[dict[str, Any]]:
        """A record per query, its prediction by `prefix_mass`, judged by both rules; scores [rows, classes]."""
        records = []
        scored = zip(self.rows, queries, scores.prefix_mass.tolist(), scores.whole_word.tolist(), strict=True)
        for row, query, masses, words in scored:
            prefix_mass = dict(zip(self.candidates, masses, strict=True))
            prediction = best_class(prefix_mass, self.data.seed, row)
            records.append(
                {
                    "task": row.task,
                    "language": row.language,
                    "row": row.row,
                    "prompts": self.data.style,
                    "variant": self.key.variant,
                    "prefix_mass": prefix_mass,
                    "whole_word": dict(zip(self.candidates, words, strict=True)),
                    "prediction": prediction,
                    "gold_class": row.gold_class,
                    "correct_reference": correct_by_reference(TASKS[row.task], row, prediction),
                    "correct_corrected": correct_by_class(row, prediction),
                    "prompt_tokens": len(query.prompt),
                }
            )
        return records

    def summary(self, records: Records) -> dict[str, Any]:
        """Accuracies, the 95 % Wilson interval of the corrected one, near ties, and shared candidates."""
        count = len(records)
        correct = sum(record["correct_corrected"] for record in records)
        by_word = [
            best_class(record["whole_word"], self.data.seed, row) == row.gold_class
            for row, record in zip(self.rows, records, strict=True)
        ]
        return {
            **self.labels,
            "prompts": self.data.style,
            "count": count,
            "accuracy_corrected": correct / count,
            "accuracy_reference": sum(record["correct_reference"] for record in records) / count,
            "accuracy_whole_word": sum(by_word) / count,
            "interval_corrected": list(wilson_interval(correct, count)),
            "near_ties": sum(margin(record["prefix_mass"]) < MASSES_NEAR_TIE for record in records),
            "shared_candidates": [
                {"classes": list(classes), "ids": ids} for classes, ids in collisions(self.candidates).items()
            ],
        }


def label_cell(data: GridData, key: CellKey) -> LabelCell:
    """Reads the rows of a cell."""
    task = TASKS[key.task]
    rows = data.tasks.rows(task, key.language, data.rows)
    candidates = scored_candidates(task, key.language, data.tokenizer, key.variant, data.style)
    for name, ids in candidates.items():
        if not ids:
            word = label_words(task, key.language, key.variant)[name]
            raise InputError(f"{task.name}, {key.language}: the tokenizer has no token for the label word {word!r}")
    return LabelCell(key, data, rows, candidates)


def label_cells(data: GridData, keys: Sequence[CellKey]) -> list[LabelCell]:
    """The cells of these names, those whose rows cannot be read with the error; the same on all hosts."""
    cells = []
    for key in keys:
        try:
            cells.append(label_cell(data, key))
        except InputError as error:
            cells.append(LabelCell(key, data, [], {}, error))
    assert_same_on_hosts(
        "the test rows or exemplars", [[cell.rows for cell in cells], sorted(data.exemplars.cells.items())]
    )
    return cells


MASSES_NEAR_TIE = 2e-5
"""Masses nearer than this may change places with batch, order or mesh, and the prediction with them."""


def best_class(scores: Mapping[str, float], seed: int, row: TaskRow) -> str:
    """The class of largest score; among exactly equal ones, a hash of (seed, task, language, row) chooses."""
    largest = max(scores.values())
    tied = [name for name, score in scores.items() if score == largest]
    key = f"{seed} {row.task} {row.language} {row.row}"
    return tied[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(tied)]


def margin(scores: Mapping[str, float]) -> float:
    """How far the largest score lies above the next."""
    second, first = sorted(scores.values())[-2:]
    return first - second
