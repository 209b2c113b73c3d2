"""What is compiled: one program on one slice, as a record that travels to another process as JSON."""

from dataclasses import dataclass
from typing import Any, Literal

from jaxalign.model.config import ModelConfig, RopeScaling
from jaxalign.model.lora import LoraConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.step import StepConfig

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
