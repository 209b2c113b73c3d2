"""A run whose folder is in a bucket ends, through kills and damage, as one on this machine does."""

import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.files import AnyPath, path_of
from jaxalign.training.checkpoint import open_checkpoints, read_trained
from jaxalign.training.loop import NonFiniteStep, dump_bad_step
from tests.fake_storage import FakeStorage
from tests.training.whole_runs import (
    PLAN,
    STEPS,
    assert_equal_bits,
    assert_same_run,
    metrics,
    tiny_training,
)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A run on this machine."""
    run = tmp_path_factory.mktemp("local")
    tiny_training(run)
    return run


@pytest.fixture(scope="module")
def finished(storage) -> dict[str, bytes]:
    """What a run in a bucket has left there: name under its folder -> content."""
    tiny_training(path_of("gs://bucket/finished"))
    prefix = "bucket/finished/"
    return {
        key.removeprefix(prefix): stored.content for key, stored in storage.objects.items() if key.startswith(prefix)
    }


@pytest.fixture
def run(storage, finished, tmp_path) -> AnyPath:
    """A finished run in a bucket."""
    for name, content in finished.items():
        storage.write(f"bucket/{tmp_path.name}/{name}", content)
    return path_of(f"gs://bucket/{tmp_path.name}")


def largest(storage: FakeStorage, folder: AnyPath) -> str:
    """The name of the largest object in a folder."""
    prefix = str(folder).removeprefix("gs://") + "/"
    return max(
        (key for key in storage.objects if key.startswith(prefix)), key=lambda key: len(storage.objects[key].content)
    )


@pytest.mark.slow
def test_a_killed_run_ends_as_one_on_this_machine(storage, local, tmp_path):
    run = path_of(f"gs://bucket/{tmp_path.name}")
    command = [sys.executable, "-m", "tests.training.kill_at_step", str(run), "5"]
    repository = Path(__file__).parents[2]
    killed = subprocess.run(command, cwd=repository, env=os.environ, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    with open_checkpoints(run) as checkpoints:
        assert checkpoints.latest_step() in (2, 4)
    # Rows were uploaded before the checkpoint that needs them was saved.
    assert metrics(run)[-1]["step"] == 4
    tiny_training(run)
    assert_same_run(run, local)
    assert not Path("gs:").exists()


def test_a_finished_run_does_nothing(run, storage, capsys):
    writes = storage.writes
    tiny_training(run)
    assert "finished" in capsys.readouterr().err
    assert storage.writes == writes


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(run, local, storage):
    """What a kill in the middle of writing leaves: no file that says that it is whole."""
    del storage.objects[f"{run}/checkpoints/9/commit_success.txt".removeprefix("gs://")]
    with open_checkpoints(run) as checkpoints:
        assert checkpoints.latest_step() == 8
    tiny_training(run)
    assert_same_run(run, local)
    assert not (run / "damaged").exists()


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_newest_checkpoint_is_set_aside(run, local, storage, capsys, missing):
    key = largest(storage, run / "checkpoints" / "9" / "trainable")
    if missing:
        del storage.objects[key]
    else:
        storage.write(key, storage.objects[key].content[:50])
    with pytest.raises(InputError, match=r"9 is damaged .*start the run again"):
        read_trained(run)
    tiny_training(run)
    assert f"warning: {run}/checkpoints/9 is damaged" in capsys.readouterr().err
    assert (run / "damaged" / "9" / "record").is_dir() and (run / "damaged" / "9.txt").read_text()
    assert_same_run(run, local)


def test_a_run_is_continued_from_a_bucket(run, local, tmp_path):
    trained = tiny_training(tmp_path, resume=run)
    assert_equal_bits(trained, read_trained(local).collections)


def test_a_checkpoint_that_may_not_be_read_is_not_damaged(run, storage):
    storage.refused = str(run / "checkpoints" / "9" / "trainable").removeprefix("gs://")
    try:
        with pytest.raises(Exception, match=r"PERMISSION_DENIED|Forbidden"):
            tiny_training(run)
    finally:
        storage.refused = None
    assert not (run / "damaged").exists()


def test_rows_of_a_bad_step_are_uploaded(storage, tmp_path):
    folder = dump_bad_step(path_of(f"gs://bucket/{tmp_path.name}"), PLAN, NonFiniteStep(STEPS, math.nan, math.nan))
    with np.load(io.BytesIO((folder / f"{STEPS}.npz").read_bytes())) as dump:
        np.testing.assert_array_equal(dump["tokens"], PLAN.rows_at(STEPS - 1).tokens)
