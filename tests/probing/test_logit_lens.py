from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.prompts import label_queries
from jaxalign.errors import InputError
from jaxalign.evaluation.score import Scorer
from jaxalign.model.ragged import Runner, decode_prompts, last_position
from jaxalign.model.readout import entropy_bits, head_gram, label_masses, pad_label_sets
from jaxalign.model.transformer import Decoder
from jaxalign.probing.logit_lens import (
    LensRows,
    WordSets,
    lens_batch,
    lens_probe,
    logit_lens,
    relative_energy,
    word_sets,
)
from jaxalign.probing.probe import TASK
from jaxalign.runtime import make_mesh
from tests.model.tiny_models import FAMILIES, VOCABULARY, TinyModel, numpy_of, tiny_case
from tests.probing.language_world import probe_run
from tests.probing.numpy_lens import lens_in_numpy

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 70, 20)]
LABELS = [[5, 9, 30], [7]]


def run_lens(tiny: TinyModel) -> tuple[np.ndarray, ...]:
    """Masses, entropy, energy and finiteness of PROMPTS, on eight devices."""
    decoder, variables = Decoder(tiny.config), {"params": tiny.params}
    runner, gram = Runner(decoder, variables, make_mesh(8, 1, 1), 8), head_gram(decoder, variables, chunk=10)
    return runner(lens_batch, variables, PROMPTS, None, pad_label_sets(LABELS), gram)


@pytest.mark.parametrize("case", FAMILIES)
def test_lens_is_transformers_hidden_states_through_norm_and_head(case: str):
    tiny = tiny_case(case)
    masses, entropy, energy, finite = run_lens(tiny)
    assert masses.shape[:2] == entropy.shape == energy.shape == (len(PROMPTS), tiny.config.layers) and finite.all()
    for i, prompt in enumerate(PROMPTS):
        expected = lens_in_numpy(tiny.torch_model, prompt, gemma=tiny.config.norm_offset)
        expected_masses = np.stack([expected.probabilities[:, 0, ids].sum(-1) for ids in LABELS], -1)
        # Float32 against float64 after up to seven layers; entropies are up to 6 bits.
        np.testing.assert_allclose(masses[i, :, : len(LABELS)], expected_masses, atol=1e-4)
        np.testing.assert_allclose(entropy[i], expected.entropy[:, 0], atol=1e-4)
        np.testing.assert_allclose(energy[i], expected.energy[:, 0], atol=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_the_last_layer_is_what_the_model_says(case: str, monkeypatch: pytest.MonkeyPatch):
    # To the last bit, in programs that are optimised as a user's are; other tests' are not (tests/conftest.py).
    jit = jax.jit

    def optimised(function: Any, compiler_options: Mapping[str, Any] | None = None, **settings: Any) -> Any:
        options = {**(compiler_options or {}), "xla_backend_optimization_level": 3}
        return jit(function, compiler_options=options, **settings)

    monkeypatch.setattr(jax, "jit", optimised)
    tiny = tiny_case(case)
    variables, labels = {"params": tiny.params}, pad_label_sets(LABELS)

    def said(decoder: Decoder, variables: Any, tokens: jax.Array, lengths: jax.Array) -> Any:
        last = last_position(decode_prompts(decoder, variables, tokens, lengths).hidden, lengths)
        logits: Any = decoder.apply(variables, last, method="logits")
        return label_masses(logits, labels), entropy_bits(logits)

    masses, entropy, *_ = run_lens(tiny)
    expected = Runner(Decoder(tiny.config), variables, make_mesh(8, 1, 1), 8)(said, variables, PROMPTS)
    np.testing.assert_array_equal(masses[:, -1], expected[0])
    np.testing.assert_array_equal(entropy[:, -1], expected[1])


def test_entropy_counts_a_probability_of_0_as_0():
    assert entropy_bits(jnp.array([0.0, 0.0, -1e9])) == 1
    # 88 nats below the largest, float32 has no such probability any more.
    assert np.isfinite(entropy_bits(jnp.linspace(0.0, -1000.0, 64)))


def test_energy_of_the_heads_own_rows_is_1_and_of_what_it_cannot_see_0():
    tiny = tiny_case("qwen2")
    head = numpy_of(tiny.torch_model.lm_head.weight) * numpy_of(tiny.torch_model.model.norm.weight)
    gram = head_gram(Decoder(tiny.config), {"params": tiny.params})
    energy = relative_energy(jnp.asarray(head), gram, VOCABULARY)
    np.testing.assert_allclose((energy**2).mean(), 1, rtol=1e-5)
    flat = jnp.diag(jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(relative_energy(jnp.eye(3), flat, 2), [1, 1, 0])
    # A state of zeros lies nowhere, and a head of zeros looks nowhere.
    assert relative_energy(jnp.zeros(3), flat, 2) == relative_energy(jnp.ones(3), 0 * flat, 2) == 0
    assert relative_energy(jnp.full(3, 1e-25), flat, 2) == 0  # whose length's square float32 does not hold


def test_states_that_the_head_does_not_see_have_no_energy():
    """Their squares are rounded, as often as not to less than 0."""
    token = RNG.normal(size=3)
    token /= np.linalg.norm(token)
    unseen = np.cross(token, RNG.normal(size=(100, 3)))
    energies = relative_energy(jnp.asarray(unseen), jnp.asarray(np.outer(token, token), jnp.float32), 1)
    assert (energies >= 0).all() and (energies < 1e-3).all()


def test_untrained_tokens_have_no_direction():
    """Some checkpoints keep rows of 1e-23 or so for tokens that were never trained."""
    tiny = tiny_case("qwen2")
    trained, untrained = np.array(tiny.params["lm_head"]["kernel"]), np.array(tiny.params["lm_head"]["kernel"])
    trained[:, 7], untrained[:, 7] = 0, 1e-23
    grams = [
        head_gram(Decoder(tiny.config), {"params": {**tiny.params, "lm_head": {"kernel": head}}})
        for head in (trained, untrained)
    ]
    np.testing.assert_array_equal(grams[0], grams[1])


def test_a_class_survives_if_its_two_words_can_be_told_apart():
    sets = WordSets(english=[[1, 2], [3, 4]], language=[[2, 5], [6]])
    assert sets.surviving("sv") == [False, True]
    assert WordSets([[1, 2], [3]], [[1, 2], [3]]).surviving("en") == [True, True]
    assert WordSets([[1], []], [[], [2]]).surviving("zh") == [False, False]
    assert WordSets([[], [1]], [[], [1]]).surviving("en") == [False, True]


def test_the_second_way_drops_only_tokens_of_both_languages():
    sets = WordSets(english=[[1, 2], [3, 4]], language=[[2, 5], [4, 6, 7]]).unshared()
    assert sets == WordSets(english=[[1], [3]], language=[[5], [6, 7]])
    assert sets.all() == [[1], [3], [5], [6, 7], [1, 3], [5, 6, 7]]
    assert sets.surviving("sv") == [True, True]
    # A word may share all that it begins with, also with the other class's: its rows go.
    gone = WordSets(english=[[1, 2], [3]], language=[[3], [5]]).unshared()
    assert gone == WordSets([[1, 2], []], [[], [5]]) and gone.surviving("sv") == [False, False]


def lens_rows(latent: list[list[float]], survives: list[bool]) -> LensRows:
    array, kept = np.array(latent, np.float32), np.array(survives)
    study = LensRows(array, array / 2, array, array, array * 10, array * 2, kept)
    return LensRows(*map(np.stack, zip(study, study._replace(latent=array / 4, survives=~kept), strict=True)))


def test_means_leave_out_rows_that_do_not_survive():
    lens = {
        "is": lens_rows([[0.1, 0.5], [0.9, 0.9], [0.3, 0.7]], [True, False, True]),
        "de": lens_rows([[0.2, 0.4]], [False]),
    }
    found = lens_probe(lens)
    arrays, document = found.arrays, found.document
    np.testing.assert_allclose(arrays["latent_mean"], [[0.2, 0.6], [np.nan, np.nan]], rtol=1e-6)
    # Two samples 0.2 apart: deviation 0.1 * sqrt(2), so the half-width is 1.96 * 0.1.
    np.testing.assert_allclose(arrays["latent_half_width"][0], [0.196, 0.196], rtol=1e-5)
    np.testing.assert_allclose(arrays["entropy_mean"], [[2, 6], [np.nan, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(arrays["energy_mean"], [[0.4, 1.2], [np.nan, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(arrays["unshared_latent_mean"], [[0.225, 0.225], [0.05, 0.1]], rtol=1e-6)
    assert document["surviving_rows"] == {"is": 2, "de": 0} and document["rows"] == {"is": 3, "de": 1}
    assert document["unshared_surviving_rows"] == {"is": 1, "de": 1}
    assert document["languages_without_rows"] == ["de"]
    assert document["layer"] == [1, 2]


def test_no_surviving_row_in_any_language_is_an_error():
    with pytest.raises(InputError, match="no row survives in de, nl"):
        lens_probe({code: lens_rows([[0.1]], [True]) for code in ("de", "nl")})


def test_arrays_of_the_lens(tmp_path: Path):
    run = probe_run(tmp_path, slice(0, 5))
    found = logit_lens(run)
    lens, document = found.arrays, found.document
    # In bytes, German words begin as the English ones do; Chinese shares nothing.
    assert document["surviving_rows"] == {"en": 5, "de": 0, "zh": 5}
    # Nor does anything of the German words begin them alone.
    assert document["unshared_surviving_rows"] == document["surviving_rows"]
    assert lens.keys() == document["axes"].keys()
    assert all(array.shape == (3, 3) for array in lens.values())
    assert all(np.isnan(array[1]).all() and np.isfinite(array[[0, 2]]).all() for array in lens.values())
    for name in lens:
        if not name.startswith("unshared_"):
            np.testing.assert_array_equal(lens[f"unshared_{name}"], lens[name])
    # The last layer again, scored row by row: gold class of each row, and both words together.
    texts = run.texts["zh"]
    queries = label_queries(texts.rows, texts.exemplars, texts.tokenizer, "in_language", "study")
    sets = word_sets(texts.tokenizer, "zh").all()
    scores = Scorer(run.runner.decoder, run.variables, run.runner.mesh).score(run.variables, queries, sets).prefix_mass
    gold = [TASK.classes.index(row.gold_class) for row in texts.rows]
    last = {
        "latent": np.mean([scores[i, c] for i, c in enumerate(gold)]),
        "out": np.mean([scores[i, 2 + c] for i, c in enumerate(gold)]),
        "all_possible_latent": scores[:, 4].mean(),
        "all_possible_out": scores[:, 5].mean(),
    }
    assert {name: lens[f"{name}_mean"][2, -1] for name in last} == pytest.approx(last, abs=1e-6)
