"""What the next-token distribution says: the mass on label words, and its entropy.

Axis letters: C labels, M candidate ids of the label that has most, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class LabelSets(NamedTuple):
    """Candidate token ids of several labels as one rectangle. Arrays [C, M]: `ids` int32, `mask` bool."""

    ids: Any
    mask: Any


def pad_label_sets(sets: Sequence[Sequence[int]]) -> LabelSets:
    """Label sets as arrays; C is rounded up to a multiple of 8 and M of 32, so that most calls share one program.

    Args:
      sets: candidate ids of each label, without repetition within a label. An empty set has mass 0.
    """
    labels, width = -(-len(sets) // 8) * 8, -(-max(map(len, sets)) // 32) * 32
    ids, mask = np.zeros((labels, width), np.int32), np.zeros((labels, width), bool)
    for label, candidates in enumerate(sets):
        ids[label, : len(candidates)], mask[label, : len(candidates)] = candidates, True
    return LabelSets(ids, mask)


def label_masses(logits: jax.Array, labels: LabelSets) -> jax.Array:
    """Probability that the next token is one of a label's candidates.

    Args:
      logits: float32 [..., V].
      labels: [C, M].

    Returns:
      float32 [..., C], each label's sum of softmax probabilities over its candidate ids.
    """
    normaliser = jax.nn.logsumexp(logits, axis=-1)[..., None, None]
    candidates = jnp.exp(logits[..., labels.ids] - normaliser)
    return jnp.where(jnp.broadcast_to(labels.mask, candidates.shape), candidates, 0.0).sum(-1)


def log_probabilities(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probability that the next token is each of the targets.

    Args:
      logits: float32 [..., V].
      targets: int32 [..., C].

    Returns:
      float32 [..., C].
    """
    return jnp.take_along_axis(logits, targets, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def entropy_bits(logits: jax.Array) -> jax.Array:
    """Entropy of the softmax in bits, a probability of 0 counting as 0.

    Args:
      logits: float32 [..., V].

    Returns:
      float32 [...], between 0 and log2 V.
    """
    return jax.scipy.special.entr(jax.nn.softmax(logits, axis=-1)).sum(-1) / jnp.log(2.0)
