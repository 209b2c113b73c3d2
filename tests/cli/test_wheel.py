"""What is installed: wheel and source archive hold all that they must, and no extra forces an accelerator on jax."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ACCELERATOR = re.compile(r"jax(lib)?\[|libtpu|jax-cuda|jax-rocm|jax-metal|cuda|nvidia|rocm")
"""Extras of jax and packages that bring it a back end of their own."""

LOOK = """
from jaxalign.configuration import load_config, shipped_configs
from jaxalign.files import MINI
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.model import architectures
from jaxalign.reporting.words import templates
import jaxalign

print(jaxalign.__file__)
for file in sorted(shipped_configs().glob("*.py")):
    load_config(file.stem)
for task in TASKS.values():
    for language in LANGUAGES:
        for part in ("train", "test"):
            assert TaskData(MINI, task, language, part, slice(None))
for name in architectures.names():
    architectures.read(name)
for name in ("report.html.jinja", "probe_page.html.jinja", "card.md.jinja"):
    assert templates({}).loader.get_source(templates({}), name)
"""


def named(requirements: list[str]) -> list[str]:
    """Those that ask for an accelerator."""
    return [each for each in requirements if ACCELERATOR.search(each.lower())]


def test_extras_leave_the_back_end_of_jax_as_it_is() -> None:
    """jax[cuda13] or jax[tpu] where a GPU or TPU is meant, or a TPU's compiler; else jax alone, which a machine has."""
    extras = PROJECT["optional-dependencies"]
    assert named(PROJECT["dependencies"]) == []
    assert {name: named(extra) for name, extra in extras.items() if named(extra)} == {
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "plan": ["jax[tpu]"],
    }


@pytest.mark.parametrize("requirement", ["jax[cuda13]", "jaxlib[cuda12]>=0.10", "jax-cuda13-plugin", "libtpu==0.0.42"])
def test_an_accelerator_is_seen(requirement: str) -> None:
    assert named([requirement, "jax>=0.10.2", "jaxtyping"]) == [requirement]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and a source archive of this checkout; the wheel is made from the archive."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """The wheel's content, as an installation lays it out."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(built / "installed")
    return built / "installed"


@pytest.fixture
def in_the_wheel(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs Python with the wheel alone, from an empty folder; what it prints."""

    def call(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", *arguments]
        folder = tmp_path / "empty"
        folder.mkdir()
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    return call


@pytest.mark.slow
def test_the_wheel_holds_the_package(installed: Path) -> None:
    ours = {file.relative_to(ROOT) for file in (ROOT / "jaxalign").rglob("*") if file.is_file()}
    ours |= {Path("jaxalign/configs", file.name) for file in (ROOT / "configs").glob("*.py")}
    theirs = {file.relative_to(installed) for file in (installed / "jaxalign").rglob("*") if file.is_file()}
    assert theirs == {file for file in ours if "__pycache__" not in file.parts}


@pytest.mark.slow
def test_the_wheel_finds_its_files_from_anywhere(in_the_wheel: Callable[..., str], installed: Path) -> None:
    assert in_the_wheel(LOOK).strip() == str(installed / "jaxalign" / "__init__.py")


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(in_the_wheel: Callable[..., str], model_folder: Path, tmp_path: Path) -> None:
    small = ("--config.languages=en,zh", "--config.rows=0:12", "--config.steps=1", f"--config.model={model_folder}")
    said = in_the_wheel("import sys; from jaxalign.cli import main; sys.exit(main())", "demo", *small)
    assert "Done. Accuracy before and after" in said
    assert (tmp_path / "empty" / "jaxalign-demo" / "report.html").is_file()


@pytest.mark.slow
def test_the_source_archive_holds_the_checkout(built: Path) -> None:
    (source,) = (built / "source").iterdir()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    missing = [name for name in listed.splitlines() if not (source / name).is_file()]
    assert missing == [".ci/run"]
