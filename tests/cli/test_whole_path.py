"""The verbs one after the other, as a user runs them, on a tiny model and the mini set."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

LANGUAGES = "--config.languages=en,zh,th"
ROWS = "--config.rows=0:6"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def test_evaluate_probe_train_report_export(jaxalign, model_folder, work):
    model = f"--config.model={model_folder}"
    before, after, run, adapter = (work / name for name in ("before", "after", "run", "adapter"))

    def ok(*arguments):
        code, out, err = jaxalign(*arguments)
        assert code == 0, err
        return out

    ok("evaluate", model, LANGUAGES, ROWS, "--config.tasks=emotion,paws", f"--config.out={before}")
    records = lines(before / "predictions.jsonl")
    assert [(r["task"], r["language"], r["row"]) for r in records] == [
        (task, language, row) for task in ("emotion", "paws") for language in ("en", "zh", "th") for row in range(6)
    ]
    ok("probe", model, LANGUAGES, ROWS, f"--config.out={before}")

    train = ("train", model, "--config.build.sources=zh,th", f"--config.out={run}", "--config.epochs=2")
    ok(*train, "--config.optimizer.learning_rate=1e-2", "--config.log_every=1", "--config.heldout_every=4")
    record = json.loads((run / "run.json").read_text())
    assert record["languages"]["seen"] == ["en", "zh", "th"]
    assert (record["pairs"], record["heldout_pairs"], record["steps"]) == (96, 5, 10)
    losses = [row["heldout_loss"] for row in lines(run / "metrics.jsonl") if "heldout_loss" in row]
    assert losses[-1] < losses[0]

    with_adapter = f"--config.adapter={run}"
    ok("evaluate", model, with_adapter, LANGUAGES, ROWS, "--config.tasks=emotion,paws", f"--config.out={after}")
    ok("probe", model, with_adapter, LANGUAGES, ROWS, f"--config.out={after}")
    assert json.loads((after / "results.json").read_text())["tuned_on"] == ["en", "zh", "th"]
    first, second = lines(before / "predictions.jsonl")[0], lines(after / "predictions.jsonl")[0]
    assert first["prefix_mass"] != second["prefix_mass"]

    ok("report", before, after, f"--config.out={work / 'report.html'}")
    page = (work / "report.html").read_text()
    assert "Chinese" in page and "<svg" in page and "<script" not in page

    # The exported adapter says in PEFT what the run says here.
    ok("export", run, f"--config.out={adapter}")
    ok("evaluate", model, f"--config.adapter={adapter}", LANGUAGES, ROWS, f"--config.out={work / 'peft'}")
    for ours, theirs in zip(
        lines(after / "predictions.jsonl"), lines(work / "peft" / "predictions.jsonl"), strict=False
    ):
        np.testing.assert_allclose(*(list(r["prefix_mass"].values()) for r in (ours, theirs)), rtol=1e-6)
    base = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    tuned = PeftModel.from_pretrained(base, str(adapter)).eval()
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert not torch.allclose(tuned(tokens).logits, tuned.get_base_model()(tokens).logits * 0)


def test_training_again_changes_nothing(jaxalign, model_folder, work):
    metrics = work / "run" / "metrics.jsonl"
    kept = metrics.read_bytes()
    code, _, err = jaxalign(
        "train",
        f"--config.model={model_folder}",
        "--config.build.sources=zh,th",
        f"--config.out={work / 'run'}",
        "--config.epochs=2",
        "--config.optimizer.learning_rate=1e-2",
        "--config.log_every=1",
        "--config.heldout_every=4",
    )
    assert code == 0 and "finished" in err
    assert metrics.read_bytes() == kept


def test_data_build_writes_what_train_reads(jaxalign, model_folder, tmp_path):
    file = tmp_path / "pairs.json"
    code, out, _ = jaxalign("data", "build", "--config.tasks=paws", "--config.build.sources=de", f"--config.out={file}")
    assert code == 0 and "8 examples" in out
    rows = json.loads(file.read_text())
    assert [sorted(row) for row in rows] == [["answer", "input"]] * 8
    assert rows[0]["input"].endswith("Translate the input from German to English:\n")
    code, _, err = jaxalign(
        "train", file, f"--config.model={model_folder}", f"--config.out={tmp_path / 'run'}", "--config.steps=2"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["languages"]["sources"] == ["de"]
