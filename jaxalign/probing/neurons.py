"""Language neurons: the feed-forward neurons that are active in some languages only, chosen from how often they are.

A neuron is one unit of a gated MLP, named (layer, index), both counted from 0; it is active at a token if its gate
before the activation function is above 0. From its probability p of that in each language (arXiv 2505.21505, and the
repository NJUNLP/Language-Neurons-Alignment, to the last neuron) it has

    score, as in the code:    H(p') / ln K - w max p / c,  c = (1 + 1/2 + ... + 1/K) / K
    score, as in the paper:   H(p') - w max p
    score of LAPE:            H(p')                         (Tang et al. 2024, arXiv 2402.16438)

with p' = p / sum p and the entropy H in nats. The neurons of lowest score are selected: few languages, and often there.
The first two differ in the unit of w alone. w (the paper's lambda) is searched: the largest at which no selected neuron
is active in all languages.

Axis letters: K languages, L layers, F feed-forward width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import read_npz
from jaxalign.probing.neuron_counts import ActivationCounts

SCORES = ("code", "paper", "lape")
ACTIVE_QUANTILE = 0.95
"""A neuron counts as active in a language if its probability is above this quantile of all of them."""
LARGEST_WEIGHT, WEIGHT_STEP = 0.2, 1e-3
"""Where the search for the weight begins, and the interval at which it ends."""
CLASSES = ("unassigned", "language_specific", "language_related", "general")
"""Of a neuron active in none, one, several, all languages."""
GENERAL = "general"
"""The one array of `general_neurons.npz`, which lies beside `selection.npz`."""
LAYER_AND_INDEX = "layer and index, both from 0"


class Selection(NamedTuple):
    """Which neurons were selected, and where they are active."""

    selected: np.ndarray
    """bool [L, F]"""
    active: np.ndarray
    """bool [K, L, F]: probability above the threshold, for all neurons"""
    weight: float
    threshold: float

    @property
    def languages_active(self) -> np.ndarray:
        """N, int [L, F]: in how many languages each neuron is active."""
        return self.active.sum(axis=0)


def activation_probabilities(counts: ActivationCounts) -> np.ndarray:
    """Share of tokens at which a neuron was active: float32 [K, L, F].

    It may exceed 1 a little, and a negative count is taken as 0: with a prefix taken off, counts are differences of two
    tokenisations.
    """
    active = np.maximum(counts.active, 0).astype(np.float32)
    return active / counts.tokens[:, None, None].astype(np.float32)


def language_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats over languages of each neuron's normalised probabilities: float32 [L, F].

    A neuron active nowhere counts as active everywhere alike. Shares are kept above 1e-12, as in the reference.
    """
    total = probabilities.sum(axis=0)
    uniform = np.float32(1 / len(probabilities))
    shares = np.where(total > 0, probabilities / np.where(total > 0, total, 1), uniform)
    shares = np.maximum(shares, np.float32(1e-12))
    shares /= shares.sum(axis=0)
    return -(shares * np.log(shares)).sum(axis=0)


def neuron_scores(entropy: np.ndarray, largest: np.ndarray, languages: int, weight: float, form: str) -> np.ndarray:
    """The score of each neuron, float32 [L, F]; the lower, the more it is a language's own.

    Args:
      entropy: `language_entropy`.
      largest: the largest of its probabilities, float32 [L, F].
      languages: K.
      weight: of the second term; 0 ranks as LAPE does.
      form: "code" or "paper".
    """
    if form == "paper":
        return entropy - weight * largest
    harmonic = sum(1 / k for k in range(1, languages + 1)) / languages
    return entropy / float(np.log(languages)) - weight * largest / harmonic


def lowest(scores: np.ndarray, number: int) -> np.ndarray:
    """Where the `number` lowest scores are, bool of their shape; of equal ones, the first."""
    chosen = np.zeros(scores.size, bool)
    chosen[np.argsort(scores, axis=None, kind="stable")[:number]] = True
    return chosen.reshape(scores.shape)


def largest_passing(passes: Callable[[float], bool]) -> float:
    """Bisects [0, LARGEST_WEIGHT] as the reference does: the last midpoint that passed, 0 if none did."""
    low, high, best = 0.0, LARGEST_WEIGHT, 0.0
    while high - low > WEIGHT_STEP:
        middle = (low + high) / 2
        if passes(middle):
            low = best = middle
        else:
            high = middle
    return best


def activity_threshold(probabilities: np.ndarray) -> np.float32:
    """The round(0.95 n)-th smallest of all n probabilities."""
    rank = max(round(ACTIVE_QUANTILE * probabilities.size), 1)
    return np.partition(probabilities, rank - 1, axis=None)[rank - 1]


def select_neurons(probabilities: np.ndarray, form: str = "code", rate: float = 0.01) -> Selection:
    """Selects round(rate L F) neurons.

    Args:
      probabilities: float32 [K, L, F], K at least 2.
      form: one of SCORES.
      rate: above 0, at most 1.
    """
    threshold = activity_threshold(probabilities)
    active = probabilities > threshold
    in_all = active.all(axis=0)
    entropy, largest = language_entropy(probabilities), probabilities.max(axis=0)

    def chosen(weight: float) -> np.ndarray:
        scores = neuron_scores(entropy, largest, len(probabilities), weight, form)
        return lowest(scores, round(rate * scores.size))

    weight = 0.0 if form == "lape" else largest_passing(lambda weight: not (chosen(weight) & in_all).any())
    return Selection(chosen(weight), active, weight, float(threshold))


def language_neurons(selection: Selection, language: int) -> np.ndarray:
    """(layer, index) of the selected neurons that are active in a language but not in all: int32 [n, 2], ascending.

    Args:
      language: index along K.
    """
    of_some = selection.languages_active < len(selection.active)
    return np.argwhere(selection.selected & selection.active[language] & of_some).astype(np.int32)


def general_neurons(selection: Selection) -> np.ndarray:
    """(layer, index) of all neurons that are active in every language: int32 [n, 2], ascending.

    Of all, not of the selected ones: the weight is searched for so that no such neuron is among those.
    """
    return np.argwhere(selection.active.all(axis=0)).astype(np.int32)


def read_selection(path: Path, languages: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of `selection.npz`, int [n, 2] each; one that is not, or a language without one, raises InputError."""
    own = read_npz(path)
    for code, pairs in own.items():
        if pairs.dtype.kind not in "iu" or pairs.ndim != 2 or pairs.shape[1] != 2 or (pairs < 0).any():
            raise InputError(f"{path}: {code} is {pairs.dtype} {pairs.shape}; pairs of (layer, index) are needed")
    if missing := [code for code in languages if code not in own]:
        raise InputError(f"{path}: no neurons of {', '.join(missing)}; it has {', '.join(own) or 'none'}")
    return own


def check_fits(own: Mapping[str, np.ndarray], layers: int, width: int) -> None:
    """Refuses neurons that a model of so many layers and feed-forward units has not."""
    for code, pairs in own.items():
        if len(pairs) and (pairs.max(axis=0) >= [layers, width]).any():
            layer, index = pairs.max(axis=0)
            raise InputError(
                f"selection of {code}: neurons up to layer {layer} and index {index}, the model has {layers} layers of "
                f"{width}; take the selection of this model"
            )


def specific_neurons(own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the arrays of a selection, the neurons that one language alone has."""
    pairs, count = np.unique(np.concatenate(list(own.values())), axis=0, return_counts=True)
    single = {tuple(pair) for pair in pairs[count == 1].tolist()}
    return {code: array[[tuple(pair) in single for pair in array.tolist()]] for code, array in own.items()}


def class_of(languages_active: np.ndarray, languages: int) -> np.ndarray:
    """Index into CLASSES of each neuron, by the number of languages it is active in."""
    return np.select([languages_active == 0, languages_active == 1, languages_active < languages], [0, 1, 2], 3)


def selection_document(
    selection: Selection, probabilities: np.ndarray, languages: list[str], form: str, rate: float
) -> dict[str, Any]:
    """What `selection.json` says: weight, threshold, and how many neurons there are of each kind and where."""
    K, layers, width = selection.active.shape
    number = selection.languages_active
    histogram = partial(np.bincount, minlength=K + 1)
    classes = class_of(number, K)
    per_layer = {
        name: ((classes == index) & selection.selected).sum(axis=1).tolist() for index, name in enumerate(CLASSES)
    }
    own = {code: language_neurons(selection, index) for index, code in enumerate(languages)}
    at_zero = select_neurons(probabilities, "lape", rate).selected
    return {
        "axes": {name: ["neuron", LAYER_AND_INDEX] for name in languages},
        "language": languages,
        "layers": layers,
        "neurons_per_layer": width,
        "score": form,
        "top_rate": rate,
        "selected": int(selection.selected.sum()),
        "lambda_star": selection.weight,
        "tau": selection.threshold,
        "histogram": histogram(number[selection.selected]).tolist(),
        "histogram_at_lambda_0": histogram(number[at_zero]).tolist(),
        "histogram_of_all_neurons": histogram(number.ravel()).tolist(),
        "histogram_axis": "in how many languages a neuron is active (above tau): 0, 1, ..., all",
        "classes": {name: sum(counts) for name, counts in per_layer.items()},
        "classes_per_layer": per_layer,
        "general_of_all_neurons_per_layer": (classes == CLASSES.index("general")).sum(axis=1).tolist(),
        "neurons": {code: len(array) for code, array in own.items()},
        "neurons_per_layer_of_language": {
            code: np.bincount(array[:, 0], minlength=layers).tolist() for code, array in own.items()
        },
    }
