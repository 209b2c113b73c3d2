"""A layer's parts against transformers (torch, float32, eager attention) on tiny random models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from jaxalign.model.attention import MaskAndRope, layer_kinds, masks_and_ropes, rotary_frequencies, rotate
from jaxalign.model.transformer import Attention, Block, rms_norm
from tests.model.tiny_inputs import LENGTH, ROUNDING, plain, relative, some_tokens
from tests.model.tiny_models import FAMILIES, TinyModel, numpy_of, tiny_case


def some_states(model: TinyModel) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, LENGTH, model.config.width)).astype(np.float32)


def mask_and_rope(model: TinyModel, layer: int) -> MaskAndRope:
    _, positions, segment_ids = plain(some_tokens())
    where = (jnp.asarray(positions), jnp.asarray(segment_ids))
    every = masks_and_ropes(model.config, *where, *where, jnp.float32)
    return jax.tree.map(lambda kinds: kinds[layer_kinds(model.config)[1][layer]], every)


def torch_layer_inputs(model: TinyModel, layer: int) -> dict[str, Any]:
    """What transformers' own model would hand to a layer: rotary tables and the additive mask, made there."""
    inner = model.torch_model.model
    seen: dict[str, Any] = {}
    hook = inner.layers[layer].register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        inner(torch.tensor(some_tokens()))
    hook.remove()
    return {name: seen[name] for name in ("position_embeddings", "attention_mask")}


@pytest.mark.parametrize("name", ["llama_mha", "gemma3_text"])
def test_norm_and_where_it_rounds_to_bfloat16(name: str):
    model = tiny_case(name)
    states, config = some_states(model) * 3.0, model.config
    norm = model.torch_model.model.layers[1].post_attention_layernorm
    scale = jnp.asarray(model.params["layers"]["post_attention_layernorm"]["scale"][1])
    ours, rounded = (
        rms_norm(jnp.asarray(states, dtype), scale.astype(dtype), config.norm_eps, config.norm_offset)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    with torch.no_grad():
        assert relative(ours, norm(torch.tensor(states))) < 1e-6  # one division and one sum of 32
        theirs = numpy_of(norm.to(torch.bfloat16)(torch.tensor(states).to(torch.bfloat16)))
    # Float32 statistics summed in another order may round one value in a thousand the other way.
    assert np.mean(np.asarray(rounded, np.float32) != theirs) < 2e-3


@pytest.mark.parametrize(
    ("name", "local", "kind"),
    [
        *((name, False, "") for name in ("llama_mha", "llama_gqa_llama3_rope", "llama_linear_rope_tied")),
        *((name, True, "sliding_attention_") for name in ("gemma3_text", "gemma3_text_scaled_rope")),
        *((name, False, "full_attention_") for name in ("gemma3_text", "gemma3_text_scaled_rope")),
    ],
)
def test_rotary_frequencies(name: str, local: bool, kind: str):
    model = tiny_case(name)
    theirs = getattr(model.torch_model.model.rotary_emb, f"{kind}inv_freq").numpy()
    # torch raises to powers in float32, we in float64 before rounding.
    np.testing.assert_allclose(rotary_frequencies(model.config, local), theirs, rtol=1e-6)


def test_rotate():
    states = np.random.default_rng(0).normal(size=(2, LENGTH, 4, 8)).astype(np.float32)
    angles = np.random.default_rng(1).uniform(0, 6, size=(2, LENGTH, 4)).astype(np.float32)
    ours = rotate(jnp.asarray(states), jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles)))
    both = torch.tensor(np.concatenate([angles, angles], axis=-1))
    theirs, _ = apply_rotary_pos_emb(
        torch.tensor(states), torch.tensor(states), both.cos(), both.sin(), unsqueeze_dim=2
    )
    assert relative(ours, theirs) < 1e-6  # two products and a sum


LAYERS = [("llama_biases", 1), ("mistral_mqa", 1), *((name, 0) for name in FAMILIES), ("gemma3_text", 2)]
"""(case, layer): in the Gemma model layer 0 is local and 2 is global."""


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_attention_and_block(name: str, layer: int):
    model = tiny_case(name)
    states, seen = some_states(model), mask_and_rope(model, layer)
    params = jax.tree.map(lambda stacked: stacked[layer], model.params["layers"])
    attention, block = (part(model.config, None, jnp.float32) for part in (Attention, Block))
    mixed, _ = jax.jit(attention.apply)({"params": params["self_attn"]}, states, seen, None, None, None)
    whole, _, _ = jax.jit(block.apply)({"params": params}, states, seen, None, None, None, None)
    theirs = model.torch_model.model.layers[layer]
    with torch.no_grad():
        inputs = torch_layer_inputs(model, layer)
        assert relative(mixed, theirs.self_attn(torch.tensor(states), **inputs)[0]) < ROUNDING
        assert relative(whole, theirs(torch.tensor(states), **inputs)) < ROUNDING
