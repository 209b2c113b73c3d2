"""The verbs that read a model, in two processes of four devices each: what eight devices in one process find."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.conftest import TRAIN
from tests.two_processes import JAXALIGN, end_of, start_two

pytestmark = pytest.mark.slow

CELLS = ("--config.languages=en,de", "--config.rows=0:4")
ATOL = 1e-5
"""The same float32 sums in another order."""


@pytest.fixture
def hosts(tmp_path: Path) -> list[Path]:
    """The working folders of two hosts that share no disk: a relative path is another place on each."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    return folders


def on_hosts(hosts: list[Path], *command: object) -> tuple[list[int], list[str]]:
    """Exit codes and stderr of a command on both."""
    return end_of(start_two(*JAXALIGN, *command, folders=hosts))


@pytest.fixture
def both(ok: Callable[..., str], model_folder: Path, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Runs a command in one process and in two; the folders that they wrote."""

    def call(verb: str, *flags: str) -> tuple[Path, Path]:
        alone, together = tmp_path / "alone", tmp_path / "together"
        command = (verb, f"--config.model={model_folder}", *flags)
        ok(*command, out=alone)
        codes, said = end_of(start_two(*JAXALIGN, *command, f"--config.out={together}"))
        assert codes == [0, 0], said
        return alone, together

    return call


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def compared_predictions(alone: Path, together: Path) -> int:
    """How many there are; each is the same in both folders."""
    one, two = (lines_of(folder / "predictions.jsonl") for folder in (alone, together))
    for expected, found in zip(one, two, strict=True):
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=ATOL), key
    return len(one)


def test_label_scores(both):
    alone, together = both("evaluate", *CELLS)
    assert compared_predictions(alone, together) > 0


def test_finished_cells_are_those_of_the_first_host(ok, model_folder, hosts, tmp_path):
    """Its disk alone has them; the other may have something else there."""
    command = ("evaluate", f"--config.model={model_folder}", "--config.rows=0:4", "--config.tasks=emotion,snli")
    languages = "--config.languages=en,de"
    ok(*command, languages="en", out=hosts[0] / "out")
    ok(*command, languages="de", out=hosts[1] / "out", seed="3")
    codes, said = on_hosts(hosts, *command, languages, "--config.out=out")
    assert codes == [0, 0], said
    ok(*command, languages, out=tmp_path / "alone")
    assert compared_predictions(tmp_path / "alone", hosts[0] / "out") == 16
    assert len(lines_of(hosts[1] / "out/predictions.jsonl")) == 8  # as they were


def test_sigterm_ends_them(model_folder, tmp_path):
    command = ("evaluate", f"--config.model={model_folder}", "--config.rows=0:20", f"--config.out={tmp_path}")
    members = start_two(*JAXALIGN, *command)
    finished_cells = tmp_path / "cells"
    deadline = time.monotonic() + 200
    while not list(finished_cells.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(list(finished_cells.glob("*.json"))) < 20
    for member in members:
        member.terminate()
    codes, said = end_of(members, seconds=20)
    assert codes == [-signal.SIGTERM, -signal.SIGTERM], said
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("verb", "flags", "file", "named"),
    [
        ("train", ("pairs.csv", "--config.steps=2", "--config.out=run"), "pairs.csv", "what is trained, or how"),
        ("evaluate", ("--config.adapter=adapter", *CELLS, "--config.out=out"), "adapter", "adapter"),
    ],
)
def test_other_files_on_another_host_are_noticed(model_folder, adapter, hosts, verb, flags, file, named):
    for number, host in enumerate(hosts):
        if file == "adapter":
            shutil.copytree(adapter, host / file)
            weights = host / file / "adapter_model.safetensors"
            save_file({name: array + number for name, array in load_file(weights).items()}, weights)
        else:
            row = f"Frage {number},question,de,en\n"
            (host / file).write_text("source,target,source_language,target_language\n" + row * 16)
    codes, said = on_hosts(hosts, verb, f"--config.model={model_folder}", *flags)
    assert codes == [2, 2]
    assert all(f"{named}: not the same on all hosts" in text for text in said), said


def test_what_one_process_does_is_refused_to_two(run, hosts):
    codes, said = on_hosts(hosts, "export", run, "--config.out=out")
    assert codes == [2, 2] and all("jaxalign export runs in one process, and here are 2" in text for text in said)


def test_open_answers(both, tmp_path):
    pair = {"source": "Wer ist da?", "target": "Who is there?", "source_language": "de", "target_language": "en"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 3)
    flags = ("--config.tasks=translation", "--config.languages=de", f"--config.pairs={tmp_path / 'pairs.jsonl'}")
    alone, together = both("evaluate", *flags, "--config.generate.max_tokens=8")
    one, two = (json.loads((folder / "open_results.json").read_text())["open_cells"] for folder in (alone, together))
    assert one == two and len(one) == 1


def test_probes(both, ok, model_folder, tmp_path):
    selection = tmp_path / "selection"
    ok("probe", *CELLS, model=model_folder, probes="neurons", out=selection)
    ok("neurons", selection / "neuron_counts.npz", "--config.neurons.top_rate=0.5", out=selection)
    probes = "logit_lens,attribution,pca,geometry,neurons,masking,masked_accuracy"
    chosen = f"--config.neurons.selection={selection / 'selection.npz'}"
    alone, together = both("probe", *CELLS, f"--config.probes={probes}", chosen)
    files = sorted(file.name for file in alone.glob("*.npz"))
    assert files == sorted(file.name for file in together.glob("*.npz")) and len(files) == 7
    for name in files:
        with np.load(alone / name) as one, np.load(together / name) as two:
            assert set(one) == set(two)
            for key in one:
                if one[key].dtype.kind == "f":
                    np.testing.assert_allclose(two[key], one[key], atol=1e-4, rtol=1e-4, err_msg=f"{name}: {key}")
                else:
                    np.testing.assert_array_equal(two[key], one[key], err_msg=f"{name}: {key}")


def test_two_hosts_are_one_holder_of_a_folder(jaxalign, ok, run, model_folder, tmp_path):
    """Who comes while they work is refused; where the first is killed, the same two go on at once, to the same end."""
    together = tmp_path / "run"
    command = [*TRAIN, "--config.checkpoint_every=2", f"--config.model={model_folder}", f"--config.out={together}"]
    members = start_two(*JAXALIGN, *command)
    deadline = time.monotonic() + 200
    while not (together / "checkpoints/2").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    code, _, err = jaxalign(*command)
    assert code == 2 and f"process {members[0].pid} on " in err and "is at work there" in err
    members[0].kill()
    members[0].wait()
    assert (together / "in_use.json").exists()
    again = start_two(*JAXALIGN, *command)
    codes, said = end_of(again)
    assert codes == [0, 0], said
    assert "waiting" not in said[0]
    assert end_of(members)[0][1] != 0
    assert not (together / "in_use.json").exists()
    rows, expected = lines_of(together / "metrics.jsonl"), lines_of(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    np.testing.assert_allclose(rows[-1]["heldout_loss"], expected[-1]["heldout_loss"], atol=ATOL)
