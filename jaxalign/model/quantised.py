"""Weights multiplied as they are stored: floating kernels, or `codes` and `absmax` in the place of a `kernel`.

    kernel [in, out] float     int8:  codes [in, out] int8        absmax [1, out] float32
                               nf4:   codes [in/2, out] uint8     absmax [in/64, out] float32

int8 keeps each output's weights as whole multiples of 1/127 of the largest magnitude among them. nf4 is NormalFloat4 in
blocks of 64 (Dettmers et al. 2023, "QLoRA", arXiv 2305.14314), as of bitsandbytes without double quantisation: a block
is 64 consecutive inputs of one output, and holds its largest magnitude and for each weight the nearest of 16 shares of
it, 4.5 bits a weight. Two inputs half a block apart share a byte, so that the halves of a block unpack one behind the
other; bitsandbytes packs neighbours, and to interleave them went through a TPU's main memory several times (Mistral-7B
on v5e:1x1: 4,499 GiB a step, and 2,031 as it is).

Embeddings, head, norms and biases are never quantised.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxalign.errors import InputError
from jaxalign.model.sharding import constrain, gathered_spec, param_shardings

Stored = Mapping[str, jax.Array]
"""{"kernel": [in, out]}, or quantised {"codes": ..., "absmax": ...}."""
NF4_BLOCK = 64
NF4_LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""Ascending: the paper's appendix E, float32."""


def quantise_int8(kernel: jax.Array) -> dict[str, jax.Array]:
    kernel = kernel.astype(jnp.float32)
    absmax = jnp.abs(kernel).max(axis=-2, keepdims=True)
    # A column of zeros has no inverse.
    inverse = jnp.where(absmax > 0, 127 / absmax, 0.0)
    return {"codes": jnp.round(kernel * jnp.broadcast_to(inverse, kernel.shape)).astype(jnp.int8), "absmax": absmax}


def dequantise_int8(codes: jax.Array, absmax: jax.Array) -> jax.Array:
    return codes.astype(jnp.float32) * jnp.broadcast_to(absmax / 127, codes.shape)


def quantise_nf4(kernel: jax.Array) -> dict[str, jax.Array]:
    """The nearest levels of float [..., in, out], the lower half-way between two; `in` is a multiple of 64.

    Of a block's inputs i and i + 32 the former is in the high bits.
    """
    *lead, inputs, outputs = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(*lead, inputs // NF4_BLOCK, NF4_BLOCK, outputs)
    absmax = jnp.abs(blocks).max(axis=-2)
    # A product with the inverse, as in bitsandbytes: a quotient is rounded otherwise. A block of zeros has no inverse.
    inverse = jnp.where(absmax > 0, 1 / absmax, 0.0)[..., None, :]
    shares = jnp.clip(blocks * jnp.broadcast_to(inverse, blocks.shape), -1, 1)
    halves = (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) / 2
    codes = sum((shares > half).astype(jnp.uint8) for half in halves)
    first, second = jnp.split(jnp.asarray(codes), 2, axis=-2)
    return {"codes": (first << 4 | second).reshape(*lead, inputs // 2, outputs), "absmax": absmax}


def dequantise_nf4(codes: jax.Array, absmax: jax.Array) -> jax.Array:
    *lead, half, outputs = codes.shape
    packed = codes.reshape(*lead, 2 * half // NF4_BLOCK, NF4_BLOCK // 2, outputs)

    def levels(lowest: int) -> jax.Array:
        """The levels of the four bits from bit `lowest` on, chosen bit by bit, which fuses with what follows; a gather
        does not. The bits are tested where they are: to shift each first would be five operations a weight more."""
        values = list(map(jnp.float32, NF4_LEVELS))
        for bit in range(4):
            is_set = (packed & (1 << lowest + bit)) != 0
            values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    # Levels first, then joined: the other way round the compiler for CPU keeps a third more of the backward pass.
    # On v5e, halves scaled and rounded before they are joined move 15 % more bytes; bytes repeated in place of a join
    # move 6 % less, but keep 13 % more.
    blocks = jnp.concatenate([levels(4), levels(0)], axis=-2)
    return (blocks * jnp.broadcast_to(absmax[..., None, :], blocks.shape)).reshape(*lead, 2 * half, outputs)


class Scheme(NamedTuple):
    """How a kernel [..., in, out] becomes codes, and codes a float32 kernel."""

    code_type: np.dtype
    block: int  # The inputs must be whole blocks of so many.
    quantise: Callable[[jax.Array], dict[str, jax.Array]]
    dequantise: Callable[[jax.Array, jax.Array], jax.Array]


SCHEMES = {
    "int8": Scheme(jnp.dtype(jnp.int8), 1, quantise_int8, dequantise_int8),
    "nf4": Scheme(jnp.dtype(jnp.uint8), NF4_BLOCK, quantise_nf4, dequantise_nf4),
}


def widest(types: Collection[DTypeLike]) -> np.dtype:
    """The type that holds the numbers of all these floating types: the one that they are, or float32."""
    found = {jnp.dtype(each) for each in types}
    return found.pop() if len(found) == 1 else jnp.dtype(jnp.float32)


def is_projection(path: str) -> bool:
    """Whether a path of the parameter tree is a kernel that is quantised."""
    return path.startswith("layers/") and path.endswith("_proj/kernel")


def quantise_params(params: Mapping[str, Any], mesh: Mesh, scheme: str) -> dict[str, Any]:
    """`params` with the kernels of all layers' projections quantised; the rest is shared with the argument."""
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    for path in list(leaves):
        if is_projection(path):
            module = path.removesuffix("/kernel")
            stored = quantise_stacked(leaves.pop(path), module, mesh, scheme)
            leaves |= {f"{module}/{name}": array for name, array in stored.items()}
    return unflatten_dict(leaves, sep="/")


def quantise_stacked(kernel: jax.Array, module: str, mesh: Mesh, scheme: str) -> dict[str, jax.Array]:
    """One projection of all layers [L, in, out], a layer at a time: float32 copies of more would be large. InputError:
    its inputs are not whole blocks of the scheme."""
    block, quantise = SCHEMES[scheme].block, SCHEMES[scheme].quantise
    if kernel.shape[1] % block:
        raise InputError(
            f"{module}: {scheme} takes blocks of {block} inputs, and {kernel.shape[1]} is no multiple; "
            "choose another --config.param_dtype"
        )

    def every_layer(kernel: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.map(quantise, kernel)

    shapes = {module: jax.eval_shape(every_layer, kernel)}
    return jax.jit(every_layer, out_shardings=param_shardings(shapes, mesh)[module])(kernel)


def kernel_of(stored: Stored, path: str = "") -> jax.Array:
    """[in, out] as stored, or float32 where it is quantised: with the projection's path in the parameter tree, codes
    are gathered over `fsdp` first."""
    if "kernel" in stored:
        return stored["kernel"]
    if path:
        stored = {name: constrain(leaf, gathered_spec(f"{path}/{name}", leaf.shape)) for name, leaf in stored.items()}
    scheme = next(scheme for scheme in SCHEMES.values() if scheme.code_type == stored["codes"].dtype)
    return scheme.dequantise(stored["codes"], stored["absmax"])


def plain_product(x: jax.Array, stored: Stored, dtype: DTypeLike, path: str = "") -> jax.Array:
    """x [..., in] @ kernel [in, out], the kernel in `dtype`. A kernel has a gradient, quantised weights have none."""
    return x @ kernel_of(stored, path).astype(dtype)


product = jax.custom_vjp(plain_product, nondiff_argnums=(2, 3))
"""`plain_product`, whose backward pass, too, reads the weights as they are stored.

Left to autodiff, a scan over layers would keep the converted copy of every layer's weights for the backward pass: as
much memory as the model in the compute type. Left to the partitioner, weights would be turned from codes first, each
device its part, and gathered then, in two to four times the bytes.
"""


def product_forward(
    x: Any, stored: Any, dtype: DTypeLike, path: str
) -> tuple[jax.Array, tuple[Stored, jax.Array | None]]:
    """`x` and the leaves of `stored` come with `perturbed`: whether anything asks for their gradient."""
    is_tuned = "kernel" in stored and stored["kernel"].perturbed
    stored = {name: leaf.value for name, leaf in stored.items()}
    return plain_product(x.value, stored, dtype, path), (stored, x.value if is_tuned else None)


def product_backward(
    dtype: DTypeLike, path: str, residuals: tuple[Stored, jax.Array | None], gradient: jax.Array
) -> tuple[jax.Array, Stored | None]:
    """The gradients of x, and of the kernel where x was kept for it."""
    stored, x = residuals
    of_x = gradient @ kernel_of(stored, path).astype(dtype).T
    if x is None:
        return of_x, None
    leading = tuple(range(x.ndim - 1))
    of_kernel = jnp.tensordot(x, gradient, axes=(leading, leading), preferred_element_type=jnp.float32)
    return of_x, {"kernel": of_kernel.astype(stored["kernel"].dtype)}


product.defvjp(product_forward, product_backward, symbolic_zeros=True)
