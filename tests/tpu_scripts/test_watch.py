"""watch.sh on both roads: what is resumed, what is made again, and what ends it."""

import signal

import pytest

from tests.tpu_scripts.conftest import CREATION, MADE, ROADS, TRAIN, Cloud, arguments, wait_for


@pytest.mark.parametrize(
    ("road", "taken", "codes", "late", "times"),
    [
        ("queued", "SUSPENDED", (75, 75), 0, 2),
        ("queued", "FAILED", (255, 255), 1, 1),
        ("queued", "PREEMPTED", (1, 255), 2, 1),
        ("queued", "MISSING", (1, 1), 2, 1),
        ("instances", "TERMINATED", (75, 75), 2, 1),
        ("instances", "TERMINATED", (1, 255), 0, 1),
    ],
)
def test_a_taken_slice_is_made_again_and_the_command_resumed(
    ready: Cloud, wheel: str, road: str, taken: str, codes: tuple[int, int], late: int, times: int
):
    """The last start ends well. The news that a slice was taken may come after two looks that see nothing."""
    before = len(ready.calls())
    ready.play(runs=times * [{"codes": codes, "taken": taken, "late": late}])
    done = ready.run("watch", *arguments(road), wheel, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert ready.starts() == len(ready.calls(CREATION[road])) == times + 1
    steps = [call["command"].split()[-1] for call in ready.calls()[before:]]
    life = "".join({"delete": "D", "create": "C", "ssh": "s", "scp": "w"}.get(step, "") for step in steps)
    # On Compute Engine three things are deleted, and two created besides the policy.
    deleted, created = {"queued": ("D", "C"), "instances": ("DDD", "CC")}[road]
    run, made_again = "ss", f"{deleted}{created}sswwss"
    assert life == run + times * (made_again + run)
    assert done.stdout.count("train --config=align distributed=1") >= 2


@pytest.mark.parametrize("road", ROADS)
def test_a_command_that_saved_on_a_slice_that_stays_is_resumed_there(ready: Cloud, road: str, wheel: str):
    ready.play(runs=[{"codes": [75, 75]}, {"codes": [0, 75]}])
    done = ready.run("watch", *arguments(road), wheel, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert ready.starts() == 3 and len(ready.calls(CREATION[road])) == 1


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(("codes", "code"), [((1, 75), 1), ((2, 2), 2), ((0, 255), 255)])
def test_another_failure_ends_the_watch(ready: Cloud, wheel: str, road: str, codes: tuple[int, int], code: int):
    ready.play(runs=[{"codes": codes}])
    done = ready.run("watch", *arguments(road), wheel, *TRAIN)
    assert done.returncode == code and f"run.sh ended with exit code {code}" in done.stderr
    assert ready.starts() == 1 and ready.things() == MADE[road]


@pytest.mark.parametrize("road", ROADS)
def test_watch_makes_the_slice_where_there_is_none(cloud: Cloud, road: str, wheel: str):
    done = cloud.run("watch", *arguments(road), wheel, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert cloud.starts() == 1 and len(cloud.calls(CREATION[road])) == 1


@pytest.mark.parametrize("road", ROADS)
def test_a_slice_that_cannot_be_had_again_ends_the_watch(ready: Cloud, road: str, wheel: str):
    taken = {"queued": "SUSPENDED", "instances": "TERMINATED"}[road]
    ready.play(quota="asked", runs=[{"codes": [75, 75], "taken": taken}])
    done = ready.run("watch", *arguments(road), wheel, *TRAIN)
    assert done.returncode == 1 and "create: refused:" in done.stderr
    assert len(ready.calls(CREATION[road])) == 2 and not ready.things()


@pytest.mark.parametrize("road", ROADS)
def test_a_cloud_that_does_not_answer_is_no_taken_slice(ready: Cloud, road: str, wheel: str):
    """Nothing is deleted because the network here is down."""
    looks = ["compute tpus queued-resources describe", "compute tpus tpu-vm describe"]
    ready.play(broken=[*looks, "compute instance-groups managed list-instances"])
    done = ready.run("watch", *arguments(road), wheel, *TRAIN)
    assert done.returncode == 255 and "my-slice is UNKNOWN" in done.stderr
    assert ready.things() == MADE[road]


@pytest.mark.parametrize("road", ["queued"])
def test_resuming_has_an_end(ready: Cloud, road: str, wheel: str):
    ready.play(runs=20 * [{"codes": [75, 75]}])
    done = ready.run("watch", *arguments(road), wheel, *TRAIN, TPU_ROUNDS="4", TPU_LOOKS="1")
    assert done.returncode == 1 and "not done in 4 rounds" in done.stderr
    assert ready.starts() == 4


@pytest.mark.parametrize("road", ROADS)
def test_a_watch_that_is_told_to_stop_leaves_no_process(ready: Cloud, road: str, wheel: str):
    before = len(ready.calls("ssh"))
    process = ready.start("watch", *arguments(road), wheel, "--", "sleep", "100")
    wait_for(lambda: len(ready.calls("ssh")) == before + 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    wait_for(lambda: not ready.processes())
