"""Where languages lie in each layer: mean states of parallel prompts, joint PCA, correlations along its first axis.

Layers are counted as in `capture`, 0 to L. Axis letters: L layers, D width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from jaxalign.errors import InputError
from jaxalign.probing.capture import Capture, capture_languages
from jaxalign.probing.prompts import TASK, VARIANT
from jaxalign.probing.records import write_probe
from jaxalign.probing.run import ProbeRun
from jaxalign.statistics import centred, correlations, percentile_interval, resampled_correlations

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
