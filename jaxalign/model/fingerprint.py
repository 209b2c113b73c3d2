"""A digest of weights, by which results are known to come from the same ones."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def hash_sum(leaf: jax.Array) -> jax.Array:
    """The sum, modulo 2**32, of a hash of each element's bits (MurmurHash3's finaliser): a uint32 scalar.

    Integer sums are the same in any order, so on any mesh. Summing the bits themselves would miss sign flips: an even
    number of top bits cancels.
    """
    x = jax.lax.bitcast_convert_type(leaf, BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return (x ^ (x >> jnp.uint32(16))).sum(dtype=jnp.uint32)


def weights_sha256(tree: Any) -> str:
    """sha256 over path, shape, type and `hash_sum` of every array of a tree; one pass over the weights.

    It tells other weights apart, not an adversary's, and not rows of one array that changed places.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    facts = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), int(hash_sum(leaf))) for path, leaf in leaves]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
