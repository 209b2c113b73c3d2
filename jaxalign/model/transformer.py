"""The one decoder: Llama 2 and 3, Mistral, Qwen 1.5 to 2.5 and Gemma 3 text differ only in `ModelConfig`.

Axis letters, here and in every einsum string:
B batch, T query length, S key length, L layers, D width, N heads, K key/value heads, G = N/K query heads to a
key/value head, H head width, F feed-forward width, V vocabulary.

Layers are stacked on a leading axis L and scanned. Parameters may be stored in another type than `dtype`, the compute
type: each layer's are cast inside the scan. Norms' statistics and softmax are float32, as in transformers. The
mathematics is in pure functions; linen modules hold parameters and give them their names.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxalign.model.attention import (
    ATTENTION,
    Cache,
    MaskAndRope,
    Prefix,
    attend,
    layer_kinds,
    masks_and_ropes,
    rotate,
    write,
)
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import LoraConfig, adapt, has_bias, init_factors, output_norms, projection_sizes
from jaxalign.model.quantised import kernel_of, product
from jaxalign.model.sharding import EMBEDDED, RESIDUAL, constrain

KeysValues = tuple[jax.Array, jax.Array]
"""One layer's part of a cache, k and v, [B,S,K,H] each; or of a prefix, [P,K,H]."""

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: bool) -> jax.Array:
    """x / rms(x) * scale over the last axis [..., D], scale [D]; with `offset` the factor is 1 + scale.

    Llama's norm rounds to x's type before it multiplies, Gemma's after: both as in transformers.
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    if offset:
        return (normed * jnp.broadcast_to(1.0 + scale.astype(jnp.float32), x.shape)).astype(x.dtype)
    return normed.astype(x.dtype) * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


class Part(nn.Module):
    config: ModelConfig
    lora: LoraConfig | None
    dtype: DTypeLike


class Linear(Part):
    """A projection: x [..., in] @ kernel [in, out], with its adapter from collection `lora`, then the bias.

    Its name says its sizes. The kernel may be quantised: `codes` and `absmax` in its place.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        path, target = "/".join(self.path), self.path[-1]
        _, sizes = projection_sizes(self.config)[target]
        if self.has_variable("params", "codes"):
            stored = {name: self.get_variable("params", name) for name in ("codes", "absmax")}
        else:
            stored = {"kernel": self.param("kernel", nn.initializers.lecun_normal(), sizes)}
        y = product(x, stored, self.dtype, path)
        lora = self.lora
        if lora is not None and target in lora.targets:
            kernel = kernel_of(stored, path)

            def initial(name: str) -> jax.Array:
                if name == "magnitude":
                    return output_norms(kernel)
                return init_factors(self.make_rng("params"), sizes, lora.rank)[name]

            names = ("lora_a", "lora_b", "magnitude") if lora.dora else ("lora_a", "lora_b")
            factors = {name: self.variable("lora", name, initial, name).value for name in names}
            y = adapt(y, x, kernel, factors, lora)
        if has_bias(self.config, target):
            bias = self.param("bias", nn.initializers.zeros, sizes[1:])
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y


class Norm(nn.Module):
    """The family's norm over the last axis, of this size."""

    config: ModelConfig
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        neutral = nn.initializers.zeros if config.norm_offset else nn.initializers.ones
        return rms_norm(x, self.param("scale", neutral, (self.size,)), config.norm_eps, config.norm_offset)


class Attention(Part):
    def setup(self):
        make = partial(Linear, self.config, self.lora, self.dtype)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = make(), make(), make(), make()
        if self.config.qk_norm:
            head_dim = self.config.head_dim
            self.q_norm, self.k_norm = Norm(self.config, head_dim), Norm(self.config, head_dim)

    def __call__(
        self,
        x: jax.Array,
        seen: MaskAndRope,
        cached: KeysValues | None,
        offset: jax.Array | None,
        prefix: KeysValues | None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """x [B,T,D] -> ([B,T,D], cached with this call's keys and values written at `offset`)."""
        config = self.config
        heads = (*x.shape[:2], -1, config.head_dim)
        q, k, v = (proj(x).reshape(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, seen.cos, seen.sin), rotate(k, seen.cos, seen.sin)
        if cached is not None and offset is not None:
            cached = write(cached[0], k, offset), write(cached[1], v, offset)
            k, v = (array.astype(self.dtype) for array in cached)
        if prefix is not None:
            prefix = prefix[0].astype(self.dtype), prefix[1].astype(self.dtype)
        mixed = attend(q, k, v, seen.mask, config.query_scale, prefix)
        return self.o_proj(mixed.reshape(*x.shape[:2], -1)), cached


class MLP(Part):
    def setup(self):
        make = partial(Linear, self.config, self.lora, self.dtype)
        self.gate_proj, self.up_proj, self.down_proj = make(), make(), make()

    def __call__(self, x: jax.Array, neuron_mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x [B,T,D], neuron_mask [F] -> ([B,T,D], gate before its activation [B,T,F])."""
        gate = self.gate_proj(x)
        active = ACTIVATIONS[self.config.activation](gate)
        if neuron_mask is not None:
            active = active * jnp.broadcast_to(neuron_mask.astype(self.dtype), active.shape)
        return self.down_proj(active * self.up_proj(x)), gate


class Block(Part):
    def setup(self):
        width = self.config.width
        self.self_attn = Attention(self.config, self.lora, self.dtype)
        self.mlp = MLP(self.config, self.lora, self.dtype)
        self.input_layernorm, self.post_attention_layernorm = Norm(self.config, width), Norm(self.config, width)
        if self.config.post_norms:
            self.pre_feedforward_layernorm = Norm(self.config, width)
            self.post_feedforward_layernorm = Norm(self.config, width)

    def __call__(
        self,
        x: jax.Array,
        seen: MaskAndRope,
        cached: KeysValues | None,
        offset: jax.Array | None,
        prefix: KeysValues | None,
        neuron_mask: jax.Array | None,
    ) -> tuple[jax.Array, KeysValues | None, jax.Array]:
        """x [B,T,D] -> (x [B,T,D], cached, gate [B,T,F])."""
        mixed, cached = self.self_attn(self.input_layernorm(x), seen, cached, offset, prefix)
        if not self.config.post_norms:
            x = x + mixed
            # The name is transformers': outside Gemma this norm stands before the MLP.
            out, gate = self.mlp(self.post_attention_layernorm(x), neuron_mask)
            return x + out, cached, gate
        x = x + self.post_attention_layernorm(mixed)
        out, gate = self.mlp(self.pre_feedforward_layernorm(x), neuron_mask)
        return x + self.post_feedforward_layernorm(out), cached, gate


Tap = Callable[[jax.Array, jax.Array, jax.Array], Any]
"""(layer int32 scalar, hidden [B,T,D] after the block, gate [B,T,F] before its activation) -> small pytree."""

POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {
    "full": None,
    "dots": POLICIES.save_from_both_policies(
        POLICIES.dots_with_no_batch_dims_saveable, POLICIES.save_only_these_names(ATTENTION)
    ),
}


class DecoderOutput(NamedTuple):
    hidden: jax.Array  # [B,T,D] after the final norm, compute type.
    cache: Cache | None
    taps: Any  # What `tap` returned, stacked over a leading L; None without one.


class Embedding(nn.Module):
    vocab_size: int
    width: int

    def setup(self):
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.vocab_size, self.width))


class Head(nn.Module):
    width: int
    vocab_size: int

    def setup(self):
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.width, self.vocab_size))


class Decoder(nn.Module):
    """tokens -> hidden states -> logits, a pure function of `{"params": ..., "lora": ...}` (`lora` where configured).

    `remat`: what the backward pass recomputes: "none", "full" (everything but the residual at each layer),
    "dots" (all but the outputs of projections and attention).
    """

    config: ModelConfig
    lora: LoraConfig | None = None
    dtype: DTypeLike = jnp.float32
    remat: Literal["none", "full", "dots"] = "none"

    if TYPE_CHECKING:

        def apply(self, *args: Any, **kwargs: Any) -> Any:
            """Linen's own; its type there allows for mutated collections, of which this module has none."""

    def setup(self):
        config = self.config
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = Block(config, self.lora, self.dtype)
        self.norm = Norm(config, config.width)
        if not config.tied_head:
            self.lm_head = Head(config.width, config.vocab_size)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        *,
        cache: Cache | None = None,
        prefix: Prefix | None = None,
        branch_ids: jax.Array | None = None,
        tap: Tap | None = None,
        neuron_mask: jax.Array | None = None,
    ) -> DecoderOutput:
        """The hidden states of int32 [B,T] tokens.

        positions int32 [B,T], counted from 0 in each segment; segment_ids int32 [B,T], 0 is padding. With `cache`
        the tokens are appended to it, see what it holds of their segment, and it is returned. Or all segments continue
        one `prefix`, positions counting on from its length, and may fork into branches (`branch_ids`, as
        `masks_and_ropes` takes them). `neuron_mask` [L,F] multiplies the activated gate of each layer; `tap` is called
        inside the scan over layers.
        """
        config = self.config
        if cache is not None and (prefix is not None or branch_ids is not None):
            raise ValueError("a cache goes with neither a prefix nor branches")
        if cache is not None:
            cache = cache._replace(
                positions=write(cache.positions, positions, cache.offset),
                segment_ids=write(cache.segment_ids, segment_ids, cache.offset),
            )
        keys = (positions, segment_ids) if cache is None else (cache.positions, cache.segment_ids)
        every_kind = masks_and_ropes(config, positions, segment_ids, *keys, self.dtype, prefix, branch_ids)

        def layer(block: Block, x: jax.Array, per_layer):
            number, kind, cached, shared, mask = per_layer
            seen = jax.tree.map(lambda kinds: kinds[kind], every_kind)
            x, cached, gate = block(x, seen, cached, None if cache is None else cache.offset, shared, mask)
            return x, (cached, None if tap is None else tap(number, x, gate))

        if self.remat != "none":
            # Inside a scan, XLA cannot merge the recomputation with the forward pass: no barrier is needed.
            layer = nn.remat(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        scan = nn.scan(layer, {"params": 0, "lora": 0}, split_rngs={"params": True}, length=config.layers)
        numbers = jnp.arange(config.layers, dtype=jnp.int32)
        cached = None if cache is None else (cache.k, cache.v)
        shared = None if prefix is None else (prefix.k, prefix.v)
        per_layer = (numbers, jnp.asarray(layer_kinds(config)[1]), cached, shared, neuron_mask)
        # Said once, where the residual stream begins: the scan carries the layout on.
        x = constrain(constrain(self.embed(tokens), EMBEDDED), RESIDUAL)
        x, (cached, taps) = scan(self.layers, x, per_layer)

        if cache is not None and cached is not None:
            cache = cache._replace(k=cached[0], v=cached[1], offset=cache.offset + tokens.shape[1])
        hidden = self.final_norm(x)
        if self.is_initializing():
            self.logits(hidden)
        return DecoderOutput(hidden, cache, taps)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32 [...] -> [...,D] in the compute type, scaled where the family scales."""
        x = self.embed_tokens.embedding[tokens].astype(self.dtype)
        if self.config.embedding_scale is None:
            return x
        # Rounded to the compute type first, as in transformers: in bfloat16 sqrt(640) is 25.25.
        return x * jnp.asarray(self.config.embedding_scale, self.dtype)

    def final_norm(self, hidden: jax.Array) -> jax.Array:
        """The norm before the head: [...,D] -> [...,D]."""
        return self.norm(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[...,D] after the final norm -> float32 [...,V]."""
        if self.config.tied_head:
            table, equation = self.embed_tokens.embedding, "...D,VD->...V"
        else:
            table, equation = self.lm_head.kernel, "...D,DV->...V"
        return jnp.einsum(equation, hidden, table.astype(self.dtype), preferred_element_type=jnp.float32)

    def head_rows(self, start: jax.Array, size: int) -> jax.Array:
        """The head's rows for `size` tokens from `start` on: [size,D] in the compute type."""
        if self.config.tied_head:
            rows = lax.dynamic_slice_in_dim(self.embed_tokens.embedding, start, size)
        else:
            rows = lax.dynamic_slice_in_dim(self.lm_head.kernel, start, size, axis=1).T
        return rows.astype(self.dtype)
