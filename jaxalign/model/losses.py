"""Masked next-token loss: the head is applied to target positions only, a chunk at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


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
    `targets_per_row` (R) is a promise of the caller: no row of `loss_mask` has more True. It is a shape, so a row
    that breaks the promise cannot be seen here; its positions past the R-th would be left out of sum and count.
    At most `chunk` positions (one a row at least) have logits at any time; the backward pass computes them again.
    """
    B, T = targets.shape
    R = min(targets_per_row, T)
    columns = min(max(1, chunk // B), R)

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

    @jax.checkpoint
    def add_chunk(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        states, labels, counts = part
        logits = logits_fn(states)
        # A comparison, not a gather: where V is sharded, each device finds the label in its own part.
        is_label = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[:, :, None]
        label_logit = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
        nats = jax.nn.logsumexp(logits, axis=-1) - label_logit
        return total + jnp.sum(jnp.where(counts, nats, 0.0)), None

    parts = (by_chunk(chosen_hidden), by_chunk(chosen_targets), by_chunk(counted))
    total, _ = lax.scan(add_chunk, jnp.zeros((), jnp.float32), parts)
    return total, jnp.sum(counted, dtype=jnp.float32)
