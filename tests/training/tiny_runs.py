"""Random pairs, small meshes and short runs of the step on a tiny model, for the training tests."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxalign.data.batches import BatchPlan, TokenisedPairs, training_plan
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import LoraConfig, init_lora
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import MESH_AXES
from jaxalign.training.optimizer import OptimizerConfig, cosine_schedule, make_optimizer
from jaxalign.training.step import (
    StepConfig,
    TrainState,
    init_state,
    make_eval_loss,
    make_loss_sums,
    make_shardings,
    make_train_step,
    place_batch,
)
from tests.defaults import base_layout, base_lora, base_step

VOCABULARY = 61
"""Ids at most, as in tests.model.tiny_models, whose import of torch other processes can do without."""
LORA = base_lora(rank=4, alpha=8.0)


def random_pairs(count: int, seed: int = 0) -> TokenisedPairs:
    """Pairs with prompts of 2 to 6 ids and responses of 1 to 7; no id is 0, the padding."""
    rng = np.random.default_rng(seed)
    prompt_lengths, response_lengths = rng.integers(2, 7, count), rng.integers(1, 8, count)
    starts = np.concatenate([[0], np.cumsum(prompt_lengths + response_lengths)])
    return TokenisedPairs(rng.integers(1, VOCABULARY, starts[-1]).astype(np.int32), starts, prompt_lengths)


def tiny_plan(steps: int, **layout: Any) -> BatchPlan:
    """A plan of `steps` steps of 16 of 48 random pairs: a few steps see several epochs."""
    return training_plan(random_pairs(48), base_layout(pairs_per_step=16, **layout), epochs=1, steps=steps, seed=5)


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of the first data * fsdp * tensor devices."""
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def random_adapter(config: ModelConfig, lora: LoraConfig = LORA, params: Any = None) -> Any:
    """A fresh adapter with B made non-zero, so that all factors have gradients from the first step. NumPy."""
    rng = np.random.default_rng(3)
    fresh = jax.device_get(init_lora(jax.random.key(1), config, lora, params))
    return jax.tree.map(lambda x: (x + rng.normal(size=x.shape) * 0.02).astype(np.float32), fresh)


@dataclass(frozen=True)
class Course:
    """What a run went through: float lists over its steps, and the trained collection at its end (NumPy)."""

    losses: list[float]
    gradient_norms: list[float]
    tokens: list[float]
    trained: Any


class TinyRun:
    """The compiled step on one plan, from a given trainable collection."""

    def __init__(
        self,
        decoder: Decoder,
        frozen: Any,
        trainable: Any,
        plan: BatchPlan,
        optimizer_config: OptimizerConfig,
        *,
        mesh: Mesh | None = None,
        step_config: StepConfig | None = None,
    ):
        schedule = cosine_schedule(optimizer_config, plan.steps)
        optimizer = make_optimizer(optimizer_config, schedule)
        plain_loss_sums = make_loss_sums(decoder, plan.targets_per_row, chunk=16)
        self.traces = 0

        def loss_sums(collections: Any, batch: Any):
            self.traces += 1
            return plain_loss_sums(collections, batch)

        self.plan, self.frozen, self.loss_sums = plan, frozen, plain_loss_sums
        self.shardings = make_shardings(trainable, frozen, optimizer, mesh or mesh_of())
        self.step = make_train_step(loss_sums, optimizer, schedule, self.shardings, step_config or base_step())
        self.eval_loss = make_eval_loss(loss_sums, self.shardings)
        self.state: TrainState = init_state(trainable, optimizer, self.shardings)

    def go(self) -> Course:
        """Runs the plan from its first step to its last."""
        rows = []
        for number in range(self.plan.steps):
            batch = place_batch(self.plan.rows_at(number), self.shardings.batch)
            self.state, metrics = self.step(self.state, self.frozen, batch)
            rows.append((metrics.loss.item(), metrics.gradient_norm.item(), metrics.tokens.item()))
        losses, norms, tokens = (list(column) for column in zip(*rows, strict=True))
        return Course(losses, norms, tokens, jax.device_get(self.state.trainable))


def tiny_run(
    model: Any, plan: BatchPlan, optimizer_config: OptimizerConfig, lora: LoraConfig = LORA, **settings: Any
) -> TinyRun:
    """Adapters of a tiny model (tests.model.tiny_models) tuned on a plan."""
    trainable = {"lora": random_adapter(model.config, lora, model.params)}
    decoder = Decoder(model.config, lora)
    return TinyRun(decoder, {"params": model.params}, trainable, plan, optimizer_config, **settings)
