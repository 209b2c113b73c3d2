import numpy as np
import pytest
from scipy.stats import binomtest

from jaxalign.statistics import mean_and_half_width, wilson_interval


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (412, 500), (1, 10_000)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_interval_is_scipys(correct: int, count: int, level: float):
    expected = binomtest(correct, count).proportion_ci(level, method="wilson")
    # The same formula in float64, operations in another order.
    assert wilson_interval(correct, count, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct: int, count: int):
    with pytest.raises(ValueError, match="trials"):
        wilson_interval(correct, count)


def test_band_is_the_normal_interval_of_the_mean():
    samples = np.array([[1.0, 10.0], [2.0, 10.0], [6.0, 10.0]])
    mean, half_width = mean_and_half_width(samples)
    np.testing.assert_allclose(mean, [3.0, 10.0])
    # Deviations -2, -1, 3: sample variance 14 / 2 = 7.
    np.testing.assert_allclose(half_width, [1.96 * (7 / 3) ** 0.5, 0.0])


def test_band_of_one_sample_and_of_none():
    mean, half_width = mean_and_half_width(np.array([[4.0, 5.0]]))
    assert mean.tolist() == [4.0, 5.0] and half_width.tolist() == [0.0, 0.0]
    assert all(np.isnan(array).all() and array.shape == (2,) for array in mean_and_half_width(np.zeros((0, 2))))
