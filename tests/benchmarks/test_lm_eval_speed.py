"""The benchmark of lm-eval's requests: that its ways agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval_speed import difference

from tests.lm_eval.conftest import save_model


def test_differences_are_counted():
    assert difference("generate_until", ["a", "b"], ["a", "c"]) == {"different": 1}
    assert difference("loglikelihood_rolling", [-2.0], [-4.0]) == {
        "different": 0,
        "largest_relative_difference": 0.5,
    }
    assert difference("loglikelihood", [[-2.0, True], [-3.0, False]], [[-2.0, False], [-2.0, False]]) == {
        "different": 1,
        "largest_relative_difference": 0.5,
    }


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path):
    model = save_model("qwen2", tmp_path / "model")
    root = Path(__file__).parents[2]
    command = [sys.executable, "benchmarks/lm_eval_speed.py", "--model", str(model), "--limit", "2", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.json")], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "out.json").read_text())
    assert len(measured["tasks"]) == 8 and "lm_eval" in measured["versions"]
    for task, figures in measured["tasks"].items():
        assert list(figures["ways"]) == ["hf", "hf, batched", "jaxalign"]
        for way in figures["ways"].values():
            assert way["requests_per_second"] > 0 and way["different"] == 0
            # Three times the same float32 numbers.
            assert way.get("largest_relative_difference", 0) < 1e-5, task
