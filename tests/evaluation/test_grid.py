import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.prompts import PromptStyle, Variant
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import CellKey, GridData, cell_keys, label_cells
from jaxalign.evaluation.grid import Grid, OtherOrigin, finished, run_grid
from jaxalign.evaluation.score import LabelScores, Scorer
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.any_input import VALUES, quick, spoilt_bytes, spoilt_document, value_or_one_line, written

SETTINGS = {"model": "tiny", "dtype": "float32"}
DESCRIPTION = {"model": "tiny", "adapter": None, "tuned_on": [], "config": {}, "command": "c", "versions": {}}
KEYS = cell_keys([TASKS["emotion"], TASKS["snli"]], ["en", "de"], ["english"])


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_world.DECODER, tiny_world.variables(), make_mesh(8, 1, 1))


@pytest.fixture
def data(tmp_path: Path) -> GridData:
    exemplars = tiny_world.write_data(tmp_path / "data")
    return GridData(TaskData(tmp_path / "data"), exemplars, tiny_world.byte_tokenizer(), slice(0, 5), "study", seed=0)


def run(out: Path, scorer: Any, data: GridData, settings: dict[str, Any] = SETTINGS, keys: Any = KEYS) -> Any:
    """A command: it reads the files anew."""
    data = replace(data, tasks=TaskData(data.tasks.folder))
    return run_grid(Grid(out), label_cells(data, keys), scorer, tiny_world.variables(), settings, DESCRIPTION)


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("predictions.jsonl", "results.json")}


class StopsAfter:
    """A scorer that scores so many cells and then raises, as a run that is killed or runs out of memory."""

    def __init__(self, scorer: Scorer, cells: int, error: type[BaseException] = KeyboardInterrupt):
        self.scorer, self.cells, self.error = scorer, cells, error
        self.runner, self.timing = scorer.runner, scorer.timing

    def score(self, *arguments: Any) -> LabelScores:
        if not self.cells:
            # Ours are one line by themselves, the runtime's go on for pages.
            raise self.error("no memory left" if self.error is InputError else "no memory left\nand a page of details")
        self.cells -= 1
        return self.scorer.score(*arguments)


def test_files_of_an_evaluation(tmp_path: Path, scorer: Scorer, data: GridData):
    results = run(tmp_path / "out", scorer, data)
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    assert [(cell["task"], cell["language"], cell["variant"], cell["count"]) for cell in results["cells"]] == [
        ("emotion", "en", "english", 5),
        ("emotion", "de", "english", 5),
        ("snli", "en", "english", 5),
        ("snli", "de", "english", 5),
    ]
    assert results["task_version"] == {"emotion": 1, "snli": 1} and results["failures"] == []
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [0, 1, 2, 3, 4] * 4
    timing = json.loads((tmp_path / "out/timing.json").read_text())
    assert timing["examples"] == {"scored": 20, "reused": 0}
    assert timing["prompt_tokens_asked"] == sum(json.loads(line)["prompt_tokens"] for line in lines)
    assert timing["prompt_tokens_computed"] < timing["prompt_tokens_asked"] < 10 * timing["prompt_tokens_computed"]
    computed = timing["prompt_tokens_computed"] + timing["word_tokens_computed"]
    assert timing["padding_share"] == pytest.approx(1 - computed / timing["positions_computed"])
    assert set(timing["compilations"]) == set(timing["seconds"]) == {"prefill", "body", "head"}


def test_every_variant_and_style(tmp_path: Path, scorer: Scorer, data: GridData):
    keys = cell_keys([TASKS["emotion"], TASKS["snli"]], ["de", "zh"], get_args(Variant))
    assert [key.name for key in keys[2:]] == [
        *("emotion_de_in_language", "emotion_zh_in_language", "emotion_de_irrelevant", "emotion_zh_irrelevant"),
        *("snli_de_english", "snli_zh_english"),
    ]
    for style in get_args(PromptStyle):
        results = run(tmp_path / style, scorer, replace(data, style=style), keys=keys)
        assert [CellKey(*(cell[name] for name in CellKey._fields)) for cell in results["cells"]] == keys
        assert {cell["prompts"] for cell in results["cells"]} == {style}
    shared = [cell["shared_candidates"] for cell in results["cells"]]
    # 积极 and 消极 begin with other bytes of a byte-level vocabulary, `ox` and `horse` with other letters.
    assert shared == [[]] * 8


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


@pytest.mark.parametrize("error", [InputError, jax.errors.JaxRuntimeError])
def test_cells_that_fail_are_listed_and_the_others_scored(tmp_path, scorer, data, error):
    run(tmp_path / "whole", scorer, data)
    (data.tasks.folder / "ap_emotion/emotion_de6_test.json").rename(tmp_path / "away.json")
    results = run(tmp_path / "out", StopsAfter(scorer, 2, error), data)
    assert [(cell["task"], cell["language"]) for cell in results["cells"]] == [("emotion", "en"), ("snli", "en")]
    missing, failed = results["failures"]
    assert (missing["task"], missing["language"], missing["variant"]) == ("emotion", "de", "english")
    assert "emotion_de" in missing["error"]
    assert failed == {"task": "snli", "language": "de", "variant": "english", "error": "no memory left"}
    # The same command, once they can be scored, adds them.
    (tmp_path / "away.json").rename(data.tasks.folder / "ap_emotion/emotion_de6_test.json")
    run(tmp_path / "out", StopsAfter(scorer, 2), data)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_cells_made_with_other_settings_are_refused_by_name(tmp_path: Path, scorer: Scorer, data: GridData):
    run(tmp_path, scorer, data)
    with pytest.raises(InputError, match=r'dtype="float32", now "bfloat16"'):
        run(tmp_path, scorer, data, {**SETTINGS, "dtype": "bfloat16"})
    with pytest.raises(InputError, match="rows="):
        run(tmp_path, scorer, replace(data, rows=slice(0, 6)))
    with pytest.raises(InputError, match='prompts="study", now "mended"'):
        run(tmp_path, scorer, replace(data, style="mended"))
    moved = jax.tree.map(lambda x: x + np.float32(1e-3), tiny_world.variables())
    with pytest.raises(InputError, match="weights_sha256="):
        run_grid(Grid(tmp_path), label_cells(data, KEYS), scorer, moved, SETTINGS, DESCRIPTION)
    file = data.tasks.folder / "ap_emotion/emotion_en6_test.json"
    file.write_text(file.read_text().replace("en input 2", "another review"))
    with pytest.raises(InputError, match="inputs_sha256="):
        run(tmp_path, scorer, data)


def test_a_finished_cell_of_other_settings_is_refused_before_anything_is_scored(tmp_path, scorer, data):
    run(tmp_path, scorer, data, keys=KEYS[3:])
    with pytest.raises(InputError, match="seed="):
        run(tmp_path, StopsAfter(scorer, 0), replace(data, seed=1))


MADE_FROM = {"model": "tiny", "rows": [0, 1]}
CELL = {"made_from": MADE_FROM, "records": [{"row": 0}, {"row": 1}]}


def test_a_cell_is_read_as_it_was_saved(tmp_path):
    file = written(tmp_path / "cell.json", json.dumps(CELL))
    assert finished(file, MADE_FROM) == CELL["records"]
    with pytest.raises(OtherOrigin, match='made with model="tiny", now "large"'):
        finished(file, {**MADE_FROM, "model": "large"})


@pytest.mark.parametrize("content", [[], {}, {"made_from": 3, "records": []}, {"made_from": {}, "records": 3}])
def test_what_is_no_cell_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="not a finished cell as it was written"):
        finished(written(tmp_path / "cell.json", json.dumps(content)), MADE_FROM)


@quick
@given((spoilt_document(CELL) | VALUES).map(json.dumps) | st.just(json.dumps(CELL).encode()).flatmap(spoilt_bytes))
def test_cells_of_any_shape(tmp_path, content):
    records = value_or_one_line(finished, written(tmp_path / "cell.json", content), MADE_FROM)
    assert records is None or isinstance(records, list)
