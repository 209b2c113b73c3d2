from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.tasks import TaskData
from jaxalign.errors import InputError
from jaxalign.model.ragged import Runner
from jaxalign.model.readout import group_masses
from jaxalign.model.transformer import Decoder
from jaxalign.probing.attribution import attribution, attribution_arrays, attribution_batch, token_languages
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.model.tiny_models import VOCABULARY, tiny_case
from tests.probing.language_world import probe_run
from tests.probing.numpy_lens import lens_in_numpy

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 70, 20)]
LANGUAGES, SCRIPTS = 3, 2
GROUPS = np.stack([RNG.integers(0, LANGUAGES, VOCABULARY), LANGUAGES + RNG.integers(0, SCRIPTS, VOCABULARY)])
GROUPS = GROUPS.astype(np.int32)


def summed(probabilities: Any) -> np.ndarray:
    """Probabilities [..., V] added up over the tokens of each group."""
    members = [np.any(np.equal(GROUPS, group), axis=0) for group in range(LANGUAGES + SCRIPTS)]
    return np.stack([probabilities[..., member].sum(-1) for member in members], -1)


@pytest.mark.parametrize("case", ["llama_gqa_llama3_rope", "gemma3_text"])
def test_masses_are_those_of_transformers_hidden_states(case: str):
    tiny, positions = tiny_case(case), 2
    variables = {"params": tiny.params}
    # 61 tokens in chunks of 16: the last reaches back.
    runner, start = Runner(Decoder(tiny.config), variables, make_mesh(8, 1, 1), 8), [5, 3, 60, 7]
    wanted: Any = {"group_count": LANGUAGES + SCRIPTS, "positions": positions, "chunk": 16}
    masses = runner(attribution_batch, variables, PROMPTS, runner.run_prefix(variables, start), GROUPS, **wanted)
    assert masses.shape == (len(PROMPTS), tiny.config.layers, positions, LANGUAGES + SCRIPTS)
    np.testing.assert_allclose(masses[..., :LANGUAGES].sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(masses[..., LANGUAGES:].sum(-1), 1, atol=1e-6)
    for row, prompt in zip(masses, PROMPTS, strict=True):
        expected = lens_in_numpy(tiny.torch_model, start + prompt, positions, gemma=tiny.config.norm_offset)
        # Float32 against float64 after up to seven layers.
        np.testing.assert_allclose(row, summed(expected.probabilities), atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 60, 61, 1000])
def test_chunks_change_nothing(chunk: int):
    tiny = tiny_case("mistral_gqa")
    normed = jnp.asarray(RNG.normal(size=(2, 3, tiny.config.width)) * 5, jnp.float32)
    variables, decoder = {"params": tiny.params}, Decoder(tiny.config)
    whole = jax.nn.softmax(decoder.apply(variables, normed, method="logits"), axis=-1)
    found = group_masses(decoder, variables, normed, jnp.asarray(GROUPS), LANGUAGES + SCRIPTS, chunk)
    # Sums of 61 float32 numbers in another order.
    np.testing.assert_allclose(found, summed(whole), atol=2e-6)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_a_mesh_changes_nothing(mesh: tuple[int, int, int]):
    groups = np.stack([np.arange(264) % LANGUAGES, LANGUAGES + np.arange(264) // 132]).astype(np.int32)
    variables = tiny_world.variables()
    wanted: Any = {"group_count": LANGUAGES + SCRIPTS, "chunk": 100}
    runners = (Runner(tiny_world.DECODER, variables, make_mesh(*sizes), 8) for sizes in ((8, 1, 1), mesh))
    one, many = (runner(attribution_batch, variables, PROMPTS, None, groups, **wanted) for runner in runners)
    np.testing.assert_allclose(many, one, atol=1e-6)


def test_means_are_over_rows_and_split_by_kind():
    masses = [np.array([[[[0.25, 0.75, 0.5, 0.5]]], [[[0.75, 0.25, 0.5, 0.5]]]]), np.ones((1, 1, 1, 4))]
    arrays = attribution_arrays(masses, languages=1)
    np.testing.assert_allclose(arrays["language_mass_mean"], [[[[0.5, 0.5]]], [[[1, 1]]]])
    np.testing.assert_allclose(arrays["script_mass_half_width"], np.zeros((2, 1, 1, 2)))
    # Two samples 0.5 apart: deviation 0.25 * sqrt(2), so the half-width is 1.96 * 0.25.
    np.testing.assert_allclose(arrays["language_mass_half_width"][0], [[[0.49, 0.49]]])


def map_of(folder: Path) -> Any:
    return lambda: token_languages(tiny_world.byte_tokenizer(), tiny_world.CONFIG.vocab_size, TaskData(folder))


def test_arrays_of_the_attribution(tmp_path: Path):
    found = attribution(probe_run(tmp_path, slice(0, 4), ["de", "zh"]), map_of(tmp_path), positions=2)
    document = found.document
    assert document["token_language"] == ["en", "zh", "de", "undecidable"] and document["position"] == [-2, -1]
    assert document["rows"] == {"de": 4, "zh": 4} and document["token_map"]["held_out"]["all"]["tokens"] > 0
    assert found.arrays.keys() == document["axes"].keys()
    for name, axes in document["axes"].items():
        assert found.arrays[name].shape == tuple(len(document[axis]) for axis in axes)
    for kind in ("language", "script"):
        np.testing.assert_allclose(found.arrays[f"{kind}_mass_mean"].sum(-1), 1, atol=1e-5)


def test_prompts_shorter_than_the_positions_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"de, row 1 has \d+ tokens, fewer than the 500 positions"):
        attribution(probe_run(tmp_path, slice(1, 3), ["de"]), map_of(tmp_path), positions=500)
