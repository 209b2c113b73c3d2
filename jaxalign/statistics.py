"""Intervals, paired tests, multiplicity, and mean gains over crossed tables: languages by rows (by runs). No jax.

One rule for input that leaves nothing to measure, kept here and by every probe. What does not vary has nothing in
common with anything, itself included: its correlation, CKA, cosine and share of variance are 0, its coordinates and
energy too, its bootstrap interval is a point and its p-value 1. Of no rows there is no mean: NaN, which is not drawn.
Nothing else makes a NaN of finite numbers, and NumPy has nothing to warn of. A NaN that was there stays, or is refused,
and makes no mean significant.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtr, ndtri, stdtrit

MEASURES = ("cka", "retrieval", "reciprocal_rank", "retrieval_centred", "reciprocal_rank_centred")
"""Of how alike two languages' states of the same rows are. retrieval: whether a row's translation is nearest;
*_centred: each language's mean taken off first."""
NOISE = 1e-12
"""Relative to the largest number beside it, what is no larger came of rounding."""


def row_values(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """measure -> what each row adds to its mean, [languages, layers, n], from `cka_rows` and the two ranks."""
    rank, rank_centred = arrays["rank"], arrays["rank_centred"]
    values = (arrays["cka_rows"], rank == 1, 1 / rank, rank_centred == 1, 1 / rank_centred)
    return dict(zip(MEASURES, values, strict=True))


def centred(values: np.ndarray) -> np.ndarray:
    """Rows minus their mean, float64 [n, ...]; exactly 0 in columns that do not vary."""
    mean = values.mean(axis=0, dtype=np.float64)
    offsets = values.astype(np.float64) - mean
    return np.where(np.abs(offsets).max(axis=0) <= 0.01 * NOISE * np.abs(mean), 0.0, offsets)


def standardised(series: np.ndarray) -> np.ndarray:
    """Series in units of their own deviation, about their mean: float64 [k, n] of float [k, n].

    A series that varies by no more than rounding, next to the largest number of all series, is 0.
    """
    offsets = series - series.mean(axis=1, keepdims=True, dtype=np.float64)
    deviations = offsets.std(axis=1, keepdims=True)
    is_constant = deviations <= NOISE * np.fmax.reduce(np.abs(series), axis=None, initial=0)  # passes over NaN
    return np.divide(offsets, deviations, out=np.zeros_like(offsets), where=~is_constant)


def correlations(series: np.ndarray) -> np.ndarray:
    """Pearson's r of every two series: float64 [k, k] of float [k, n], n >= 1; 0 where one of the two does not vary."""
    scaled = standardised(series)
    return np.clip(scaled @ scaled.T / series.shape[1], -1, 1)


def wilson_interval(correct: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion (Wilson 1927), without continuity correction; count >= 1."""
    from scipy.stats import binomtest  # slow to import, as binom below

    interval = binomtest(correct, count).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mean_and_half_width(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over axis 0 and the half-width of its 95 % band, 1.96 s / sqrt(n) with the sample deviation s.

    float64 [...] twice, of float [n, ...]. With n = 1 the half-width is 0, with n = 0 both are NaN.
    """
    count = len(samples)
    if count == 0:
        return np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
    mean = samples.mean(axis=0, dtype=np.float64)
    deviation = samples.std(axis=0, ddof=1, dtype=np.float64) if count > 1 else np.zeros_like(mean)
    return mean, 1.96 * deviation / math.sqrt(count)


def bootstrap_intervals(values: np.ndarray, *, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> np.ndarray:
    """Percentile bootstrap intervals of means of independent values (Efron 1979): float64 [..., 2] of [..., n], n >= 1.

    All means are over the same rows, which are drawn together. Percentile and not BCa: on shares of right answers of
    0.3 to 0.95 in 60 rows or more both cover within two points of what they promise or more, and BCa is undefined where
    all values are equal. There the interval is a point; for right and wrong answers prefer `wilson_interval`.
    """
    if values.size == 0:
        raise ValueError(f"values of shape {values.shape}")
    counts = times_drawn(np.random.default_rng(seed), values.shape[-1], resamples)
    means = values.astype(np.float64) @ counts.T / values.shape[-1]
    return percentile_interval(means, level)


def percentile_interval(drawn: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Between which bounds that share of resampled values lies: float64 [..., 2] of float [..., resamples]."""
    return np.moveaxis(np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=-1), 0, -1)


def resampled_correlations(series: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Pearson's r of every pair of series in resamples of their rows, which are drawn for all series together.

    float64 [pairs, resamples] of float [k, n], pairs as in `np.triu_indices(k, 1)`; 0 where one of the two does not
    vary over the rows drawn.
    """
    shares = times_drawn(np.random.default_rng(seed), series.shape[1], resamples).T / series.shape[1]
    # In units of its own deviation, each series is as far from rounding as any other.
    scaled = standardised(series)
    means = scaled @ shares
    variances = scaled**2 @ shares - means**2
    varies = ~(variances <= 1e-9)  # NaN too
    spreads = np.sqrt(np.where(varies, variances, 1))
    one, other = np.triu_indices(len(series), 1)
    covariances = (scaled[one] * scaled[other]) @ shares - means[one] * means[other]
    return np.where(varies[one] & varies[other], covariances / (spreads[one] * spreads[other]), 0)


def times_drawn(random: np.random.Generator, size: int, resamples: int) -> np.ndarray:
    """How often each of `size` indices is among `size` drawn with replacement: float64 [resamples, size]."""
    drawn = random.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size).astype(np.float64)


def sign_flip_p_values(differences: np.ndarray, *, flips: int = 4999, seed: int = 0) -> np.ndarray:
    """Two-sided p-values of paired means: could before and after be exchanged in every row (Fisher 1935)?

    Where they could, each row's difference has either sign with equal chance. The p-value is the share of random flips
    whose mean is as far from 0 as the one found, which counts among them (so it is at least 1 / (flips + 1)).
    float64 [...] of the differences, float [..., n]; the same flips for all means.
    """
    count = differences.shape[-1]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(count, flips))
    found = np.abs(differences.astype(np.float64).sum(axis=-1, keepdims=True))
    # Sums that are equal on paper differ in their last digits.
    as_far = ~(np.abs(differences @ signs) < found * (1 - 1e-9) - 1e-12)
    return (1 + as_far.sum(axis=-1)) / (flips + 1)


class McNemar(NamedTuple):
    """An exact McNemar test of two runs on the same rows; the p-value is two-sided."""

    lost: int  # rows right before and wrong after
    won: int
    p_value: float


def mcnemar_exact(before: np.ndarray, after: np.ndarray) -> McNemar:
    """Were as many rows lost as won? The exact binomial test on the rows whose answers differ (McNemar 1947).

    Args:
      before, after: bool [n], what was right in each run, on the same rows in the same order.
    """
    if before.ndim != 1 or before.shape != after.shape or before.dtype != bool or after.dtype != bool:
        raise ValueError(f"{before.dtype} {before.shape} before, {after.dtype} {after.shape} after")
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return McNemar(lost, won, min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5))))


@lru_cache(maxsize=4096)
def smallest_detectable_difference(count: int, discordant: float, *, level: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference in accuracy that the exact McNemar test finds often enough.

    A difference d needs a share of at least d of the rows to differ. So the share is max(discordant, d), of which
    (share + d) / 2 are won and (share - d) / 2 lost. The power is summed exactly over the number of rows that differ.

    Args:
      count: paired rows.
      discordant: share of rows that differ between the runs, 0 to 1.
      level: of the two-sided test, 0 < level < 1.
      power: chance to find it, in its own direction; level < power < 1.

    Returns:
      A share, 0 to 1; infinite where not even a difference of 1 is found (with level 0.05 below six rows).
    """
    if count < 0 or not 0 <= discordant <= 1 or not 0 < level < power < 1:
        raise ValueError(f"{count} rows, a share of {discordant} differing, level {level}, power {power}")
    from scipy.stats import binom

    differing = np.arange(count + 1)
    # The most losses among so many differing rows that the test still finds significant, -1 for none.
    allowed = binom.ppf(level / 2, differing, 0.5)
    allowed -= bdtr(allowed, differing, 0.5) > level / 2

    def missing_power(difference: float) -> float:
        share = max(discordant, difference)
        lost = (1 - difference / share) / 2
        found = np.where(allowed >= 0, bdtr(np.maximum(allowed, 0), differing, lost), 0.0)
        return power - float(binom.pmf(differing, count, share) @ found)

    if missing_power(1.0) > 0:
        return math.inf
    return float(brentq(missing_power, 1e-9, 1.0, xtol=1e-9))


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values [m] adjusted so that marking those <= a has a chance of at most a of one false mark (Holm 1979).

    Holds under any dependence of the tests.
    """
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p-values {p_values}")
    order = np.argsort(p_values)
    steps = np.maximum.accumulate(p_values[order].astype(np.float64) * np.arange(len(order), 0, -1))
    return np.minimum(steps, 1)[np.argsort(order)]


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
    (after Banerjee 1960, Sankhya 22:357). tests/test_statistics_simulation.py measures the coverage.

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
