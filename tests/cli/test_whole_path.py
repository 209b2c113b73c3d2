"""The verbs one after the other, as a user runs them, on a tiny model and the mini set."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from jaxalign.configuration import config_with
from jaxalign.verbs.export import logits_of
from jaxalign.verbs.settings import load_model
from tests.cli.conftest import TRAIN
from tests.test_curves import shown_by_tensorboard

CELLS = ("--config.languages=en,zh,th", "--config.rows=0:6")
PROBES = "--config.probes=logit_lens,pca,geometry"
TASKS = "--config.tasks=emotion,paws"
WATCH = (
    "--config.watch=accuracy,logit_lens,pca,geometry",
    "--config.watch_every=5",
    "--config.watch_languages=en,zh,th",
    "--config.watch_rows=0:6",
)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def before(ok, model_folder, tmp_path_factory):
    """Evaluation and probes of the base model."""
    folder = tmp_path_factory.mktemp("results") / "before"
    ok("evaluate", *CELLS, TASKS, model=model_folder, out=folder)
    ok("probe", *CELLS, PROBES, model=model_folder, out=folder)
    return folder


@pytest.fixture(scope="module")
def after(ok, model_folder, run, before):
    """Evaluation and probes with the run's adapter."""
    folder, tuned = before.parent / "after", (f"--config.model={model_folder}", f"--config.adapter={run}")
    ok("evaluate", *tuned, *CELLS, TASKS, out=folder)
    ok("probe", *tuned, *CELLS, PROBES, out=folder)
    return folder


def test_evaluate_and_probe_leave_their_records(before):
    records = lines(before / "predictions.jsonl")
    assert [(r["task"], r["language"], r["row"]) for r in records] == [
        (task, language, row) for task in ("emotion", "paws") for language in ("en", "zh", "th") for row in range(6)
    ]
    results = json.loads((before / "results.json").read_text())
    assert results["tuned_on"] == [] and len(results["cells"]) == 6
    for probe in ("logit_lens", "pca", "geometry"):
        document = json.loads((before / f"{probe}.json").read_text())
        assert document["language"] == (["zh", "th"] if probe == "geometry" else ["en", "zh", "th"])
        with np.load(before / f"{probe}.npz") as arrays:
            assert set(arrays) == set(document["axes"])
        assert (before / f"{probe}.svg").read_text().count("<svg") == 1


def test_train_leaves_a_run(run):
    record = json.loads((run / "run.json").read_text())
    assert record["languages"]["seen"] == ["en", "zh", "th"]
    assert (record["pairs"], record["heldout_pairs"], record["steps"]) == (96, 5, 10)
    losses = [row["heldout_loss"] for row in lines(run / "metrics.jsonl") if "heldout_loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_training_again_changes_nothing(jaxalign, model_folder, run):
    metrics = run / "metrics.jsonl"
    kept = metrics.read_bytes()
    code, _, err = jaxalign(*TRAIN, model=model_folder, out=run)
    assert code == 0 and "finished" in err
    assert metrics.read_bytes() == kept


def test_the_adapter_changes_what_the_model_says(before, after):
    assert json.loads((after / "results.json").read_text())["tuned_on"] == ["en", "zh", "th"]
    first, second = lines(before / "predictions.jsonl")[0], lines(after / "predictions.jsonl")[0]
    assert first["prefix_mass"] != second["prefix_mass"]


@pytest.mark.slow
def test_what_is_watched_at_the_end_is_what_the_finished_run_shows(ok, model_folder, before, after, tmp_path):
    """Of the same rows and languages: the adapter is applied beside the weights there and merged into them here."""
    ok(*TRAIN, *WATCH, model=model_folder, out=tmp_path)
    watched = {row["step"]: row for row in lines(tmp_path / "metrics.jsonl") if "watch_seconds" in row}
    assert list(watched) == [0, 5, 10]
    for folder, numbers in ((before, watched[0]), (after, watched[10])):
        cells = json.loads((folder / "results.json").read_text())["cells"]
        accuracies = {f"accuracy/emotion_{c['language']}_english": c["accuracy_corrected"] for c in cells[:3]}
        assert accuracies.items() <= numbers.items()
        lens, pca = np.load(folder / "logit_lens.npz"), np.load(folder / "pca.npz")
        for quantity in ("latent", "out"):
            largest = dict(zip(("en", "zh", "th"), lens[f"unshared_{quantity}_mean"].max(axis=1), strict=True))
            expected = {f"lens_{quantity}/{code}": mass for code, mass in largest.items() if not np.isnan(mass)}
            assert {name for name in numbers if name.startswith(f"lens_{quantity}")} == expected.keys()
            # Float32 sums in another order.
            np.testing.assert_allclose([numbers[name] for name in expected], list(expected.values()), rtol=1e-4)
        r = pca["correlations"].mean(axis=0)[0, 1:]
        np.testing.assert_allclose([numbers[f"pca_correlation/{code}"] for code in ("zh", "th")], r, atol=1e-3)


def test_tensorboard_shows_the_rows_of_metrics(ok, model_folder, tmp_path):
    run = tmp_path / "run"
    command = ("train", "--config.tasks=paws", "--config.build.sources=de", "--config.steps=3", "--config.log_every=1")
    ok(*command, "--config.log.tensorboard=true", model=model_folder, out=run)
    rows, shown = lines(run / "metrics.jsonl"), shown_by_tensorboard(run / "tensorboard")
    assert [step for step, _ in shown["loss"]] == [1, 2, 3]
    for name, points in shown.items():
        assert points == [(row["step"], float(np.float32(row[name]))) for row in rows if name in row]


def test_report(ok, before, after, tmp_path):
    ok("report", before, after, out=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Chinese" in page and "<svg" in page and "<script" not in page


def test_the_exported_adapter_evaluates_as_the_run_does(ok, model_folder, after, adapter, tmp_path):
    ok("evaluate", f"--config.adapter={adapter}", *CELLS, model=model_folder, out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["tuned_on"] is None
    of_the_run = [record for record in lines(after / "predictions.jsonl") if record["task"] == "emotion"]
    # The same program on the same float32 numbers.
    for ours, theirs in zip(of_the_run, lines(tmp_path / "predictions.jsonl"), strict=True):
        np.testing.assert_allclose(*(list(r["prefix_mass"].values()) for r in (ours, theirs)), rtol=1e-6)


def test_the_exported_adapter_gives_our_logits_in_peft(model_folder, adapter):
    tokens = np.arange(1, 40, dtype=np.int32)[None]
    ours = logits_of(load_model(config_with({"model": str(model_folder), "adapter": str(adapter)})), tokens)
    tuned = PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), str(adapter)
    ).eval()
    with torch.no_grad():
        with_adapter = tuned(torch.from_numpy(tokens).long()).logits.numpy()
        with tuned.disable_adapter():
            without = tuned(torch.from_numpy(tokens).long()).logits.numpy()
    size = np.abs(with_adapter).max()
    # Float32 in both, summed in another order: 1e-4 of a logit, or of the largest where one is nearly 0.
    np.testing.assert_allclose(ours, with_adapter, rtol=1e-4, atol=1e-4 * size)
    # Ten steps at a learning rate of 1e-2 move the logits by a hundred times that and more.
    assert np.abs(with_adapter - without).max() > 1e-2 * size


def test_data_build_writes_what_train_reads(ok, model_folder, tmp_path):
    file = tmp_path / "pairs.json"
    out = ok("data", "build", "--config.build.sources=de", tasks="paws", out=file)
    assert "8 examples" in out
    rows = json.loads(file.read_text())
    assert [sorted(row) for row in rows] == [["answer", "input"]] * 8
    assert rows[0]["input"].endswith("Translate the input from German to English:\n")
    ok("train", file, model=model_folder, out=tmp_path / "run", steps="2")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["languages"]["sources"] == ["de"]


def test_the_other_batch_kind_and_the_other_settings(ok, model_folder, adapter, tmp_path):
    batch = ("pairs_per_step=0", "rows_per_step=16", "length=640", "accumulation=2", "too_long=cut")
    ok(
        "train",
        f"--config.adapter={adapter}",
        *(f"--config.batch.{setting}" for setting in batch),
        "--config.loss.reduction=micro_batch_mean",
        "--config.build.control=answers",
        "--config.mesh.data=2",
        model=model_folder,
        out=tmp_path / "run",
        heldout="0",
        remat="dots",
        template="default",
        steps="2",
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["rows_per_step"], record["row_length"], record["heldout_pairs"]) == (16, 640, 0)
    # The PEFT folder that it started from does not say what it was tuned on.
    assert record["languages"] == {"sources": ["en"], "targets": ["en"], "seen": None}
    assert [row["step"] for row in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
