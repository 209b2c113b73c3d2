"""Stages: several runs from one command, each starting from the last, as if started by hand; and interrupted."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.training import loop
from jaxalign.training.checkpoint import read_trained
from jaxalign.verbs import train

# Questions from Chinese first, then English ones with their answers, on another schedule.
STAGES = ({"build.sources": "zh"}, {"build.control": "answers", "optimizer.warmup_fraction": 0.0, "steps": 2})
SETTINGS = ("tasks=paws", "steps=3", "heldout=0.0", "optimizer.learning_rate=1e-2", "checkpoint_every=1")


@pytest.fixture(scope="module")
def settings(model_folder) -> tuple[str, ...]:
    return (f"--config.model={model_folder}", *(f"--config.{setting}" for setting in SETTINGS))


@pytest.fixture(scope="module")
def stages_file(tmp_path_factory) -> str:
    """The flag that chooses a config with both stages."""
    file = tmp_path_factory.mktemp("configs") / "two.py"
    file.write_text(
        "from jaxalign.configuration import load_config\n\n\n"
        f"def get_config():\n    config = load_config('base')\n    config.stages = {STAGES}\n    return config\n"
    )
    return f"--config={file}"


@pytest.fixture(scope="module")
def by_hand(ok, settings, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of two runs, `stage1` and `stage2`, that two commands made: what is tuned -> folder."""
    folders: dict[str, Path] = {}

    def folder_of(tune: str) -> Path:
        if tune not in folders:
            folder = folders[tune] = tmp_path_factory.mktemp(tune)
            earlier = ""
            for number, changes in enumerate(STAGES, start=1):
                out = folder / f"stage{number}"
                flags = [f"--config.{key}={value}" for key, value in {**changes, "tune": tune}.items()]
                ok("train", *settings, *flags, adapter=earlier, out=out)
                earlier = out
        return folders[tune]

    return folder_of


def check_equal(out: Path, by_hand: Path) -> None:
    """Both stages of one have, bit for bit, the tuned numbers and the losses of the other's."""
    for stage in ("stage1", "stage2"):
        ours, theirs = read_trained(out / stage), read_trained(by_hand / stage)
        assert ours.step == theirs.step
        assert jax.tree.all(jax.tree.map(np.array_equal, ours.collections, theirs.collections))
        losses = [
            [json.loads(line)["loss"] for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
            for folder in (out, by_hand)
        ]
        assert losses[0] == losses[1]


@pytest.mark.parametrize("tune", ["adapter", pytest.param("all", marks=pytest.mark.slow)])
def test_stages_are_runs_by_hand(tune, ok, settings, stages_file, by_hand, tmp_path):
    ok("train", stages_file, *settings, tune=tune, out=tmp_path)
    check_equal(tmp_path, by_hand(tune))
    languages = [json.loads((tmp_path / stage / "run.json").read_text())["languages"] for stage in ("stage1", "stage2")]
    assert languages == [
        {"sources": ["zh"], "targets": ["en"], "seen": ["en", "zh"]},
        {"sources": ["en"], "targets": ["en"], "seen": ["en", "zh"]},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("steps_before", [3, 4], ids=["between", "in stage 2"])
def test_interrupted_stages_go_on(steps_before, jaxalign, ok, settings, stages_file, by_hand, tmp_path, monkeypatch):
    command = ("train", stages_file, *settings, f"--config.out={tmp_path}")
    place, calls = loop.place_batch, iter(range(100))

    def place_or_stop(*arguments):
        if next(calls) == steps_before:
            raise KeyboardInterrupt
        return place(*arguments)

    monkeypatch.setattr(loop, "place_batch", place_or_stop)
    code, _, err = jaxalign(*command)
    assert code == 130, err
    monkeypatch.undo()
    first = {path: path.read_bytes() for path in (tmp_path / "stage1").rglob("*") if path.is_file()}
    ok(*command)
    check_equal(tmp_path, by_hand("adapter"))
    # The finished stage was passed over.
    assert {path: path.read_bytes() for path in (tmp_path / "stage1").rglob("*") if path.is_file()} == first


def test_files_of_stages(ok, settings, stages_file, tmp_path, monkeypatch):
    row = {"source": "Wo?", "target": "Where?", "source_language": "de", "target_language": "en"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "b.jsonl").write_text(json.dumps({**row, "source": "Où ?", "source_language": "fr"}))
    (tmp_path / "answers.jsonl").write_text(json.dumps({"question": "Where?", "answer": "There."}))
    questions, answers = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}", str(tmp_path / "answers.jsonl")
    trained = []
    monkeypatch.setattr(train, "train_model", lambda tuning, model, *data: trained.append((tuning.config.out, *data)))
    monkeypatch.setattr(train, "with_adapter", lambda model, path: model)
    ok("train", questions, answers, stages_file, *settings, out="OUT")
    (first, questioned, question_files), (second, answered, answer_files) = trained
    assert (first, second) == ("OUT/stage1", "OUT/stage2")
    assert (question_files, answer_files) == (questions.split(","), [answers])
    assert [pair.source_language for pair in questioned] == ["de", "fr"]
    assert [(pair.prompt, pair.response) for pair in answered] == [("Where?", "There.")]


def test_bad_stages_are_refused(refused, settings, stages_file, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "Where?", "answer": "There."}))
    named = str(tmp_path / "a.jsonl")
    assert "2 stages take as many arguments" in refused("train", named, stages_file, *settings)
    # Of the second stage, before the first begins.
    assert "nowhere.jsonl" in refused("train", named, str(tmp_path / "nowhere.jsonl"), stages_file, *settings)
    assert "train runs several stages" in refused("demo", stages_file, *settings)
