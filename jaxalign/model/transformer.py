"""The one decoder: Llama 2 and 3, Mistral, Qwen 1.5 to 2.5 and Gemma 3 text differ only in `ModelConfig`.

Axis letters, here and in every einsum string:
B batch, T query length, S key length, L layers, D width, N heads, K key/value heads, G = N/K query heads to a
key/value head, H head width, F feed-forward width, V vocabulary.

Layers (block.py) are stacked on a leading axis L and scanned. Parameters may be stored in another type than `dtype`,
the compute type: each layer's are cast inside the scan.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxalign.model.attention import ATTENTION, Cache, Prefix, layer_kinds, sights, write
from jaxalign.model.block import Block, norm
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import LoraConfig
from jaxalign.model.sharding import EMBEDDED, HIDDEN, constrain

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
    hidden: jax.Array
    """[B,T,D] after the final norm, compute type."""
    cache: Cache | None
    taps: Any
    """What `tap` returned, stacked over a leading L; None without one."""


class Embedding(nn.Module):
    vocab_size: int
    width: int

    def setup(self):
        """The parts of it."""
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.vocab_size, self.width))


class Head(nn.Module):
    width: int
    vocab_size: int

    def setup(self):
        """The parts of it."""
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
        """The parts of it."""
        config = self.config
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = Block(config, self.lora, self.dtype)
        self.norm = norm(config, config.width)
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
        one `prefix`, positions counting on from its length, and may fork into branches (`branch_ids`, see `sights`).
        `neuron_mask` [L,F] multiplies the activated gate of each layer; `tap` is called inside the scan over layers.
        """
        config = self.config
        if cache is not None and (prefix is not None or branch_ids is not None):
            raise ValueError("a cache goes with neither a prefix nor branches")
        if cache is not None:
            cache = cache._replace(
                positions=write(cache.positions, positions, cache.offset),
                segment_ids=write(cache.segment_ids, segment_ids, cache.offset),
            )
        seen = (positions, segment_ids) if cache is None else (cache.positions, cache.segment_ids)
        every_sight = sights(config, positions, segment_ids, *seen, self.dtype, prefix, branch_ids)

        def layer(block: Block, x: jax.Array, per_layer):
            number, kind, cached, shared, mask = per_layer
            sight = jax.tree.map(lambda kinds: kinds[kind], every_sight)
            x, cached, gate = block(x, sight, cached, None if cache is None else cache.offset, shared, mask)
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
        x = constrain(constrain(self.embed(tokens), EMBEDDED), HIDDEN)
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
