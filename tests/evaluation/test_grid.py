import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.stats import binomtest

from jaxalign.data.tasks import TASKS, TaskRow
from jaxalign.errors import InputError
from jaxalign.evaluation.grid import Cell, GridData, evaluate_grid, heaviest_class, predict, render_cell, summarise
from jaxalign.evaluation.score_labels import Scorer
from jaxalign.runtime import make_mesh
from tests import tiny_world

SETTINGS = {"model": "tiny", "dtype": "float32"}
DESCRIPTION = {"model": "tiny", "adapter": None, "tuned_on": [], "config": {}, "command": "c", "versions": {}}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_world.DECODER, tiny_world.variables(), make_mesh(8, 1, 1))


@pytest.fixture
def data(tmp_path: Path) -> GridData:
    exemplars = tiny_world.write_data(tmp_path / "data")
    return GridData(tmp_path / "data", exemplars, tiny_world.byte_tokenizer(), slice(0, 5), seed=0)


def run(out: Path, scorer: Any, data: GridData, settings: dict[str, Any] = SETTINGS) -> dict[str, Any]:
    return evaluate_grid(
        out, scorer, tiny_world.variables(), data, ["emotion", "snli"], ["en", "de"], settings, DESCRIPTION
    )


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("predictions.jsonl", "results.json")}


class StopsAfter:
    """A scorer that scores so many cells and then fails, as a run that is killed."""

    def __init__(self, scorer: Scorer, cells: int):
        self.scorer, self.cells, self.counts, self.place = scorer, cells, scorer.counts, scorer.place

    def masses(self, *arguments: Any) -> np.ndarray:
        if not self.cells:
            raise KeyboardInterrupt
        self.cells -= 1
        return self.scorer.masses(*arguments)


def test_files_of_an_evaluation(tmp_path: Path, scorer: Scorer, data: GridData):
    results = run(tmp_path / "out", scorer, data)
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    assert [(cell["task"], cell["language"], cell["count"]) for cell in results["cells"]] == [
        ("emotion", "en", 5),
        ("emotion", "de", 5),
        ("snli", "en", 5),
        ("snli", "de", 5),
    ]
    assert results["task_version"] == {"emotion": 1, "snli": 1}
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 20
    first = records[0]
    assert list(first) == [
        "task",
        "language",
        "row",
        "prompts",
        "variant",
        "prefix_mass",
        "whole_word",
        "prediction",
        "gold_class",
        "correct_reference",
        "correct_corrected",
        "prompt_tokens",
    ]
    cell = render_cell(data, TASKS["emotion"], "en")
    masses = scorer.masses(tiny_world.variables(), cell.prompts, list(cell.candidates.values()))
    assert list(first["prefix_mass"]) == ["positive", "negative"]
    np.testing.assert_allclose(list(first["prefix_mass"].values()), masses[0], atol=1e-6)
    assert first["prediction"] == ("positive", "negative")[masses[0].argmax()]
    assert first["prompt_tokens"] == len(cell.prompts[0])
    timing = json.loads((tmp_path / "out/timing.json").read_text())
    assert timing["examples"] == {"scored": 20, "reused": 0}


def test_a_stopped_run_continues_and_ends_the_same(tmp_path: Path, scorer: Scorer, data: GridData):
    run(tmp_path / "whole", scorer, data)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(out, StopsAfter(scorer, 3), data)
    assert not (out / "predictions.jsonl").exists() and not (out / "results.json").exists()
    run(out, StopsAfter(scorer, 1), data)
    assert contents(out) == contents(tmp_path / "whole")
    assert json.loads((out / "timing.json").read_text())["examples"] == {"scored": 5, "reused": 15}
    run(out, StopsAfter(scorer, 0), data)
    assert contents(out) == contents(tmp_path / "whole")


def test_cells_made_with_other_settings_are_refused_by_name(tmp_path: Path, scorer: Scorer, data: GridData):
    run(tmp_path, scorer, data)
    with pytest.raises(InputError, match=r'dtype="float32", now "bfloat16"'):
        run(tmp_path, scorer, data, {**SETTINGS, "dtype": "bfloat16"})
    more_rows = GridData(data.folder, data.exemplars, data.tokenizer, slice(0, 6), data.seed)
    with pytest.raises(InputError, match="rows="):
        run(tmp_path, scorer, more_rows)
    moved = jax.tree.map(lambda x: x + np.float32(1e-3), tiny_world.variables())
    with pytest.raises(InputError, match="weights_sha256="):
        evaluate_grid(tmp_path, scorer, moved, data, ["emotion"], ["en"], SETTINGS, DESCRIPTION)
    file = data.folder / "ap_emotion/emotion_en6_test.json"
    file.write_text(file.read_text().replace("en input 2", "another review"))
    with pytest.raises(InputError, match="inputs_sha256="):
        run(tmp_path, scorer, data)


def cell_of(task: str, language: str, answers: list[tuple[str, str]]) -> Cell:
    rows = [TaskRow(task, language, i, (), answer, gold) for i, (answer, gold) in enumerate(answers)]
    candidates = {name: [index] for index, name in enumerate(TASKS[task].classes)}
    return Cell(TASKS[task], language, rows, [[1]] * len(rows), candidates)


def test_reference_scoring_goes_through_the_scripts_words_and_corrected_through_english():
    # Norwegian SNLI files swap neutral and contradiction: a perfect model is right by the class, wrong by the word.
    cell = cell_of(
        "snli", "no", [("entailment", "entailment"), ("motsigelse", "neutral"), ("nøytral", "contradiction")]
    )
    records = predict(cell, np.eye(3, dtype=np.float32), seed=0)
    assert [record["prediction"] for record in records] == ["entailment", "neutral", "contradiction"]
    assert [record["correct_corrected"] for record in records] == [True, True, True]
    assert [record["correct_reference"] for record in records] == [True, False, False]
    summary = summarise(records)
    assert summary["accuracy_corrected"] == 1 and summary["accuracy_reference"] == pytest.approx(1 / 3)
    expected = binomtest(3, 3).proportion_ci(0.95, method="wilson")
    assert summary["interval_corrected"] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_ties_fall_evenly_and_the_same_way_every_time():
    rows = [TaskRow("snli", "de", i, (), "", "") for i in range(600)]
    tied = {"entailment": 0.25, "neutral": 0.25, "contradiction": 0.25}
    choices = [heaviest_class(tied, 0, row) for row in rows]
    assert choices == [heaviest_class(tied, 0, row) for row in rows]
    assert choices != [heaviest_class(tied, 1, row) for row in rows]
    # 200 each expected, standard deviation 11.5: five of them to each side.
    assert all(142 < count < 258 for count in Counter(choices).values()) and len(Counter(choices)) == 3
    assert heaviest_class({**tied, "neutral": 0.2500001}, 0, rows[0]) == "neutral"
    two = {heaviest_class({**tied, "neutral": 0.1}, 0, row) for row in rows}
    assert two == {"entailment", "contradiction"}


def test_a_label_word_without_tokens_is_named(data: GridData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxalign.evaluation.grid.label_candidates", lambda words, tokenizer: dict.fromkeys(words, ()))
    with pytest.raises(InputError, match=r"emotion, en: .*'positive'"):
        render_cell(data, TASKS["emotion"], "en")
