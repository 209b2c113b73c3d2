"""A cell of the grid: one task in one language, answered in one kind of words, ready to be scored."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxalign.data.prompts import (
    Exemplars,
    LabelQuery,
    PromptStyle,
    Variant,
    label_queries,
    label_words,
    scored_candidates,
    variants_of,
)
from jaxalign.data.tasks import TASKS, Task, TaskRow
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError


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

    folder: Path
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
