"""What a next-token distribution says: the mass on label words, its entropy, and sums over the whole vocabulary.

The head is read a part of the vocabulary at a time where the logits of all tokens are never to exist at once.
Axis letters: C labels, M candidate ids of a label (of groups, how many each token belongs to), D width, V vocabulary,
G groups of tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.model.transformer import Decoder


class LabelSets(NamedTuple):
    """Candidate token ids of several labels as one rectangle. Arrays [C, M]: `ids` int32, `mask` bool."""

    ids: Any
    mask: Any


def pad_label_sets(sets: Sequence[Sequence[int]]) -> LabelSets:
    """Label sets as arrays; C is rounded up to a multiple of 8 and M of 32, so that most calls share one program.

    Ids do not repeat within a label; an empty set has mass 0.
    """
    labels, width = -(-len(sets) // 8) * 8, -(-max(map(len, sets)) // 32) * 32
    ids, mask = np.zeros((labels, width), np.int32), np.zeros((labels, width), bool)
    for label, candidates in enumerate(sets):
        ids[label, : len(candidates)], mask[label, : len(candidates)] = candidates, True
    return LabelSets(ids, mask)


def label_masses(logits: jax.Array, labels: LabelSets) -> jax.Array:
    """Probability that the next token is one of a label's candidates: float32 [..., C] of logits float32 [..., V]."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)[..., None, None]
    candidates = jnp.exp(logits[..., labels.ids] - normaliser)
    return jnp.where(jnp.broadcast_to(labels.mask, candidates.shape), candidates, 0.0).sum(-1)


def entropy_bits(logits: jax.Array) -> jax.Array:
    """Entropy of the softmax in bits, float32 [...] between 0 and log2 V of logits float32 [..., V]; a probability of 0
    counts as 0."""
    return jax.scipy.special.entr(jax.nn.softmax(logits, axis=-1)).sum(-1) / jnp.log(2.0)


CHUNK = 8192
"""Tokens of the vocabulary that are read at once."""

Sums = TypeVar("Sums")


class Chunk(NamedTuple):
    rows: jax.Array
    """[chunk, D], their rows of the head, compute type"""
    ids: jax.Array
    """int32 [chunk]"""
    is_new: jax.Array
    """bool [chunk]: not among the chunk before; the last chunk reaches back to be as long as the others"""


def over_vocabulary(
    decoder: Decoder, variables: Any, add: Callable[[Sums, Chunk], Sums], initial: Sums, chunk: int = CHUNK
) -> Sums:
    """Folds `add` over the head's rows, `chunk` of them at a time."""
    V = decoder.config.vocab_size
    size = min(chunk, V)

    def step(sums: Sums, first: jax.Array) -> tuple[Sums, None]:
        start = jnp.minimum(first, V - size)
        ids = start + lax.iota(jnp.int32, size)
        return add(sums, Chunk(decoder.apply(variables, start, size, method="head_rows"), ids, ids >= first)), None

    return lax.scan(step, initial, jnp.arange(0, V, size, dtype=jnp.int32))[0]


def group_masses(
    decoder: Decoder, variables: Any, normed: jax.Array, groups: jax.Array, count: int, chunk: int = CHUNK
) -> jax.Array:
    """Probability that the next token is one of a group's.

    Args:
      normed: [..., D], states after the final norm.
      groups: int32 [M, V], the groups that each token belongs to, of 0 .. count - 1.
      count: G.

    Returns:
      float32 [..., G]; where the groups of one row of `groups` share the vocabulary out, theirs add up to 1.
    """

    def add(sums: tuple[jax.Array, jax.Array], part: Chunk) -> tuple[jax.Array, jax.Array]:
        most, masses = sums
        logits = jnp.einsum("...D,VD->...V", normed, part.rows, preferred_element_type=jnp.float32)
        logits = jnp.where(jnp.broadcast_to(part.is_new, logits.shape), logits, -jnp.inf)
        # All is relative to the largest logit so far, as in a softmax.
        new_most = jnp.maximum(most, logits.max(axis=-1))
        weights = jnp.exp(logits - new_most[..., None])
        membership = jax.nn.one_hot(groups[:, part.ids], count, dtype=jnp.float32).sum(axis=0)
        added = jnp.einsum("...V,VG->...G", weights, membership, precision=lax.Precision.HIGHEST)
        return new_most, masses * jnp.exp(most - new_most)[..., None] + added

    nothing = jnp.full(normed.shape[:-1], -jnp.inf), jnp.zeros((*normed.shape[:-1], count))
    _, masses = over_vocabulary(decoder, variables, add, nothing, chunk)
    # Every token is in as many groups.
    return masses * len(groups) / masses.sum(axis=-1, keepdims=True)


def head_gram(decoder: Decoder, variables: Any, chunk: int = CHUNK) -> jax.Array:
    """Uᵀ U, float32 [D, D], of the rows of U: the head's, times the final norm's factor, of length 1."""
    config = decoder.config
    factor = variables["params"]["norm"]["scale"].astype(jnp.float32) + (1.0 if config.norm_offset else 0.0)

    def add(gram: jax.Array, part: Chunk) -> jax.Array:
        unit = jnp.where(part.is_new[:, None], directions(part.rows.astype(jnp.float32) * factor[None]), 0.0)
        return gram + jnp.einsum("VD,VE->DE", unit, unit, precision=lax.Precision.HIGHEST)

    return over_vocabulary(decoder, variables, add, jnp.zeros((config.width, config.width)), chunk)


def directions(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] over their lengths, float32; 0 where the length is 0 or, as untrained tokens' may be, so small
    that float32 does not hold its square."""
    vectors = vectors.astype(jnp.float32)
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(lengths > 0, lengths, jnp.inf)
