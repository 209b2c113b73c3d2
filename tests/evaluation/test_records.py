from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxalign.data.prompts import LabelQuery, read_exemplars
from jaxalign.data.tasks import TASKS, TaskData, TaskRow
from jaxalign.errors import InputError
from jaxalign.evaluation import cells
from jaxalign.evaluation.cells import CellKey, GridData, LabelCell, best_class, label_cell
from jaxalign.evaluation.score import LabelScores
from tests import tiny_world


def cell_of(task: str, language: str, answers: list[tuple[str, str]]) -> LabelCell:
    rows = [TaskRow(task, language, i, (), answer, gold) for i, (answer, gold) in enumerate(answers)]
    candidates = {name: [index] for index, name in enumerate(TASKS[task].classes)}
    data: Any = SimpleNamespace(style="study", seed=0)
    return LabelCell(CellKey(task, language, "english"), data, rows, candidates)


def records_of(cell: LabelCell, masses: Any, words: Any) -> list[dict[str, Any]]:
    scores = LabelScores(np.array(masses, np.float32), np.array(words))
    return cell.records([LabelQuery([1, 2], ())] * len(cell), scores)


NORWEGIAN = cell_of(
    "snli", "no", [("entailment", "entailment"), ("motsigelse", "neutral"), ("nøytral", "contradiction")]
)
"""Norwegian SNLI files swap neutral and contradiction: a perfect model is right by the class, wrong by the word."""


def test_a_record():
    record = records_of(NORWEGIAN, [[0.5, 0.25, 0.125]] * 3, [[-3.0, -1.0, -2.0]] * 3)[1]
    assert list(record.items()) == [
        ("task", "snli"),
        ("language", "no"),
        ("row", 1),
        ("prompts", "study"),
        ("variant", "english"),
        ("prefix_mass", {"entailment": 0.5, "neutral": 0.25, "contradiction": 0.125}),
        ("whole_word", {"entailment": -3.0, "neutral": -1.0, "contradiction": -2.0}),
        ("prediction", "entailment"),
        ("gold_class", "neutral"),
        ("correct_reference", False),
        ("correct_corrected", False),
        ("prompt_tokens", 2),
    ]


def test_reference_scoring_goes_through_the_scripts_words_and_corrected_through_english():
    records = records_of(NORWEGIAN, np.eye(3), -np.eye(3))
    assert [record["prediction"] for record in records] == ["entailment", "neutral", "contradiction"]
    assert [record["correct_corrected"] for record in records] == [True, True, True]
    assert [record["correct_reference"] for record in records] == [True, False, False]
    found = NORWEGIAN.summary(records)
    assert found["accuracy_corrected"] == 1 and found["accuracy_reference"] == pytest.approx(1 / 3)
    # By whole words the gold class is the least likely everywhere.
    assert found["accuracy_whole_word"] == 0
    expected = binomtest(3, 3).proportion_ci(0.95, method="wilson")
    assert found["interval_corrected"] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_near_ties_are_counted():
    masses = [[0.3, 0.3, 0.1], [0.1, 0.30001, 0.3], [0.30003, 0.1, 0.3]]
    records = records_of(NORWEGIAN, masses, -np.eye(3))
    assert NORWEGIAN.summary(records)["near_ties"] == 2


def test_shared_candidates_are_listed():
    cell = cell_of("emotion", "ja", [("ポジティブ", "positive")])
    cell = replace(cell, candidates={"positive": [3, 7], "negative": [5, 7]})
    found = cell.summary(records_of(cell, [[0.5, 0.25]], [[-1.0, -2.0]]))
    assert found["shared_candidates"] == [{"classes": ["positive", "negative"], "ids": [7]}]


def test_ties_fall_evenly_and_the_same_way_every_time():
    rows = [TaskRow("snli", "de", i, (), "", "") for i in range(600)]
    tied = {"entailment": 0.25, "neutral": 0.25, "contradiction": 0.25}
    choices = [best_class(tied, 0, row) for row in rows]
    assert choices == [best_class(tied, 0, row) for row in rows]
    assert choices != [best_class(tied, 1, row) for row in rows]
    # 200 each expected, standard deviation 11.5: five of them to each side.
    assert all(142 < count < 258 for count in Counter(choices).values()) and len(Counter(choices)) == 3
    assert best_class({**tied, "neutral": 0.2500001}, 0, rows[0]) == "neutral"
    two = {best_class({**tied, "neutral": 0.1}, 0, row) for row in rows}
    assert two == {"entailment", "contradiction"}


def test_a_label_word_without_tokens_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny_world.write_data(tmp_path)
    exemplars = read_exemplars(tmp_path / "exemplars.json")
    data = GridData(TaskData(tmp_path), exemplars, tiny_world.byte_tokenizer(), slice(0, 5), "study", seed=0)
    monkeypatch.setattr(cells, "scored_candidates", lambda *arguments: {"positive": [], "negative": [1]})
    with pytest.raises(InputError, match=r"emotion, en: .*'positive'"):
        label_cell(data, CellKey("emotion", "en", "english"))
