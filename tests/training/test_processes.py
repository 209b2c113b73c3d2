"""Several processes train as one: the same losses, the same batches, each its own rows and slices of the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding

from jaxalign.errors import InputError
from jaxalign.model.sharding import batch_spec
from jaxalign.model.weights import save_params
from jaxalign.runtime import join_processes
from jaxalign.training.checkpoint import open_checkpoints
from jaxalign.training.step import local_rows
from tests.training import cluster
from tests.training.tiny_runs import mesh_of
from tests.training.whole_runs import metrics
from tests.two_processes import end_of, start_two

MEMBER = ("-m", "tests.training.cluster")
SHAPES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
TUNES = ["adapter", "all"]


def two_processes(jobs: list[dict[str, Any]], exit_code: int = 0) -> None:
    """Two processes do the jobs together and end with the exit code."""
    codes, said = end_of(start_two(*MEMBER, json.dumps(jobs)))
    assert codes == [exit_code, exit_code], "\n".join(said)


def losses(run: Path) -> dict[str, list[float]]:
    """The training losses of all steps, and the held-out losses before the first and after every one."""
    rows = metrics(run)
    by_kind = {key: [row[key] for row in rows if key in row] for key in ("loss", "heldout_loss")}
    assert (len(by_kind["loss"]), len(by_kind["heldout_loss"])) == (cluster.STEPS, cluster.STEPS + 1)
    return by_kind


def assert_same_losses(run: Path, other: Path) -> None:
    # float32 sums of the same terms, in another order, fed back through twenty updates.
    for kind, expected in losses(other).items():
        np.testing.assert_allclose(losses(run)[kind], expected, atol=1e-5, rtol=0, err_msg=kind)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory) -> Callable[[str], Path]:
    """Way of tuning -> the run of a single device."""
    folder = tmp_path_factory.mktemp("one_device")

    def run_of(tune: str) -> Path:
        run = folder / tune
        if not run.exists():
            cluster.train_job(str(run), (1, 1, 1), tune)
            assert losses(run)["loss"][0] - losses(run)["loss"][-1] > 0.05  # a run that learns
        return run

    return run_of


@pytest.mark.slow
@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("shape", SHAPES)
def test_eight_devices_in_one_process_train_as_one(tmp_path, one_device, shape, tune):
    cluster.train_job(str(tmp_path), shape, tune)
    assert_same_losses(tmp_path, one_device(tune))


@pytest.mark.slow
def test_two_processes_tune_dora_as_one_device(tmp_path, one_device):
    """Its magnitudes begin as norms of weights of which each process holds a part."""
    two_processes([{"run": str(tmp_path), "shape": (2, 2, 2), "tune": "dora"}])
    assert_same_losses(tmp_path, one_device("dora"))


@pytest.mark.slow
@pytest.mark.parametrize("tune", TUNES)
def test_two_processes_train_as_one_device_on_every_mesh(tmp_path, one_device, tune):
    runs = {shape: tmp_path / str(shape) for shape in SHAPES}
    two_processes([{"run": str(run), "shape": shape, "tune": tune} for shape, run in runs.items()])
    for run in runs.values():
        assert_same_losses(run, one_device(tune))


@pytest.mark.slow
@pytest.mark.parametrize("tune", TUNES)
def test_a_notice_to_one_process_saves_for_all_and_other_meshes_go_on(tmp_path, one_device, tune):
    """SIGTERM to the second of two processes; then 4 devices of one process, and 8 of one, from the same checkpoint."""
    run = tmp_path / "run"
    two_processes([{"run": str(run), "shape": (2, 2, 2), "tune": tune, "send": "SIGTERM", "to": 1, "at": 6}], 75)
    with open_checkpoints(run) as checkpoints:
        stopped = checkpoints.latest_step()
    assert stopped is not None and 6 < stopped < cluster.STEPS
    for shape in ((1, 4, 1), (2, 2, 1), (1, 8, 1)):
        resumed = tmp_path / f"resumed_{shape}"
        shutil.copytree(run, resumed)
        cluster.train_job(str(resumed), shape, tune)
        assert_same_losses(resumed, one_device(tune))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other(tmp_path, lost):
    job = {"run": str(tmp_path), "shape": (1, 8, 1), "send": "SIGKILL", "to": lost, "at": 5}
    members = start_two(*MEMBER, json.dumps([job]))
    assert members[lost].wait(timeout=300) == -9
    codes, said = end_of([members[1 - lost]], seconds=60)
    assert codes[0] != 0, said


@pytest.mark.slow
@pytest.mark.parametrize("order", [range(8), (0, 1, 4, 5, 6, 7, 2, 3)], ids=["hosts in a row", "a ring through both"])
def test_a_process_reads_the_slices_of_its_own_devices(tmp_path, order):
    save_params(tmp_path, cluster.base_params(), cluster.CONFIG)
    two_processes([{"folder": str(tmp_path), "shape": (1, 8, 1), "order": list(order)}])
    for process in (0, 1):
        read = json.loads((tmp_path / f"read_{process}.json").read_text())
        leaves: dict[str, Any] = dict(flatten_dict(cluster.base_params(), sep="/"))
        for path, leaf in leaves.items():
            # Norms are whole on every device; of all else a process holds four parts of eight.
            assert read[path] == (leaf.size if path.endswith("scale") else leaf.size // 2), path


def test_rows_follow_the_devices(monkeypatch):
    """Which rows a process builds is read off the sharding, here with the first four devices as its own."""
    first_four = set(jax.devices()[:4])

    def of_first_four(self: NamedSharding, shape: tuple[int, ...]) -> dict[Any, Any]:
        indices = self.devices_indices_map(shape)
        return {device: index for device, index in indices.items() if device in first_four}

    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", of_first_four)
    for shape, rows in (((8, 1, 1), [0, 1, 2, 3]), ((2, 2, 2), [0, 1, 2, 3]), ((1, 1, 8), range(8))):
        held = local_rows(NamedSharding(mesh_of(*shape), batch_spec()), 8)
        assert held.tolist() == list(rows), shape
    # Devices that a torus has put in another order.
    mesh = jax.sharding.Mesh(np.array(jax.devices())[[0, 4, 1, 5, 2, 6, 3, 7]].reshape(8, 1, 1), mesh_of().axis_names)
    assert local_rows(NamedSharding(mesh, batch_spec()), 16).tolist() == [0, 1, 4, 5, 8, 9, 12, 13]


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
    ],
)
def test_half_a_coordinator_is_refused(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES"):
        join_processes()
