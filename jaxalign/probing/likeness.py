"""How alike two languages' states of the same rows are: linear CKA, and finding a row's translation by cosine.

Every measure is the mean of a value that each row has, so that means over drawn rows give intervals, and differences
of the same rows before and after a tuning give paired ones. Axis letters: n rows, K layers, D width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.statistics import bootstrap_intervals, centred

TIE = 1e-12
"""Cosines (float64) this near to each other are equal."""

MEASURES = ("cka", "retrieval", "reciprocal_rank", "retrieval_centred", "reciprocal_rank_centred")
"""retrieval: whether a row's English translation is nearest; *_centred: each language's mean taken off first."""
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


def row_values(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """measure -> what each row adds to its mean, [languages, K, n], from `cka_rows` and the two ranks."""
    rank, rank_centred = arrays["rank"], arrays["rank_centred"]
    values = (arrays["cka_rows"], rank == 1, 1 / rank, rank_centred == 1, 1 / rank_centred)
    return dict(zip(MEASURES, values, strict=True))


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
