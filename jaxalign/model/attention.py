"""Attention as pure functions: what a query sees, how positions turn it, and the cache of keys and values.

Axis letters as in transformer.py: B batch, T query length, S key length, L layers, N heads, K key/value heads,
G = N/K query heads to a key/value head, H head width.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxalign.model.config import ModelConfig, RopeScaling

ATTENTION = "attention"
"""What a rematerialisation policy knows the outcome of `grouped_attention` by."""


class Cache(NamedTuple):
    """Keys (rotated) and values of the tokens seen so far; an empty or padding slot has segment 0."""

    k: jax.Array  # [L,B,S,K,H]
    v: jax.Array  # [L,B,S,K,H]
    positions: jax.Array  # int32 [B,S]
    segment_ids: jax.Array  # int32 [B,S]
    offset: jax.Array  # int32 scalar: the slot that the next token is written to, the same in every row.


class Prefix(NamedTuple):
    """Keys (rotated) and values of a text that every row of a batch begins with, held once.

    Its tokens stand at positions 0, 1, ...; axis P is theirs, padded behind the first `length`.
    """

    k: jax.Array  # [L,P,K,H]
    v: jax.Array  # [L,P,K,H]
    length: jax.Array  # int32 scalar


class MaskAndRope(NamedTuple):
    """Which keys each query sees on a layer, and how queries and keys are rotated."""

    mask: jax.Array  # bool [B,T,S]; with a prefix, its P keys come first
    cos: jax.Array  # [B,T,H/2]
    sin: jax.Array  # [B,T,H/2]


def init_cache(config: ModelConfig, batch: int, length: int, dtype: DTypeLike) -> Cache:
    """An empty cache with room for `length` tokens a row. Writing past its end overwrites: the caller counts."""
    shape = (config.layers, batch, length, config.kv_heads, config.head_dim)
    empty = jnp.zeros((batch, length), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), empty, empty, jnp.zeros((), jnp.int32))


def write(old: jax.Array, new: jax.Array, offset: jax.Array) -> jax.Array:
    """`old` [B,S,...] with `new` [B,T,...] from slot `offset` on."""
    return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, axis=1)


def rope_of(config: ModelConfig, local: bool) -> tuple[float, RopeScaling | None]:
    """The rotary base of a kind of layer, and its scaling: none on local ones with a base of their own."""
    if local and config.local_rope_base is not None:
        return config.local_rope_base, None
    return config.rope_base, config.rope_scaling


def rotary_frequencies(config: ModelConfig, local: bool) -> np.ndarray:
    """Radians per position, float32 [H/2] (Su et al. 2021), scaled as `config.rope_scaling` says."""
    base, scaling = rope_of(config, local)
    frequencies = 1.0 / base ** (np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    if scaling is None:
        return frequencies.astype(np.float32)
    if scaling.kind == "linear":
        keep = 0.0
    elif scaling.kind == "yarn":
        keep = 1.0 - yarn_ramp(scaling, base, config.head_dim)
    else:
        # Short wavelengths stay, long ones are slowed by `factor`, those between are interpolated (Llama 3.1).
        turns = scaling.original_max_positions * frequencies / (2 * np.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
    return (keep * frequencies + (1.0 - keep) * frequencies / scaling.factor).astype(np.float32)


def yarn_ramp(scaling: RopeScaling, base: float, head_dim: int) -> np.ndarray:
    """How far each frequency is slowed, from 0 to 1, float64 [H/2], as transformers computes it."""

    def channel(turns: float) -> float:
        """The channel, of H, that makes so many turns within the original context."""
        return head_dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    return np.clip((np.arange(head_dim // 2, dtype=np.float64) - low) / width, 0.0, 1.0)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of [B,T,heads,H] by cos, sin [B,T,H/2]; the pair of channel i is i + H/2."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@jax.named_scope("attention")
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    scale: float,
    prefix: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Grouped-query attention with float32 softmax: q [B,T,N,H], k and v [B,S,K,H], mask [B,T,S] -> [B,T,N,H].

    With the keys and values [P,K,H] of a `prefix`, the mask is [B,T,P+S]: all rows meet the one copy in one product.
    A query that sees no key (padding) gets the mean of all values: finite, and read by nobody.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    # Key/value heads lead: the products come out in the order that they are used in.
    q = q.reshape(B, T, K, N // K, H).transpose(2, 0, 3, 1, 4)
    if prefix is None:
        mixed: jax.Array = grouped_attention(q, k, v, mask, scale)
    else:
        scores = jnp.concatenate([products(q, prefix[0], "SKH"), products(q, k, "BSKH")], axis=-1)
        _, _, weights = softmax(scores, mask, scale)
        # Rounded to the compute type once, as one product over all keys would be.
        P = len(prefix[0])
        before = mixture(weights[..., :P].astype(v.dtype), prefix[1], "SKH")
        mixed = (before + mixture(weights[..., P:].astype(v.dtype), v, "BSKH")).astype(v.dtype)
    return mixed.transpose(1, 3, 0, 2, 4).reshape(B, T, N, H)


def plain_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """q [K,B,G,T,H], k and v [B,S,K,H], mask [B,T,S] -> [K,B,G,T,H]."""
    _, _, weights = softmax(products(q, k, "BSKH"), mask, scale)
    return mixture(weights.astype(v.dtype), v, "BSKH").astype(v.dtype)


grouped_attention = jax.custom_vjp(plain_attention, nondiff_argnums=(4,))
"""`plain_attention`, whose gradient computes the weights again, from the maximum and the sum of each query's.

So nothing of size T x S is kept for it (FlashAttention's backward pass, Dao et al. 2022, algorithm 4)."""


def attention_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    largest, total, weights = softmax(products(q, k, "BSKH"), mask, scale)
    mixed = checkpoint_name(mixture(weights.astype(v.dtype), v, "BSKH").astype(v.dtype), ATTENTION)
    return mixed, (q, k, v, mask, mixed, largest, total)


def attention_backward(
    scale: float, kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """The gradients of q, k and v. A query that sees no key is taken to be read by nobody, and so to have none."""
    q, k, v, mask, mixed, largest, total = kept
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    weights = jnp.exp(masked(products(q, k, "BSKH"), mask, scale) - largest) / total
    # A softmax's gradient subtracts the mean that its own weights take: here the mean of gradient . v, which is this.
    mean = (gradient.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    of_scores = (weights * (products(gradient, v, "BSKH") - mean) * scale).astype(q.dtype)
    of_q = einsum("KBGTS,BSKH->KBGTH", of_scores, k)
    # The small factor is the one that is laid out anew.
    of_k = einsum("KBGTH,KBGTS->KBHS", q, of_scores).transpose(1, 3, 0, 2)
    of_v = einsum("KBGTH,KBGTS->KBHS", gradient, weights.astype(gradient.dtype)).transpose(1, 3, 0, 2)
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), None


grouped_attention.defvjp(attention_forward, attention_backward)


def products(q: jax.Array, k: jax.Array, key_axes: str) -> jax.Array:
    """Every query with every key of its group, float32 [K,B,G,T,S]."""
    return jnp.einsum(f"KBGTH,{key_axes}->KBGTS", q, k, preferred_element_type=jnp.float32)


def mixture(weights: jax.Array, v: jax.Array, value_axes: str) -> jax.Array:
    """The values of a group mixed by weights [K,B,G,T,S], float32 [K,B,G,T,H]."""
    return jnp.einsum(f"KBGTS,{value_axes}->KBGTH", weights, v, preferred_element_type=jnp.float32)


def masked(scores: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """Scaled scores [K,B,G,T,S], a key out of sight at the least float32 number."""
    return jnp.where(mask[None, :, None, :, :], scores * scale, jnp.finfo(jnp.float32).min)


def softmax(scores: jax.Array, mask: jax.Array, scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Over the keys: the largest score and the sum of exponentials of each query [K,B,G,T,1], and the weights."""
    scores = masked(scores, mask, scale)
    largest = scores.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(scores - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    return largest, total, exponentials / total


def layer_kinds(config: ModelConfig) -> tuple[tuple[bool, ...], np.ndarray]:
    """The distinct values of `local_layers`, and each layer's index among them, int32 [L]."""
    local_layers = config.local_layers or (False,) * config.layers
    kinds = tuple(sorted(set(local_layers)))
    return kinds, np.array([kinds.index(local) for local in local_layers], np.int32)


@jax.named_scope("mask_and_rope")
def masks_and_ropes(
    config: ModelConfig,
    positions: jax.Array,
    segment_ids: jax.Array,
    key_positions: jax.Array,
    key_segment_ids: jax.Array,
    dtype: DTypeLike,
    prefix: Prefix | None = None,
    branch_ids: jax.Array | None = None,
) -> MaskAndRope:
    """One `MaskAndRope` per kind of layer, stacked on a leading axis. Queries int32 [B,T], keys int32 [B,S].

    A query sees the keys of its own segment at its own or an earlier position; on a local layer, at most `window`
    of them, its own included. Segment 0 is padding. All segments see the `prefix`.

    `branch_ids` (int32 [B,T], where the keys are the queries' own): a segment may fork; a token of branch 1, 2, ...
    sees branch 0, the trunk, and its own branch.
    """
    query, key = positions[:, :, None], key_positions[:, None, :]
    real = segment_ids[:, :, None] != 0
    causal = (segment_ids[:, :, None] == key_segment_ids[:, None, :]) & real & (key <= query)
    if branch_ids is not None:
        query_branch, key_branch = branch_ids[:, :, None], branch_ids[:, None, :]
        causal &= (key_branch == 0) | (key_branch == query_branch)
    if prefix is not None:
        prefix_key = jnp.arange(prefix.k.shape[1], dtype=jnp.int32)[None, None, :]
        seen = jnp.broadcast_to(real & (prefix_key < prefix.length), (*positions.shape, prefix_key.shape[-1]))
        causal = jnp.concatenate([seen, causal], axis=-1)
        key = jnp.concatenate([jnp.broadcast_to(prefix_key, (len(key), *prefix_key.shape[1:])), key], axis=-1)
    each = []
    for local in layer_kinds(config)[0]:
        mask = causal & (key > query - config.window) if local and config.window is not None else causal
        frequencies = jnp.asarray(rotary_frequencies(config, local))
        angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
        scaling = rope_of(config, local)[1]
        factor = 1.0 if scaling is None else scaling.attention_factor
        cos, sin = (factor * turned(angles) for turned in (jnp.cos, jnp.sin))
        each.append(MaskAndRope(mask, cos.astype(dtype), sin.astype(dtype)))
    return jax.tree.map(lambda *kinds: jnp.stack(kinds), *each)
