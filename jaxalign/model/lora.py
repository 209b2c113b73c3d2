"""Adapters beside the frozen parameters, a collection of their own, float32: LoRA, rsLoRA and DoRA.

A projection x W becomes x W + s x A B, with s = alpha/r (Hu et al. 2021, arXiv 2106.09685) or alpha/sqrt(r) (rsLoRA,
Kalajdzievski 2023, arXiv 2312.03732). DoRA (Liu et al. 2024, arXiv 2402.09353) multiplies each output by m/|w|: m is
tuned, |w| the norm of the output's weights in W + s A B, taken as a constant by the gradient (its section 4.3).

The tree follows the parameters' paths: `layers/self_attn/q_proj/{lora_a [L,in,r], lora_b [L,r,out]}`, and
`magnitude [L,out]` in DoRA.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.quantised import kernel_of, widest

Factors = Mapping[str, jax.Array]
"""One projection's part of the adapter: `lora_a`, `lora_b` and in DoRA `magnitude`, of one layer or stacked."""


@dataclass(frozen=True)
class LoraConfig:
    rank: int
    alpha: float
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise InputError(f"lora.rank={self.rank}, lora.alpha={self.alpha}: set rank to 1 or more and alpha above 0")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def projection_sizes(config: ModelConfig) -> dict[str, tuple[str, tuple[int, int]]]:
    """Every projection of a layer: name -> (its module: self_attn or mlp, (in, out))."""
    D, F = config.width, config.mlp_dim
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "q_proj": ("self_attn", (D, query)),
        "k_proj": ("self_attn", (D, key)),
        "v_proj": ("self_attn", (D, key)),
        "o_proj": ("self_attn", (query, D)),
        "gate_proj": ("mlp", (D, F)),
        "up_proj": ("mlp", (D, F)),
        "down_proj": ("mlp", (F, D)),
    }


def has_bias(config: ModelConfig, projection: str) -> bool:
    if projection in ("q_proj", "k_proj", "v_proj"):
        return config.qkv_bias
    return config.output_bias if projection == "o_proj" else config.mlp_bias


def init_factors(key: jax.Array, sizes: tuple[int, int], rank: int) -> dict[str, jax.Array]:
    """One layer's factors: A uniform within ±1/sqrt(in), as PEFT draws it, and B zero: the update starts at 0."""
    bound = sizes[0] ** -0.5
    return {
        "lora_a": jax.random.uniform(key, (sizes[0], rank), jnp.float32, -bound, bound),
        "lora_b": jnp.zeros((rank, sizes[1]), jnp.float32),
    }


def init_lora(key: jax.Array, config: ModelConfig, lora: LoraConfig, params: Any = None) -> dict[str, Any]:
    """A fresh adapter tree for `config`. A target that names no projection raises InputError.

    DoRA's magnitudes start as the norms of the model's own weights, `params`, so that it changes nothing at first.
    """
    projections = projection_sizes(config)
    unknown = [target for target in lora.targets if target not in projections]
    if unknown or not lora.targets:
        wrong = f"no projection is named {', '.join(unknown)}" if unknown else "none are given"
        raise InputError(f"lora targets: {wrong}; choose from {', '.join(projections)}")
    tree: dict[str, Any] = {}
    for target, target_key in zip(lora.targets, jax.random.split(key, len(lora.targets)), strict=True):
        module, sizes = projections[target]
        layer_keys = jax.random.split(target_key, config.layers)
        factors = jax.vmap(lambda k, sizes=sizes: init_factors(k, sizes, lora.rank))(layer_keys)
        if lora.dora:
            stored = {name: leaf for name, leaf in params["layers"][module][target].items() if name != "bias"}
            factors["magnitude"] = jax.lax.map(lambda layer: output_norms(kernel_of(layer)), stored)
        tree.setdefault(module, {})[target] = factors
    return {"layers": tree}


def lora_shapes(config: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
    """The adapter tree of `init_lora` as shapes and types."""
    layers: dict[str, Any] = {}
    for name, (module, sizes) in projection_sizes(config).items():
        kernel = jax.ShapeDtypeStruct((config.layers, *sizes), jnp.float32)
        layers.setdefault(module, {})[name] = {"kernel": kernel}
    init = partial(init_lora, config=config, lora=lora)
    return jax.eval_shape(lambda key, params: init(key, params=params), jax.random.key(0), {"layers": layers})


def check_adapter(adapter: Any, config: ModelConfig, lora: LoraConfig, where: object) -> None:
    """Refuses an adapter tree of other projections or sizes than those of `lora` on this model."""
    if jax.tree.map(jnp.shape, adapter) != jax.tree.map(jnp.shape, lora_shapes(config, lora)):
        raise InputError(
            f"{where}: no adapter of rank {lora.rank} on {', '.join(lora.targets)} of this model; "
            "is it another model's? Or set lora.rank and lora.targets to its own"
        )


def adapt(y: jax.Array, x: jax.Array, kernel: jax.Array, factors: Factors, lora: LoraConfig) -> jax.Array:
    """y = x W [..., out] with the adapter's part added, x [..., in], kernel W [in, out] of any type."""
    a, b = (factors[name].astype(y.dtype) for name in ("lora_a", "lora_b"))
    y = y + (x @ a) @ b * lora.scale
    if not lora.dora:
        return y
    norms = updated_norms(*jax.lax.stop_gradient((kernel, factors)), lora)
    return y * jnp.broadcast_to((factors["magnitude"] / norms).astype(y.dtype), y.shape)


def updated_norms(kernel: jax.Array, factors: Factors, lora: LoraConfig) -> jax.Array:
    """`output_norms` of W + s A B, float32 [out].

    By |w + sAb|² = |w|² + sb·(2 Aᵀw + s AᵀA b) for each output's w and b: with the sum itself, rematerialisation that
    keeps products would keep one of W's size for every layer.
    """
    kernel, a, b = kernel.astype(jnp.float32), factors["lora_a"], factors["lora_b"] * lora.scale
    return jnp.sqrt(jnp.square(kernel).sum(axis=0) + (b * (2 * (a.T @ kernel) + (a.T @ a) @ b)).sum(axis=0))


def output_norms(kernel: jax.Array) -> jax.Array:
    """The Euclidean norm of each output's weights: [in, out] -> float32 [out]."""
    return jnp.linalg.norm(kernel.astype(jnp.float32), axis=0)


def merge_lora(
    params: dict[str, Any], lora_tree: dict[str, Any], lora: LoraConfig, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """`params` with every adapter merged into its kernel, where the kernel lies, rounded once.

    The merged kernels are at least as wide as `dtype`, if that is given. The rest of the tree is shared.
    """

    def every_layer(kernel: jax.Array, factors: Factors, merged_type: np.dtype) -> jax.Array:
        def merged(layer: tuple[jax.Array, Factors]) -> jax.Array:
            kernel, factors = layer
            both = kernel.astype(jnp.float32) + factors["lora_a"] @ factors["lora_b"] * lora.scale
            if lora.dora:
                both = both * (factors["magnitude"] / output_norms(both))[None, :]
            return both.astype(merged_type)

        # One layer after the other: float32 copies of all would be large.
        return jax.lax.map(merged, (kernel, factors))

    layers = dict(params["layers"])
    for module, targets in lora_tree["layers"].items():
        layers[module] = dict(layers[module])
        for target, factors in targets.items():
            kernel = layers[module][target]["kernel"]
            merged_type = kernel.dtype if dtype is None else widest({kernel.dtype, dtype})
            merge = jax.jit(every_layer, static_argnums=2, out_shardings=kernel.sharding)
            layers[module][target] = {**layers[module][target], "kernel": merge(kernel, factors, merged_type)}
    return {**params, "layers": layers}
