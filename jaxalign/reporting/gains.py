"""What the differences of a comparison are worth: tests for every cell, mean gains with intervals for every slice.

Everything is computed on rows that all folders scored, so that every difference is paired. Several AFTER runs of one
recipe are not pooled: a cell's p-value is the largest of its runs' (and 1 where they point in different directions), so
that what is called significant happened in every run (intersection-union test; Berger 1982, Technometrics 24:295).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.data.languages import LANGUAGES
from jaxalign.errors import InputError
from jaxalign.reporting.correlations import CorrelationChange, correlation_change
from jaxalign.reporting.geometry import GeometryChange, geometry_change
from jaxalign.reporting.results import Cell, Prediction
from jaxalign.reporting.tables import AccuracyRow, Comparison, block_title
from jaxalign.statistics import (
    benjamini_hochberg,
    crossed_bootstrap,
    holm,
    mcnemar_exact,
    seed_deviation,
    smallest_detectable_difference,
    wilson_interval,
)

LEVEL = 0.05
"""Of tests after correction; intervals cover 1 - LEVEL."""
POWER = 0.8
RESAMPLES = 2000
SEED = 0

SCORINGS: Mapping[str, Callable[[Prediction], bool]] = {
    "corrected": lambda prediction: prediction.correct,
    "reference": lambda prediction: prediction.correct_reference,
}


@dataclass(frozen=True)
class RunScore:
    """One run in one cell, on the paired rows."""

    correct: int
    interval: tuple[float, float]
    """Wilson interval of the accuracy"""
    lost: int
    """rows right before and wrong after"""
    won: int
    p_value: float
    """exact McNemar test, two-sided"""


@dataclass(frozen=True)
class Score:
    """One cell under one scoring rule. Accuracies are shares, gains and deviations percentage points."""

    count: int
    correct_before: int
    interval_before: tuple[float, float]
    runs: Sequence[RunScore]
    p_value: float
    """largest of the runs', 1 where their differences have different signs"""
    p_holm: float
    """adjusted over all cells of the comparison: chance of one false mark or more"""
    p_benjamini_hochberg: float
    """adjusted likewise: expected share of false marks"""
    smallest_detectable: float | None
    """points that one test of this cell at LEVEL finds with POWER, for the run that changed most; None: nothing"""
    seed_deviation: float | None
    """sample standard deviation of the runs' accuracies; None with one run"""

    @property
    def before(self) -> float:
        return self.correct_before / self.count

    @property
    def after(self) -> float:
        """Mean over runs."""
        return sum(run.correct for run in self.runs) / (len(self.runs) * self.count)

    @property
    def interval_after(self) -> tuple[float, float]:
        """From the lowest to the highest bound of the runs' intervals."""
        return min(run.interval[0] for run in self.runs), max(run.interval[1] for run in self.runs)

    @property
    def gain(self) -> float:
        return 100 * (self.after - self.before)

    @property
    def mark(self) -> str:
        """ "**" significant after Holm, "*" after Benjamini-Hochberg alone, "" neither."""
        if self.p_holm <= LEVEL:
            return "**"
        return "*" if self.p_benjamini_hochberg <= LEVEL else ""


@dataclass(frozen=True)
class CellGain:
    """One cell of the comparison under both scoring rules."""

    row: AccuracyRow
    corrected: Score
    reference: Score


@dataclass(frozen=True)
class MeanScore:
    """Plain means over the languages of a slice under one scoring rule; accuracies as shares, the rest in points."""

    before: float
    after: float
    """over runs too"""
    gain: float
    interval: tuple[float, float]
    """of the gain, by crossed bootstrap of languages and rows; where the slice is one language, of its rows alone"""
    seed_deviation: float | None
    """sample standard deviation of the runs' means; None with one run"""


@dataclass(frozen=True)
class MeanGain:
    """The mean gain over some languages of one task and variant."""

    task: str
    variant: str
    kind: str
    """all, tuning, script, family or tier"""
    name: str
    languages: Sequence[str]
    count: int
    """rows, those that every language of the task and variant has in common"""
    corrected: MeanScore
    reference: MeanScore


@dataclass(frozen=True)
class Gains:
    """A comparison with its statistics."""

    comparison: Comparison
    cells: Sequence[CellGain]
    means: Sequence[MeanGain]
    geometry: GeometryChange | None
    """of the first AFTER; None where there is nothing to pair"""
    correlations: CorrelationChange | None
    """the same"""

    @property
    def by_block(self) -> Mapping[tuple[str, str], tuple[list[CellGain], list[MeanGain]]]:
        """(task, variant) -> its cells and its means."""
        return {
            block: (
                [cell for cell in self.cells if (cell.row.task, cell.row.key.variant) == block],
                [mean for mean in self.means if (mean.task, mean.variant) == block],
            )
            for block in self.comparison.by_block
        }


def measure_gains(comparison: Comparison) -> Gains:
    """Tests every cell and averages over every slice, under both scoring rules.

    Raises:
      InputError: the languages of one task have no row in common.
    """
    corrected, reference = (
        scores([correct(row, row.rows, is_correct) for row in comparison.rows]) for is_correct in SCORINGS.values()
    )
    cells = [CellGain(*parts) for parts in zip(comparison.rows, corrected, reference, strict=True)]
    means = [mean for block, rows in comparison.by_block.items() for mean in mean_gains(*block, rows)]
    before, after = comparison.before.probes, comparison.after.probes
    return Gains(
        comparison,
        cells,
        means,
        geometry_change(before.geometry, after.geometry),
        correlation_change(before.pca, after.pca),
    )


def correct(row: AccuracyRow, numbers: Sequence[int], is_correct: Callable[[Prediction], bool]) -> np.ndarray:
    """What was answered right on the given row numbers: bool [1 + runs, rows], BEFORE first."""

    def of_cell(cell: Cell) -> list[bool]:
        return [is_correct(cell.predictions[number]) for number in numbers]

    return np.array([of_cell(cell) for cell in (row.before, *row.afters)], dtype=bool)


def scores(answers: Sequence[np.ndarray]) -> list[Score]:
    """The scores of all cells, adjusted over them.

    Args:
      answers: for each cell what was right, bool [1 + runs, rows], BEFORE first.
    """
    runs = [[run_score(each[0], after) for after in each[1:]] for each in answers]
    p_values = np.array([p_in_every_run(of_cell) for of_cell in runs])
    adjusted = zip(p_values.tolist(), holm(p_values).tolist(), benjamini_hochberg(p_values).tolist(), strict=True)
    return [score(each, of_cell, *of_p) for each, of_cell, of_p in zip(answers, runs, adjusted, strict=True)]


def run_score(before: np.ndarray, after: np.ndarray) -> RunScore:
    """One run against BEFORE, bool [rows] both."""
    test = mcnemar_exact(before, after)
    right = int(after.sum())
    return RunScore(right, wilson_interval(right, len(after), 1 - LEVEL), test.lost, test.won, test.p_value)


def p_in_every_run(runs: Sequence[RunScore]) -> float:
    """p-value of "every run differs, in the same direction"."""
    directions = {np.sign(run.won - run.lost) for run in runs}
    return max(run.p_value for run in runs) if len(directions) == 1 else 1.0


def score(answers: np.ndarray, runs: Sequence[RunScore], p_value: float, p_holm: float, p_bh: float) -> Score:
    count, right = answers.shape[1], int(answers[0].sum())
    changed = max(run.lost + run.won for run in runs) / count
    detectable = smallest_detectable_difference(count, changed, level=LEVEL, power=POWER)
    return Score(
        count=count,
        correct_before=right,
        interval_before=wilson_interval(right, count, 1 - LEVEL),
        runs=runs,
        p_value=p_value,
        p_holm=p_holm,
        p_benjamini_hochberg=p_bh,
        smallest_detectable=100 * detectable if math.isfinite(detectable) else None,
        seed_deviation=deviation_in_points(answers[1:].mean(axis=1)),
    )


def deviation_in_points(accuracies: np.ndarray) -> float | None:
    """Seed-to-seed deviation of accuracies [runs], in points; None with one run."""
    return 100 * float(seed_deviation(accuracies)) if len(accuracies) > 1 else None


def mean_gains(task: str, variant: str, rows: Sequence[AccuracyRow]) -> list[MeanGain]:
    """The slices of one task and variant. All use the same rows: row i is the same item in every language."""
    numbers = sorted(set(rows[0].rows).intersection(*(row.rows for row in rows[1:])))
    if not numbers:
        languages = " ".join(row.language for row in rows)
        raise InputError(
            f"{block_title(task, variant)}: no row number is common to all of {languages}; evaluate every language on "
            "the same rows"
        )
    answers = {
        scoring: np.stack([correct(row, numbers, is_correct) for row in rows], axis=1)
        for scoring, is_correct in SCORINGS.items()
    }
    # The two rules mostly count the same, and some scripts hold one family: such means are resampled once.
    known: dict[tuple[int, bytes], MeanScore] = {}

    def score_once(chosen: np.ndarray) -> MeanScore:
        key = chosen.shape[1], chosen.tobytes()
        if key not in known:
            known[key] = mean_score(chosen)
        return known[key]

    means = []
    for kind, name, indices in slices(rows):
        chosen = {scoring: score_once(each[:, indices]) for scoring, each in answers.items()}
        languages = [rows[index].language for index in indices]
        means.append(MeanGain(task, variant, kind, name, languages, len(numbers), **chosen))
    return means


def slices(rows: Sequence[AccuracyRow]) -> Iterator[tuple[str, str, list[int]]]:
    """(kind, name, indices of rows) of every slice that has a language."""
    tuning = {True: "tuned on", False: "unseen", None: ""}
    facts = [LANGUAGES[row.language] for row in rows]
    labels: Mapping[str, Sequence[str]] = {
        "all": ["all languages"] * len(rows),
        "tuning": [tuning[row.seen] for row in rows],
        "script": [f"{fact.script} script" for fact in facts],
        "family": [fact.family for fact in facts],
        "tier": [f"{fact.tier}-resource" for fact in facts],
    }
    for kind, names in labels.items():
        for name in sorted(set(names) - {""}, key=names.index):
            yield kind, name, [index for index, own in enumerate(names) if own == name]


def mean_score(answers: np.ndarray) -> MeanScore:
    """Means over languages and rows, bool [1 + runs, languages, rows]."""
    before, after = answers[0], answers[1:]
    gain = crossed_bootstrap(
        before, after, resample_languages=len(before) > 1, resamples=RESAMPLES, seed=SEED, level=1 - LEVEL
    )
    return MeanScore(
        before=float(before.mean()),
        after=float(after.mean()),
        gain=100 * gain.mean,
        interval=(100 * gain.low, 100 * gain.high),
        seed_deviation=deviation_in_points(after.mean(axis=(1, 2))),
    )
