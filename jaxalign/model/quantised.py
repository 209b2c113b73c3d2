"""Projections kept in fewer bits: `codes` and `absmax` stand in the place of `kernel`; int8.py and nf4.py say how.

Embeddings, head, norms and biases stay as they are.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.model import int8, nf4
from jaxalign.model.sharding import param_shardings

SCHEMES = {"int8": int8, "nf4": nf4}
CODE_SCHEMES = {jnp.dtype(jnp.int8): int8, jnp.dtype(jnp.uint8): nf4}


def dequantise(codes: jax.Array, absmax: jax.Array) -> jax.Array:
    """The kernel float32 [..., in, out]; the type of the codes says which scheme made them."""
    return CODE_SCHEMES[codes.dtype].dequantise(codes, absmax)


def is_projection(path: str) -> bool:
    """Whether a path of the parameter tree is a kernel that is quantised."""
    return path.startswith("layers/") and path.endswith("_proj/kernel")


def quantise_params(params: Mapping[str, Any], mesh: Mesh, scheme: str) -> dict[str, Any]:
    """`params` with the kernels of all layers' projections quantised; the rest is shared with the argument."""
    layers = dict(params["layers"])
    for module in ("self_attn", "mlp"):
        layers[module] = dict(layers[module])
        for name, leaves in layers[module].items():
            if "kernel" in leaves:
                rest = {other: leaf for other, leaf in leaves.items() if other != "kernel"}
                path = f"layers/{module}/{name}"
                layers[module][name] = rest | quantise_stacked(leaves["kernel"], path, mesh, scheme)
    return {**params, "layers": layers}


def quantise_stacked(kernel: jax.Array, path: str, mesh: Mesh, scheme: str) -> dict[str, jax.Array]:
    """One projection of all layers [L, in, out], a layer at a time: float32 copies of more would be large.

    Raises:
      InputError: the kernel's inputs are not whole blocks of the scheme.
    """
    block, quantise = SCHEMES[scheme].BLOCK, SCHEMES[scheme].quantise
    if kernel.shape[1] % block:
        raise InputError(
            f"{path}: {scheme} takes blocks of {block} inputs, and {kernel.shape[1]} is no multiple; "
            "choose another --config.param_dtype"
        )

    def every_layer(kernel: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.map(quantise, kernel)

    shapes = {path: jax.eval_shape(every_layer, kernel)}
    return jax.jit(every_layer, out_shardings=param_shardings(shapes, mesh)[path])(kernel)
