"""x @ W where W is stored in another type than it is used in: the backward pass, too, reads W as it is stored.

Left to autodiff, a scan over layers would keep the converted copy of every layer's weights for the backward pass: as
much memory as the model in the compute type. Left to the partitioner, weights would be turned from codes first, each
device its part, and gathered then, in two to four times the bytes.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxalign.model.quantised import dequantise
from jaxalign.model.sharding import constrain, gathered_spec

Stored = Mapping[str, jax.Array]
"""{"kernel": [in, out]}, or quantised {"codes": ..., "absmax": ...}."""


def widest(types: Collection[DTypeLike]) -> np.dtype:
    """The type that holds the numbers of all these floating types: the one that they are, or float32."""
    found = {jnp.dtype(each) for each in types}
    return found.pop() if len(found) == 1 else jnp.dtype(jnp.float32)


def kernel_of(stored: Stored, path: str = "") -> jax.Array:
    """[in, out] as stored, or float32 where it is quantised.

    With the projection's path in the parameter tree, codes are gathered over `fsdp` first.
    """
    if "kernel" in stored:
        return stored["kernel"]
    if path:
        stored = {name: constrain(leaf, gathered_spec(f"{path}/{name}", leaf.shape)) for name, leaf in stored.items()}
    return dequantise(stored["codes"], stored["absmax"])


def plain_product(x: jax.Array, stored: Stored, dtype: DTypeLike, path: str = "") -> jax.Array:
    """x [..., in] @ kernel [in, out], the kernel in `dtype`. A kernel has a gradient, quantised weights have none."""
    return x @ kernel_of(stored, path).astype(dtype)


product = jax.custom_vjp(plain_product, nondiff_argnums=(2, 3))


def forward(x: Any, stored: Any, dtype: DTypeLike, path: str) -> tuple[jax.Array, tuple[Stored, jax.Array | None]]:
    """`x` and the leaves of `stored` come with `perturbed`: whether anything asks for their gradient."""
    is_tuned = "kernel" in stored and stored["kernel"].perturbed
    stored = {name: leaf.value for name, leaf in stored.items()}
    return plain_product(x.value, stored, dtype, path), (stored, x.value if is_tuned else None)


def backward(
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


product.defvjp(forward, backward, symbolic_zeros=True)
