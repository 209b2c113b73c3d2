"""The package, its tests and its README are no larger than golden/budget.json allows, which may only fall."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUDGET = json.loads((ROOT / "tests" / "golden" / "budget.json").read_text(encoding="utf-8"))


def python_files(folder: str) -> list[Path]:
    """The Python files of a folder that belong to the project; all of them where git does not say."""
    try:
        command = ["git", "ls-files", folder]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        listed = ""
    files = [ROOT / line for line in listed.splitlines()] or (ROOT / folder).rglob("*")
    return [file for file in files if file.suffix == ".py" and file.is_file()]


def lines(files: list[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_nothing_grows():
    package, tests = python_files("jaxalign"), python_files("tests")
    found = {
        "lines of the package": lines(package),
        "files of the package": len(package),
        "lines of the tests": lines(tests),
        "bytes of README.md": (ROOT / "README.md").stat().st_size,
    }
    above = {name: f"{size:,}, {BUDGET[name]:,} allowed" for name, size in found.items() if size > BUDGET[name]}
    assert not above, f"{above}: make it smaller; the figures of golden/budget.json may fall, and never rise"
    assert found.keys() == BUDGET.keys()
