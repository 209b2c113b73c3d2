"""Learning-rate schedule and optimizer: clipping by global norm, then AdamW, all state in float32."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.errors import InputError

LEAST, MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
BELOW_ONE = 1 - 2.0**-24
RANGES = {
    "learning_rate": (LEAST, MOST),
    "warmup_fraction": (0, 1),
    "weight_decay": (0, MOST),
    "b1": (0, BELOW_ONE),
    "b2": (0, BELOW_ONE),
    "eps": (LEAST, MOST),
    "clip_norm": (LEAST, MOST),
}
"""Lowest and highest values: updates are computed in float32, in which a smaller `eps` is 0, and Adam divides by it."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Hugging Face's AdamW with warm-up and cosine decay, as LLaMA-Factory's LoRA tuning has it in the study."""

    learning_rate: float
    warmup_fraction: float
    """Part of all steps over which the learning rate rises linearly from 0."""
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float
    """Gradients with a larger global norm are scaled down to it."""

    def __post_init__(self) -> None:
        for key, (lowest, highest) in RANGES.items():
            value = getattr(self, key)
            if not lowest <= value <= highest:  # NaN is not
                raise InputError(f"optimizer.{key}={value}: set it to {lowest:.8g} or more and {highest:.8g} or less")


def cosine_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine down to 0: update count (from 0) -> learning rate, float32.

    The formula of `get_cosine_schedule_with_warmup` in transformers, whose first update has learning rate 0. Warm-up
    takes the nearest whole number of steps: 178 of the study's 1,779.
    """
    warmup_steps = math.floor(config.warmup_fraction * total_steps + 0.5)
    decay_steps = max(1, total_steps - warmup_steps)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        updates = jnp.asarray(count, jnp.float32)
        rising = updates / max(1, warmup_steps)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * (updates - warmup_steps) / decay_steps))
        return config.learning_rate * jnp.where(updates < warmup_steps, rising, falling)

    return schedule


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay, as `torch.optim.AdamW` has it."""
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay),
    )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # Adam's bias correction in optax raises a float to an int32 count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
