"""A grid killed at random moments and started again ends with the files of an undisturbed run."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny_world
from tests.evaluation.killed_grid import KEYS

KILLS = 10


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    """The grid in a process of its own, about to begin."""
    command = [sys.executable, "-m", "tests.evaluation.killed_grid", str(folder), str(out)]
    repository, one_device = Path(__file__).parents[2], {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    process = subprocess.Popen(command, cwd=repository, env=os.environ | one_device, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def finished_cells(out: Path) -> int:
    """How many cells are there; each must be whole, whenever a kill fell."""
    return len([json.loads(file.read_text()) for file in (out / "cells").glob("*.json")])


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path: Path):
    tiny_world.write_data(tmp_path / "data")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(tmp_path / "data", whole)
    begun = time.monotonic()
    assert undisturbed.wait() == 0
    duration = time.monotonic() - begun

    moments, kills, cells = random.Random(0), 0, []
    while kills < KILLS:
        process = start(tmp_path / "data", killed)
        time.sleep(moments.uniform(0, duration / 4))
        process.kill()
        kills += process.wait() == -9
        cells.append(finished_cells(killed))
    assert cells == sorted(cells) and cells[-1] > 0
    last = start(tmp_path / "data", killed)
    assert last.wait() == 0
    for name in ("predictions.jsonl", "results.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    # What is finished is never scored again.
    assert json.loads((killed / "timing.json").read_text())["examples"] == {
        "scored": (len(KEYS) - cells[-1]) * tiny_world.ROWS,
        "reused": cells[-1] * tiny_world.ROWS,
    }
