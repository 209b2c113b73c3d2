"""One layer of the decoder: norms, projections with their adapters, attention and the feed-forward part.

Axis letters as in transformer.py. The mathematics is in pure functions; linen modules hold parameters and give them
their names. Norms' statistics and softmax are float32, as in transformers.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxalign.model.attention import Sight, attention, rotate, write
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import LoraConfig, adapted, init_factors, output_norms, projection_sizes
from jaxalign.model.product import kernel_of, product

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


class Projection(nn.Module):
    """x [..., in] @ kernel [in, out], with an adapter (lora.py) from collection `lora`, then the bias.

    The kernel may be quantised (quantised.py): `codes` and `absmax` in its place.
    """

    sizes: tuple[int, int]
    use_bias: bool
    dtype: DTypeLike
    lora: LoraConfig | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", "codes"):
            stored = {name: self.get_variable("params", name) for name in ("codes", "absmax")}
        else:
            stored = {"kernel": self.param("kernel", nn.initializers.lecun_normal(), self.sizes)}
        path = "/".join(self.path)
        y = product(x, stored, self.dtype, path)
        if self.lora is not None:
            kernel = kernel_of(stored, path)
            y = adapted(y, x, kernel, self.factors(kernel, self.lora), self.lora)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.sizes[1:])
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y

    def factors(self, kernel: jax.Array, lora: LoraConfig) -> dict[str, jax.Array]:
        """The adapter's variables."""
        names = ("lora_a", "lora_b", "magnitude") if lora.dora else ("lora_a", "lora_b")

        def initial(name: str) -> jax.Array:
            if name == "magnitude":
                return output_norms(kernel)
            return init_factors(self.make_rng("params"), self.sizes, lora.rank)[name]

        return {name: self.variable("lora", name, initial, name).value for name in names}


def projection(config: ModelConfig, lora: LoraConfig | None, dtype: DTypeLike, name: str) -> Projection:
    """The projection of this name, with adapter factors where `lora` targets it."""
    module, sizes = projection_sizes(config)[name]
    attention_bias = config.output_bias if name == "o_proj" else config.qkv_bias
    use_bias = config.mlp_bias if module == "mlp" else attention_bias
    return Projection(sizes, use_bias, dtype, lora if lora is not None and name in lora.targets else None)


class Norm(nn.Module):
    size: int
    eps: float
    offset: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        neutral = nn.initializers.zeros if self.offset else nn.initializers.ones
        return rms_norm(x, self.param("scale", neutral, (self.size,)), self.eps, self.offset)


def norm(config: ModelConfig, size: int) -> Norm:
    """The family's norm over an axis of this size."""
    return Norm(size, config.norm_eps, config.norm_offset)


class Attention(nn.Module):
    config: ModelConfig
    lora: LoraConfig | None
    dtype: DTypeLike

    def setup(self):
        """The parts of it."""
        make = partial(projection, self.config, self.lora, self.dtype)
        self.q_proj, self.k_proj = make("q_proj"), make("k_proj")
        self.v_proj, self.o_proj = make("v_proj"), make("o_proj")
        if self.config.qk_norm:
            head_dim = self.config.head_dim
            self.q_norm, self.k_norm = norm(self.config, head_dim), norm(self.config, head_dim)

    def __call__(
        self,
        x: jax.Array,
        sight: Sight,
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
        q, k = rotate(q, sight.cos, sight.sin), rotate(k, sight.cos, sight.sin)
        if cached is not None and offset is not None:
            cached = write(cached[0], k, offset), write(cached[1], v, offset)
            k, v = (array.astype(self.dtype) for array in cached)
        if prefix is not None:
            prefix = prefix[0].astype(self.dtype), prefix[1].astype(self.dtype)
        mixed = attention(q, k, v, sight.mask, config.query_scale, prefix)
        return self.o_proj(mixed.reshape(*x.shape[:2], -1)), cached


class MLP(nn.Module):
    config: ModelConfig
    lora: LoraConfig | None
    dtype: DTypeLike

    def setup(self):
        """The parts of it."""
        make = partial(projection, self.config, self.lora, self.dtype)
        self.gate_proj, self.up_proj, self.down_proj = make("gate_proj"), make("up_proj"), make("down_proj")

    def __call__(self, x: jax.Array, neuron_mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x [B,T,D], neuron_mask [F] -> ([B,T,D], gate before its activation [B,T,F])."""
        gate = self.gate_proj(x)
        active = ACTIVATIONS[self.config.activation](gate)
        if neuron_mask is not None:
            active = active * jnp.broadcast_to(neuron_mask.astype(self.dtype), active.shape)
        return self.down_proj(active * self.up_proj(x)), gate


class Block(nn.Module):
    config: ModelConfig
    lora: LoraConfig | None
    dtype: DTypeLike

    def setup(self):
        """The parts of it."""
        width = self.config.width
        self.self_attn = Attention(self.config, self.lora, self.dtype)
        self.mlp = MLP(self.config, self.lora, self.dtype)
        self.input_layernorm, self.post_attention_layernorm = norm(self.config, width), norm(self.config, width)
        if self.config.post_norms:
            self.pre_feedforward_layernorm = norm(self.config, width)
            self.post_feedforward_layernorm = norm(self.config, width)

    def __call__(
        self,
        x: jax.Array,
        sight: Sight,
        cached: KeysValues | None,
        offset: jax.Array | None,
        prefix: KeysValues | None,
        neuron_mask: jax.Array | None,
    ) -> tuple[jax.Array, KeysValues | None, jax.Array]:
        """x [B,T,D] -> (x [B,T,D], cached, gate [B,T,F])."""
        mixed, cached = self.self_attn(self.input_layernorm(x), sight, cached, offset, prefix)
        if not self.config.post_norms:
            x = x + mixed
            # The name is transformers': outside Gemma this norm stands before the MLP.
            out, gate = self.mlp(self.post_attention_layernorm(x), neuron_mask)
            return x + out, cached, gate
        x = x + self.post_attention_layernorm(mixed)
        out, gate = self.mlp(self.pre_feedforward_layernorm(x), neuron_mask)
        return x + self.post_feedforward_layernorm(out), cached, gate
