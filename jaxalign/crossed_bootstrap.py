"""Mean gains over a crossed table, languages by rows (by runs), with intervals (NumPy and SciPy, no jax)."""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from jaxalign.statistics import times_drawn


class Gain(NamedTuple):
    """A mean gain with its interval, as shares."""

    mean: float
    low: float
    high: float


def crossed_bootstrap(
    before: np.ndarray,
    after: np.ndarray,
    *,
    resample_languages: bool = True,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Gain:
    """Mean gain over languages, with an interval that knows that row i is the same item in every language.

    What is resampled is what the interval speaks for. Rows always: it covers the gain on further items of this kind.
    With `resample_languages` languages too: the gain in further languages like these; without it the mean over just
    these languages. With several AFTER runs their seeds too: the recipe's gain over BEFORE; with one, that run's.
    Each is resampled whole and independently of the others (crossed, not nested), so that what items share across
    languages, or languages across items, stays in.

    Such a bootstrap overstates the variance: what belongs to single cells of the table is counted three times (seven
    times with runs; Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1:386). And percentiles of few
    languages or runs are too narrow. So the resampled means' deviations give the interval its shape alone; its width is
    that of `variance_parts`, each part times the square of Student's quantile for the fewest draws it varies over
    (after Banerjee 1960, Sankhya 22:357). Coverage in simulations: 0.94 to 0.96 with 20 languages (0.97 where items
    and languages share nothing), 0.95 or more with 2 to 5 languages or runs, whose intervals are wide.

    Args:
      before: bool or float [languages, rows], what was right, or shares 0 to 1.
      after: the same of the tuned model, [languages, rows] or [runs, languages, rows].

    Returns:
      The mean gain and its interval within [-1, 1]. Where one language (of several meant), or one row, is all there is,
      nothing is known of how others differ: the interval is [-1, 1]. Where all gains are equal it is a point.
    """
    runs = after if after.ndim == 3 else after[None]
    if before.ndim != 2 or runs.shape[1:] != before.shape or runs.size == 0:
        raise ValueError(f"{before.shape} before, {after.shape} after")
    gains = runs.astype(np.float64) - before.astype(np.float64)
    if not resample_languages:
        gains = gains.mean(axis=1, keepdims=True)
    fixed = tuple(axis for axis, kept in enumerate((len(runs) > 1, resample_languages)) if not kept)
    table = gains.squeeze(axis=fixed)
    mean = float(table.mean())
    if 1 in table.shape:
        return Gain(mean, -1.0, 1.0)
    deviations = resampled_means(table, resamples, seed) - mean
    spread = float(deviations.std())
    if spread == 0:
        return Gain(mean, mean, mean)
    tail = 0.5 - level / 2
    widest = sum(
        part * float(stdtrit(min(table.shape[axis] for axis in axes) - 1, tail)) ** 2
        for axes, part in variance_parts(table).items()
    )
    stretch = math.sqrt(widest) / (spread * -float(ndtri(tail)))
    low, high = np.clip(mean + stretch * np.quantile(deviations, [tail, 1 - tail]), -1, 1)
    return Gain(mean, float(low), float(high))


def resampled_means(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of a table whose indices along every axis were drawn anew, with replacement: float64 [resamples].

    A resample is how often each index came, so a sum is a product of the table with one vector of counts per axis.
    """
    random = np.random.default_rng(seed)
    *others, last = (times_drawn(random, size, resamples) for size in table.shape)
    sums = table @ last.T
    for counts in reversed(others):
        sums = np.einsum("...nb,bn->...b", sums, counts)
    return sums / table.size


def variance_parts(table: np.ndarray) -> dict[tuple[int, ...], float]:
    """The variance of the mean of a crossed table all of whose axes are samples, by analysis of variance.

    Each subset of axes has an effect with a variance of its own; its mean square is expected to hold those of all
    larger subsets too. They are solved for from the whole set down, none below 0.

    Args:
      table: float64 [n1, ...], every n at least 2.

    Returns:
      axes -> what their effect adds to the variance of the mean.
    """
    parts: dict[tuple[int, ...], float] = {}
    for axes in (axes for size in range(table.ndim, 0, -1) for axes in combinations(range(table.ndim), size)):
        effect = table
        for axis in range(table.ndim):
            mean = effect.mean(axis=axis, keepdims=True)
            effect = effect - mean if axis in axes else mean
        freedom = math.prod(table.shape[axis] - 1 for axis in axes)
        of_mean = float(np.square(effect).mean()) / freedom
        parts[axes] = max(0.0, of_mean - sum(part for other, part in parts.items() if set(axes) < set(other)))
    return parts
