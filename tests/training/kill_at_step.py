"""The tiny run of whole_runs.py in a process of its own that kills itself. Arguments: run folder, step."""

import importlib
import os
import signal
import sys

from jaxalign.files import AnyPath, path_of


def main(run: AnyPath, kill_at: int) -> None:
    # The settings of tests/conftest.py come first: pytest has not loaded it here.
    importlib.import_module("tests.conftest")
    whole_runs = importlib.import_module("tests.training.whole_runs")

    def kill(step, collections):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    whole_runs.tiny_training(run, hooks=[kill])


if __name__ == "__main__":
    main(path_of(sys.argv[1]), int(sys.argv[2]))
