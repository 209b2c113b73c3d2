"""The machine at hand: its devices, what memory they have, and which known models' weights that holds."""

import os
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, AxisType

from jaxalign import runtime
from jaxalign.model import architectures
from jaxalign.model.config import ModelConfig
from jaxalign.model.sharding import param_shardings, with_shardings
from jaxalign.planning.chips import CHIPS, GIB
from jaxalign.planning.compile import bytes_per_device, stored_shapes
from jaxalign.planning.plan import LARGEST_SHARE, gib

KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""What jax calls the devices of a chip -> its name in CHIPS (jax/_src/pallas/mosaic/tpu_info.py)."""
STORED = ("float32", "bfloat16", "int8", "nf4")


@dataclass(frozen=True)
class Machine:
    """Devices of one kind."""

    kind: str
    devices: int
    memory: int | None
    """bytes of each device; of a CPU, an equal share of the host's; None where nobody says"""


def this_machine() -> Machine:
    """What jax runs on here."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Machine(device.device_kind, jax.device_count(), host // jax.local_device_count())
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None and device.device_kind in KINDS:
        memory = CHIPS[KINDS[device.device_kind]].capacity
    return Machine(device.device_kind, jax.device_count(), memory)


def weight_bytes(architecture: ModelConfig, param_dtype: str, devices: int) -> int:
    """Bytes on each device of weights split over so many, as `config.mesh` does by default.

    Of int8 and nf4 the embeddings and norms are in bfloat16. ValueError where the devices do not divide a weight.
    """
    shapes = stored_shapes(architecture, "bfloat16", param_dtype)
    mesh = AbstractMesh(
        runtime.mesh_sizes(1, -1, 1, devices), runtime.MESH_AXES, axis_types=(AxisType.Auto,) * len(runtime.MESH_AXES)
    )
    return bytes_per_device(with_shardings(shapes, param_shardings(shapes, mesh)))


def lines(machine: Machine) -> list[str]:
    """For a reader: the machine, and of every known architecture what its weights alone take on each device."""
    said = [f"{machine.devices} x {machine.kind}, {gib(machine.memory) if machine.memory else 'unknown memory'} each"]
    said += ["", f"weights alone, GiB a device; in brackets what is above {LARGEST_SHARE:.0%} of its memory"]
    said.append(row("", STORED))
    for name in architectures.names():
        architecture = architectures.read(name)
        said.append(row(name, [cell(architecture, stored, machine) for stored in STORED]))
    return [*said, "", "What a step needs beside them: jaxalign plan --config.model=NAME --config.topology=v5e:2x4"]


def row(name: str, cells: list[str] | tuple[str, ...]) -> str:
    """One line of the table."""
    return f"{name:18}" + "".join(f"{text:>10}" for text in cells)


def cell(architecture: ModelConfig, param_dtype: str, machine: Machine) -> str:
    """What the weights take, in brackets if that does not fit; "no" where the devices do not divide them."""
    try:
        size = weight_bytes(architecture, param_dtype, machine.devices)
    except ValueError:
        return "no"
    too_large = machine.memory is not None and size > LARGEST_SHARE * machine.memory
    return f"({size / GIB:.1f})" if too_large else f"{size / GIB:.1f} "
