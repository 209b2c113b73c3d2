"""4-bit weights: NormalFloat4 in blocks of 64 (Dettmers et al. 2023, "QLoRA", arXiv 2305.14314), as of bitsandbytes.

A block is 64 consecutive inputs of one output. It holds its largest magnitude, and for each weight the nearest of 16
shares of it. Two inputs half a block apart share a byte, so that the halves of a block unpack one behind the other:

    kernel [in, out] float     codes [in/2, out] uint8     absmax [in/64, out] float32

No double quantisation: `absmax` is float32. 4.5 bits a weight. bitsandbytes packs neighbours; on a TPU, to interleave
them went through main memory several times (Mistral-7B on v5e:1x1: 4,499 GiB a step, and 2,031 as it is).
"""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 64

LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""Ascending: the paper's appendix E, float32."""


def quantise(kernel: jax.Array) -> dict[str, jax.Array]:
    """The nearest levels; half-way between two, the lower.

    Args:
      kernel: float [..., in, out], `in` a multiple of 64.

    Returns:
      codes uint8 [..., in/2, out], of a block's inputs i and i + 32 the former in the high bits; absmax float32
      [..., in/64, out].
    """
    *lead, inputs, outputs = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(*lead, inputs // BLOCK, BLOCK, outputs)
    absmax = jnp.abs(blocks).max(axis=-2)
    # A product with the inverse, as in bitsandbytes: a quotient is rounded otherwise. A block of zeros has no inverse.
    inverse = jnp.where(absmax > 0, 1 / absmax, 0.0)[..., None, :]
    shares = jnp.clip(blocks * jnp.broadcast_to(inverse, blocks.shape), -1, 1)
    halves = (LEVELS[:-1] + LEVELS[1:]) / 2
    codes = sum((shares > half).astype(jnp.uint8) for half in halves)
    first, second = jnp.split(jnp.asarray(codes), 2, axis=-2)
    return {"codes": (first << 4 | second).reshape(*lead, inputs // 2, outputs), "absmax": absmax}


def dequantise(codes: jax.Array, absmax: jax.Array) -> jax.Array:
    """float32 [..., in, out] of what `quantise` returned."""
    *lead, half, outputs = codes.shape
    bytes = codes.reshape(*lead, 2 * half // BLOCK, BLOCK // 2, outputs)
    # Levels first, then joined: the other way round the compiler for CPU keeps a third more of the backward pass.
    # On v5e, halves scaled and rounded before they are joined move 15 % more bytes; bytes repeated in place of a join
    # move 6 % less, but keep 13 % more.
    blocks = jnp.concatenate([levels_of(bytes, 4), levels_of(bytes, 0)], axis=-2)
    return (blocks * jnp.broadcast_to(absmax[..., None, :], blocks.shape)).reshape(*lead, 2 * half, outputs)


def levels_of(bytes: jax.Array, lowest: int) -> jax.Array:
    """LEVELS of the four bits from bit `lowest` on, by choosing among them bit by bit, which fuses with what follows; a
    gather does not. The bits are asked where they are: to shift each first would be five operations a weight more.
    """
    values = list(map(jnp.float32, LEVELS))
    for bit in range(4):
        is_set = (bytes & (1 << lowest + bit)) != 0
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]
