"""The machine: its processes, the device mesh, strict numerics and the compilation cache.

Several processes at one job, one a host: each reads files for itself, and all have to do the same.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh

from jaxalign.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

HEARTBEAT_SECONDS = 60
"""A process that is silent for so long is taken for lost; the others then end with an error."""
SHUTDOWN_SECONDS = 120
"""How long a process that is done waits for the others."""


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of those given, with the axes `data`, `fsdp`, `tensor`; sizes as in `mesh_sizes`.

    The axes are Auto: under jax's default, Explicit, a row-parallel `nn.Dense` raises.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, tensor, len(devices))
    # jax.make_mesh refuses sizes that are no products of a slice's axes (tensor=2 on v6e:4x4), but for v5e.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """The sizes of a mesh over so many devices; at most one may be -1, which fills in."""
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(f"mesh {tuple(sizes)}: each size is a positive number, or -1 for one of them")
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    elif known != devices:
        raise InputError(f"mesh {tuple(sizes)} does not divide into the {devices} devices here; change config.mesh")
    return sizes[0], sizes[1], sizes[2]


def compiler_options(devices: Iterable[Any]) -> dict[str, str]:
    """How programs that scan over layers are compiled for devices, as `jax.jit` takes it.

    XLA's CPU back end widens bfloat16 weights before it slices a layer out of them, and would move that out of the
    loop: all layers in float32, beside what is stored. That pass is left out; then each layer's are widened in turn.
    """
    on_a_cpu = all(device.platform == "cpu" for device in devices)
    return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"} if on_a_cpu else {}


def cache_folder() -> Path:
    """The user's cache folder for joined model files and compiled programs (`XDG_CACHE_HOME` is honoured)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxalign"


def join_processes() -> None:
    """Makes several processes, one a host, one machine, where the environment says so; before any JAX computation.

    JAXALIGN_DISTRIBUTED=1: jax finds the others itself (TPU pods and managed instance groups, Slurm, Open MPI).
    Elsewhere JAX_COORDINATOR_ADDRESS (host:port of process 0, the same for all), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    (from 0). Of these jax itself reads the address alone.
    """
    if jax.distributed.is_initialized():
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = (os.environ.get(name, "") for name in names)
    limits: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    if any(numbers):
        if not address or not all(number.isdecimal() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
            said = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
            raise InputError(f"{said}: set all three, the last two to numbers, the process's own below their number")
        count, process = map(int, numbers)
        jax.distributed.initialize(address, count, process, cluster_detection_method="deactivate", **limits)
    elif os.environ.get("JAXALIGN_DISTRIBUTED") == "1":
        jax.distributed.initialize(**limits)


def leave(exit_code: int) -> None:
    """Ends this process if it is one of several, and with it all of them: they wait for it, and would do so long.

    Where the others end too, with the same exit code, this is not needed.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def start(waits_for_notice: bool = True) -> None:
    """What every command does first.

    Other processes joined; no silent dtype or rank promotion; float32 products in float32, also on TPU; compiled
    programs kept between runs, in JAX_COMPILATION_CACHE_DIR where that is set; and no word from transformers about
    torch, which is not needed.

    `waits_for_notice`: SIGTERM is the notice of a preemption, which training saves at. Of several processes jax takes
    it for that unless told not to, and what never asks for the notice would not end.
    """
    jax.config.update("jax_enable_preemption_service", waits_for_notice)
    join_processes()
    has_no_chip = os.environ.get("TPU_SKIP_MDS_QUERY") == "1"  # jax sets it when it finds none
    if has_no_chip and "JAX_PLATFORMS" not in os.environ and not metadata.entry_points(group="jax_plugins"):
        # A libtpu that is here to plan with would look for a chip, and complain.
        jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))


class FatalForAllHosts(InputError):
    """After which several processes cannot go on together, whatever one of them could still do."""


class HostsDiffer(FatalForAllHosts):
    """What has to be the same on all hosts is not. All of them raise it, together."""


def processes() -> int:
    """How many there are, without waking the devices where this is the only one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def assert_same_on_hosts(what: str, facts: Any) -> None:
    """Raises HostsDiffer where the processes have not all the same facts, of which the text as JSON is compared.

    NumPy arrays belong into them as lists: their own text leaves out the middle.
    Arrays that are put together from the parts of several hosts would be a mixture, and nothing would say so.
    """
    if processes() == 1:
        return
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).digest()
    own = np.frombuffer(digest, np.uint8)
    if not (multihost_utils.process_allgather(own) == own).all():
        raise HostsDiffer(f"{what}: not the same on all hosts; give each the same command and the same files")


def from_process_0(answers: Sequence[bool]) -> list[bool]:
    """Process 0's answers to as many questions: what is done follows from what it finds on its disk."""
    return multihost_utils.broadcast_one_to_all(np.array(answers, bool)).tolist()


def require_one_process(what: str) -> None:
    """Refuses company: `what` is the work of one process."""
    if processes() > 1:
        raise InputError(f"{what} runs in one process, and here are {processes()}; start it on one host")


def wait_for_all() -> None:
    if processes() > 1:
        multihost_utils.sync_global_devices("wait for all")
