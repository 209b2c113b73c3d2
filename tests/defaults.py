"""The settings of configs/base.py as the values that training takes, with others in their place."""

from dataclasses import fields
from typing import Any

from jaxalign.configuration import load_config
from jaxalign.data.batches import BatchLayout
from jaxalign.model.lora import LoraConfig
from jaxalign.training.checkpoint import Retention
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.step import StepConfig

BASE = load_config("base")


def of_base(kind: type, base: dict[str, Any], first: tuple[Any, ...], others: dict[str, Any]) -> Any:
    """A value of this kind: of `base`, but for its first fields and for some others."""
    names = [field.name for field in fields(kind)]
    return kind(**{**base, **dict(zip(names, first, strict=False)), **others})


def base_layout(*first: Any, **others: Any) -> BatchLayout:
    base = BASE.batch.to_dict()
    del base["too_long"]
    return of_base(BatchLayout, base, first, others)


def base_optimizer(*first: float, **others: float) -> OptimizerConfig:
    return of_base(OptimizerConfig, BASE.optimizer.to_dict(), first, others)


def base_lora(*first: Any, **others: Any) -> LoraConfig:
    base = BASE.lora.to_dict() | {"targets": tuple(BASE.lora.targets.split(","))}
    return of_base(LoraConfig, base, first, others)


def base_step(*first: Any, **others: Any) -> StepConfig:
    base = {
        "accumulation": BASE.batch.accumulation,
        "reduction": BASE.loss.reduction,
        "loss_chunk": BASE.loss.chunk,
        "nonfinite": BASE.nonfinite,
        "rows_at_once": BASE.batch.rows_at_once,
    }
    return of_base(StepConfig, base, first, others)


def base_loop(*first: int, **others: int) -> LoopConfig:
    return of_base(LoopConfig, {field.name: BASE[field.name] for field in fields(LoopConfig)}, first, others)


def base_retention(**others: int) -> Retention:
    return of_base(Retention, {"last": BASE.keep_last, "best": BASE.keep_best}, (), others)
