import json
from pathlib import Path
from typing import Any

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
    nats_batch,
    neuron_mask,
    random_control,
    reference_perplexity,
    write_masking,
)
from jaxalign.probing.neurons import (
    activation_probabilities,
    language_neurons,
    read_counts,
    select_neurons,
    write_neuron_counts,
)
from jaxalign.probing.probe import ProbeData, ProbeRun
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.model.tiny_models import VOCABULARY, tiny_case
from tests.probing.language_world import PLANTED, planted_variables, write_languages

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
    assert reference_perplexity(sums, np.array([3, 4])) == pytest.approx(np.exp((7 / 5 + 4 / 4) / 2))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ProbeRun:
    """A model with two neurons for each of three languages, texts of them, and the counts of their activity."""
    folder = tmp_path_factory.mktemp("planted")
    data = ProbeData(folder, write_languages(folder), tiny_world.byte_tokenizer(), slice(0, 6))
    run = ProbeRun(
        folder, tiny_world.DECODER, planted_variables(), make_mesh(8, 1, 1), data, ["en", "de", "zh"], 8, {"model": "m"}
    )
    write_neuron_counts(run)
    return run


def selected(run: ProbeRun) -> dict[str, np.ndarray]:
    counts = read_counts(run.out / "neuron_counts.npz")
    selection = select_neurons(activation_probabilities(counts), "code", rate=6 / 72)
    return {code: language_neurons(selection, index) for index, code in enumerate(counts.languages)}


def test_planted_neurons_are_found_and_do_what_they_were_planted_for(planted: ProbeRun):
    own = selected(planted)
    assert {code: pairs.tolist() for code, pairs in own.items()} == PLANTED
    document = write_masking(planted, own, seed=0)
    assert json.loads((planted.out / "masking.json").read_text()) == document
    assert document["neurons"] == {"en": 2, "de": 2, "zh": 2} and len(document["mask"]) == 7
    assert document["row"] == [0, 1, 2, 3, 4, 5] and document["masked_language"] == ["en", "de", "zh"]
    with np.load(planted.out / "masking.npz") as stored:
        arrays = dict(stored)
    assert set(arrays) == set(document["axes"])
    assert arrays["nats"].shape == (7, 3, 6)
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


def test_with_languages_shuffled_no_neuron_belongs_to_one(planted: ProbeRun, tmp_path: Path):
    """The same texts, two of each language in every file: the planted neurons are active in all alike."""
    data = ProbeData(tmp_path, write_languages(tmp_path, shuffled=True), planted.data.tokenizer, slice(0, 6))
    run = ProbeRun(
        tmp_path, planted.decoder, planted.variables, planted.mesh, data, planted.languages, planted.batch_size, {}
    )
    write_neuron_counts(run)
    counts = read_counts(tmp_path / "neuron_counts.npz")
    planted_ones = np.concatenate([np.array(pairs) for pairs in PLANTED.values()])
    probabilities = activation_probabilities(counts)[:, planted_ones[:, 0], planted_ones[:, 1]]
    np.testing.assert_allclose(probabilities, 1 / 3, atol=1e-6)
    chosen = {tuple(pair) for pairs in selected(run).values() for pair in pairs.tolist()}
    assert chosen.isdisjoint(map(tuple, planted_ones.tolist()))
    # Without those of one language every file loses, where its own alone did.
    own = {code: np.array(pairs, np.int32) for code, pairs in PLANTED.items()}
    write_masking(run, own, seed=0)
    with np.load(tmp_path / "masking.npz") as stored:
        change = stored["log_perplexity_change"]
    assert (change[0, ..., 0] > 0.01).all()


def test_a_text_that_predicts_nothing_is_named(planted: ProbeRun, tmp_path: Path):
    data = ProbeData(tmp_path, write_languages(tmp_path), planted.data.tokenizer, slice(0, 6))
    file = next(tmp_path.glob("*/emotion_de*"))
    rows = json.loads(file.read_text())
    rows[3]["input"] = "n"
    file.write_text(json.dumps(rows))
    run = ProbeRun(tmp_path, planted.decoder, planted.variables, planted.mesh, data, ["de"], 8, {})
    with pytest.raises(InputError, match="de, row 3: a text of one token"):
        write_masking(run, {"de": np.zeros((0, 2), np.int32)}, seed=0)
