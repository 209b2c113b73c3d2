"""Language neurons: the feed-forward neurons that are active in some languages only, chosen from how often they are.

A neuron is one unit of a gated MLP, named (layer, index), both counted from 0; it is active at a token if its gate
before the activation function is above 0. A gate of exactly 0 is not active (SiLU and GELU are 0 there too); one within
rounding of 0 falls to either side, as the compute type and the order of its sums will have it.

    each row's text ──► decoder ──► tap: gate > 0 at real tokens, summed over rows and positions ──► + ──► [K, L, F]

The counts as a file, which another program may have written:

    languages      text [K]
    active         int [K, L, F]   tokens at which the neuron's gate was positive
    tokens         int [K]         tokens that there were
    prefix_active, prefix_tokens   the same of what the texts begin with and is not to count; may be absent

From a neuron's probability p of being active in each language, active / tokens, (arXiv 2505.21505, and the repository
NJUNLP/Language-Neurons-Alignment, to the last neuron) it has

    score, as in the code:    H(p') / ln K - w max p / c,  c = (1 + 1/2 + ... + 1/K) / K
    score, as in the paper:   H(p') - w max p
    score of LAPE:            H(p')                         (Tang et al. 2024, arXiv 2402.16438)

with p' = p / sum p and the entropy H in nats. The neurons of lowest score are selected: few languages, and often there.
The first two differ in the unit of w alone. w (the paper's lambda) is searched: the largest at which no selected neuron
is active in all languages.

Axis letters: K languages, B batch, T positions, L layers, F feed-forward width.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.languages import code_of
from jaxalign.errors import InputError
from jaxalign.files import read_npz
from jaxalign.model.ragged import decode_prompts
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import Probe
from jaxalign.probing.probe import TASK, ProbeRun, check_finite

CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")


class ActivationCounts(NamedTuple):
    """Counts of the tokens that matter, what the texts begin with taken off."""

    languages: list[str]
    active: np.ndarray
    """int [K, L, F]; below 0 where a neuron was active more often in the prefix alone than in the whole"""
    tokens: np.ndarray
    """int64 [K], at least 1 each"""


def read_counts(path: Path) -> ActivationCounts:
    """The counts of a file; whatever cannot be counts raises InputError with file, array and language."""
    arrays = read_npz(path)

    def named(name: str) -> np.ndarray:
        if name not in arrays:
            raise InputError(f"{path}: no array {name!r}; it holds {', '.join(arrays) or 'none'}")
        return arrays[name]

    codes = [code_of(str(code)) for code in named("languages").ravel()]
    if wrong := [code for code in codes if not CODE.fullmatch(code)]:
        raise InputError(f"{path}: languages: {wrong[0]!r} is no language code; write en, de, ...")
    if len(codes) < 2 or len(set(codes)) < len(codes):
        raise InputError(f"{path}: languages are {', '.join(codes) or 'none'}; two or more are needed, each once")

    def pair(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Signed counts [K, L, F] and totals int64 [K], none negative, no count above its total."""
        shapes = {f"{prefix}active": "[languages, layers, neurons]", f"{prefix}tokens": "[languages]"}
        for name, axes in shapes.items():
            array = named(name)
            if array.dtype.kind not in "iu" or array.dtype == np.uint64:
                raise InputError(f"{path}: {name} is {array.dtype}; whole numbers of at most 63 bits are needed")
            if array.ndim != axes.count(",") + 1 or len(array) != len(codes) or not array.size:
                raise InputError(f"{path}: {name} is {array.shape}; {axes} is needed, with {len(codes)} languages")
        active, tokens = (arrays[name].astype(np.int64, copy=False) for name in shapes)
        for code, counts, total in zip(codes, active, tokens, strict=True):
            if total < 0 or counts.min() < 0 or counts.max() > total:
                raise InputError(
                    f"{path}: {prefix}active of {code} reaches from {counts.min()} to {counts.max()}, with {total} in "
                    f"{prefix}tokens; count again"
                )
        return active, tokens

    active, tokens = pair("")
    if "prefix_active" in arrays or "prefix_tokens" in arrays:
        prefix_active, prefix_tokens = pair("prefix_")
        if prefix_active.shape != active.shape:
            raise InputError(f"{path}: prefix_active is {prefix_active.shape}, active is {active.shape}; count again")
        active, tokens = active - prefix_active, tokens - prefix_tokens
    if (tokens < 1).any():
        empty = codes[int(np.argmin(tokens))]
        raise InputError(f"{path}: no tokens of {empty} are left to count; leave the language out or add texts")
    return ActivationCounts(codes, active, tokens)


def count_batch(decoder: Decoder, variables: Any, tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """At how many real tokens each gate was positive, int32 [L, F]; and whether a prompt's states are finite, bool [B],
    so that its gates are numbers."""
    real = (jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1) < lengths[:, None])[:, :, None]

    def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> jax.Array:
        return jnp.sum((gate > 0) & real, axis=(0, 1), dtype=jnp.int32)

    output = decode_prompts(decoder, variables, tokens, lengths, tap)
    return output.taps, (jnp.isfinite(output.hidden) | ~real).all(axis=(1, 2))


def neuron_counts(run: ProbeRun) -> Probe:
    """How often each neuron is active in each language's texts; all real tokens count, a BOS among them."""
    active = []
    for texts in run.texts.values():
        total, finite = None, np.ones(len(texts.texts), bool)
        for members, (of_batch, known) in run.runner.batches(count_batch, run.placed, texts.texts):
            finite[members] = np.asarray(known)[: len(members)]
            total = of_batch if total is None else total + of_batch  # on the devices
            run.on_rows(len(members))
        check_finite(texts, np.where(finite, 0, np.nan))
        active.append(np.asarray(total))
    arrays = {
        "languages": np.array(run.languages),
        "active": np.stack(active),
        "tokens": np.array([sum(map(len, texts.texts)) for texts in run.texts.values()], np.int64),
    }
    document = {
        "axes": {"languages": ["language"], "active": ["language", "layer", "neuron"], "tokens": ["language"]},
        "language": run.languages,
        "layers": run.config.layers,
        "neurons_per_layer": run.config.mlp_dim,
        "counted": "tokens at which a neuron's gate is above 0, over all tokens of the rows' own texts",
        "task": TASK.name,
    }
    return Probe(arrays, document)


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
    """Share of tokens at which a neuron was active: float32 [K, L, F]. A negative count is 0, and a share may exceed 1
    a little: with a prefix taken off, counts are differences of two tokenisations."""
    active = np.maximum(counts.active, 0).astype(np.float32)
    return active / counts.tokens[:, None, None].astype(np.float32)


def language_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats over languages of each neuron's normalised probabilities: float32 [L, F]. A neuron active nowhere
    counts as active everywhere alike; shares are kept above 1e-12, as in the reference."""
    total = probabilities.sum(axis=0)
    uniform = np.float32(1 / len(probabilities))
    shares = np.where(total > 0, probabilities / np.where(total > 0, total, 1), uniform)
    shares = np.maximum(shares, np.float32(1e-12))
    shares /= shares.sum(axis=0)
    return -(shares * np.log(shares)).sum(axis=0)


def neuron_scores(entropy: np.ndarray, largest: np.ndarray, languages: int, weight: float, form: str) -> np.ndarray:
    """The score of each neuron, float32 [L, F], of its `language_entropy` and its largest probability [L, F]; `form`
    is "code" or "paper", and with weight 0 both rank as LAPE does."""
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


def select_neurons(probabilities: np.ndarray, form: str = "code", rate: float = 0.01) -> Selection:
    """Selects round(rate L F) neurons by probabilities float32 [K, L, F], K at least 2; `form` is one of SCORES."""
    # The round(0.95 n)-th smallest of all n.
    rank = max(round(ACTIVE_QUANTILE * probabilities.size), 1)
    threshold = np.partition(probabilities, rank - 1, axis=None)[rank - 1]
    active = probabilities > threshold
    in_all = active.all(axis=0)
    entropy, largest = language_entropy(probabilities), probabilities.max(axis=0)

    def chosen(weight: float) -> np.ndarray:
        scores = neuron_scores(entropy, largest, len(probabilities), weight, form)
        return lowest(scores, round(rate * scores.size))

    weight = 0.0 if form == "lape" else largest_passing(lambda weight: not (chosen(weight) & in_all).any())
    return Selection(chosen(weight), active, weight, float(threshold))


def language_neurons(selection: Selection, language: int) -> np.ndarray:
    """(layer, index), int32 [n, 2], of the selected neurons active in a language (index along K) but not in all."""
    of_some = selection.languages_active < len(selection.active)
    return np.argwhere(selection.selected & selection.active[language] & of_some).astype(np.int32)


def general_neurons(selection: Selection) -> np.ndarray:
    """(layer, index) of all neurons that are active in every language, which the weight is searched to leave out of the
    selected ones: int32 [n, 2], ascending."""
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


def selection_probes(counts: ActivationCounts, form: str, rate: float) -> dict[str, Probe]:
    """What `jaxalign neurons` writes, by the files' names: the neurons that a score selects, and the general ones.

    Args:
      form: one of SCORES.
      rate: share of all neurons that is selected, above 0 and at most 1; one that selects none raises InputError.
    """
    probabilities = activation_probabilities(counts)
    layers, width = probabilities.shape[1:]
    if not round(rate * layers * width):
        raise InputError(
            f"neurons.top_rate={rate}: none of {layers * width} neurons; set at least {1 / (layers * width):.2g}"
        )
    selection = select_neurons(probabilities, form, rate)
    own = {code: language_neurons(selection, index) for index, code in enumerate(counts.languages)}
    number, histogram = selection.languages_active, partial(np.bincount, minlength=len(counts.languages) + 1)
    # Index into CLASSES of each neuron.
    classes = np.select([number == 0, number == 1, number < len(counts.languages)], [0, 1, 2], 3)
    per_layer = {
        name: ((classes == index) & selection.selected).sum(axis=1).tolist() for index, name in enumerate(CLASSES)
    }
    at_zero = select_neurons(probabilities, "lape", rate).selected
    document = {
        "axes": {name: ["neuron", LAYER_AND_INDEX] for name in own},
        "language": counts.languages,
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
        "classes": {name: sum(each) for name, each in per_layer.items()},
        "classes_per_layer": per_layer,
        "general_of_all_neurons_per_layer": (classes == CLASSES.index("general")).sum(axis=1).tolist(),
        "neurons": {code: len(array) for code, array in own.items()},
        "neurons_per_layer_of_language": {
            code: np.bincount(array[:, 0], minlength=layers).tolist() for code, array in own.items()
        },
        "tokens": dict(zip(counts.languages, counts.tokens.tolist(), strict=True)),
    }
    of_all = {"axes": {GENERAL: ["neuron", LAYER_AND_INDEX]}, "neurons": "active in every language, selected or not"}
    return {
        "selection": Probe(own, document),
        "general_neurons": Probe({GENERAL: general_neurons(selection)}, of_all),
    }
