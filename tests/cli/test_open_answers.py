"""Open answers from a config: which cells, which pairs are held out, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxalign.configuration import config_from_flags
from jaxalign.data.batches import split_heldout
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json
from jaxalign.verbs.data import gather_pairs
from jaxalign.verbs.evaluate import check_open_answers, evaluate_open_answers, heldout_pairs, open_tasks
from jaxalign.verbs.settings import load_model

SETTINGS = {"model": "tiny"}
TASKS = "mgsm,translation,emotion"


def config_of(out: Path, **settings: Any) -> ConfigDict:
    flags = {"tasks": TASKS, "generate.max_tokens": 3, "generate.batch_size": 8, "out": out, **settings}
    return config_from_flags([f"--config.{key}={value}" for key, value in flags.items()], "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data/qalign/mgsm"
    folder.mkdir(parents=True)
    for name in ("Thai", "Chinese", "English"):
        rows = [{"query": f"{name} {i}?", "response": str(i)} for i in range(3)]
        (folder / f"mgsm_{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_the_open_tasks_of_a_config(tmp_path: Path):
    assert open_tasks(config_of(tmp_path)) == ["mgsm", "translation"]
    assert open_tasks(config_of(tmp_path, tasks="all")) == []


def test_the_pairs_that_a_run_held_out_are_told_again(run: Path, model_folder: Path):
    tokenizer = load_model(config_of(run, model=model_folder)).tokenizer
    document = read_json(run / "run.json")
    pairs = gather_pairs(ConfigDict(document["config"]), document["files"])
    assert document["dropped"] == 0 and document["pairs"] == len(pairs)
    _, indices = split_heldout(len(pairs), document["config"]["heldout"], document["config"]["seed"])
    assert heldout_pairs(run, tokenizer) == [pairs[i] for i in indices]
    assert len(indices) == document["heldout_pairs"] > 0


@pytest.mark.parametrize("change", [{"seed": 7}, {"rows": "0:40"}, {"heldout": 0.1}])
def test_pairs_that_cannot_be_told_are_refused(run: Path, model_folder: Path, tmp_path: Path, change: dict[str, Any]):
    """A run whose record no longer leads to what it was trained on, as when its files have changed."""
    tokenizer = load_model(config_of(run, model=model_folder)).tokenizer
    document = read_json(run / "run.json")
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    write_json(tmp_path / "run.json", {**document, "config": document["config"] | change})
    with pytest.raises(InputError, match="cannot be told"):
        heldout_pairs(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("recorded", "said"),
    [({"heldout": "x"}, "run.json, config: heldout = 'x': float is needed"), ({"a.b": 1}, "run.json, config: .*a.b")],
)
def test_a_record_that_is_no_config_is_refused(
    run: Path, model_folder: Path, tmp_path: Path, recorded: dict[str, Any], said: str
):
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    write_json(tmp_path / "run.json", read_json(run / "run.json") | {"config": recorded})
    with pytest.raises(InputError, match=said):
        heldout_pairs(tmp_path, load_tokenizer(model_folder))


def test_a_run_is_evaluated_on_what_it_held_out(
    run: Path, model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = config_of(tmp_path / "out", model=model_folder, adapter=run, data=data, languages="zh,th", rows="0:2")
    check_open_answers(config)
    model = load_model(config)
    results = evaluate_open_answers(config, model, SETTINGS)
    cells = results["open_cells"]
    assert [(cell["task"], cell["language"]) for cell in cells[:2]] == [("mgsm", "zh"), ("mgsm", "th")]
    translations = cells[2:]
    held = [pair.source_language for pair in heldout_pairs(run, model.tokenizer)]
    assert {cell["language"]: cell["count"] for cell in translations} == {
        source: min(2, held.count(source)) for source in dict.fromkeys(held)
    }
    assert all(cell["held_out"] and cell["seen"] and cell["target"] == "en" for cell in translations)
    assert results["tuned_on"] == read_json(run / "run.json")["languages"]["seen"]
    assert results["model"] == "tiny" and results["versions"]
    printed = capsys.readouterr().out
    assert "mgsm        zh" in printed and "→en  chrF" in printed and "(seen)" in printed

    # The base model on the same pairs: the run is named in place of files.
    base = config_of(tmp_path / "base", model=model_folder, tasks="translation", pairs=run, rows="0:2")
    before = evaluate_open_answers(base, load_model(base), SETTINGS)["open_cells"]
    assert [(c["language"], c["count"], c["held_out"], c["seen"]) for c in before] == [
        (c["language"], c["count"], True, False) for c in translations
    ]


def test_pairs_of_files_are_not_called_held_out(run: Path, model_folder: Path, tmp_path: Path):
    rows = [
        {"source": f"q {i}", "target": f"Q {i}", "source_language": "sw", "target_language": "en"} for i in range(3)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(tmp_path / "out", model=model_folder, adapter=run, tasks="translation", pairs=file)
    check_open_answers(config)
    of_unknown_origin = replace(load_model(config), tuned_on=None)
    (cell,) = evaluate_open_answers(config, of_unknown_origin, SETTINGS)["open_cells"]
    assert (cell["count"], cell["held_out"], cell["seen"]) == (3, False, None)
    assert np.isfinite(cell["chrf"])
    none = config_of(tmp_path / "none", model=model_folder, tasks="translation", pairs=file, languages="de")
    with pytest.raises(InputError, match="has no pair from de"):
        evaluate_open_answers(none, load_model(none), SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generate.batch_size": 0}, "batch_size=0: set it to 1 or more"),
        ({"generate.max_tokens": -1}, "max_tokens=-1: set it to 0 or more"),
        ({"tasks": "translation"}, r"config.pairs= is needed"),
        ({"tasks": "translation", "pairs": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"tasks": "mgsm", "data": "mini"}, "no folder mgsm"),
        ({"tasks": "mgsm", "languages": "it"}, "there is no it file"),
        ({"tasks": "mgsm", "languages": "th", "rows": "3:9"}, "no row in 3:9"),
        ({"tasks": "mgsm"}, "mgsm_Bengali.json: no such file"),
    ],
)
def test_bad_settings_are_refused_before_the_model_is_loaded(
    tmp_path: Path, data: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        check_open_answers(config_of(tmp_path / "out", **{"data": data, **settings}))
