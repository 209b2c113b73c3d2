"""Runs killed at random moments and started again end with the bits of an undisturbed one."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.whole_runs import assert_same_run

REPOSITORY = Path(__file__).parents[2]
KILLS = 20
KILLS_OF_SMOLLM2 = 4


def start(*command: object) -> subprocess.Popen[str]:
    """A Python process on one device."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "XDG_CACHE_HOME": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def unfinished_writes(run: Path) -> int:
    return len(list((run / "checkpoints").glob("*orbax-checkpoint-tmp*")))


def wait_for_a_write(process: subprocess.Popen[str], run: Path) -> None:
    """Returns when a checkpoint is being written, or the process has ended."""
    while process.poll() is None and not unfinished_writes(run):
        time.sleep(0.001)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    def begin(run: Path) -> subprocess.Popen[str]:
        process = start("-m", "tests.training.killed_run", run)
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        # A run that was killed after its last checkpoint has nothing left to do.
        assert said == "ready\n" or process.wait() == 0, process.stderr.read()
        return process

    undisturbed = tmp_path / "undisturbed"
    assert begin(undisturbed).wait() == 0  # compiles
    again = begin(tmp_path / "again")
    begun = time.monotonic()
    assert again.wait() == 0
    duration = time.monotonic() - begun

    moments, runs, kills, while_writing = random.Random(0), [tmp_path / "0"], 0, 0
    while kills < KILLS:
        process = begin(runs[-1])
        time.sleep(moments.uniform(0, duration / 4))
        if kills % 2:
            wait_for_a_write(process, runs[-1])
        process.kill()
        if process.wait() == -9:
            kills += 1
            while_writing += unfinished_writes(runs[-1]) > 0
        else:
            runs.append(tmp_path / str(len(runs)))
    assert begin(runs[-1]).wait() == 0
    print(f"{kills} kills over {len(runs)} runs of {duration:.1f} s, {while_writing} while a checkpoint was written")
    assert while_writing >= KILLS // 4
    for run in [tmp_path / "again", *runs]:
        assert_same_run(run, undisturbed)


@pytest.mark.real_weights
def test_kills_of_smollm2(tmp_path):
    model = Path(os.environ["JAXALIGN_MODELS"]) / "smollm2"

    def begin(run: Path) -> subprocess.Popen[str]:
        settings = {
            "model": model,
            "out": run,
            "build.sources": "zh,de",
            "steps": 10,
            "batch.pairs_per_step": 2,
            "heldout": 0.05,
            "heldout_every": 100,
            "log_every": 1,
            "checkpoint_every": 1,
        }
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        return start("-c", "import sys; from jaxalign.cli import main; sys.exit(main())", "train", *flags)

    def steps_logged(run: Path) -> int:
        file = run / "metrics.jsonl"
        return file.read_text().count('"loss"') if file.exists() else 0

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    first = begin(undisturbed)
    assert first.wait() == 0, first.communicate()[1]
    moments, kills = random.Random(0), 0
    while kills < KILLS_OF_SMOLLM2:
        process, done = begin(killed), steps_logged(killed)
        while process.poll() is None and steps_logged(killed) <= done:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1))
        if kills % 2:
            wait_for_a_write(process, killed)
        process.kill()
        assert process.wait() == -9, process.communicate()[1]
        kills += 1
    last = begin(killed)
    assert last.wait() == 0, last.communicate()[1]
    assert_same_run(killed, undisturbed)
