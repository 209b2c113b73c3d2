"""The decoder against transformers (torch, float32, eager attention) on tiny random models, part by part."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from jaxalign.model.attention import Sight, init_cache, layer_kinds, rotary_frequencies, rotate, sights
from jaxalign.model.block import Attention, Block, rms_norm
from jaxalign.model.transformer import Decoder
from tests.model.tiny_models import CASES, FAMILIES, VOCABULARY, WIDTH, WINDOW, TinyModel, numpy_of, tiny_case

LENGTH = 17
"""Longer than the window (5), and than the 16 positions that llama3 scaling calls original."""


def relative(ours: Any, reference: Any) -> float:
    """The largest difference over the largest magnitude."""
    reference = np.asarray(reference)
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


# Float32 rounding through seven layers, summed in another order than torch's: 2e-6 is seen.
ROUNDING = 1e-5


def some_tokens(rows: int = 2, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, length), dtype=np.int32)


def some_states(model: TinyModel) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, LENGTH, model.config.width)).astype(np.float32)


def plain(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens with the positions and segment ids of rows that are one segment each."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(tokens)


@partial(jax.jit, static_argnums=0)
def run(decoder: Decoder, params: Any, *inputs: np.ndarray, neuron_mask: jax.Array | None = None) -> jax.Array:
    hidden = decoder.apply({"params": params}, *inputs, neuron_mask=neuron_mask).hidden
    return decoder.apply({"params": params}, hidden, method="logits")


def logits_of(model: TinyModel, *inputs: np.ndarray, **options: Any) -> np.ndarray:
    return np.asarray(run(Decoder(model.config), model.params, *inputs, **options))


def layer_params(model: TinyModel, layer: int) -> Any:
    return jax.tree.map(lambda stacked: stacked[layer], model.params["layers"])


def sight_of(model: TinyModel, layer: int) -> Sight:
    _, positions, segment_ids = plain(some_tokens())
    where = (jnp.asarray(positions), jnp.asarray(segment_ids))
    every = sights(model.config, *where, *where, jnp.float32)
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
def test_norm(name: str):
    model = tiny_case(name)
    states = some_states(model) * 3.0
    norm = model.torch_model.model.layers[1].post_attention_layernorm
    scale = model.params["layers"]["post_attention_layernorm"]["scale"][1]
    ours = rms_norm(jnp.asarray(states), jnp.asarray(scale), model.config.norm_eps, model.config.norm_offset)
    with torch.no_grad():
        assert relative(ours, norm(torch.tensor(states))) < 1e-6  # one division and one sum of 32


@pytest.mark.parametrize("name", ["llama_mha", "gemma3_text"])
def test_norm_rounds_to_bfloat16_where_transformers_does(name: str):
    model = tiny_case(name)
    states = some_states(model) * 3.0
    norm = model.torch_model.model.layers[1].input_layernorm.to(torch.bfloat16)
    scale = jnp.asarray(model.params["layers"]["input_layernorm"]["scale"][1], jnp.bfloat16)
    ours = rms_norm(jnp.asarray(states, jnp.bfloat16), scale, model.config.norm_eps, model.config.norm_offset)
    with torch.no_grad():
        theirs = numpy_of(norm(torch.tensor(states).to(torch.bfloat16)))
    # Float32 statistics summed in another order may round one value in a thousand the other way.
    assert np.mean(np.asarray(ours, np.float32) != theirs) < 2e-3


@pytest.mark.parametrize("name", ["llama_mha", "llama_gqa_llama3_rope", "llama_linear_rope_tied"])
def test_rotary_frequencies(name: str):
    model = tiny_case(name)
    theirs = model.torch_model.model.rotary_emb.inv_freq.numpy()
    # torch raises to powers in float32, we in float64 before rounding.
    np.testing.assert_allclose(rotary_frequencies(model.config, local=False), theirs, rtol=1e-6)


@pytest.mark.parametrize("name", ["gemma3_text", "gemma3_text_scaled_rope"])
def test_rotary_frequencies_of_local_and_global_layers(name: str):
    model = tiny_case(name)
    theirs = model.torch_model.model.rotary_emb
    for local, kind in ((True, "sliding_attention"), (False, "full_attention")):
        frequencies = getattr(theirs, f"{kind}_inv_freq").numpy()
        np.testing.assert_allclose(rotary_frequencies(model.config, local), frequencies, rtol=1e-6)


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
def test_attention(name: str, layer: int):
    model = tiny_case(name)
    states = some_states(model)
    apply = jax.jit(Attention(model.config, None, jnp.float32).apply)
    ours, _ = apply(
        {"params": layer_params(model, layer)["self_attn"]}, states, sight_of(model, layer), None, None, None
    )
    with torch.no_grad():
        attend = model.torch_model.model.layers[layer].self_attn
        theirs = attend(torch.tensor(states), **torch_layer_inputs(model, layer))[0]
    assert relative(ours, theirs) < ROUNDING


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_block(name: str, layer: int):
    model = tiny_case(name)
    states = some_states(model)
    apply = jax.jit(Block(model.config, None, jnp.float32).apply)
    ours, _, _ = apply({"params": layer_params(model, layer)}, states, sight_of(model, layer), None, None, None, None)
    with torch.no_grad():
        block = model.torch_model.model.layers[layer]
        theirs = block(torch.tensor(states), **torch_layer_inputs(model, layer))
    assert relative(ours, theirs) < ROUNDING


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str):
    model = tiny_case(name)
    tokens = some_tokens()
    with torch.no_grad():
        theirs = model.torch_model(torch.tensor(tokens)).logits
    ours = logits_of(model, *plain(tokens))
    assert ours.dtype == np.float32
    assert relative(ours, theirs) < ROUNDING


@pytest.mark.parametrize("name", FAMILIES)
def test_init_makes_the_tree_of_the_checkpoint(name: str):
    model = tiny_case(name)
    made = jax.eval_shape(Decoder(model.config).init, jax.random.key(0), *plain(some_tokens()))["params"]
    shapes = jax.tree.map(lambda leaf: leaf.shape, made)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, model.params)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_segments_do_not_see_each_other(name: str):
    model = tiny_case(name)
    tokens = some_tokens()
    cut = 7
    slots = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    first = slots < cut
    packed = logits_of(model, tokens, np.where(first, slots, slots - cut), np.where(first, 1, 2).astype(np.int32))
    with torch.no_grad():
        apart = [model.torch_model(torch.tensor(part)).logits for part in (tokens[:, :cut], tokens[:, cut:])]
    assert relative(packed, np.concatenate(apart, axis=1)) < ROUNDING


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_the_right_changes_nothing(name: str):
    model = tiny_case(name)
    length = 11
    tokens, positions, segment_ids = (array * (np.arange(LENGTH) < length) for array in plain(some_tokens()))
    padded = logits_of(model, tokens, positions, segment_ids)
    with torch.no_grad():
        theirs = model.torch_model(torch.tensor(tokens[:, :length])).logits
    assert relative(padded[:, :length], theirs) < ROUNDING
    assert np.isfinite(padded).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_with_the_cache_equals_the_full_pass(name: str):
    """Rows of 9 and 6 tokens are padded to one prompt; then both go on, three tokens and then one at a time."""
    model = tiny_case(name)
    tokens = some_tokens()
    prompt, lengths = 9, np.array([9, 6])
    decoder = Decoder(model.config)

    @jax.jit
    def extend(params, cache, *inputs):
        output = decoder.apply({"params": params}, *inputs, cache=cache)
        return decoder.apply({"params": params}, output.hidden, method="logits"), output.cache

    inside = np.arange(prompt) < lengths[:, None]
    padded = [array[:, :prompt] * inside for array in plain(tokens)]
    logits, cache = extend(model.params, init_cache(model.config, 2, prompt + 6, jnp.float32), *padded)
    pieces = [[np.asarray(logits[row, :length])] for row, length in enumerate(lengths)]
    done = 0
    for count in (3, 1, 1, 1):
        positions = (lengths[:, None] + np.arange(done, done + count)).astype(np.int32)
        following = np.take_along_axis(tokens, positions, axis=1)
        logits, cache = extend(model.params, cache, following, positions, np.ones_like(following))
        for row in range(2):
            pieces[row].append(np.asarray(logits[row]))
        done += count
    whole = logits_of(model, *plain(tokens))
    for row, length in enumerate(lengths):
        assert relative(np.concatenate(pieces[row]), whole[row, : length + done]) < ROUNDING
    assert int(cache.offset) == prompt + done


@pytest.mark.parametrize(("name", "reach"), [("llama_mha", LENGTH), ("mistral_gqa", 3 * (WINDOW - 1))])
def test_a_state_depends_on_earlier_tokens_within_reach_only(name: str, reach: int):
    """By gradient: three layers of window 5 reach back 12 positions, full attention to the start."""
    model = tiny_case(name)
    decoder, query = Decoder(model.config), 14
    # Every token occurs once, so that its row of the embedding stands for its position.
    inputs = plain(np.random.default_rng(0).permutation(VOCABULARY)[None, :LENGTH].astype(np.int32))

    def some_sum(table):
        params = {**model.params, "embed_tokens": {"embedding": table}}
        return jnp.sum(decoder.apply({"params": params}, *inputs).hidden[0, query] * jnp.arange(WIDTH, dtype="float32"))

    gradient = np.asarray(jax.jit(jax.grad(some_sum))(jnp.asarray(model.params["embed_tokens"]["embedding"])))
    touched = np.abs(gradient[inputs[0][0]]).max(axis=1) > 0
    distance = query - np.arange(LENGTH)
    np.testing.assert_array_equal(touched, (distance >= 0) & (distance <= reach))


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_storage_computes_in_float32(name: str):
    model = tiny_case(name)
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    inputs = plain(some_tokens())
    ours = logits_of(TinyModel(None, model.config, stored), *inputs)
    # The same numbers through the same operations; the compiler may fuse the casts differently.
    assert relative(ours, logits_of(TinyModel(None, model.config, widened), *inputs)) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_compute(name: str):
    model = tiny_case(name)
    tokens = some_tokens()
    with torch.no_grad():
        theirs = model.torch_model(torch.tensor(tokens)).logits
        embed = numpy_of(model.torch_model.to(torch.bfloat16).model.embed_tokens(torch.tensor(tokens)))
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    ours = run(Decoder(model.config, dtype=jnp.bfloat16), stored, *plain(tokens))
    assert ours.dtype == np.float32
    # Rounding to 8 bits (4e-3) at each of some ten operations a layer.
    assert relative(ours, theirs) < 0.1
    embedded = Decoder(model.config, dtype=jnp.bfloat16).apply({"params": stored}, tokens, method="embed")
    np.testing.assert_array_equal(np.asarray(embedded, np.float32), embed)


@pytest.mark.parametrize("name", FAMILIES)
def test_tap_sees_the_residual_stream_and_the_gate(name: str):
    model = tiny_case(name)
    inputs = plain(some_tokens())
    decoder = Decoder(model.config)
    gates: list[np.ndarray] = []
    for layer in model.torch_model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _, __, output: gates.append(numpy_of(output)))
    with torch.no_grad():
        states = model.torch_model(torch.tensor(inputs[0]), output_hidden_states=True).hidden_states

    @jax.jit
    def tapped(params):
        def tap(layer, hidden, gate):
            return {"layer": layer, "hidden": hidden, "gate": gate}

        taps = decoder.apply({"params": params}, *inputs, tap=tap).taps
        return taps, decoder.apply({"params": params}, taps["hidden"][-1], method="final_norm")

    taps, last = tapped(model.params)
    np.testing.assert_array_equal(taps["layer"], np.arange(model.config.layers))
    # transformers lists the embedding first, and the last state after the final norm.
    for ours, theirs in zip([*taps["hidden"][:-1], last], states[1:], strict=True):
        assert relative(ours, theirs) < ROUNDING
    for ours, theirs in zip(taps["gate"], gates, strict=True):
        assert relative(ours, theirs) < ROUNDING


@pytest.mark.parametrize("name", FAMILIES)
def test_neuron_mask_zeroes_activations(name: str):
    model = tiny_case(name)
    inputs = plain(some_tokens())
    mask = np.random.default_rng(0).random((model.config.layers, model.config.mlp_dim)) < 0.5
    for layer, keep in zip(model.torch_model.model.layers, mask, strict=True):
        layer.mlp.act_fn.register_forward_hook(lambda _, __, output, keep=keep: output * torch.tensor(keep))
    with torch.no_grad():
        theirs = model.torch_model(torch.tensor(inputs[0])).logits
    ours = logits_of(model, *inputs, neuron_mask=jnp.asarray(mask, jnp.float32))
    assert relative(ours, theirs) < ROUNDING
    assert relative(logits_of(model, *inputs), theirs) > 0.1


def test_remat_changes_memory_and_no_gradient():
    model = tiny_case("qwen2")
    inputs = plain(some_tokens(rows=8, length=64))
    gradients, temporary = {}, {}
    for remat in ("none", "dots", "full"):
        decoder = Decoder(model.config, remat=remat)

        def some_loss(params, decoder=decoder):
            return jnp.mean(jnp.square(decoder.apply({"params": params}, *inputs).hidden[:, :, 0]))

        compiled = jax.jit(jax.grad(some_loss)).lower(model.params).compile()
        gradients[remat] = compiled(model.params)
        memory = compiled.memory_analysis()
        assert memory is not None
        temporary[remat] = memory.temp_size_in_bytes
    for remat in ("dots", "full"):
        differences = jax.tree.map(relative, gradients[remat]["layers"], gradients["none"]["layers"])
        assert max(jax.tree.leaves(differences)) < ROUNDING
    assert temporary["full"] < temporary["dots"] < temporary["none"]
