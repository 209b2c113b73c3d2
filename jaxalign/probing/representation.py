"""Where languages lie in each layer: mean states of parallel prompts, joint PCA, correlations along its first axis.

Layers are counted as transformers' `hidden_states`: k = 0 the embeddings, k = 1..L-1 after block k, k = L after block
L and the final norm. Axis letters: B batch, T positions, L layers, D width.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jaxalign.errors import InputError
from jaxalign.model.prompt_batches import PromptFunction, PromptRunner, decode_prompts
from jaxalign.model.transformer import Decoder
from jaxalign.probing.prompts import TASK, VARIANT, ProbeData, probe_prompts
from jaxalign.probing.records import write_probe
from jaxalign.probing.run import ProbeRun


def mean_states_function(decoder: Decoder) -> PromptFunction:
    """States averaged over all positions of each prompt, BOS included: float32 [B, L + 1, D]."""

    def mean_states(variables: Any, tokens: jax.Array, lengths: jax.Array, extra: Any) -> jax.Array:
        real = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1) < lengths[:, None]

        def mean(states: jax.Array) -> jax.Array:
            kept = jnp.where(real[:, :, None], states.astype(jnp.float32), 0.0)
            return kept.sum(axis=1) / lengths[:, None].astype(jnp.float32)

        def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> jax.Array:
            return mean(hidden)

        output = decode_prompts(decoder, variables, tokens, lengths, tap)
        embeddings: Any = decoder.apply(variables, tokens, method="embed")
        states = [mean(embeddings)[None], output.taps[:-1], mean(output.hidden)[None]]
        return jnp.moveaxis(jnp.concatenate(states), 0, 1)

    return mean_states


class Projection(NamedTuple):
    """Coordinates [n, components] on the axes of largest variance, and each axis's share of the variance."""

    coordinates: np.ndarray
    explained: np.ndarray


def joint_pca(states: np.ndarray, components: int) -> Projection:
    """Exact principal components of all rows together, in float64.

    Eigenvectors of the smaller of the two Gram matrices of the centred states: the singular vectors, without the cost
    of a full decomposition. A component's sign is free; here its largest coordinate is positive.

    Args:
      states: float [n, D].
      components: at most min(n, D).
    """
    centred = states.astype(np.float64) - states.mean(axis=0, dtype=np.float64)
    rows_are_fewer = len(centred) < centred.shape[1]
    gram = centred @ centred.T if rows_are_fewer else centred.T @ centred
    largest = (len(gram) - components, len(gram) - 1)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=largest)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    coordinates = vectors * np.sqrt(values) if rows_are_fewer else centred @ vectors
    coordinates *= np.sign(coordinates[np.abs(coordinates).argmax(axis=0), range(components)])
    return Projection(coordinates, values / np.trace(gram))


def language_correlations(states: np.ndarray) -> np.ndarray:
    """Pearson r between languages, over the same rows, of the coordinate on the first joint component.

    Args:
      states: float [languages, rows, D], row i the same item in every language.

    Returns:
      float64 [languages, languages].
    """
    languages, rows, width = states.shape
    first = joint_pca(states.reshape(-1, width), 1).coordinates.reshape(languages, rows)
    return np.corrcoef(first).reshape(languages, languages)


def language_states(
    runner: PromptRunner,
    variables: Any,
    data: ProbeData,
    language: str,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> tuple[list[int], np.ndarray]:
    """Row numbers and mean states [rows, L + 1, D] of one language; `runner` holds `mean_states_function`."""
    rows, prompts = probe_prompts(data, language)
    states = runner(variables, prompts, (), on_rows)
    finite = np.isfinite(states).all(axis=(1, 2))
    if not finite.all():
        raise InputError(
            f"{language}, row {rows[int(np.argmin(finite))].row}: hidden states are not finite; "
            "check the weights, or compute in float32"
        )
    return [row.row for row in rows], states


def pca_arrays(states: np.ndarray, scatter: Sequence[int]) -> dict[str, np.ndarray]:
    """All that `pca.npz` holds, float32.

    Args:
      states: float [languages, rows, L + 1, D].
      scatter: indices of the languages that the two-component fit is made on.
    """
    layers = range(states.shape[2])
    fits = [joint_pca(states[list(scatter), :, k].reshape(-1, states.shape[3]), 2) for k in layers]
    points = np.stack([fit.coordinates.reshape(len(scatter), -1, 2) for fit in fits])
    correlations = np.stack([language_correlations(states[:, :, k]) for k in layers])
    explained = np.stack([fit.explained for fit in fits])
    arrays = {"points": points, "explained_variance_ratio": explained, "correlations": correlations}
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
    runner = run.runner(mean_states_function(run.decoder))
    variables = runner.place(run.variables)
    probed = {language: language_states(runner, variables, run.data, language, run.on_rows) for language in languages}
    for (first, (first_rows, _)), (second, (second_rows, _)) in pairwise(probed.items()):
        if first_rows != second_rows:
            raise InputError(f"pca: {first} and {second} have different rows; PCA compares the same rows")
    rows = next(iter(probed.values()))[0]
    if len(rows) < 3:
        raise InputError(f"pca: {len(rows)} rows of each language are too few to correlate; take at least 3")
    states = np.stack([states for _, states in probed.values()])
    arrays = pca_arrays(states, [list(languages).index(language) for language in scatter_languages])
    document = {
        "axes": {
            "points": ["layer", "scatter_language", "row", "component"],
            "explained_variance_ratio": ["layer", "component"],
            "correlations": ["layer", "language", "language"],
        },
        "layer": list(range(states.shape[2])),
        "language": list(languages),
        "scatter_language": list(scatter_languages),
        "row": rows,
        "task": TASK.name,
        "variant": VARIANT,
        **run.description,
    }
    write_probe(run.out, "pca", arrays, document)
    return document
