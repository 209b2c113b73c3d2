"""How alike languages lie in each layer, and where: measures of their states of parallel prompts.

`geometry` compares each language with English row by row: linear CKA, and finding a row's translation by cosine. Every
measure is the mean of a value that each row has, so that means over drawn rows give intervals, and differences of the
same rows before and after a tuning give paired ones. `pca` puts all languages on joint axes and correlates them.

Layers are counted as in `capture`, 0 to L. Axis letters: n rows, K or L layers, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from jaxalign.probe_files import PROBE_ARRAYS, Probe
from jaxalign.probing.capture import Capture, capture_languages, captured_layers
from jaxalign.probing.probe import TASK, VARIANT, ProbeRun
from jaxalign.statistics import (
    bootstrap_intervals,
    centred,
    correlations,
    percentile_interval,
    resampled_correlations,
    row_values,
)

ENGLISH = "en"
TIE = 1e-12
"""Cosines (float64) this near to each other are equal."""
LEAST_ROWS = 3
"""CKA without one row still needs two, and a correlation of fewer rows says nothing."""


def linear_cka(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float]:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414, section 3) and each row's part in it.

    With the columns of X and Y centred, CKA = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F), between 0 and 1. Computed from the
    Gram matrices A = X X^T and B = Y Y^T, where |Y^T X|_F^2 = sum(A * B). Without row i (and centred anew) that sum is
    sum(A * B) - 2 c sum_j(A * B)_ij + c^2 (A * B)_ii with c = n / (n - 1). A row's value is CKA plus n - 1 times what
    its absence takes from CKA (Tukey's pseudo-value, moved so that their mean is CKA).

    Args:
      first, second: float [n, D] of the same n >= 3 rows; widths may differ. Where one does not vary over the rows
        they have nothing in common: 0.

    Returns:
      float64 [n], whose mean is the CKA; and its mean over all orders of one set's rows, well above 0 where rows are
      not many more than dimensions.
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
    return rows, float(chance)


def ranks(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Where a row's own candidate stands among all candidates by cosine: int32 [n] of float [n, D], 1 is nearest.

    Ties count against it, so that states that are all equal find nothing. The cosine with a state of zeros is 0.
    """
    units = []
    for states in (queries, candidates):
        norms = np.linalg.norm(states.astype(np.float64), axis=1, keepdims=True)
        units.append(np.divide(states, norms, out=np.zeros(states.shape), where=norms > 0))
    cosines = units[0] @ units[1].T
    return (cosines >= np.diag(cosines)[:, None] - TIE).sum(axis=1).astype(np.int32)


class LayerGeometry(NamedTuple):
    """One language against English in some layers; the names are those of `geometry.npz`."""

    cka_rows: np.ndarray
    """float64 [K, n], see `linear_cka`"""
    cka_chance: np.ndarray
    """float64 [K]"""
    rank: np.ndarray
    """int32 [K, n], of the row's English states among all English rows"""
    rank_centred: np.ndarray
    """the same after each language's mean is taken off"""


def language_geometry(states: np.ndarray, english: np.ndarray) -> LayerGeometry:
    """Compares states float [n, K, D] with English ones of the same rows, layer by layer."""
    layers = [
        (*linear_cka(*pair), ranks(*pair), ranks(*map(centred, pair)))
        for pair in ((states[:, k], english[:, k]) for k in range(states.shape[1]))
    ]
    return LayerGeometry(*map(np.stack, zip(*layers, strict=True)))


def geometry_arrays(languages: Sequence[LayerGeometry]) -> dict[str, np.ndarray]:
    """All that `geometry.npz` holds, float32 but for the int32 ranks.

    Intervals are 95 % percentile bootstrap intervals over the rows, within [0, 1]; the candidates that a row is sought
    among stay the same. That of CKA is of its linearisation, and so rather too wide than too narrow (Efron and Stein
    1981): rows drawn twice would raise CKA itself.
    """
    stacked = LayerGeometry(*map(np.stack, zip(*languages, strict=True)))._asdict()
    arrays = {"cka_rows": stacked["cka_rows"], "cka_chance": stacked["cka_chance"]}
    for measure, values in row_values(stacked).items():
        bounds = np.clip(bootstrap_intervals(values), 0, 1)
        arrays |= {measure: values.mean(axis=-1), f"{measure}_interval": bounds}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {name: stacked[name] for name in ("rank", "rank_centred")}


def geometry(run: ProbeRun, capture: Capture) -> Probe:
    """Compares every language with English, one of the run's, by the states that `capture` says."""
    others = [language for language in run.languages if language != ENGLISH]
    # English first: of the others, one at a time is held.
    captured = capture_languages(run, capture, [ENGLISH, *others])
    _, english = next(captured)
    arrays = geometry_arrays([language_geometry(states, english) for _, states in captured])
    document = {
        "axes": PROBE_ARRAYS["geometry"],
        "layer": list(captured_layers(capture, run.config.layers)),
        "language": others,
        "row": run.texts[ENGLISH].numbers,
        "bound": ["low", "high"],
        "position": str(capture.position),
        "compared_with": ENGLISH,
        "task": TASK.name,
        "variant": VARIANT,
    }
    return Probe(arrays, document)


WHOLE_PROMPTS = Capture(layers=None, position="prompt_mean")
"""What the study analyses: every layer, averaged over all positions of a prompt, BOS included."""


def joint_pca(states: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact principal components of all rows together, in float64.

    Eigenvectors of the smaller of the two Gram matrices of the centred states: the singular vectors, without the cost
    of a full decomposition; on the host, since accelerators lack float64. A component's sign is free; here its largest
    coordinate is positive. States that are all equal have coordinates and shares of 0.

    Args:
      states: float [n, D].
      components: at most min(n, D).

    Returns:
      Coordinates [n, components] on the axes of largest variance, and each axis's share of the variance.
    """
    offsets = centred(states)
    rows_are_fewer = len(offsets) < offsets.shape[1]
    gram = offsets @ offsets.T if rows_are_fewer else offsets.T @ offsets
    largest = (len(gram) - components, len(gram) - 1)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=largest)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    coordinates = vectors * np.sqrt(values) if rows_are_fewer else offsets @ vectors
    coordinates *= np.sign(coordinates[np.abs(coordinates).argmax(axis=0), range(components)])
    return coordinates, values / (np.trace(gram) or 1.0)


def first_component(states: np.ndarray) -> np.ndarray:
    """The coordinate on the first joint component: float64 [languages, rows] of states [languages, rows, D]."""
    languages, rows, width = states.shape
    return joint_pca(states.reshape(-1, width), 1)[0].reshape(languages, rows)


def correlation_intervals(first: np.ndarray) -> np.ndarray:
    """95 % percentile bootstrap intervals, over the rows, of the correlations of `first_component`, which stays as it
    was fitted: float64 [languages, languages, 2]."""
    intervals = np.repeat(correlations(first)[:, :, None], 2, axis=2)
    one, other = np.triu_indices(len(first), 1)
    intervals[one, other] = intervals[other, one] = percentile_interval(resampled_correlations(first))
    return intervals


def pca_arrays(states: np.ndarray, scatter: Sequence[int]) -> dict[str, np.ndarray]:
    """All that `pca.npz` holds, float32.

    `correlations` are Pearson's r between languages, over the same rows, of the first joint component's coordinate.

    Args:
      states: float [languages, rows, L + 1, D], row i the same item in every language.
      scatter: indices of the languages that the two-component fit is made on.
    """
    layers = range(states.shape[2])
    fits = [joint_pca(states[list(scatter), :, k].reshape(-1, states.shape[3]), 2) for k in layers]
    firsts = [first_component(states[:, :, k]) for k in layers]
    arrays = {
        "points": np.stack([points.reshape(len(scatter), -1, 2) for points, _ in fits]),
        "explained_variance_ratio": np.stack([explained for _, explained in fits]),
        "first_component": np.stack(firsts),
        "correlations": np.stack(list(map(correlations, firsts))),
        "correlations_interval": np.stack(list(map(correlation_intervals, firsts))),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def pca(run: ProbeRun, scattered: Sequence[str]) -> Probe:
    """Correlates the mean states of all languages with each other, in one joint fit per layer; those `scattered` are
    fitted together in two components per layer (the study: en, de, fr, hi)."""
    languages = run.languages
    states = np.stack([states for _, states in capture_languages(run, WHOLE_PROMPTS, languages)])
    document = {
        "axes": PROBE_ARRAYS["pca"],
        "layer": list(range(states.shape[2])),
        "language": languages,
        "scatter_language": list(scattered),
        "row": run.texts[languages[0]].numbers,
        "bound": ["low", "high"],
        "task": TASK.name,
        "variant": VARIANT,
    }
    return Probe(pca_arrays(states, [languages.index(language) for language in scattered]), document)
