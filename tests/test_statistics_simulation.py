"""What each method promises, kept over 1,000 simulated grids with item effects shared across languages.

An answer is right where a latent score is above 0. The score holds effects of the language, of the item and of the
cell that all runs share, and effects that BEFORE and AFTER each draw for themselves: of items (the same in every
language) and of languages. All are normal, so true accuracies are known in closed form. Seeds are fixed. Rates over
grids are held against their promise with the binomial error of 1,000 grids at 2.58 standard errors (one-sided 99.5 %).
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, false_discovery_control

from jaxalign.statistics import crossed_bootstrap, holm, mcnemar_exact

GRIDS, LANGUAGES, ROWS = 1000, 20, 60
ALPHA = 0.05
ERROR = 2.58 * math.sqrt(ALPHA * (1 - ALPHA) / GRIDS)
SHARED_LANGUAGE, SHARED_ITEM, SHARED_CELL = 0.5, 0.7, 0.5
"""standard deviations of the effects that all runs share; the rest of a cell has 1"""


@dataclass(frozen=True)
class World:
    """Means of the latent score, and standard deviations of what each model draws for itself."""

    before: float = 0.3
    after: float = 0.3
    item: float = 0.0
    language: float = 0.0
    seed: float = 0.0
    """of an AFTER run as a whole"""
    seed_item: float = 0.0
    """of an AFTER run's items"""


@dataclass(frozen=True)
class Grids:
    """before bool [grids, languages, rows], after bool [grids, runs, languages, rows], and the true gains."""

    before: np.ndarray
    after: np.ndarray
    gain: float
    """over the whole population of items, languages and seeds"""
    gain_here: np.ndarray
    """[grids], over all items and seeds, in the languages drawn"""


def simulate(world: World, *, runs: int = 1, languages: int = LANGUAGES, rows: int = ROWS, seed: int = 0) -> Grids:
    random = np.random.default_rng(seed)

    def draw(deviation: float, *shape: int) -> np.ndarray:
        return deviation * random.standard_normal((GRIDS, *shape), dtype=np.float32)

    skill = draw(SHARED_LANGUAGE, 1, languages, 1)
    base = draw(SHARED_ITEM, 1, 1, rows) + draw(SHARED_CELL, 1, languages, rows)
    before_language, after_language = draw(world.language, 1, languages, 1), draw(world.language, 1, languages, 1)
    before = world.before + skill + before_language + base + draw(world.item, 1, 1, rows)
    after = world.after + skill + after_language + base + draw(world.item, 1, 1, rows)
    after = after + draw(world.seed, runs, 1, 1) + draw(world.seed_item, runs, 1, rows)
    before, after = before + draw(1, 1, languages, rows), after + draw(1, runs, languages, rows)

    of_before = SHARED_ITEM**2 + SHARED_CELL**2 + 1 + world.item**2
    of_after = of_before + world.seed**2 + world.seed_item**2
    of_languages = SHARED_LANGUAGE**2 + world.language**2
    here = ndtr((world.after + skill + after_language) / math.sqrt(of_after)) - ndtr(
        (world.before + skill + before_language) / math.sqrt(of_before)
    )
    gain = ndtr(world.after / math.sqrt(of_after + of_languages)) - ndtr(
        world.before / math.sqrt(of_before + of_languages)
    )
    return Grids(before[:, 0] > 0, after > 0, float(gain), here.mean(axis=(1, 2, 3)))


def p_values(grids: Grids) -> tuple[np.ndarray, np.ndarray]:
    """McNemar's p-value of every cell, and how many of its rows differ: [grids, languages] both."""
    tests = [
        [mcnemar_exact(*cell) for cell in zip(before, after[0], strict=True)]
        for before, after in zip(grids.before, grids.after, strict=True)
    ]
    return (
        np.array([[test.p_value for test in of_grid] for of_grid in tests]),
        np.array([[test.lost + test.won for test in of_grid] for of_grid in tests]),
    )


def attained_size(differing: int) -> float:
    """The false-positive rate of a two-sided sign test at ALPHA: below it, for counts are whole numbers."""
    lost = np.arange(differing + 1)
    p = 2 * np.minimum(binom.cdf(lost, differing, 0.5), binom.sf(lost - 1, differing, 0.5))
    return float(binom.pmf(lost, differing, 0.5)[p <= ALPHA].sum())


@pytest.fixture(scope="module")
def no_effect() -> tuple[np.ndarray, np.ndarray]:
    """Every cell without effect; what the two runs did to an item is the same in all languages."""
    return p_values(simulate(World(item=0.7)))


def test_mcnemar_marks_as_many_cells_by_mistake_as_it_says(no_effect):
    p, differing = no_effect
    by_grid = (p <= ALPHA).mean(axis=1)
    # Cells of a grid depend on each other, grids do not: the error is that of a mean over grids.
    error = 2.58 * by_grid.std() / math.sqrt(GRIDS)
    promised = np.mean([attained_size(count) for count in differing.ravel().tolist()])
    assert 0.02 < promised < ALPHA
    assert abs(by_grid.mean() - promised) < error
    assert by_grid.mean() <= ALPHA


def test_corrections_keep_the_chance_of_one_false_mark(no_effect):
    p, _ = no_effect
    assert np.mean([(holm(of_grid) <= ALPHA).any() for of_grid in p]) <= ALPHA + ERROR
    # Where no effect exists every mark is false: the expected false share is the chance of one mark.
    assert np.mean([(false_discovery_control(of_grid) <= ALPHA).any() for of_grid in p]) <= ALPHA + ERROR
    # Without correction more than a fifth of the grids has a mark.
    assert np.mean((p <= ALPHA).any(axis=1)) > 0.2


def test_corrections_keep_their_promise_beside_true_effects():
    null, real = (p_values(simulate(World(after=mean, item=0.7), languages=10))[0] for mean in (0.3, 1.5))
    p = np.concatenate([null, real], axis=1)
    by_holm, by_benjamini = (
        np.stack([method(of_grid) <= ALPHA for of_grid in p]) for method in (holm, false_discovery_control)
    )
    assert by_holm[:, :10].any(axis=1).mean() <= ALPHA + ERROR
    false_share = by_benjamini[:, :10].sum(axis=1) / np.maximum(by_benjamini.sum(axis=1), 1)
    # Of 20 cells 10 are without effect, so the promise is ALPHA / 2; a share lies within [0, 1] as a hit does.
    assert false_share.mean() <= ALPHA / 2 + ERROR
    assert by_holm[:, 10:].mean() > 0.4
    assert by_benjamini[:, 10:].mean() > by_holm[:, 10:].mean()


def intervals(grids: Grids, *, resample_languages: bool = True) -> np.ndarray:
    """Mean, low, high of every grid: [grids, 3]. 400 resamples: their noise widens or narrows an end by 5 % or so."""
    return np.array(
        [
            crossed_bootstrap(before, after, resample_languages=resample_languages, resamples=400, seed=index)
            for index, (before, after) in enumerate(zip(grids.before, grids.after, strict=True))
        ]
    )


def coverage(intervals: np.ndarray, truth: float | np.ndarray) -> float:
    return float(((intervals[:, 1] <= truth) & (truth <= intervals[:, 2])).mean())


def as_independent(grids: Grids) -> Grids:
    """Every row of every cell taken for an item of its own: what a naive bootstrap over all answers does."""
    before, after = grids.before.reshape(GRIDS, 1, -1), grids.after.reshape(GRIDS, 1, 1, -1)
    return Grids(before, after, grids.gain, grids.gain_here)


WORLDS = {
    "nothing shared": World(),
    "items shared": World(item=0.7),
    "languages differ": World(language=0.4),
    "both": World(item=0.7, language=0.4),
    "both, a gain": World(after=0.9, item=0.5, language=0.3),
    "both, a loss": World(before=0.9, after=0.3, item=0.5, language=0.3),
    "few rows differ": World(before=2.2, after=2.2, item=0.3, language=0.3),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_crossed_interval_covers_the_gain_in_unseen_languages(world: World):
    grids = simulate(world)
    found = intervals(grids)
    assert coverage(found, grids.gain) >= 1 - ALPHA - ERROR
    # And no wider than it must be: normal width of the means' true spread, a quarter added for what is estimated.
    assert (found[:, 2] - found[:, 1]).mean() < 1.25 * 2 * 1.96 * found[:, 0].std()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", "items shared", "languages differ"])
def test_rows_taken_as_independent_do_not_cover(name: str):
    grids = simulate(WORLDS[name])
    assert coverage(intervals(as_independent(grids), resample_languages=False), grids.gain) < 0.8


@pytest.mark.slow
def test_rows_taken_as_independent_cover_where_nothing_is_shared():
    grids = simulate(WORLDS["nothing shared"])
    assert coverage(intervals(as_independent(grids), resample_languages=False), grids.gain) >= 1 - ALPHA - ERROR


def test_fixed_languages_are_covered_and_others_not_promised():
    grids = simulate(World(after=0.9, item=0.5, language=0.6))
    found = intervals(grids, resample_languages=False)
    assert coverage(found, grids.gain_here) >= 1 - ALPHA - ERROR
    assert coverage(found, grids.gain) < 0.8


@pytest.mark.parametrize("languages", [2, 3, 5])
def test_few_languages_are_covered(languages: int):
    grids = simulate(World(after=0.9, item=0.5, language=0.4), languages=languages)
    assert coverage(intervals(grids), grids.gain) >= 1 - ALPHA - ERROR


@pytest.mark.parametrize(("runs", "seed"), [(2, 0.2), (2, 0.4), (3, 0.4), (5, 0.1)])
def test_several_runs_cover_the_gain_of_the_recipe(runs: int, seed: float):
    grids = simulate(World(after=0.9, item=0.5, language=0.3, seed=seed, seed_item=0.3), runs=runs)
    assert coverage(intervals(grids), grids.gain) >= 1 - ALPHA - ERROR


def test_one_run_does_not_speak_for_the_recipe():
    grids = simulate(World(after=0.9, item=0.5, language=0.3, seed=0.2, seed_item=0.3))
    assert coverage(intervals(grids), grids.gain) < 0.9
