import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap, permutation_test, ttest_1samp
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from jaxalign.statistics import (
    bootstrap_intervals,
    centred,
    correlations,
    crossed_bootstrap,
    holm,
    mcnemar_exact,
    mean_and_half_width,
    resampled_correlations,
    resampled_means,
    sign_flip_p_values,
    smallest_detectable_difference,
    variance_parts,
    wilson_interval,
)


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (412, 500), (1, 10_000)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_interval_is_statsmodels(correct: int, count: int, level: float):
    statsmodels = proportion_confint(correct, count, 1 - level, method="wilson")
    # The same formula in float64, operations in another order.
    assert wilson_interval(correct, count, level) == pytest.approx(statsmodels, abs=1e-12)


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


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_bootstrap_interval_is_scipys_percentile_interval(level: float):
    random = np.random.default_rng(0)
    for values in (random.exponential(size=80), random.random(200) < 0.85):
        scipys = bootstrap(
            (values.astype(float),),
            np.mean,
            method="percentile",
            n_resamples=20_000,
            confidence_level=level,
            rng=random,
        )
        found = interval(values, resamples=20_000, level=level)
        # Both ends are quantiles of 20,000 draws, with a standard error below 3 % of the mean's own; shares of right
        # answers come in steps, and the two may fall to either side of one.
        step = 1 / len(values) if values.dtype == bool else 0
        expected = scipys.confidence_interval.low, scipys.confidence_interval.high
        assert found == pytest.approx(expected, abs=0.1 * scipys.standard_error + step)


def interval(values: np.ndarray, **settings: Any) -> tuple[float, float]:
    low, high = bootstrap_intervals(values, **settings).tolist()
    return low, high


def test_many_bootstrap_intervals_are_those_of_each():
    values = np.random.default_rng(3).normal(size=(2, 3, 25))
    found = bootstrap_intervals(values, resamples=300, seed=4)
    each = [[interval(row, resamples=300, seed=4) for row in rows] for rows in values]
    np.testing.assert_allclose(found, each, rtol=1e-12)
    with pytest.raises(ValueError):
        bootstrap_intervals(np.zeros((2, 0)))


def test_resampled_correlations_are_numpys_of_the_rows_drawn():
    random = np.random.default_rng(8)
    shared = random.normal(size=12)
    # The second is far from 0 and of other units, the fourth does not vary.
    series = np.stack([shared, 1e4 + 1e-2 * (shared + random.normal(size=12)), random.normal(size=12), np.ones(12)])
    found = resampled_correlations(series, resamples=60, seed=2)
    drawn = np.random.default_rng(2).integers(12, size=(60, 12))
    expected = np.array([np.corrcoef(series[:3, rows]) for rows in drawn])
    # Pairs 01, 02, 03, 12, 13, 23.
    np.testing.assert_allclose(found[[0, 1, 3]], expected[:, [0, 0, 1], [1, 2, 2]].T, atol=1e-8)
    assert found.shape == (6, 60) and not found[[2, 4, 5]].any()
    # Of three rows the same one is often drawn three times.
    assert set(resampled_correlations(np.array([[1.0, 2.0, 4.0]] * 2))[0].round(9)) == {0, 1}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -7e4])
def test_what_does_not_vary_has_nothing_in_common_with_anything(dtype: type, value: float):
    """Not with itself either; and its rounding is no variation."""
    varied = np.random.default_rng(0).normal(size=(2, 30)).astype(dtype)
    series = np.stack([varied[0], np.full(30, value, dtype), varied[1]])
    if dtype is np.float64:
        series[1, ::3] = np.nextafter(series[1, ::3], np.inf)
    found = correlations(series)
    assert (found[1] == 0).all() and (found[:, 1] == 0).all()
    np.testing.assert_allclose(found[::2, ::2], np.corrcoef(varied), rtol=1e-12)
    drawn = resampled_correlations(series)
    assert (drawn[[0, 2]] == 0).all() and np.abs(drawn[1]).max() > 0
    assert (correlations(series[1:2]) == 0).all() and (correlations(series[:, :1]) == 0).all()
    assert (centred(np.full((30, 4), value, dtype)) == 0).all()
    low, high = interval(series[1])
    assert low == pytest.approx(value) and high == pytest.approx(value)
    assert sign_flip_p_values(np.zeros((2, 30), dtype)).tolist() == [1, 1]
    assert mcnemar_exact(series[1] > 1e9, series[1] > 1e9).p_value == 1
    gain = crossed_bootstrap(np.zeros((3, 30)), np.zeros((3, 30)))
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)


@pytest.mark.filterwarnings("error")
def test_what_is_no_number_stays_so_and_is_never_significant():
    series = np.random.default_rng(0).normal(size=(4, 9))
    series[1, 4], series[3] = np.nan, 0
    found = correlations(series)
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert (np.diag(found)[[0, 2]] == 1).all() and found[3, 0] == found[3, 3] == 0
    assert np.isnan(resampled_correlations(series)[[0, 3]]).all()
    assert np.isnan(centred(series.T)[:, 1]).all() and np.isfinite(centred(series.T)[:, [0, 2, 3]]).all()
    assert sign_flip_p_values(series)[1] == 1


def test_sign_flips_are_scipys_exact_permutation_test():
    differences = np.random.default_rng(5).normal([[0.0], [0.5], [1.0], [1.5]], size=(4, 9))
    # All 512 ways to flip nine signs.
    exact = [permutation_test((row,), np.mean, permutation_type="samples").pvalue for row in differences]
    # Of 20,000 random flips: three standard errors are 0.011 at most.
    np.testing.assert_allclose(sign_flip_p_values(differences, flips=20_000), exact, atol=0.011)
    assert min(exact) < 0.05 and max(exact) > 0.2


def test_sign_flips_of_equal_and_of_no_differences():
    np.testing.assert_array_equal(sign_flip_p_values(np.zeros((2, 6))), [1, 1])
    # Only the two flips that turn all or none of ten reach the mean: 2 of 1,024.
    assert sign_flip_p_values(np.full(10, 0.1), flips=20_000) == pytest.approx(2 / 1024, abs=0.001)
    assert sign_flip_p_values(np.ones(40), flips=99) == pytest.approx(0.01)


def test_bootstrap_interval_follows_its_seed():
    values = np.random.default_rng(0).random(50)
    assert interval(values, seed=1) == interval(values, seed=1) != interval(values, seed=2)
    assert interval(np.ones(9)) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"\(0,\)"):
        interval(np.zeros(0))


def answers(lost: int, won: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runs with so many rows lost, won and alike: bool [rows] twice."""
    before = np.array([True] * lost + [False] * won + [index % 2 == 0 for index in range(same)])
    return before, np.concatenate([~before[: lost + won], before[lost + won :]])


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (0, 6), (5, 5), (5, 4), (3, 14), (30, 12), (200, 260)])
def test_mcnemar_is_statsmodels_and_the_sign_test(lost: int, won: int):
    before, after = answers(lost, won, same=40)
    test = mcnemar_exact(before, after)
    table = pd.crosstab(pd.Categorical(before, [False, True]), pd.Categorical(after, [False, True]), dropna=False)
    assert (test.lost, test.won) == (lost, won) == (table.loc[True, False], table.loc[False, True])
    # The same binomial tail from another incomplete beta function.
    assert test.p_value == pytest.approx(mcnemar(table.to_numpy(), exact=True).pvalue if lost + won else 1, rel=1e-10)
    assert test.p_value == pytest.approx(binomtest(lost, lost + won).pvalue if lost + won else 1, rel=1e-10)
    assert mcnemar_exact(after, before) == (won, lost, test.p_value)


def test_mcnemar_refuses_what_is_not_paired_answers():
    right = np.ones(3, dtype=bool)
    for before, after in [(right, right[:2]), (right.astype(float), right), (right[None], right[None])]:
        with pytest.raises(ValueError, match="before"):
            mcnemar_exact(before, after)


P_VALUES = {
    "random": np.random.default_rng(3).random(60) ** 3,
    "ties": np.array([0.01, 0.04, 0.01, 0.04, 0.04, 1.0, 1.0]),
    "one": np.array([0.02]),
    "ends": np.array([0.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("p_values", P_VALUES.values(), ids=P_VALUES.keys())
def test_adjusted_p_values_are_statsmodels(p_values: np.ndarray):
    # Products and minima of float64 numbers: equal but for the order of two factors.
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], rtol=1e-14)


def test_adjusting_none_or_nonsense():
    assert holm(np.zeros(0)).shape == (0,)
    for wrong in ([0.1, np.nan], [1.1], [-0.1], [[0.5]]):
        with pytest.raises(ValueError, match="p-values"):
            holm(np.array(wrong))


def power(count: int, discordant: float, difference: float, level: float) -> float:
    """Chance of a significant test in the difference's direction, summed over every outcome, tests by scipy."""
    share = max(discordant, difference)
    won_of = (share + difference) / (2 * share)
    total = 0.0
    for differing in range(count + 1):
        for lost in range(differing + 1):
            if 2 * lost < differing and binomtest(lost, differing).pvalue <= level:
                ways = math.comb(count, differing) * math.comb(differing, lost)
                cells = won_of ** (differing - lost) * (1 - won_of) ** lost * share**differing
                total += ways * cells * (1 - share) ** (count - differing)
    return total


@pytest.mark.parametrize(
    ("count", "discordant", "level", "wanted"), [(25, 0.3, 0.05, 0.8), (25, 0.9, 0.05, 0.5), (18, 0.0, 0.2, 0.9)]
)
def test_smallest_detectable_difference_has_the_power(count: int, discordant: float, level: float, wanted: float):
    found = smallest_detectable_difference(count, discordant, level=level, power=wanted)
    # The root is found to 1e-9; the power rises by less than 20 per unit of the difference.
    assert power(count, discordant, found, level) == pytest.approx(wanted, abs=1e-7)
    assert power(count, discordant, found - 0.01, level) < wanted - 0.005


def test_smallest_detectable_difference_is_found_so_often():
    random, trials = np.random.default_rng(0), 4000
    found = smallest_detectable_difference(60, 0.3)
    draws = random.choice(3, size=(trials, 60), p=[0.7, (0.3 + found) / 2, (0.3 - found) / 2])
    tests = [mcnemar_exact(draw == 2, draw == 1) for draw in draws]
    share = np.mean([test.won > test.lost and test.p_value <= 0.05 for test in tests])
    assert abs(share - 0.8) < 2.58 * math.sqrt(0.8 * 0.2 / trials)


def test_smallest_detectable_difference_at_its_ends():
    # Six rows all won have p = 2 / 64; five have 2 / 32.
    assert smallest_detectable_difference(5, 0.5) == smallest_detectable_difference(0, 0.0) == math.inf
    assert smallest_detectable_difference(6, 0.5) == pytest.approx(0.8 ** (1 / 6), abs=1e-8)
    by_count = [smallest_detectable_difference(count, 0.2) for count in (60, 250, 1000)]
    by_share = [smallest_detectable_difference(250, share) for share in (0.0, 0.2, 1.0)]
    assert by_count == sorted(by_count, reverse=True) and by_share == sorted(by_share)
    with pytest.raises(ValueError, match="12"):
        smallest_detectable_difference(60, 12)


def test_resamples_draw_every_axis_whole():
    table = np.random.default_rng(0).standard_normal((3, 5, 30)).cumsum(axis=2)
    random = np.random.default_rng(1)
    by_index = [
        table[np.ix_(*(random.integers(size, size=size) for size in table.shape))].mean() for _ in range(20_000)
    ]
    found = resampled_means(table, 20_000, seed=0)
    # A standard deviation of 20,000 draws is known to 0.5 %, their difference to 0.7 %; quantiles likewise.
    assert np.std(found) == pytest.approx(np.std(by_index), rel=0.03)
    tails = [0.025, 0.5, 0.975]
    np.testing.assert_allclose(
        np.quantile(found, tails), np.quantile(by_index, tails), atol=0.06 * float(np.std(by_index))
    )


def mean_squares(table: np.ndarray, formula: str) -> dict[str, float]:
    names = "abc"[: table.ndim]
    frame = pd.DataFrame({name: index.ravel() for name, index in zip(names, np.indices(table.shape), strict=True)})
    found = anova_lm(ols(formula, frame.assign(y=table.ravel())).fit())
    return (found["sum_sq"] / found["df"]).to_dict()


def test_variance_parts_are_those_of_an_analysis_of_variance():
    random = np.random.default_rng(0)
    table = random.standard_normal((4, 1)) + random.standard_normal((1, 9)) + random.standard_normal((4, 9))
    of = mean_squares(table, "y ~ C(a) + C(b)")
    of_cells = of["Residual"]
    expected = {(0, 1): of_cells, (0,): of["C(a)"] - of_cells, (1,): of["C(b)"] - of_cells}
    # Solved by least squares there.
    assert variance_parts(table) == pytest.approx(
        {axes: part / table.size for axes, part in expected.items()}, rel=1e-9
    )


def test_variance_parts_of_three_axes():
    random = np.random.default_rng(4)
    shapes = [(3, 1, 1), (1, 4, 1), (1, 1, 6), (3, 4, 1), (3, 1, 6), (1, 4, 6), (3, 4, 6)]
    table = sum((2 * random.standard_normal(shape) for shape in shapes), np.zeros((3, 4, 6)))
    of = mean_squares(table, "y ~ (C(a) + C(b) + C(c))**2")
    a, b, c, ab, ac, bc, abc = (
        of[name] for name in ("C(a)", "C(b)", "C(c)", "C(a):C(b)", "C(a):C(c)", "C(b):C(c)", "Residual")
    )
    expected = {
        (0, 1, 2): abc,
        (0, 1): ab - abc,
        (0, 2): ac - abc,
        (1, 2): bc - abc,
        (0,): a - ab - ac + abc,
        (1,): b - ab - bc + abc,
        (2,): c - ac - bc + abc,
    }
    assert min(expected.values()) > 0, "the draw must leave nothing to cut at 0"
    assert variance_parts(table) == pytest.approx(
        {axes: part / table.size for axes, part in expected.items()}, rel=1e-9
    )


def test_gain_of_one_fixed_language_is_the_t_interval():
    random = np.random.default_rng(0)
    before, after = random.random((2, 1, 200)) < np.array([0.5, 0.6])[:, None, None]
    gain = crossed_bootstrap(before, after, resample_languages=False, resamples=20_000)
    expected = ttest_1samp(after[0].astype(float) - before[0], 0).confidence_interval()
    # The shape is the bootstrap's; at 200 rows it is nearly normal.
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high), abs=0.05 * (expected.high - gain.mean))
    assert gain.mean == pytest.approx(after.mean() - before.mean(), abs=1e-15)


def test_gain_does_not_depend_on_the_form_of_its_input():
    random = np.random.default_rng(0)
    before, after = random.random((2, 6, 40)) < 0.5
    gain = crossed_bootstrap(before, after, seed=3)
    assert gain == crossed_bootstrap(before.astype(np.float32), after[None].astype(np.float64), seed=3)
    assert gain != crossed_bootstrap(before, after, seed=4)
    assert gain.low < gain.mean < gain.high
    narrower = crossed_bootstrap(before, after, seed=3, level=0.8)
    assert gain.low < narrower.low < narrower.high < gain.high
    assert crossed_bootstrap(before, np.stack([after, after, before])).mean == pytest.approx(gain.mean * 2 / 3)


def test_gain_where_nothing_is_known_or_nothing_varies():
    random = np.random.default_rng(0)
    before, after = random.random((2, 4, 30)) < 0.5
    assert crossed_bootstrap(before[:1], after[:1])[1:] == (-1, 1)
    assert crossed_bootstrap(before[:, :1], after[:, :1])[1:] == (-1, 1)
    assert crossed_bootstrap(before, before) == (0, 0, 0)
    assert crossed_bootstrap(np.zeros((4, 30)), np.ones((4, 30))) == (1, 1, 1)
    for wrong in (after[:3], after[:, :5], after[0], after[None, None], np.zeros((0, 4, 30))):
        with pytest.raises(ValueError, match="after"):
            crossed_bootstrap(before, wrong)
