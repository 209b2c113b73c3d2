"""The benchmark of the probes: that its ways find the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import save_model


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path):
    model = save_model(tmp_path / "model", width=16)
    command = [sys.executable, "benchmarks/probe.py", "--model", str(model), "--out", str(tmp_path / "out.json")]
    command += ["--languages", "en,zh", "--rows", "0:3", "--repeats", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "out.json").read_text())["probes"]
    assert list(measured) == ["lens", "states", "neurons"]
    for probe, ways in measured.items():
        assert list(ways) == ["study", "mended", "jaxalign"]
        for figures in ways.values():
            # Three times the same float32 numbers; of some hundred tokens one may be counted here and not there.
            assert figures["largest_difference"] < (0.02 if probe == "neurons" else 1e-4)
            assert figures["rows_per_second"] > 0
        assert ways["jaxalign"]["compiling"]["seconds"] > 0
