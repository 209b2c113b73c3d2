"""Runs that several files look at."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.whole_runs import tiny_training


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Any]:
    """(run folder, trained adapters) of an undisturbed run; its checkpoints are 8 and 9."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, tiny_training(run)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of that run."""
    return shutil.copytree(finished[0], tmp_path / "run")
