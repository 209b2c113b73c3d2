"""A cloud that is none (`fake_gcloud`), and the scripts run in it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"
SLICE = {"project": "my-project", "zone": "us-east5-b", "name": "my-slice"}
MAKING = {
    "queued": {"accelerator-type": "v5litepod-16", "runtime-version": "v2-alpha-tpuv5-lite"},
    "instances": {
        "machine-type": "ct6e-standard-4t",
        "image-family": "a-family",
        "image-project": "a-project",
        "disk": "200GB",
        "hosts": "2",
        "topology": "2x4",
    },
}
ROADS = tuple(MAKING)
TRAIN = ("--", "jaxalign", "train", "--config=align")
# How the hosts of `my-slice` are called, and what it consists of.
HOSTS = {"queued": ("0", "1"), "instances": ("my-slice-q", "my-slice-w")}
MADE = {
    "queued": {"queued-resources my-slice"},
    "instances": {"instance-templates my-slice", "resource-policies my-slice", "managed my-slice"},
}
CREATION = {"queued": "queued-resources create", "instances": "managed create"}


def arguments(road: str, provisioning: str = "spot", **changes: str) -> list[str]:
    """All that describes a slice, as a user keeps it for every verb."""
    values = {"road": road, **SLICE, **MAKING[road], "provisioning": provisioning, **changes}
    return [f"--{key}={value}" for key, value in values.items()]


class Cloud:
    """The fake's folder: what it shall play, what it was asked, what it made."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        # Imported, it is compiled once; with nothing but the standard library (-I, -S) Python starts fast.
        program = f"import sys; sys.path.append({str(HERE)!r}); import fake_gcloud; fake_gcloud.main()"
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S -c "{program}" "$@"\n')
        gcloud.chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "FAKE_GCLOUD": str(folder),
            "TPU_POLL_SECONDS": "0.02",
            "TPU_WAIT_SECONDS": "30",
            "TPU_LOOKS": "3",
        }
        self.play()

    def play(self, **scenario: Any) -> None:
        """Sets what happens from now on (`fake_gcloud.Scenario`)."""
        (self.folder / "scenario.json").write_text(json.dumps(scenario))

    def start(self, verb: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a script."""
        return subprocess.Popen(
            [str(SCRIPTS / f"{verb}.sh"), *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, verb: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end."""
        process = self.start(verb, *arguments, **environment)
        try:
            output, errors = process.communicate(timeout=120)
        finally:
            process.terminate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def calls(self, ending: str = "") -> list[dict[str, Any]]:
        """The calls of gcloud, in order; only those of commands with this ending."""
        file = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [call for call in calls if call["command"].endswith(ending)]

    def starts(self) -> int:
        """How often a command was started on the slice, over all its lives."""
        commands = {call["flags"]["command"] for call in self.calls("ssh")}
        return sum("jaxalign-run-" in command for command in commands)

    def things(self) -> set[str]:
        """What there is: requests, templates, policies, groups."""
        file = self.folder / "state.json"
        return set(json.loads(file.read_text())["things"]) if file.exists() else set()

    def processes(self) -> list[int]:
        """The processes that were started in this cloud and still run."""
        mark, found = f"FAKE_GCLOUD={self.folder}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile, or another user's
                continue
            if mark in environment and int(process.name) != os.getpid():
                found.append(int(process.name))
        return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until something in another process has happened."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    """A cloud with nothing in it."""
    return Cloud(tmp_path / "cloud")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A wheel of jaxalign by its name alone."""
    file = tmp_path_factory.mktemp("dist") / "jaxalign-0.1.0-py3-none-any.whl"
    file.write_text("a wheel")
    return f"--wheel={file}"


@pytest.fixture(scope="session")
def set_up_once(tmp_path_factory: pytest.TempPathFactory, wheel: str) -> Callable[[str], Path]:
    """The folder of a cloud with a slice that is set up; made once for each road."""
    made: dict[str, Path] = {}

    def folder(road: str) -> Path:
        if road not in made:
            cloud = Cloud(tmp_path_factory.mktemp(road))
            for verb in ("create", "setup"):
                done = cloud.run(verb, *arguments(road), wheel)
                assert done.returncode == 0, done.stderr
            made[road] = cloud.folder
        return made[road]

    return folder


@pytest.fixture
def ready(tmp_path: Path, set_up_once: Callable[[str], Path], road: str) -> Cloud:
    """A cloud with a slice of two hosts that is set up, on the test's road."""
    return Cloud(Path(shutil.copytree(set_up_once(road), tmp_path / "ready")))
