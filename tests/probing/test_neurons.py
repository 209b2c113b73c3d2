import math
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.probing.neurons import (
    CLASSES,
    ActivationCounts,
    activation_probabilities,
    general_neurons,
    language_entropy,
    language_neurons,
    largest_passing,
    lowest,
    neuron_scores,
    read_counts,
    select_neurons,
    selection_probes,
)

RNG = np.random.default_rng(0)


def random_probabilities(languages: int = 4, layers: int = 3, width: int = 50) -> np.ndarray:
    """Mostly low, some high in some languages; a neuron that is never active."""
    probabilities = RNG.beta(0.4, 1.5, (languages, layers, width)).astype(np.float32)
    probabilities[:, 1, 7] = 0
    return probabilities


def score_of_one(p: list[float], weight: float, form: str) -> float:
    """A neuron's score as the formula has it, in Python's floats."""
    shares = [x / sum(p) for x in p] if sum(p) else [1 / len(p)] * len(p)
    entropy = -sum(x * math.log(x) for x in shares if x)
    if form == "paper":
        return entropy - weight * max(p)
    return entropy / math.log(len(p)) - weight * max(p) / (sum(1 / (k + 1) for k in range(len(p))) / len(p))


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("weight", [0.0, 0.15])
def test_scores_are_the_formula(form: str, weight: float):
    p = random_probabilities()
    found = neuron_scores(language_entropy(p), p.max(0), len(p), weight, form)
    expected = [[score_of_one(p[:, l, f].tolist(), weight, form) for f in range(p.shape[2])] for l in range(p.shape[1])]
    # Float32 against float64, entropies up to ln 4.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32


def test_the_two_scores_rank_alike_at_weights_of_a_constant_ratio():
    p = random_probabilities()
    entropy, largest, K = language_entropy(p), p.max(0), len(p)
    ratio = math.log(K) / (sum(1 / (k + 1) for k in range(K)) / K)
    code, paper = (neuron_scores(entropy, largest, K, w, form) for w, form in ((0.1, "code"), (0.1 * ratio, "paper")))
    np.testing.assert_allclose(code * math.log(K), paper, atol=2e-6)


def test_the_threshold_is_the_nth_smallest():
    p = RNG.random((2, 3, 17)).astype(np.float32)
    assert select_neurons(p).threshold == sorted(p.ravel().tolist())[round(0.95 * 102) - 1]
    assert select_neurons(np.array([[[0.5]], [[0.25]]], np.float32)).threshold == 0.5


def test_of_equal_scores_the_first_are_taken():
    assert lowest(np.array([[2.0, 1.0, 1.0], [1.0, 0.0, 3.0]]), 3).tolist() == [
        [False, True, True],
        [False, True, False],
    ]


@pytest.mark.parametrize(
    ("limit", "found"),
    # The last case is the reference's: 0.2 passes, and the last of eight midpoints is returned.
    [(0.1098, 0.109375), (-1.0, 0.0), (1.0, 0.19921875)],
)
def test_the_search_for_the_weight(limit: float, found: float):
    tried = []
    assert largest_passing(lambda weight: tried.append(weight) or weight <= limit) == pytest.approx(found, abs=1e-12)
    assert len(tried) == 8


def planted() -> np.ndarray:
    """Of 100 neurons, three of one language, one of two, three of all; the others are rarely active, and alike."""
    p = np.full((3, 2, 50), 0.1, np.float32) + RNG.random((3, 2, 50)).astype(np.float32) / 100
    p[:, 1, 40:43] = 0.9
    for neuron in ((0, 3), (1, 8), (1, 9)):
        p[(slice(None), *neuron)] = 0.01
        p[(1, *neuron)] = 0.95
    p[[0, 2], 0, 20], p[1, 0, 20] = 0.9, 0.0
    return p


def test_selection_finds_what_was_planted():
    p = planted()
    selection = select_neurons(p, "code", rate=0.04)
    assert language_neurons(selection, 0).tolist() == language_neurons(selection, 2).tolist() == [[0, 20]]
    assert language_neurons(selection, 1).tolist() == [[0, 3], [1, 8], [1, 9]]
    assert language_neurons(selection, 1).dtype == np.int32
    assert general_neurons(selection).tolist() == [[1, 40], [1, 41], [1, 42]]  # of all, though none is selected
    # Of a million tokens, so that probabilities are float32 ones.
    counts = ActivationCounts(["en", "zh", "de"], np.round(p * 1e6).astype(np.int64), np.full(3, 10**6))
    document = selection_probes(counts, "code", 0.04)["selection"].document
    assert document["histogram"] == [0, 3, 1, 0] and document["neurons"] == {"en": 1, "zh": 3, "de": 1}
    assert document["classes"] == dict(zip(CLASSES, (0, 3, 1, 0), strict=True))
    assert document["classes_per_layer"]["language_specific"] == [1, 2]
    assert document["general_of_all_neurons_per_layer"] == [0, 3]
    assert document["neurons_per_layer_of_language"]["zh"] == [1, 2]


def test_the_weight_is_the_largest_that_selects_no_general_neuron():
    p = random_probabilities(10, 4, 200)
    p[:, 2, :9] = 0.99
    selection = select_neurons(p, "code", rate=0.7)
    assert 0 < selection.weight < 0.199
    general = selection.languages_active == 10
    assert general.any() and not (selection.selected & general).any()
    scores = neuron_scores(language_entropy(p), p.max(0), 10, selection.weight + 1e-3, "code")
    assert (lowest(scores, round(0.7 * scores.size)) & general).any()


def test_general_neurons_belong_to_no_language():
    p = planted()
    selection = select_neurons(p, "lape", rate=1.0)
    assert selection.weight == 0 and selection.selected.all()
    own = {tuple(pair) for language in range(3) for pair in language_neurons(selection, language)}
    assert own.isdisjoint({(1, f) for f in range(40, 43)})


def test_counts_below_zero_are_zero():
    counts = ActivationCounts(["en", "de"], np.array([[[-3, 5]], [[11, 0]]], np.int32), np.array([10, 10]))
    np.testing.assert_allclose(activation_probabilities(counts), [[[0, 0.5]], [[1.1, 0]]], rtol=1e-6)


def test_a_probability_at_the_threshold_is_not_active():
    selection = select_neurons(np.full((2, 1, 20), 0.5, np.float32), "lape", rate=1.0)
    assert selection.threshold == 0.5 and not selection.active.any()


def test_counts_under_other_names_of_their_languages(tmp_path: Path):
    counts = {"active": np.ones((3, 1, 2), int), "tokens": np.full(3, 5)}
    np.savez(tmp_path / "counts.npz", languages=np.array(["zho_Hans", "deu_Latn", "ko"]), **counts)
    assert read_counts(tmp_path / "counts.npz").languages == ["zh", "de", "ko"]
    np.savez(tmp_path / "counts.npz", languages=np.array(["zh", "zh-CN", "ko"]), **counts)
    with pytest.raises(InputError, match="languages are zh, zh, ko; two or more are needed, each once"):
        read_counts(tmp_path / "counts.npz")
