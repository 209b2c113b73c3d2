"""The benchmark of looks at a model that is tuned."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import save_model


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path):
    model, pairs = save_model(tmp_path / "model", width=16), tmp_path / "pairs.json"
    german = {"input": "Gut.\nTranslate the input from German to English:\n", "answer": "Good."}
    pairs.write_text(json.dumps([german] * 40))
    command = [sys.executable, "benchmarks/watch.py", "--model", str(model), "--pairs", str(pairs)]
    command += ["--languages", "en,zh", "--rows", "0:3", "--every", "2", "--looks", "2"]
    command += ["--out", str(tmp_path / "out.json")]
    done = run(command)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "out.json").read_text())
    # Of four steps and three looks, the first of each compiles.
    assert len(measured["step_seconds"]) == 3 and len(measured["look_seconds"]) == 2
    assert 0 < measured["share_of_the_flops"] < 1 and measured["overhead"] > 0
    refused = subprocess.run(
        [*command, "--watch", "pca"], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert refused.returncode == 2 and refused.stderr.strip().splitlines()[-1].startswith("watch: ")
