"""How alike languages lie in each layer: their states of parallel prompts against the English ones.

How alike two languages' states of the same rows are: linear CKA, and finding a row's translation by cosine.

Every measure is the mean of a value that each row has, so that means over drawn rows give intervals, and differences
of the same rows before and after a tuning give paired ones. Axis letters: n rows, K layers, D width.

Where languages lie in each layer: mean states of parallel prompts, joint PCA, correlations along its first axis.

Layers are counted as in `capture`, 0 to L. Axis letters: L layers, D width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from jaxalign.errors import InputError
from jaxalign.probing.capture import Capture, capture_languages, captured_layers
from jaxalign.probing.probe import TASK, VARIANT, ProbeRun, write_probe
from jaxalign.statistics import (
    MEASURES,
    bootstrap_intervals,
    centred,
    correlations,
    percentile_interval,
    resampled_correlations,
    row_values,
)

TIE = 1e-12
"""Cosines (float64) this near to each other are equal."""

BY_ROW = ["language", "layer", "row"]
GEOMETRY_AXES = {
    "cka_rows": BY_ROW,
    "rank": BY_ROW,
    "rank_centred": BY_ROW,
    "cka_chance": ["language", "layer"],
    **{measure: ["language", "layer"] for measure in MEASURES},
    **{f"{measure}_interval": ["language", "layer", "bound"] for measure in MEASURES},
}
"""The arrays of `geometry.npz`. English, which the others are compared with, is not on the language axis."""


class Cka(NamedTuple):
    """Linear CKA of two sets of states."""

    rows: np.ndarray
    """float64 [n], whose mean is the CKA"""
    chance: float
    """its mean over all orders of one set's rows; well above 0 where rows are not many more than dimensions"""


def linear_cka(first: np.ndarray, second: np.ndarray) -> Cka:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414, section 3) and each row's part in it.

    With the columns of X and Y centred, CKA = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F), between 0 and 1. Computed from the
    Gram matrices A = X X^T and B = Y Y^T, where |Y^T X|_F^2 = sum(A * B). Without row i (and centred anew) that sum is
    sum(A * B) - 2 c sum_j(A * B)_ij + c^2 (A * B)_ii with c = n / (n - 1). A row's value is CKA plus n - 1 times what
    its absence takes from CKA (Tukey's pseudo-value, moved so that their mean is CKA).

    Args:
      first, second: float [n, D] of the same n >= 3 rows; widths may differ. Where one does not vary over the rows
        they have nothing in common: 0.
    """
    grams = [states @ states.T for states in map(centred, (first, second))]
    count = len(first)
    stretch = count / (count - 1)

    def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """sum(A * B) of all rows, then without each: [1 + n]."""
        product = a * b
        total = product.sum()
        return np.append(total, total - 2 * stretch * product.sum(axis=1) + stretch**2 * np.diag(product))

    norms = np.sqrt(np.maximum(overlap(grams[0], grams[0]), 0) * np.maximum(overlap(grams[1], grams[1]), 0))
    both = overlap(*grams)
    alignments = np.divide(both, norms, out=np.zeros_like(both), where=~(norms <= TIE * norms[0]))
    cka, without = alignments[0], alignments[1:]
    rows = cka + (count - 1) * (without.mean() - without)
    # Over all orders, an entry off B's diagonal is -trace(B) / (n (n - 1)) on average, as B's rows sum to 0.
    chance = np.trace(grams[0]) * np.trace(grams[1]) / (count - 1) / norms[0] if norms[0] else 0.0
    return Cka(rows, float(chance))


def ranks(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Where a row's own candidate stands among all candidates by cosine: int32 [n], 1 is nearest.

    Ties count against it, so that states that are all equal find nothing. The cosine with a state of zeros is 0.

    Args:
      queries, candidates: float [n, D], row i of both the same item.
    """
    units = []
    for states in (queries, candidates):
        norms = np.linalg.norm(states.astype(np.float64), axis=1, keepdims=True)
        units.append(np.divide(states, norms, out=np.zeros(states.shape), where=norms > 0))
    cosines = units[0] @ units[1].T
    return (cosines >= np.diag(cosines)[:, None] - TIE).sum(axis=1).astype(np.int32)


class LayerGeometry(NamedTuple):
    """One language against English in some layers."""

    cka: np.ndarray
    """float64 [K, n], see `Cka.rows`"""
    chance: np.ndarray
    """float64 [K]"""
    rank: np.ndarray
    """int32 [K, n], of the row's English states among all English rows"""
    rank_centred: np.ndarray
    """the same after each language's mean is taken off"""


def language_geometry(states: np.ndarray, english: np.ndarray) -> LayerGeometry:
    """Compares states float [n, K, D] with English ones of the same rows, layer by layer."""
    layers = [(states[:, k], english[:, k]) for k in range(states.shape[1])]
    cka = [linear_cka(*pair) for pair in layers]
    return LayerGeometry(
        cka=np.stack([each.rows for each in cka]),
        chance=np.array([each.chance for each in cka]),
        rank=np.stack([ranks(*pair) for pair in layers]),
        rank_centred=np.stack([ranks(*map(centred, pair)) for pair in layers]),
    )


def geometry_arrays(languages: Sequence[LayerGeometry]) -> dict[str, np.ndarray]:
    """All that `geometry.npz` holds, float32 but for the int32 ranks.

    Intervals are 95 % percentile bootstrap intervals over the rows, within [0, 1]; the candidates that a row is sought
    among stay the same. That of CKA is of its linearisation, and so rather too wide than too narrow (Efron and Stein
    1981): rows drawn twice would raise CKA itself.
    """
    cka, chance, rank, rank_centred = map(np.stack, zip(*languages, strict=True))
    ranks_of_rows = {"rank": rank, "rank_centred": rank_centred}
    arrays = {"cka_rows": cka, "cka_chance": chance}
    for measure, values in row_values({"cka_rows": cka, **ranks_of_rows}).items():
        bounds = np.clip(bootstrap_intervals(values), 0, 1)
        arrays |= {measure: values.mean(axis=-1), f"{measure}_interval": bounds}
    return {name: array.astype(np.float32) for name, array in arrays.items()} | ranks_of_rows


ENGLISH = "en"
LEAST_ROWS = 3
"""CKA without one of them still needs two."""


def check_languages(languages: Sequence[str]) -> None:
    """Refuses languages that hold no pair to compare."""
    if ENGLISH not in languages or len(languages) < 2:
        raise InputError(
            f"geometry: languages {','.join(languages)}: others are compared with {ENGLISH}; name it and one more"
        )


def write_geometry(run: ProbeRun, capture: Capture) -> dict[str, Any]:
    """Compares every language with English; writes `geometry.npz` and, naming its axes, `geometry.json`, to `run.out`.

    Args:
      run: its languages are English and at least one other.
      capture: which layers, and which states of a prompt.

    Returns:
      The content of the JSON file.
    """
    check_languages(run.languages)
    others = [language for language in run.languages if language != ENGLISH]
    # English first: of the others, one at a time is held.
    captured = capture_languages(run, capture, [ENGLISH, *others])
    english = next(captured)
    if len(english.rows) < LEAST_ROWS:
        raise InputError(f"geometry: {len(english.rows)} rows of each language are too few; take at least {LEAST_ROWS}")
    arrays = geometry_arrays([language_geometry(each.states, english.states) for each in captured])
    document = {
        "axes": GEOMETRY_AXES,
        "layer": list(captured_layers(capture, run.decoder.config.layers)),
        "language": others,
        "row": english.rows,
        "bound": ["low", "high"],
        "position": str(capture.position),
        "compared_with": ENGLISH,
        "task": TASK.name,
        "variant": VARIANT,
        **run.description,
    }
    write_probe(run.out, "geometry", arrays, document)
    return document


WHOLE_PROMPTS = Capture(layers=None, position="prompt_mean")
"""What the study analyses: every layer, averaged over all positions of a prompt, BOS included."""

PCA_AXES = {
    "points": ["layer", "scatter_language", "row", "component"],
    "explained_variance_ratio": ["layer", "component"],
    "correlations": ["layer", "language", "language"],
    "correlations_interval": ["layer", "language", "language", "bound"],
    "first_component": ["layer", "language", "row"],
}
"""The arrays of `pca.npz`. `points` and their shares of variance are of a fit of two components to the scatter
languages alone, the others of a fit of one component to all languages."""


class Projection(NamedTuple):
    """Coordinates [n, components] on the axes of largest variance, and each axis's share of the variance."""

    coordinates: np.ndarray
    explained: np.ndarray


def joint_pca(states: np.ndarray, components: int) -> Projection:
    """Exact principal components of all rows together, in float64.

    Eigenvectors of the smaller of the two Gram matrices of the centred states: the singular vectors, without the cost
    of a full decomposition. A component's sign is free; here its largest coordinate is positive. States that are all
    equal have coordinates and shares of 0.

    On the host, since accelerators lack float64: on SmolLM2's states (200 rows, five layers) coordinates are within
    1e-14 of scikit-learn's full solver, relative to the largest, and within 4e-6 if Gram matrix and eigenvectors are
    float32 in jax, which on a CPU takes as long (0.5 s of processor time for 4,000 rows of 576).

    Args:
      states: float [n, D].
      components: at most min(n, D).
    """
    offsets = centred(states)
    rows_are_fewer = len(offsets) < offsets.shape[1]
    gram = offsets @ offsets.T if rows_are_fewer else offsets.T @ offsets
    largest = (len(gram) - components, len(gram) - 1)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=largest)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    coordinates = vectors * np.sqrt(values) if rows_are_fewer else offsets @ vectors
    coordinates *= np.sign(coordinates[np.abs(coordinates).argmax(axis=0), range(components)])
    return Projection(coordinates, values / (np.trace(gram) or 1.0))


def first_component(states: np.ndarray) -> np.ndarray:
    """The coordinate on the first joint component: float64 [languages, rows] of states [languages, rows, D]."""
    languages, rows, width = states.shape
    return joint_pca(states.reshape(-1, width), 1).coordinates.reshape(languages, rows)


def language_correlations(states: np.ndarray) -> np.ndarray:
    """Pearson r between languages, over the same rows, of the coordinate on the first joint component.

    0 for a language in which it does not vary, with itself too.

    Args:
      states: float [languages, rows, D], row i the same item in every language.

    Returns:
      float64 [languages, languages].
    """
    return correlations(first_component(states))


def correlation_intervals(first: np.ndarray) -> np.ndarray:
    """95 % percentile bootstrap intervals, over the rows, of the correlations: float64 [languages, languages, 2].

    The component stays as it was fitted.

    Args:
      first: `first_component`.
    """
    intervals = np.repeat(correlations(first)[:, :, None], 2, axis=2)
    one, other = np.triu_indices(len(first), 1)
    intervals[one, other] = intervals[other, one] = percentile_interval(resampled_correlations(first))
    return intervals


def pca_arrays(states: np.ndarray, scatter: Sequence[int]) -> dict[str, np.ndarray]:
    """All that `pca.npz` holds, float32.

    Args:
      states: float [languages, rows, L + 1, D].
      scatter: indices of the languages that the two-component fit is made on.
    """
    layers = range(states.shape[2])
    fits = [joint_pca(states[list(scatter), :, k].reshape(-1, states.shape[3]), 2) for k in layers]
    points = np.stack([fit.coordinates.reshape(len(scatter), -1, 2) for fit in fits])
    firsts = [first_component(states[:, :, k]) for k in layers]
    arrays = {
        "points": points,
        "explained_variance_ratio": np.stack([fit.explained for fit in fits]),
        "first_component": np.stack(firsts),
        "correlations": np.stack(list(map(correlations, firsts))),
        "correlations_interval": np.stack(list(map(correlation_intervals, firsts))),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def write_representation(run: ProbeRun, scatter_languages: Sequence[str]) -> dict[str, Any]:
    """Mean states of every language, and their PCA: writes `pca.npz` and, naming its axes, `pca.json`, to `run.out`.

    All of `run.languages` are correlated with each other in one joint fit per layer.

    Args:
      scatter_languages: some of them, fitted together in two components per layer (the study: en, de, fr, hi).

    Returns:
      The content of the JSON file.
    """
    languages = run.languages
    missing = [language for language in scatter_languages if language not in languages]
    if missing or not scatter_languages:
        raise InputError(f"pca: scatter languages {', '.join(missing) or '(none)'} are not among the probed")
    probed = list(capture_languages(run, WHOLE_PROMPTS, languages))
    rows = probed[0].rows
    if len(rows) < 3:
        raise InputError(f"pca: {len(rows)} rows of each language are too few to correlate; take at least 3")
    states = np.stack([each.states for each in probed])
    arrays = pca_arrays(states, [list(languages).index(language) for language in scatter_languages])
    document = {
        "axes": PCA_AXES,
        "layer": list(range(states.shape[2])),
        "language": list(languages),
        "scatter_language": list(scatter_languages),
        "row": rows,
        "bound": ["low", "high"],
        "task": TASK.name,
        "variant": VARIANT,
        **run.description,
    }
    write_probe(run.out, "pca", arrays, document)
    return document
