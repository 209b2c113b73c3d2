"""The scripts of examples/ run as they stand."""

import runpy
from pathlib import Path


def test_one_step(capsys):
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "one_step.py"), run_name="__main__")
    said = {name: float(value) for name, value in (line.split(": ") for line in capsys.readouterr().out.splitlines())}
    assert 0 < said["loss after the step"] < said["loss"]
    masses = [value for name, value in said.items() if name.startswith("mass")]
    assert len(masses) == 3 and all(0 < mass < 1 for mass in masses)
