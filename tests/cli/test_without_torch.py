"""Commands in a process of their own, where neither torch nor TensorFlow nor peft can be imported."""

import os
import shutil
import subprocess
import sys

import pytest

PROCESS = '''
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    """Finds all packages but these, as where they are not installed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torch", "peft", "tensorflow")
        return None if hidden else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from jaxalign.cli import main

code = main()
assert "tensorflow" not in sys.modules
assert not {"torch", "peft"} & set(sys.modules)
sys.exit(code)
'''


@pytest.fixture
def process(tmp_path):
    """Runs a command in a process of its own: what subprocess says of it."""
    # A command run in this process has set this for itself; the other one must do so too.
    inherited = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-c", PROCESS, *arguments],
            env={**inherited, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )

    return call


def test_evaluate_needs_none_of_them(process, model_folder, tmp_path):
    evaluate = ("evaluate", f"--config.model={model_folder}", "--config.languages=en", "--config.rows=0:2")
    done = process(*evaluate, f"--config.out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stderr
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2


def test_bad_input_is_one_line_of_the_process(process, model_folder, tmp_path):
    """Nothing that a library says beside it; the tokenizer is what transformers reads."""
    spoilt = shutil.copytree(model_folder, tmp_path / "spoilt")
    (spoilt / "tokenizer.json").write_text("[]")
    done = process("evaluate", f"--config.model={spoilt}", f"--config.out={tmp_path / 'out'}", "--config.rows=0:2")
    assert done.returncode == 2
    assert done.stderr.startswith("jaxalign: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()
