"""A text that many prompts begin with, run once: its keys and values, for the prompts' continuations to look at.

Axis letters as in transformer.py: L layers, P prefix positions, K key/value heads, H head width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.model.attention import Prefix, init_cache
from jaxalign.model.transformer import Decoder


def prefill(decoder: Decoder, variables: Any, tokens: jax.Array, length: jax.Array) -> Prefix:
    """The keys and values of a prefix.

    Args:
      tokens: int32 [P], the prefix in its first `length` positions.
      length: int32 scalar, 0 <= length <= P.

    Returns:
      A `Prefix` in the compute type; what stands behind `length` is never looked at.
    """
    positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    cache = init_cache(decoder.config, 1, len(tokens), decoder.dtype)
    segment_ids = (positions < length).astype(jnp.int32)
    filled = decoder.apply(variables, tokens[None], positions, segment_ids, cache=cache).cache
    return Prefix(filled.k[:, 0], filled.v[:, 0], length)


def prefix_bucket(length: int) -> int:
    """The fixed length that a prefix is padded to: a multiple of 64 up to 512, of 128 beyond; at least 64."""
    step = 64 if length <= 512 else 128
    return max(1, -(-length // step)) * step
