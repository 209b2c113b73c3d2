"""8-bit weights: each output's weights as whole multiples of 1/127 of the largest magnitude among them.

kernel [in, out] float     codes [in, out] int8     absmax [1, out] float32
"""

import jax
import jax.numpy as jnp

LARGEST = 127
BLOCK = 1
"""Any number of inputs will do."""


def quantise(kernel: jax.Array) -> dict[str, jax.Array]:
    """The nearest multiples: kernel float [..., in, out] -> codes int8 [..., in, out], absmax float32 [..., 1, out]."""
    kernel = kernel.astype(jnp.float32)
    absmax = jnp.abs(kernel).max(axis=-2, keepdims=True)
    # A column of zeros has no inverse.
    inverse = jnp.where(absmax > 0, LARGEST / absmax, 0.0)
    return {"codes": jnp.round(kernel * jnp.broadcast_to(inverse, kernel.shape)).astype(jnp.int8), "absmax": absmax}


def dequantise(codes: jax.Array, absmax: jax.Array) -> jax.Array:
    """float32 [..., in, out] of what `quantise` returned."""
    return codes.astype(jnp.float32) * jnp.broadcast_to(absmax / LARGEST, codes.shape)
