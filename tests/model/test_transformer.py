"""The decoder against transformers (torch, float32, eager attention) on tiny random models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.model.attention import init_cache
from jaxalign.model.transformer import Decoder
from tests.model.tiny_inputs import LENGTH, ROUNDING, logits_of, plain, relative, some_tokens, torch_logits
from tests.model.tiny_models import CASES, FAMILIES, VOCABULARY, WIDTH, WINDOW, TinyModel, numpy_of, tiny_case


def model_logits(model: TinyModel, *inputs: np.ndarray, **options: Any) -> np.ndarray:
    return np.asarray(logits_of(Decoder(model.config), {"params": model.params}, *inputs, **options))


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str):
    model = tiny_case(name)
    tokens = some_tokens()
    ours = model_logits(model, *plain(tokens))
    assert ours.dtype == np.float32
    assert relative(ours, torch_logits(model.torch_model, tokens)) < ROUNDING


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
    packed = model_logits(model, tokens, np.where(first, slots, slots - cut), np.where(first, 1, 2).astype(np.int32))
    apart = [torch_logits(model.torch_model, part) for part in (tokens[:, :cut], tokens[:, cut:])]
    assert relative(packed, np.concatenate(apart, axis=1)) < ROUNDING


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_the_right_changes_nothing(name: str):
    model = tiny_case(name)
    length = 11
    tokens, positions, segment_ids = (array * (np.arange(LENGTH) < length) for array in plain(some_tokens()))
    padded = model_logits(model, tokens, positions, segment_ids)
    assert relative(padded[:, :length], torch_logits(model.torch_model, tokens[:, :length])) < ROUNDING
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
    whole = model_logits(model, *plain(tokens))
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
    ours = model_logits(TinyModel(None, model.config, stored), *inputs)
    # The same numbers through the same operations; the compiler may fuse the casts differently.
    assert relative(ours, model_logits(TinyModel(None, model.config, widened), *inputs)) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_compute(name: str):
    model = tiny_case(name)
    tokens = some_tokens()
    theirs = torch_logits(model.torch_model, tokens)
    with torch.no_grad():
        embed = numpy_of(model.torch_model.to(torch.bfloat16).model.embed_tokens(torch.tensor(tokens)))
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    ours = logits_of(Decoder(model.config, dtype=jnp.bfloat16), {"params": stored}, *plain(tokens))
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
    theirs = torch_logits(model.torch_model, inputs[0])
    ours = model_logits(model, *inputs, neuron_mask=jnp.asarray(mask, jnp.float32))
    assert relative(ours, theirs) < ROUNDING
    assert relative(model_logits(model, *inputs), theirs) > 0.1


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
