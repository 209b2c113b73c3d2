"""TPU chips, the slices made of them, and a job: one program on one slice, which travels to another process as JSON."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig, RopeScaling
from jaxalign.model.lora import LoraConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.step import StepConfig

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of chip. Rates are peaks, as its maker states them for a whole chip; `vector` is derived."""

    flops: float
    """bfloat16 FLOP/s"""
    vector: float
    """element-wise operations/s on 32 bits"""
    hbm: float
    """bytes/s between the chip and its memory"""
    ici: float
    """bytes/s over all links to other chips, both directions together"""
    links: int
    """links to neighbours: two an axis of the full torus"""
    ring: int
    """an axis of a slice closes to a ring where its length is a multiple of this"""
    devices: int
    """jax devices that a chip is"""
    capacity: int
    """bytes of memory that the compiler grants each device; it keeps the rest of the chip's for itself"""


# flops, hbm, ici, links: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, /tpu7x (tables of key specifications, read in
# November 2026: 197, 459, 918 and 2307 TFLOP/s; 819, 2765, 1638 and 7380 GB/s; bidirectional ICI per chip 400, 1200,
# 800 and 1200 GB/s; 2D or 3D torus). ring: a v5e or v6e slice is a torus along an axis of 16, the whole pod's; v5p and
# 7x slices are made of cubes of 4 x 4 x 4 that close to rings (same pages). devices: a 7x chip shows its two chiplets,
# v5p runs its two cores as one device. capacity: what libtpu 0.0.42 says is available when it refuses a program.
# vector, which nobody states: cores x ALUS x clock. Four ALUs a lane: of v5e and v5p by jax-ml.github.io/scaling-book
# (TPUs, appendix C; GPUs, question 1), of the later ones assumed. Clock: v5e's 1.5 GHz stands there, too; the others'
# is that at which their matrix units give the FLOP/s above: v5p's 2 x 4 of 128 x 128 at 1.75 GHz; v6e's 2 and 7x's 4
# of 256 x 256 at 1.75 and 2.2 GHz, if they take two rows a cycle, since with one it would be the double.
ALUS = 8 * 128 * 4
"""Of a core's vector unit: sublanes x lanes x ALUs, an operation on 32 bits each in a cycle."""
CHIPS = {
    "v5e": Chip(197e12, 1 * ALUS * 1.5e9, 819e9, 400e9, 4, 16, 1, int(15.75 * GIB)),
    "v5p": Chip(459e12, 2 * ALUS * 1.75e9, 2765e9, 1200e9, 6, 4, 1, int(95.74 * GIB)),
    "v6e": Chip(918e12, 1 * ALUS * 1.75e9, 1638e9, 800e9, 4, 16, 1, int(31.25 * GIB)),
    "tpu7x": Chip(2307e12, 2 * ALUS * 2.2e9, 7380e9, 1200e9, 6, 4, 2, int(94.75 * GIB)),
}


@dataclass(frozen=True)
class Slice:
    """Chips in a grid, as `v5e:4x4` names them."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def flops(self) -> float:
        """bfloat16 FLOP/s of one device."""
        return self.chip.flops / self.chip.devices

    @property
    def vector(self) -> float:
        """Element-wise operations/s of one device."""
        return self.chip.vector / self.chip.devices

    @property
    def hbm(self) -> float:
        """Bytes/s of one device's memory."""
        return self.chip.hbm / self.chip.devices

    @property
    def ici(self) -> float:
        """Bytes/s that one device can send while all axes of the slice are busy.

        An axis that closes to a ring has two links a chip. On one that does not, everything for the far end passes the
        last link, which halves the rate of a collective.
        """
        used = sum(0 if size == 1 else 2 if size % self.chip.ring == 0 else 1 for size in self.shape)
        return self.chip.ici / 2 / self.chip.links * used / self.chip.devices


def parse_slice(name: str) -> Slice:
    """The slice that a name like `v5e:4x4` or `v5p:2x2x1` means; InputError where the name means none."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(int(size) for size in match[2].split("x")) if match else ()
    if chip is None or len(shape) != chip.links // 2 or 0 in shape:
        raise InputError(
            f"--config.topology={name}: give a chip ({', '.join(CHIPS)}) and its grid, as in v5e:4x4 or v5p:2x2x1"
        )
    return Slice(name, chip, shape)


PROGRAMS = ("train", "score", "lens")


@dataclass(frozen=True)
class Job:
    """A program and all that its compiled form depends on, but for the versions of the compiler."""

    architecture: ModelConfig
    topology: str
    mesh: tuple[int, int, int]
    """data, fsdp, tensor"""
    rows: int
    """rows of a step, all micro-batches together; of a batch, in scoring and lens"""
    length: int
    """positions of a row"""
    dtype: str
    param_dtype: str
    lora: LoraConfig | None
    """None: all parameters are tuned"""
    remat: Literal["none", "full", "dots"]
    optimizer: OptimizerConfig
    step: StepConfig
    program: Literal["train", "score", "lens"] = "train"

    @property
    def tokens(self) -> int:
        """Positions of a step, padding among them."""
        return self.rows * self.length

    @property
    def rows_at_once(self) -> int:
        """Rows that all devices together compute at a time: those of a micro-batch, or `batch.rows_at_once` of each."""
        return self.step.rows_at_once * self.mesh[0] * self.mesh[1] or self.rows // self.step.accumulation


def from_json(document: dict[str, Any]) -> Job:
    """The job of `dataclasses.asdict(job)`, sent through JSON."""
    architecture, lora = document["architecture"], document["lora"]
    scaling = architecture["rope_scaling"]
    architecture = architecture | {
        "rope_scaling": RopeScaling(**scaling) if scaling else None,
        "local_layers": tuple(architecture["local_layers"]),
    }
    return Job(
        **document
        | {
            "architecture": ModelConfig(**architecture),
            "mesh": tuple(document["mesh"]),
            "lora": LoraConfig(**lora | {"targets": tuple(lora["targets"])}) if lora else None,
            "optimizer": OptimizerConfig(**document["optimizer"]),
            "step": StepConfig(**document["step"]),
        }
    )
