"""The tiny run of test_loop.py in a process of its own that kills itself. Arguments: run folder, step."""

import importlib
import os
import signal
import sys
from pathlib import Path


def main(run: Path, kill_at: int) -> None:
    # The settings of tests/conftest.py come first: pytest has not loaded it here.
    importlib.import_module("tests.conftest")
    test_loop = importlib.import_module("tests.training.test_loop")

    def kill(step, collections):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    test_loop.tiny_training(run, hooks=[kill])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
