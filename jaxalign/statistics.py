"""Intervals for the figures of a report (NumPy and SciPy, no jax)."""

import math

import numpy as np
from scipy.special import ndtri


def wilson_interval(correct: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), without continuity correction.

    Args:
      correct: successes, 0 <= correct <= count.
      count: trials, at least 1.
      level: coverage, 0 < level < 1.

    Returns:
      (low, high), both within [0, 1].
    """
    if not 0 <= correct <= count or count == 0:
        raise ValueError(f"{correct} successes in {count} trials")
    z = float(ndtri(0.5 + level / 2))
    share, shrink = correct / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_half_width(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over axis 0 and the half-width of its 95 % band, 1.96 s / sqrt(n) with the sample deviation s.

    Args:
      samples: float [n, ...]. With n = 1 the half-width is 0, with n = 0 both are NaN.

    Returns:
      float64 [...] twice.
    """
    count = len(samples)
    if count == 0:
        return np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
    mean = samples.mean(axis=0, dtype=np.float64)
    deviation = samples.std(axis=0, ddof=1, dtype=np.float64) if count > 1 else np.zeros_like(mean)
    return mean, 1.96 * deviation / math.sqrt(count)
