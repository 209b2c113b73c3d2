import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from jaxalign.errors import InputError
from jaxalign.model.ragged import Runner
from jaxalign.model.transformer import Decoder
from jaxalign.probing.masking import (
    TextNats,
    change_with_interval,
    masking,
    nats_batch,
    neuron_mask,
    random_control,
    reference_perplexity,
    transplant,
    with_neurons,
)
from jaxalign.probing.neurons import ActivationCounts, activation_probabilities, neuron_counts, selection_probes
from jaxalign.probing.probe import ProbeRun
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.model.tiny_models import VOCABULARY, tiny_case
from tests.probing.language_world import PLANTED, planted_variables, probe_run, write_languages

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 30, 20, 2)]


def nats_in_torch(model: Any, prompt: list[int], mask: np.ndarray) -> tuple[float, float, int]:
    """The three sums, from transformers' logits with the activated gates masked by hooks."""
    hooks = [
        layer.mlp.act_fn.register_forward_hook(lambda module, inputs, output, row=row: output * torch.from_numpy(row))
        for layer, row in zip(model.model.layers, mask, strict=True)
    ]
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([prompt])).logits[0, :-1].double(), -1)
    for hook in hooks:
        hook.remove()
    targets = torch.tensor(prompt[1:])
    mistaken = logp.argmax(-1) != targets
    return (
        -logp[torch.arange(len(targets)), targets].sum().item(),
        -logp.max(-1).values[mistaken].sum().item(),
        int(mistaken.sum()),
    )


@pytest.mark.parametrize("case", ["llama_gqa_llama3_rope", "gemma3_text"])
def test_nats_are_those_of_transformers_with_masked_gates(case: str):
    tiny = tiny_case(case)
    mask = (RNG.random((tiny.config.layers, tiny.config.mlp_dim)) > 0.3).astype(np.float32)
    variables = {"params": tiny.params}
    runner = Runner(Decoder(tiny.config), variables, make_mesh(8, 1, 1), 8)
    for each in (np.ones_like(mask), mask):
        found = runner(nats_batch, variables, PROMPTS, each)
        expected = [nats_in_torch(tiny.torch_model, prompt, each) for prompt in PROMPTS]
        # Sums of up to 29 terms of about 5 nats, float32 against float64.
        np.testing.assert_allclose(found.nats, [row[0] for row in expected], rtol=1e-4)
        np.testing.assert_allclose(found.likeliest_nats, [row[1] for row in expected], rtol=1e-4)
        assert found.mistaken.tolist() == [row[2] for row in expected]
    assert runner.counts["compilations"] == 1


def test_controls_are_as_many_others_in_each_layer():
    mask = neuron_mask(np.array([[0, 1], [0, 2], [2, 5], *([1, f] for f in range(7))]), 3, 10)
    assert (mask == 0).sum(1).tolist() == [2, 7, 1] and mask[0, [1, 2]].tolist() == [0, 0]
    drawn = [random_control(mask, np.random.default_rng(seed)) for seed in range(20)]
    assert all((control == 0).sum(1).tolist() == [2, 7, 1] for control in drawn)
    # Layer 1 has three others only, so all its neurons are drawn from.
    assert not any(((control == 0) & (mask == 0))[[0, 2]].any() for control in drawn)
    assert len({control.tobytes() for control in drawn}) > 10


def test_interval_of_a_change():
    tokens = RNG.integers(20, 90, 40)
    differences = RNG.normal(0.3, 0.2, 40) * tokens
    change, low, high = change_with_interval(differences, tokens, seed=0)
    assert change == pytest.approx(differences.sum() / tokens.sum(), rel=1e-12)
    expected = scipy.stats.bootstrap(
        (differences, tokens),
        lambda d, t, axis: d.sum(axis) / t.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Two sets of resamples of a deviation of 0.03.
    assert (low, high) == pytest.approx(expected, abs=0.01)
    np.testing.assert_allclose(change_with_interval(0.5 * tokens, tokens, seed=0), [0.5, 0.5, 0.5])


def test_the_perplexity_of_the_follow_up_is_lower():
    sums = TextNats(np.array([6.0, 4.0]), np.array([1.0, 0.0]), np.array([2, 0]))
    assert float(reference_perplexity(sums, np.array([3, 4]))) == pytest.approx(np.exp((7 / 5 + 4 / 4) / 2))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ProbeRun:
    """A model with two neurons for each of three languages, and texts of them."""
    folder = tmp_path_factory.mktemp("planted")
    return probe_run(folder, variables=planted_variables(), exemplars=write_languages(folder))


def selected(run: ProbeRun) -> tuple[ActivationCounts, dict[str, Any]]:
    found = neuron_counts(run)
    counts = ActivationCounts(found.languages, found.arrays["active"], found.arrays["tokens"])
    own = selection_probes(counts, "code", rate=6 / 72)["selection"].arrays
    return counts, {code: pairs.tolist() for code, pairs in own.items()}


def test_planted_neurons_are_found_and_do_what_they_were_planted_for(planted: ProbeRun):
    assert selected(planted)[1] == PLANTED
    found = masking(planted, {code: np.array(pairs) for code, pairs in PLANTED.items()}, seed=0)
    arrays, document = found.arrays, found.document
    assert document["neurons"] == {"en": 2, "de": 2, "zh": 2} and len(document["mask"]) == 7
    assert document["row"] == [0, 1, 2, 3, 4, 5] and document["masked_language"] == ["en", "de", "zh"]
    assert arrays.keys() == document["axes"].keys() and arrays["nats"].shape == (7, 3, 6)
    change = arrays["log_perplexity_change"]
    assert change.shape == (3, 3, 3, 3)
    others = ~np.eye(3, dtype=bool)
    # Another language's gates are so far below 0 that their activation is 0: not a bit changes there.
    assert (change[0][others] == 0).all()
    # Its own letters are less likely without them, in every row or nearly so.
    assert (change[0][~others][:, 0] > 0.01).all() and (change[0][~others][:, 1] > 0).all()
    np.testing.assert_allclose(change[2, ..., 0], change[0, ..., 0] - change[1, ..., 0], atol=1e-12)
    expected = np.exp(arrays["nats"].sum(2) / arrays["tokens"].sum(1))
    np.testing.assert_allclose(arrays["perplexity"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        change[0, ..., 0], np.log(arrays["perplexity"][1:4] / arrays["perplexity"][0]), rtol=1e-4, atol=1e-6
    )


def test_with_languages_shuffled_no_neuron_belongs_to_one(tmp_path: Path):
    """The same texts, two of each language in every file: the planted neurons are active in all alike."""
    exemplars = write_languages(tmp_path, shuffled=True)
    run = probe_run(tmp_path, variables=planted_variables(), exemplars=exemplars)
    counts, own = selected(run)
    planted_ones = np.concatenate([np.array(pairs) for pairs in PLANTED.values()])
    probabilities = activation_probabilities(counts)[:, planted_ones[:, 0], planted_ones[:, 1]]
    np.testing.assert_allclose(probabilities, 1 / 3, atol=1e-6)
    assert {tuple(pair) for pairs in own.values() for pair in pairs}.isdisjoint(map(tuple, planted_ones.tolist()))
    # Without those of one language every file loses, where its own alone did.
    found = masking(run, {code: np.array(pairs) for code, pairs in PLANTED.items()}, seed=0)
    assert (found.arrays["log_perplexity_change"][0, ..., 0] > 0.01).all()


def test_a_text_that_predicts_nothing_is_named(tmp_path: Path):
    exemplars = write_languages(tmp_path)
    file = next(tmp_path.glob("*/emotion_de*"))
    rows = json.loads(file.read_text())
    rows[3]["input"] = "n"
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="de, row 3: a text of one token"):
        masking(probe_run(tmp_path, languages=["de"], exemplars=exemplars), {"de": np.zeros((0, 2), int)}, seed=0)


def test_parameters_without_neurons_are_a_mask_in_the_forward_pass():
    decoder, variables = tiny_world.DECODER, jax.tree.map(jnp.asarray, tiny_world.variables())
    mask = (np.random.default_rng(0).random((3, 24)) > 0.4).astype(np.float32)
    tokens, positions = jnp.arange(1, 17)[None], jnp.arange(16)[None]
    inputs = tokens, positions, jnp.ones_like(tokens)
    apply = jax.jit(lambda variables, mask: decoder.apply(variables, *inputs, neuron_mask=mask).hidden)
    whole, expected = jnp.ones((3, 24)), apply(variables, jnp.asarray(mask))
    zeros = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), variables["params"])
    found = apply({"params": with_neurons(variables["params"], zeros, jnp.asarray(mask))}, whole)
    # The same sums, float32; without the mask they differ by some tenths.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(apply(variables, whole) - expected).max() > 1e-2


def run_without_planted(folder: Path) -> ProbeRun:
    """Of a base model that is as the planted one, but its planted neurons write nothing."""
    variables = planted_variables()
    for pairs in PLANTED.values():
        for layer, index in pairs:
            variables["params"]["layers"]["mlp"]["down_proj"]["kernel"][layer, index] = 0
    return probe_run(folder, variables=variables, mesh=(2, 2, 2), exemplars=write_languages(folder))


def test_a_language_s_tuned_neurons_do_in_the_base_what_tuning_did_for_it(tmp_path: Path):
    base = run_without_planted(tmp_path)
    run, own = replace(base, variables=planted_variables()), {code: np.array(p) for code, p in PLANTED.items()}
    found = transplant(run, own, 0, lambda tuned: base.placed["params"])
    assert found.document["weights"][:3] == ["base", "tuned", "en"] and len(found.document["weights"]) == 8
    assert found.arrays.keys() == found.document["axes"].keys()
    base_nats, tuned_nats, *transplants = found.arrays["nats"]
    assert (tuned_nats < base_nats).all()
    for k in range(3):
        for language in range(3):
            # The other planted neurons are silent on these texts, to the last bit.
            expected = (tuned_nats if k == language else base_nats)[language]
            np.testing.assert_array_equal(transplants[k][language], expected)
    change = found.arrays["log_perplexity_change"]
    assert change.shape == (3, 3, 3, 3) and (np.diagonal(change[0, :, :, 0]) < -0.01).all()


def test_a_tuning_of_attention_alone_is_refused(planted: ProbeRun):
    own = {code: np.array(pairs) for code, pairs in PLANTED.items()}
    with pytest.raises(InputError, match=r"changed no feed-forward weight.*lora\.targets=gate_proj,up_proj,down_proj"):
        transplant(planted, own, 0, lambda tuned: {**tuned, "norm": None})
