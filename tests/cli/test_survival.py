"""`jaxalign train` told to stop, continued, and refused where it would be another run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.training.checkpoint import check_fingerprint, read_trained
from tests.cli.conftest import TRAIN
from tests.two_processes import JAXALIGN, REPOSITORY, end_of, start_two

PROCESS = [sys.executable, *JAXALIGN]
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=7", "seed was 42 and is now 7"),
        ("batch.length=1024", "batch.length was 2048 and is now 1024"),
        ("build.sources=zh,sw", "pairs was "),
        ("lora.rank=4", "lora.rank was 8 and is now 4"),
    ],
)
def test_another_run_s_folder_is_refused_by_name(jaxalign, run, model_folder, change, named):
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = jaxalign(*TRAIN, f"--config.{change}", model=model_folder, out=run)
    assert code == 2 and "cannot continue this run" in err and named in err
    assert err.splitlines()[-1].startswith("jaxalign: ")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept


def test_another_data_file_is_refused_by_name(jaxalign, ok, model_folder, tmp_path):
    pairs = [
        {"source": f"Frage {i}?", "target": f"Question {i}?", "source_language": "de", "target_language": "en"}
        for i in range(24)
    ]
    file, folder = tmp_path / "pairs.jsonl", tmp_path / "run"
    flags = ("--config.epochs=1", f"--config.model={model_folder}", f"--config.out={folder}")
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    ok("train", file, *flags)
    pairs[7]["target"] = "Question seven?"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    code, _, err = jaxalign("train", file, *flags)
    assert code == 2 and "cannot continue this run, pairs was " in err


def test_another_tokenizer_is_refused_by_name(jaxalign, run, model_folder, tmp_path):
    """One that is written otherwise, its ids being the same, as after an upgrade of tokenizers, continues the run."""
    other = shutil.copytree(model_folder, tmp_path / "model")
    command = (*TRAIN, f"--config.model={other}", f"--config.out={run}")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [tokenizer["pre_tokenizer"]]}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, _, err = jaxalign(*command)
    assert code == 0 and "finished" in err
    ids = tokenizer["model"]["vocab"]
    ids["e"], ids["Z"] = ids["Z"], ids["e"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, _, err = jaxalign(*command)
    assert code == 2 and "pairs was " in err and "model was " not in err


def test_what_an_earlier_version_recorded_is_no_difference():
    now = {"pairs": "1", "heldout_pairs": "2"}
    check_fingerprint({"pairs": "1", "tokenizer": "a sha256"}, now, "run")
    for saved, named in (
        ({"pairs": "3", "tokenizer": "x"}, "pairs was"),
        (now | {"heldout_pairs": "3"}, "heldout_pairs was"),
    ):
        with pytest.raises(InputError, match=f"cannot continue this run, {named}"):
            check_fingerprint(saved, now, "run")


def test_a_new_run_starts_from_a_named_one(jaxalign, ok, model_folder, tmp_path):
    """From a copy that has lost its last checkpoint, as of a run cut off in the middle, to the same end."""
    first, cut_off, second = tmp_path / "first", tmp_path / "cut_off", tmp_path / "second"
    command = (*TRAIN, "--config.checkpoint_every=5", f"--config.model={model_folder}")
    ok(*command, out=first)
    shutil.copytree(first, cut_off)
    shutil.rmtree(cut_off / "checkpoints/10")
    resume = f"--config.resume={cut_off}"
    code, _, err = jaxalign(*command, resume, seed="7", out=second)
    assert code == 2 and "seed was 42 and is now 7" in err and not (second / "run.json").exists()
    ok(*command, resume, out=second)
    steps = [json.loads(line)["step"] for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert min(steps) == 5 and max(steps) == 10
    ours, theirs = read_trained(second), read_trained(first)
    jax.tree.map(np.testing.assert_array_equal, ours.collections, theirs.collections)


def test_sigterm_saves_and_ends_with_75(ok, model_folder, tmp_path, run):
    """Told to stop at any step, and started again, the run ends as the undisturbed one."""
    stopped = tmp_path / "run"
    command = [*TRAIN, f"--config.model={model_folder}", f"--config.out={stopped}"]
    environment = os.environ | ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen([*PROCESS, *command], cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (stopped / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    assert "told to stop" in said and "the same command continues" in said
    ok(*command)
    assert rows_of(stopped)[-1] == rows_of(run)[-1] and "heldout_loss" in rows_of(run)[-1]


@pytest.mark.slow
def test_a_full_disk_is_one_line(model_folder, tmp_path):
    """While a checkpoint is written: no file may have more than 8,000 bytes, and the adapter takes more."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    run = tmp_path / "run"
    command = [*TRAIN, "--config.lora.rank=256", "--config.steps=2", f"--config.model={model_folder}"]
    environment = os.environ | ENVIRONMENT | {"JAX_ENABLE_COMPILATION_CACHE": "false", "XDG_CACHE_HOME": str(tmp_path)}
    command = [*PROCESS, *command, f"--config.out={run}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, preexec_fn=limit, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and f"jaxalign: {run}" in last and "cannot be written whole (File too large)" in last
    assert "Traceback" not in done.stderr and not (run / "checkpoints" / "2").exists()


def test_a_longer_run_is_told_the_way_that_exists(jaxalign, ok, run, model_folder, tmp_path):
    """And that way works: the adapter is tuned on in a new folder."""
    command = (*TRAIN, f"--config.model={model_folder}")
    code, _, err = jaxalign(*command, epochs="5", out=run)
    assert code == 2 and "epochs was 2 and is now 5" in err and "total_steps" not in err
    assert f"--config.adapter={run} trains on" in err and f"--config.resume={run} keeps optimizer" in err
    ok(*command, epochs="1", adapter=run, out=tmp_path / "next")
    first, last = rows_of(tmp_path / "next")[0], rows_of(run)[-1]
    np.testing.assert_allclose(first["heldout_loss"], last["heldout_loss"], rtol=1e-6)


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_write_one_run(model_folder, tmp_path, run):
    """The command in two processes: one log, one record, and the losses of eight devices in one process."""
    together = tmp_path / "run"
    command = [*TRAIN, f"--config.model={model_folder}", f"--config.out={together}"]
    codes, said = end_of(start_two(*JAXALIGN, *command))
    assert codes == [0, 0], said
    assert "run: " in said[0] and "run: " not in said[1]
    assert [row["step"] for row in rows_of(together)] == [row["step"] for row in rows_of(run)]
    for row, expected in zip(rows_of(together), rows_of(run), strict=True):
        for key in {"loss", "heldout_loss", "gradient_norm"} & set(expected):
            # The same float32 sums in another order.
            np.testing.assert_allclose(row[key], expected[key], atol=1e-5)
    assert json.loads((together / "run.json").read_text())["steps"] == rows_of(run)[-1]["step"]


@pytest.mark.slow
def test_bad_input_ends_two_processes_at_once(model_folder, tmp_path):
    """Each says so by itself: none waits for the other."""
    command = [*TRAIN, f"--config.model={model_folder}", f"--config.out={tmp_path / 'run'}", "--config.mesh.data=3"]
    codes, said = end_of(start_two(*JAXALIGN, *command), seconds=60)
    assert codes == [2, 2], said
