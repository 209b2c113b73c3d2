"""setup.sh, run.sh and fetch.sh on both roads: every host, the command as given, the worst exit code."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import HOSTS, ROADS, TRAIN, Cloud, arguments, wait_for
from tests.tpu_scripts.gcloud_reference import REACH


@pytest.mark.parametrize("road", ROADS)
def test_a_command_runs_on_every_host_as_given(ready: Cloud, road: str):
    words = ("a b", "$HOME", "it's", 'say "no"', "*")
    done = ready.run("run", *arguments(road), "--", "jaxalign", *words)
    assert done.returncode == 0, done.stderr
    expected = {f"[{host}] jaxalign (5) {' '.join(words)} distributed=1" for host in HOSTS[road]}
    assert set(done.stdout.splitlines()) == expected


@pytest.mark.parametrize("road", ROADS)
def test_one_host_has_nobody_to_join(cloud: Cloud, road: str, wheel: str):
    cloud.play(hosts=1)
    one = {"hosts": "1"} if road == "instances" else {}
    for verb in ("create", "setup", "run"):
        done = cloud.run(verb, *arguments(road, **one), wheel, *(TRAIN if verb == "run" else ()))
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"[{HOSTS[road][0]}] jaxalign (2) train --config=align distributed="]


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    ("codes", "worst"),
    [((0, 0), 0), ((0, 75), 75), ((75, 75), 75), ((75, 1), 1), ((1, 75), 1), ((2, 1), 2), ((1, 255), 255)],
)
def test_the_worst_exit_code_is_returned(ready: Cloud, road: str, codes: tuple[int, int], worst: int):
    ready.play(runs=[{"codes": codes}])
    done = ready.run("run", *arguments(road), *TRAIN)
    assert done.returncode == worst
    for host, code in zip(HOSTS[road], codes, strict=True):
        assert (f"run: host {host} ended with exit code {code}\n" in done.stderr) == (code not in (0, 255))


@pytest.mark.parametrize("road", ROADS)
def test_a_dead_host_is_named(ready: Cloud, road: str, wheel: str):
    ready.play(dead=[1])
    done = ready.run("run", *arguments(road), *TRAIN)
    assert done.returncode == 255
    assert f"run: host {HOSTS[road][1]} is not reached, or lost" in done.stderr
    assert HOSTS[road][0] not in [line.split()[2] for line in done.stderr.splitlines() if line.startswith("run: host")]
    done = ready.run("setup", *arguments(road), wheel, TPU_WAIT_SECONDS="0")
    assert done.returncode == 1 and f"setup: host {HOSTS[road][1]} is not reached" in done.stderr


@pytest.mark.parametrize("road", ROADS)
def test_no_slice_is_no_success(cloud: Cloud, road: str):
    done = cloud.run("run", *arguments(road), *TRAIN)
    assert done.returncode == 255 and "run: my-slice has no hosts" in done.stderr


@pytest.mark.parametrize("road", ["queued"])
def test_a_broken_connection_starts_nothing_twice(ready: Cloud, road: str):
    """gcloud connects again, up to ten times, and gives the command again."""
    ready.run("run", *arguments(road), *TRAIN)
    command = next(call["flags"]["command"] for call in ready.calls("ssh") if "train" in call["flags"]["command"])
    home = ready.folder / "hosts" / HOSTS[road][0]
    again = subprocess.run(
        ["bash", "-c", command],
        env=ready.environment | {"HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 255 and not again.stdout


@pytest.mark.parametrize("road", ROADS)
def test_a_run_that_is_told_to_stop_leaves_no_connection(ready: Cloud, road: str):
    before = len(ready.calls("ssh"))
    process = ready.start("run", *arguments(road), "--", "sleep", "100")
    wait_for(lambda: len(ready.calls("ssh")) == before + 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    wait_for(lambda: not ready.processes())


@pytest.mark.parametrize(
    ("switches", "reach"),
    [
        (["--internal-ips"], "internal-ip"),
        (["--internal-ips", "--tunnel-through-iap"], "tunnel-through-iap"),
        (["--tunnel-through-iap"], "tunnel-through-iap"),
    ],
)
@pytest.mark.parametrize("road", ROADS)
def test_hosts_without_an_external_address_are_reached(
    cloud: Cloud, road: str, wheel: str, tmp_path: Path, switches: list[str], reach: str
):
    slice_ = [*arguments(road), *switches]
    assert cloud.run("create", *slice_).returncode == 0
    assert cloud.run("setup", *slice_, wheel).returncode == 0
    done = cloud.run("run", *slice_, "--", "bash", "-c", "mkdir -p runs && echo $HOST > runs/host")
    assert done.returncode == 0, done.stderr
    assert cloud.run("fetch", *slice_, "--from=runs", f"--to={tmp_path / 'there'}").returncode == 0
    calls = cloud.calls("ssh") + cloud.calls("scp")
    assert len(calls) > 8 and all(call["flags"].keys() & REACH == {reach} for call in calls)


@pytest.mark.parametrize("road", ROADS)
def test_results_are_fetched(ready: Cloud, road: str, tmp_path: Path):
    ready.run("run", *arguments(road), "--", "bash", "-c", "mkdir -p runs/a && echo $HOST > runs/a/host")
    done = ready.run("fetch", *arguments(road), "--from=runs/a", f"--to={tmp_path / 'there'}")
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / "there" / host / "a" / "host").read_text().strip() for host in HOSTS[road]] == [*HOSTS[road]]
    results = ready.folder / "bucket" / "my-bucket" / "run"
    results.mkdir(parents=True)
    (results / "results.json").write_text("{}")
    done = ready.run("fetch", *arguments(road), "--from=gs://my-bucket/run", f"--to={tmp_path / 'results'}")
    assert done.returncode == 0 and (tmp_path / "results" / "results.json").read_text() == "{}"
