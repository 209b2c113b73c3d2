"""Low-rank adapters (Hu et al. 2021): a collection of their own, float32, beside the frozen parameters.

The tree follows the parameters' paths: `layers/self_attn/q_proj/{lora_a [L,in,r], lora_b [L,r,out]}`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig


@dataclass(frozen=True)
class LoraConfig:
    """Rank r, alpha (the update is scaled by alpha/r), and the projections that carry an adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(f"lora.rank={self.rank}, lora.alpha={self.alpha}: set rank to 1 or more and alpha above 0")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


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


def init_factors(key: jax.Array, sizes: tuple[int, int], rank: int) -> dict[str, jax.Array]:
    """One layer's factors: A uniform within ±1/sqrt(in), as PEFT draws it, and B zero: the update starts at 0."""
    bound = sizes[0] ** -0.5
    return {
        "lora_a": jax.random.uniform(key, (sizes[0], rank), jnp.float32, -bound, bound),
        "lora_b": jnp.zeros((rank, sizes[1]), jnp.float32),
    }


def init_lora(key: jax.Array, config: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
    """A fresh adapter tree for `config`. A target that names no projection raises InputError."""
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
        tree.setdefault(module, {})[target] = factors
    return {"layers": tree}


def check_adapter(adapter: Any, wanted: Any, lora: LoraConfig, where: object) -> None:
    """Refuses an adapter tree of other projections or sizes than `wanted`, a tree of arrays or shapes."""
    if jax.tree.map(jnp.shape, adapter) != jax.tree.map(jnp.shape, wanted):
        raise InputError(
            f"{where}: no adapter of rank {lora.rank} on {', '.join(lora.targets)} of this model; "
            "is it another model's? Or set lora.rank and lora.targets to its own"
        )


def merge_lora(params: dict[str, Any], lora_tree: dict[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """`params` with every adapter's update added to its kernel (summed in float32, rounded once to the kernel's type).

    The rest of the tree is shared with the argument, which stays as it is.
    """
    layers = dict(params["layers"])
    for module, targets in lora_tree["layers"].items():
        layers[module] = dict(layers[module])
        for target, factors in targets.items():
            kernel = layers[module][target]["kernel"]
            update = jnp.einsum("LIr,LrO->LIO", factors["lora_a"], factors["lora_b"]) * lora.scale
            merged = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
            layers[module][target] = {**layers[module][target], "kernel": merged}
    return {**params, "layers": layers}
