from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.model.ragged import Runner
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import write_probe
from jaxalign.probing.neurons import count_batch, neuron_counts, read_counts
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.model.tiny_models import VOCABULARY, numpy_of, tiny_case, tiny_model
from tests.probing.language_world import probe_run

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 70, 20, 1, 40, 9, 11, 12, 13, 30)]
ROUNDING = 1e-4
"""Gates are of order 1, float32, after up to seven layers."""


def gates_in_torch(model: Any, prompt: list[int]) -> np.ndarray:
    """What hooks on `gate_proj` see, float32 [L, T, F]."""
    seen: list[np.ndarray] = []
    hooks = [
        layer.mlp.gate_proj.register_forward_hook(lambda module, inputs, output: seen.append(numpy_of(output)[0]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.tensor([prompt]))
    for hook in hooks:
        hook.remove()
    return np.stack(seen)


def counts_of(decoder: Decoder, params: Any, mesh: Any, batch_size: int) -> np.ndarray:
    variables = {"params": params}
    runner = Runner(decoder, variables, mesh, batch_size)
    batches = [jax.device_get(counts) for _, counts in runner.batches(count_batch, variables, PROMPTS)]
    assert all(finite.all() and active.dtype == np.int32 for active, finite in batches)
    return np.sum([active for active, _ in batches], axis=0)


@pytest.mark.parametrize("case", ["llama_gqa_llama3_rope", "gemma3_text"])
def test_counts_are_those_of_hooks_in_torch(case: str):
    tiny = tiny_case(case)
    gates = np.concatenate([gates_in_torch(tiny.torch_model, prompt) for prompt in PROMPTS], axis=1)
    near_zero = (np.abs(gates) < ROUNDING).sum(axis=1)
    expected = (gates > 0).sum(axis=1)
    found = counts_of(Decoder(tiny.config), tiny.params, make_mesh(8, 1, 1), 16)
    assert found.shape == (tiny.config.layers, tiny.config.mlp_dim)
    # Exactly equal, but for gates that rounding may put on either side of 0: they are few, and are counted.
    assert (np.abs(found - expected) <= near_zero).all()
    assert (found == expected)[near_zero == 0].all() and (near_zero == 0).mean() > 0.9
    assert 0.3 < expected.mean() / sum(map(len, PROMPTS)) < 0.7


def test_counts_hang_on_neither_mesh_nor_batch():
    tiny = tiny_model("mistral", vocabulary=64)
    gates = np.concatenate([gates_in_torch(tiny.torch_model, prompt) for prompt in PROMPTS], axis=1)
    near_zero = (np.abs(gates) < ROUNDING).sum(axis=1)
    found = counts_of(Decoder(tiny.config), tiny.params, make_mesh(2, 2, 2), 4)
    assert (np.abs(found - (gates > 0).sum(axis=1)) <= near_zero).all()


def test_a_gate_of_zero_is_not_active():
    params = jax.tree.map(jnp.zeros_like, tiny_case("qwen2").params)
    assert not counts_of(Decoder(tiny_case("qwen2").config), params, make_mesh(8, 1, 1), 16).any()


def test_counts_of_texts_are_those_of_each_alone(tmp_path: Path):
    run = probe_run(tmp_path, slice(1, 6))
    write_probe(tmp_path, "neuron_counts", neuron_counts(run))
    counts = read_counts(tmp_path / "neuron_counts.npz")
    # One token a byte: "zh input 1" to "zh input 5".
    assert counts.tokens.tolist() == [50, 50, 50] and counts.active.shape == (3, 3, 24)
    variables = jax.tree.map(jnp.asarray, run.variables)

    @jax.jit
    def active_in(tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.size)[None]
        taps = {"tap": lambda layer, hidden, gate: (gate > 0).sum((0, 1))}
        return run.runner.decoder.apply(variables, tokens[None], positions, jnp.ones_like(positions), **taps).taps

    for language, active in zip(counts.languages, counts.active, strict=True):
        alone = [active_in(jnp.array(text)) for text in run.texts[language].texts]
        np.testing.assert_array_equal(active, np.sum(alone, axis=0))


def test_states_that_are_not_finite_are_named(tmp_path: Path):
    broken = jax.tree.map(np.array, tiny_world.variables())
    byte = tiny_world.byte_tokenizer().prompt_ids("z")[0]
    broken["params"]["embed_tokens"]["embedding"][byte] = np.nan
    with pytest.raises(InputError, match=r"zh, row 0: hidden states or logits are not finite"):
        neuron_counts(probe_run(tmp_path, variables=broken))
