"""`jaxalign demo` on a tiny model, from the baseline to the report."""

import json
from pathlib import Path

import pytest

STAGES = ("Loading the model", "Before", "Tuning", "After", "Report and export", "Done")


def contents(out):
    """What the stages left, but for what tells how long they took: timing.json, and the report, which shows it."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in ("timing.json", "report.html")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def command(model_folder, tmp_path_factory):
    return (
        "demo",
        f"--config.model={model_folder}",
        "--config.languages=en,zh",
        "--config.rows=0:12",
        "--config.steps=3",
        "--config.batch.pairs_per_step=4",
        f"--config.out={tmp_path_factory.mktemp('demo') / 'out'}",
    )


@pytest.fixture(scope="module")
def out(command):
    return Path(command[-1].partition("=")[2])


@pytest.fixture(scope="module")
def printed(ok, command):
    return ok(*command)


def test_it_leaves_every_stage(printed, out):
    assert {path.name for path in out.iterdir()} == {"before", "run", "after", "adapter", "report.html"}
    for stage in ("before", "after"):
        names = {path.name for path in (out / stage).iterdir()}
        assert names >= {"predictions.jsonl", "results.json", "timing.json", "logit_lens.npz", "pca.npz"}
    results = {stage: json.loads((out / stage / "results.json").read_text()) for stage in ("before", "after")}
    assert [(cell["language"], cell["count"]) for cell in results["after"]["cells"]] == [("en", 12), ("zh", 12)]
    assert (results["before"]["tuned_on"], results["after"]["tuned_on"]) == ([], ["en", "zh", "de"])
    assert json.loads((out / "run" / "run.json").read_text())["steps"] == 3
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 3 and "Chinese" in page


def test_it_says_what_it_does_and_prints_the_table(printed, out):
    places = [printed.index(f"] {stage}") for stage in STAGES]
    assert places == sorted(places)
    table = printed[places[-1] :].splitlines()
    assert table[1].split()[:4] == ["emotion", "before", "after", "gain"]
    cells = json.loads((out / "after" / "results.json").read_text())["cells"]
    for line, name, cell in zip(table[2:4], ("en English", "zh Chinese"), cells, strict=True):
        assert line.startswith(name) and line.split()[3] == f"{100 * cell['accuracy_corrected']:.1f}"
        assert line.endswith("yes")
    assert table[-1] == f"open {out / 'report.html'}"


def test_again_it_changes_nothing(printed, jaxalign, command, out):
    kept = contents(out)
    code, again, err = jaxalign(*command)
    assert code == 0 and "finished, all 3 steps are done" in err
    assert contents(out) == kept
    assert printed.partition("] Done")[2] == again.partition("] Done")[2]
    scored = json.loads((out / "after" / "timing.json").read_text())["examples"]
    assert scored == {"scored": 0, "reused": 24}
