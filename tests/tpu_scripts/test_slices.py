"""create.sh and delete.sh on both roads: what is asked for, and that nothing half-made is left."""

import re
import signal

import pytest

from tests.tpu_scripts.conftest import CREATION, MADE, ROADS, Cloud, arguments, wait_for


def test_a_queued_slice_is_asked_for_as_named(cloud: Cloud):
    for provisioning in ("spot", "on-demand"):
        assert cloud.run("create", *arguments("queued", provisioning)).returncode == 0
        assert cloud.run("delete", *arguments("queued")).returncode == 0
    spot, on_demand = (call["flags"] for call in cloud.calls("create"))
    assert on_demand == {
        "project": "my-project",
        "zone": "us-east5-b",
        "quiet": "",
        "node-id": "my-slice",
        "accelerator-type": "v5litepod-16",
        "runtime-version": "v2-alpha-tpuv5-lite",
        "valid-until-duration": "30s",
    }
    assert spot == on_demand | {"spot": ""}


def test_a_slice_of_instances_is_asked_for_as_named(cloud: Cloud):
    for provisioning in ("spot", "on-demand"):
        assert cloud.run("create", *arguments("instances", provisioning)).returncode == 0
        assert cloud.run("delete", *arguments("instances")).returncode == 0
    spot, on_demand = (call["flags"] for call in cloud.calls("instance-templates create"))
    assert on_demand == {
        "project": "my-project",
        "quiet": "",
        "machine-type": "ct6e-standard-4t",
        "image-family": "a-family",
        "image-project": "a-project",
        "boot-disk-size": "200GB",
        "maintenance-policy": "TERMINATE",
        "scopes": "cloud-platform",
        "provisioning-model": "STANDARD",
    }
    assert spot == on_demand | {"provisioning-model": "SPOT", "instance-termination-action": "STOP"}
    policy = cloud.calls("workload-policy")[0]["flags"]
    assert (policy["region"], policy["accelerator-topology"]) == ("us-east5", "2x4")
    group = cloud.calls("managed create")[0]["flags"]
    assert (group["size"], group["target-size-policy-mode"]) == ("2", "bulk")
    assert group["workload-policy"] == "projects/my-project/regions/us-east5/resourcePolicies/my-slice"
    assert group["default-action-on-vm-failure"] == "do-nothing"


OWN = {"network": "my-network", "subnetwork": "my-subnetwork", "service-account": "me@my-project"}


@pytest.mark.parametrize(("provisioning", "model"), [("on-demand", None), ("reservation-bound", "reservation-bound")])
def test_a_queued_slice_of_a_closed_project(cloud: Cloud, provisioning: str, model: str | None):
    """Of a network, an account and a reservation of its own, without external addresses."""
    own = arguments("queued", provisioning, **OWN, reservation="my-reservation")
    done = cloud.run("create", *own, "--internal-ips")
    assert done.returncode == 0, done.stderr
    (call,) = cloud.calls("create")
    assert call["command"].startswith("alpha ")
    assert call["flags"].items() >= {**OWN, "internal-ips": "", "reservation": "my-reservation"}.items()
    assert call["flags"].get("provisioning-model") == model
    assert cloud.run("delete", *own).returncode == 0 and not cloud.things()


@pytest.mark.parametrize(
    ("provisioning", "model"), [("on-demand", "STANDARD"), ("reservation-bound", "RESERVATION_BOUND")]
)
def test_a_slice_of_instances_of_a_closed_project(cloud: Cloud, provisioning: str, model: str):
    own = arguments("instances", provisioning, **OWN, reservation="my-reservation")
    done = cloud.run("create", *own, "--internal-ips")
    assert done.returncode == 0, done.stderr
    flags = cloud.calls("instance-templates create")[0]["flags"]
    expected = {
        "network": "my-network",
        "subnet": "my-subnetwork",
        "region": "us-east5",  # the subnetwork's
        "no-address": "",
        "service-account": "me@my-project",
        "reservation-affinity": "specific",
        "reservation": "my-reservation",
        "provisioning-model": model,
    }
    assert flags.items() >= expected.items()
    assert cloud.run("delete", *own).returncode == 0 and not cloud.things()


@pytest.mark.parametrize("road", ROADS)
def test_a_reservation_and_its_provisioning_belong_together(cloud: Cloud, road: str):
    spot = cloud.run("create", *arguments(road, "spot", reservation="my-reservation"))
    assert spot.returncode == 2 and "--reservation: what is reserved is not --provisioning=spot" in spot.stderr
    bound = cloud.run("create", *arguments(road, "reservation-bound"))
    assert bound.returncode == 2 and "--reservation is missing" in bound.stderr
    assert not cloud.calls()


def test_one_host_needs_no_topology(cloud: Cloud):
    cloud.play(hosts=1)
    given = [argument for argument in arguments("instances", hosts="1") if "topology" not in argument]
    assert cloud.run("create", *given).returncode == 0
    assert cloud.things() == {"instance-templates my-slice", "managed my-slice"}
    assert cloud.run("delete", *given).returncode == 0
    assert not cloud.things()


@pytest.mark.parametrize("road", ROADS)
def test_states_are_printed_while_waiting(cloud: Cloud, road: str):
    cloud.play(waiting=3)
    done = cloud.run("create", *arguments(road))
    assert done.returncode == 0
    states = re.findall(r"create: my-slice is (\w+) after", done.stderr)
    first = {"queued": "WAITING_FOR_RESOURCES", "instances": "PROVISIONING"}[road]
    assert states == [first, "PROVISIONING", "PROVISIONING", "ACTIVE"]
    assert cloud.things() == MADE[road]


@pytest.mark.parametrize("quota", ["asked", "granted"])
@pytest.mark.parametrize("road", ROADS)
def test_a_refused_quota_ends_in_one_line_and_leaves_nothing(cloud: Cloud, road: str, quota: str):
    cloud.play(quota=quota, waiting=1)
    done = cloud.run("create", *arguments(road))
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "refused" in line)
    assert line.startswith("create: refused:") and "'TPUChipsPerProjectPerZone' has been exceeded" in line
    assert len(cloud.calls(CREATION[road])) == 1
    assert not cloud.things()


@pytest.mark.parametrize("road", ROADS)
def test_waiting_has_an_end_and_leaves_nothing(cloud: Cloud, road: str):
    cloud.play(waiting=10**6)
    done = cloud.run("create", *arguments(road), TPU_WAIT_SECONDS="0")
    assert done.returncode == 1 and "after 0 s; TPU_WAIT_SECONDS sets how long to wait" in done.stderr
    assert not cloud.things()


@pytest.mark.parametrize(("road", "lost"), [("queued", "SUSPENDED"), ("instances", "TERMINATED")])
def test_a_slice_taken_before_it_is_ready_leaves_nothing(cloud: Cloud, road: str, lost: str):
    cloud.play(waiting=1, lost=lost)
    done = cloud.run("create", *arguments(road))
    assert done.returncode == 1 and "my-slice was taken before it was ready" in done.stderr
    assert not cloud.things()


@pytest.mark.parametrize("road", ROADS)
def test_an_interrupted_create_leaves_nothing(cloud: Cloud, road: str):
    cloud.play(waiting=10**6)
    process = cloud.start("create", *arguments(road))
    wait_for(lambda: cloud.things() == MADE[road])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not cloud.things()


@pytest.mark.parametrize("road", ROADS)
def test_a_slice_that_is_there_is_left_alone(cloud: Cloud, road: str):
    assert cloud.run("create", *arguments(road)).returncode == 0
    done = cloud.run("create", *arguments(road))
    assert done.returncode == 1 and "my-slice is there already" in done.stderr
    assert cloud.things() == MADE[road]


def test_another_ones_template_is_left_alone(cloud: Cloud):
    """A template of the same name is no leftover of ours."""
    cloud.run("create", *arguments("instances"))
    (cloud.folder / "state.json").write_text('{"things": {"instance-templates my-slice": {}}, "runs": {}}')
    assert cloud.run("create", *arguments("instances")).returncode == 1
    assert cloud.things() == {"instance-templates my-slice"}


@pytest.mark.parametrize("road", ROADS)
def test_delete_deletes_all_and_may_be_repeated(cloud: Cloud, road: str):
    cloud.run("create", *arguments(road))
    for _ in range(2):
        assert cloud.run("delete", *arguments(road)).returncode == 0
        assert not cloud.things()


@pytest.mark.parametrize("road", ROADS)
def test_a_deletion_that_fails_says_so(cloud: Cloud, road: str):
    cloud.run("create", *arguments(road))
    cloud.play(broken=["compute tpus queued-resources delete", "compute instance-groups managed delete"])
    done = cloud.run("delete", *arguments(road))
    assert done.returncode == 1 and "refreshing your current auth tokens" in done.stderr
    assert "is deleted" not in done.stderr
