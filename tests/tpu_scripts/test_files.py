"""The scripts as files: short, clean, nothing built in; and what they say to wrong arguments."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import MAKING, ROADS, SCRIPTS, SLICE, TRAIN, Cloud, arguments

VERBS = ("create", "setup", "run", "watch", "fetch", "delete")
FILES = sorted(SCRIPTS.glob("**/*.sh"))


def test_there_is_one_script_for_each_verb():
    assert {file.stem for file in SCRIPTS.glob("*.sh")} == set(VERBS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_short_enough_to_be_read_at_once(file: Path):
    assert len(file.read_text().splitlines()) <= 40


def test_shellcheck_has_nothing_to_say():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, *FILES], capture_output=True, text=True, cwd=SCRIPTS, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_project_zone_machine_or_image_is_built_in(file: Path):
    """A value is a variable, in a usage line a placeholder in capitals; and no name of a known kind stands anywhere."""
    text = file.read_text()
    flags = (
        "project|zone|region|accelerator-type|accelerator-topology|runtime-version|machine-type|image|boot-disk|size"
    )
    assert not re.findall(rf"--(?:{flags})[a-z-]*=(?![$A-Z])\S+", text)
    assert not re.findall(r"v\d\w*-\d|\bct\d|tpu7x|alpha-tpu|ubuntu|[a-z]+-[a-z]+\d-[a-z]\b", text)


def test_the_page_shows_every_verb_and_only_arguments_that_are_understood():
    page = (SCRIPTS / "README.md").read_text()
    known = re.search(r"KEYS=\(([^)]*)\)", (SCRIPTS / "parts" / "arguments.sh").read_text())
    shown = set(re.findall(r"--([a-z-]+)=", page)) - {"config"}
    assert known and shown == set(known[1].split())
    switches = re.search(r"SWITCHES=\(([^)]*)\)", (SCRIPTS / "parts" / "arguments.sh").read_text())
    assert switches and all(f" --{switch}" in page for switch in switches[1].split())
    assert all(f"tpu_scripts/{verb}.sh" in page for verb in VERBS)


@pytest.mark.parametrize(
    ("verb", "road", "missing"),
    [(verb, "queued", key) for verb in VERBS for key in ("road", *SLICE)]
    + [(verb, road, key) for verb in ("create", "watch") for road in ROADS for key in (*MAKING[road], "provisioning")]
    + [
        ("setup", "queued", "wheel"),
        ("watch", "queued", "wheel"),
        ("fetch", "queued", "from"),
        ("fetch", "queued", "to"),
    ],
)
def test_a_missing_argument_is_named_before_anything_is_asked(
    cloud: Cloud, wheel: str, verb: str, road: str, missing: str
):
    given = [*arguments(road), wheel, "--from=gs://bucket/run", "--to=here"]
    given = [argument for argument in given if not argument.startswith(f"--{missing}=")]
    # The topology is asked for because of the number of hosts; nothing is taken from the environment.
    environment = {missing.upper().replace("-", "_"): "from-the-environment"}
    done = cloud.run(verb, *given, *(TRAIN if verb in ("run", "watch") else ()), **environment)
    assert done.returncode == 2
    assert f"{verb}: --{missing} is missing" in done.stderr and f"usage: {verb}.sh" in done.stderr
    assert not cloud.calls()


@pytest.mark.parametrize("verb", ["run", "watch"])
def test_a_missing_command_is_named(cloud: Cloud, wheel: str, verb: str):
    done = cloud.run(verb, *arguments("queued"), wheel)
    assert done.returncode == 2 and "a command is missing after --" in done.stderr
    assert not cloud.calls()


@pytest.mark.parametrize(
    "wrong", ["--colour=red", "--zone=", "--zone", "red", "--road=other", "--provisioning=cheap", "--internal-ips=no"]
)
def test_a_wrong_argument_is_refused(cloud: Cloud, wrong: str):
    done = cloud.run("create", *arguments("queued"), wrong)
    assert done.returncode == 2 and "usage: create.sh" in done.stderr
    assert not cloud.calls()


@pytest.mark.parametrize(
    "command", ["compute tpus list", "compute ssh my-slice-q --zone=us-east5-b --project=p --fast"]
)
def test_the_fake_refuses_what_it_does_not_know(cloud: Cloud, command: str):
    done = subprocess.run(["gcloud", *command.split()], env=cloud.environment, capture_output=True, check=False)
    assert done.returncode == 2 and not cloud.calls()
