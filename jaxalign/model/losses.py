"""Masked next-token loss: the head is applied to target positions only, a chunk at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxalign.model.sharding import BATCH, axis_size, constrain

LogitsOf = Callable[..., jax.Array]
"""(states [..., D], *weights) -> float32 logits [..., V]."""

Chunks = tuple[jax.Array, jax.Array, jax.Array]
"""States [chunks,B,columns,D]; labels int32 and counted bool [chunks,B,columns]."""


@jax.named_scope("loss")
def next_token_loss(
    logits_fn: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
    *,
    targets_per_row: int,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy summed over the masked positions, in nats, and their number: two float32 scalars.

    logits_fn: [..., D] -> float32 [..., V]; hidden [B,T,D]; targets int32 [B,T]; loss_mask bool [B,T].
    `targets_per_row` (R) is a promise of the caller: no row of `loss_mask` has more True; positions past the R-th
    would be left out of sum and count.
    At most `chunk` positions a device (one a row at least) have logits at any time.
    """
    B, T = targets.shape
    R = min(targets_per_row, T)
    # Positions of each row that are one chunk.
    columns = min(max(1, chunk * row_parts() // B), R)

    # A stable sort of "not a target" puts each row's targets first, in order.
    chosen = jnp.argsort(~loss_mask, axis=1, stable=True)[:, :R]
    counted = jnp.take_along_axis(loss_mask, chosen, axis=1)
    chosen_targets = jnp.take_along_axis(targets, chosen, axis=1)
    chosen_hidden = jnp.take_along_axis(hidden, chosen[:, :, None], axis=1)

    def by_chunk(array: jax.Array) -> jax.Array:
        """[B,R,...] -> [chunks,B,columns,...]: rows stay whole, so a mesh that shards B shards every chunk alike."""
        padding = [(0, 0), (0, -R % columns)] + [(0, 0)] * (array.ndim - 2)
        array = jnp.pad(array, padding)
        return jnp.moveaxis(array.reshape(B, -1, columns, *array.shape[2:]), 1, 0)

    # The weights that `logits_fn` closes over become arguments: the head may be tuned too.
    head, weights = jax.closure_convert(logits_fn, chosen_hidden[:, :columns])
    chunks = (by_chunk(chosen_hidden), by_chunk(chosen_targets), by_chunk(counted))
    return summed_nats(head, chunks, tuple(weights)), jnp.sum(counted, dtype=jnp.float32)


def row_parts() -> int:
    """Over how many devices the rows of a batch lie."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else axis_size(BATCH, mesh)


def nats_of_chunk(
    head: LogitsOf, states: jax.Array, weights: tuple[Any, ...], labels: jax.Array, counted: jax.Array
) -> jax.Array:
    logits = head(states, *weights)
    # A comparison, not a gather: where V is sharded, each device finds the label in its own part.
    is_label = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[:, :, None]
    label_logit = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    nats = jax.nn.logsumexp(logits, axis=-1) - label_logit
    return jnp.sum(jnp.where(counted, nats, 0.0))


def unless_empty(counted: jax.Array, added: Callable[[], Any], unchanged: Callable[[], Any]) -> Any:
    """`added()`, or where nothing counts `unchanged()`; devices that share the rows out would have to agree first, so
    they do all chunks."""
    if row_parts() > 1:
        return added()
    return lax.cond(counted.any(), added, unchanged)


def gathered(head: LogitsOf, states: jax.Array, weights: tuple[Any, ...]) -> tuple[Any, ...]:
    """The head's weights, whole but for the vocabulary: gathered over `fsdp` once, and not once a chunk."""
    V = jax.eval_shape(head, states, *weights).shape[-1]
    return tuple(
        constrain(weight, PartitionSpec(*("tensor" if size == V else None for size in weight.shape)))
        for weight in weights
    )


def plain_nats(head: LogitsOf, chunks: Chunks, weights: tuple[Any, ...]) -> jax.Array:
    weights = gathered(head, chunks[0][0], weights)

    def add_chunk(total: jax.Array, chunk: Chunks) -> tuple[jax.Array, None]:
        states, labels, counted = chunk
        nats = partial(nats_of_chunk, head, states, weights, labels, counted)
        return unless_empty(counted, lambda: total + nats(), lambda: total), None

    return lax.scan(add_chunk, jnp.zeros((), jnp.float32), chunks)[0]


summed_nats = jax.custom_vjp(plain_nats, nondiff_argnums=(0,))
"""`plain_nats`, whose gradient is taken with the value: autodiff would compute every chunk's logits a second time.

The loss being a plain sum, the backward pass only scales that gradient.
"""


def summed_nats_forward(head: LogitsOf, chunks: Any, weights: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """The sum; and its gradients: of the states, and of those weights that something asks the gradient of."""
    states, labels, counted = (array.value for array in chunks)
    # Weights that are tuned stay where they lie, as the sums of their gradients do.
    whole = gathered(head, states[0], tuple(weight.value for weight in weights))
    frozen = tuple(None if weight.perturbed else each for weight, each in zip(weights, whole, strict=True))
    tuned = tuple(weight.value if weight.perturbed else None for weight in weights)

    def add_chunk(sums: Any, chunk: Chunks) -> tuple[Any, jax.Array]:
        states, labels, counted = chunk

        def nats(states: jax.Array, tuned: Any) -> jax.Array:
            weights = tuple(own if own is not None else other for own, other in zip(tuned, frozen, strict=True))
            return nats_of_chunk(head, states, weights, labels, counted)

        def added() -> tuple[Any, jax.Array]:
            value, (of_states, of_tuned) = jax.value_and_grad(nats, argnums=(0, 1))(states, tuned)
            of_tuned = jax.tree.map(lambda gradient: gradient.astype(jnp.float32), of_tuned)
            return jax.tree.map(jnp.add, sums, (value, of_tuned)), of_states

        return unless_empty(counted, added, lambda: (sums, jnp.zeros_like(states)))

    nothing = (jnp.zeros((), jnp.float32), jax.tree.map(lambda weight: jnp.zeros(weight.shape, jnp.float32), tuned))
    (total, of_tuned), of_states = lax.scan(add_chunk, nothing, (states, labels, counted))
    return total, (of_states, jax.tree.map(lambda gradient, weight: gradient.astype(weight.dtype), of_tuned, tuned))


def summed_nats_backward(head: LogitsOf, gradients: tuple[jax.Array, Any], scale: jax.Array) -> tuple[Any, Any]:
    """The gradients of the forward pass, scaled; in float32, for 1/count is no bfloat16."""
    of_states, of_tuned = jax.tree.map(
        lambda gradient: (gradient.astype(jnp.float32) * scale).astype(gradient.dtype), gradients
    )
    return (of_states, None, None), of_tuned


summed_nats.defvjp(summed_nats_forward, summed_nats_backward, symbolic_zeros=True)
