"""One update of the trainable parameters: a pure function of (state, frozen parameters, batch).

Parameters travel as flax collections. `frozen | trainable` is what the decoder is applied to: with adapters
`{"params": base} | {"lora": adapters}`, in full tuning `{} | {"params": parameters}`. Gradients, optimizer state and
checkpoints touch the trainable collection alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.data.batches import Batch
from jaxalign.errors import InputError
from jaxalign.model.losses import next_token_loss
from jaxalign.model.sharding import BATCH, axis_size, batch_spec, param_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import compiler_options

ON_A_CPU: dict[str, bool | str] = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""Compiler options: of what XLA hands to its library for CPUs, products alone are faster there than its own code."""


REDUCTIONS = ("token_mean", "micro_batch_mean")


class TrainState(NamedTuple):
    """All that a step changes. `step` and `skipped`: int32 scalars, steps done and those among them that were left
    out because loss or gradient was not finite; the others float32 trees."""

    step: Any
    skipped: Any
    trainable: Any
    opt_state: Any


class Metrics(NamedTuple):
    """Scalars of one step, float32. `gradient_norm` is the norm before clipping, `tokens` counts target tokens;
    `skipped`, int32, is that of the new state."""

    loss: Any
    gradient_norm: Any
    learning_rate: Any
    tokens: Any
    skipped: Any


class Shardings(NamedTuple):
    """NamedShardings of a step's arguments: trees shaped like TrainState and the frozen collections, and one for all
    arrays [B, T] of a batch."""

    state: Any
    frozen: Any
    batch: NamedSharding


@dataclass(frozen=True)
class StepConfig:
    """How a batch becomes one update."""

    accumulation: int
    """Micro-batches that a batch is divided into; their gradients are summed before the update."""
    reduction: Literal["token_mean", "micro_batch_mean"]
    """Mean over all target tokens of the batch, or the mean of the micro-batches' means (as in the study)."""
    loss_chunk: int
    """Target positions of which each device holds the head's logits at a time."""
    nonfinite: Literal["stop", "skip"]
    """After a loss or gradient that is not finite: no further update is made, or that one is left out."""
    rows_at_once: int
    """Rows that each device computes at a time, of a micro-batch's; 0: all. Where all of those are empty rows, they are
    passed over: a step costs the rows that it has, not those of the largest step. Less is held in memory, too."""

    def __post_init__(self) -> None:
        for key, value, is_right, needed in (
            ("nonfinite", self.nonfinite, self.nonfinite in ("stop", "skip"), "stop or skip"),
            ("loss.reduction", self.reduction, self.reduction in REDUCTIONS, " or ".join(REDUCTIONS)),
            ("batch.accumulation", self.accumulation, self.accumulation > 0, "1 or more"),
            ("loss.chunk", self.loss_chunk, self.loss_chunk > 0, "1 or more"),
            ("batch.rows_at_once", self.rows_at_once, self.rows_at_once >= 0, "1 or more, or 0 for all rows"),
        ):
            if not is_right:
                raise InputError(f"{key}={value}: set it to {needed}")


LossSums = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
"""(collections, batch) -> (sum of the target tokens' cross-entropies in nats, their number), float32 scalars."""


def make_loss_sums(decoder: Decoder, targets_per_row: int, chunk: int) -> LossSums:
    """The decoder's loss on a batch; `targets_per_row` is the largest number of target positions in any row."""

    def loss_sums(collections: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        apply: Any = partial(decoder.apply, collections)
        hidden = apply(batch.tokens, batch.positions, batch.segment_ids).hidden
        head = partial(apply, method="logits")
        return next_token_loss(
            head, hidden, batch.targets, batch.loss_mask, targets_per_row=targets_per_row, chunk=chunk
        )

    return loss_sums


def update(
    state: TrainState,
    frozen: Any,
    blocks: Batch,
    *,
    loss_sums: LossSums,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: StepConfig,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on `blocks`, arrays [A, n, b, T]: A micro-batches of n blocks of rows computed at a time.

    The loss is a sum over blocks, divided once.
    """
    counts = blocks.loss_mask.sum(axis=(1, 2, 3), dtype=jnp.float32)
    weights, units = jnp.ones_like(counts), counts
    if config.reduction == "micro_batch_mean":
        # A micro-batch of filler rows has no mean, and does not count as one.
        weights, units = 1 / jnp.maximum(counts, 1), jnp.sign(counts)
    A, n = blocks.tokens.shape[:2]
    flat: tuple[Batch, jax.Array] = jax.tree.map(
        lambda x: x.reshape(A * n, *x.shape[2:]), (blocks, jnp.broadcast_to(weights[:, None], (A, n)))
    )

    def weighted_loss(trainable: Any, block: Batch, weight: jax.Array) -> jax.Array:
        return loss_sums(frozen | trainable, block)[0] * weight

    def accumulate(sums: Any, block: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        def add(sums: Any) -> Any:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(weighted_loss)(state.trainable, *block))

        if n == 1:
            return add(sums), None
        return jax.lax.cond(block[0].loss_mask.any(), add, lambda sums: sums, sums), None

    nothing = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.trainable))
    sums, _ = jax.lax.scan(accumulate, nothing, flat)
    loss, gradients = jax.tree.map(lambda total: total / jnp.maximum(units.sum(), 1), sums)
    norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    updated = (optax.apply_updates(state.trainable, updates), opt_state)

    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    skipped = state.skipped + (~is_finite).astype(jnp.int32)
    # Under "stop" the state before the first bad step is kept until the host has seen it.
    is_kept = is_finite if config.nonfinite == "skip" else skipped == 0
    trainable, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_kept, new, old), updated, (state.trainable, state.opt_state)
    )
    # The optimizer counts the updates that were made.
    metrics = Metrics(loss, norm, schedule(state.step - state.skipped), counts.sum(), skipped)
    return TrainState(state.step + 1, skipped, trainable, opt_state), metrics


def make_train_step(
    loss_sums: LossSums,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    shardings: Shardings,
    config: StepConfig,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
    """The compiled update of (state, frozen, batch [A * n * b, T]). The given state's buffers are consumed."""
    mesh = shardings.batch.mesh
    make_update = partial(update, loss_sums=loss_sums, optimizer=optimizer, schedule=schedule, config=config)
    block_sharding = NamedSharding(mesh, PartitionSpec(None, None, *batch_spec()))
    is_on_a_cpu = all(device.platform == "cpu" for device in block_sharding.device_set)

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        rows = batch.tokens.shape[0] // config.accumulation
        at_once = config.rows_at_once * axis_size(BATCH, mesh) or rows
        blocks = jax.tree.map(lambda x: x.reshape(config.accumulation, -1, at_once, x.shape[-1]), batch)
        # Each block is spread over all devices, whichever of its rows they were given.
        blocks = jax.lax.with_sharding_constraint(blocks, block_sharding)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return make_update(state, frozen, blocks)

    return jax.jit(
        step,
        in_shardings=tuple(shardings),
        out_shardings=(shardings.state, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=compiler_options(block_sharding.device_set) | (ON_A_CPU if is_on_a_cpu else {}),
    )


def make_eval_loss(
    loss_sums: LossSums, shardings: Shardings
) -> Callable[[Any, Any, Batch], tuple[jax.Array, jax.Array]]:
    """The compiled loss of (trainable, frozen, batch [B, T]) -> (sum, count), with no update."""
    mesh = shardings.batch.mesh

    def evaluate(trainable: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss_sums(frozen | trainable, batch)

    return jax.jit(
        evaluate,
        in_shardings=(shardings.state.trainable, shardings.frozen, shardings.batch),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(shardings.batch.device_set),
    )


def make_shardings(trainable: Any, frozen: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> Shardings:
    """Where everything lies on the mesh; Adam's moments lie with the parameters they belong to."""
    state = jax.eval_shape(partial(new_state, optimizer=optimizer), trainable)
    return Shardings(param_shardings(state, mesh), param_shardings(frozen, mesh), NamedSharding(mesh, batch_spec()))


def new_state(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update: a float32 copy of `trainable`, and an optimizer that has seen nothing."""
    # A copy, since the step consumes its state and jit may hand an unchanged argument through as the same buffer.
    trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trainable)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, trainable, optimizer.init(trainable))


def init_state(trainable: Any, optimizer: optax.GradientTransformation, shardings: Shardings) -> TrainState:
    """`new_state`, made where it belongs on the mesh."""
    return jax.jit(partial(new_state, optimizer=optimizer), out_shardings=shardings.state)(trainable)


def local_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """The rows, of a batch of so many, that this process's devices hold: ascending, int [n].

    Where the `tensor` axis spans processes, several of them hold the same rows.
    """
    indices = sharding.addressable_devices_indices_map((rows, 1)).values()
    return np.unique(np.concatenate([np.arange(rows)[index[0]] for index in indices if index is not None]))


def place_batch(batch: Batch, sharding: NamedSharding) -> Batch:
    """The rows `local_rows` of a batch, NumPy arrays, as this process's part of it on the mesh."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
