"""Evaluations side by side: which cells and rows are paired, what is refused, and what the differences are worth.

Everything is computed on rows that all folders scored, so that every difference is paired. Several AFTER runs of one
recipe are not pooled: a cell's p-value is the largest of its runs' (and 1 where they point in different directions), so
that what is called significant happened in every run (intersection-union test; Berger 1982, Technometrics 24:295).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import false_discovery_control

from jaxalign.data.languages import LANGUAGES
from jaxalign.errors import InputError
from jaxalign.reporting.changes import LEVEL, PairedChange, correlation_change, geometry_change
from jaxalign.reporting.folders import (
    Failure,
    Key,
    Results,
    ScoredCell,
    TrainingRun,
    check_alike,
    find_run,
    read_results,
    read_run,
)
from jaxalign.reporting.words import block_title, cells_text
from jaxalign.statistics import crossed_bootstrap, holm, mcnemar_exact, smallest_detectable_difference, wilson_interval

POWER = 0.8
RESAMPLES = 2000
SEED = 0
SCORINGS = {"corrected": "correct", "reference": "correct_reference"}
"""Scoring rule -> the field of a prediction that says whether it is right."""


@dataclass(frozen=True)
class RunScore:
    """One run in one cell, on the paired rows."""

    correct: int
    interval: tuple[float, float]  # Wilson interval of the accuracy
    lost: int  # rows right before and wrong after
    won: int
    p_value: float  # exact McNemar test, two-sided


@dataclass(frozen=True)
class CellScore:
    """One cell under one scoring rule. Accuracies are shares, what is in points percentage points."""

    accuracy_before: float
    interval_before: tuple[float, float]
    accuracy_after: float  # mean over runs
    interval_after: tuple[float, float]  # from the lowest to the highest bound of the runs' intervals
    gain_points: float
    p_value: float  # largest of the runs', 1 where their differences have different signs
    p_holm: float  # adjusted over all cells of the comparison: chance of one false mark or more
    p_benjamini_hochberg: float  # adjusted likewise: expected share of false marks
    smallest_detectable_points: float | None
    """what one test of this cell at LEVEL finds with POWER, for the run that changed most; None: nothing"""
    seed_deviation_points: float | None  # sample standard deviation of the runs' accuracies; None with one run
    correct_before: int
    runs: Sequence[RunScore]

    @property
    def mark(self) -> str:
        """ "**" significant after Holm, "*" after Benjamini-Hochberg alone, "" neither."""
        if self.p_holm <= LEVEL:
            return "**"
        return "*" if self.p_benjamini_hochberg <= LEVEL else ""


@dataclass(frozen=True)
class MeanScore:
    """Plain means over the languages of a slice, and over runs, under one scoring rule; units as in CellScore."""

    accuracy_before: float
    accuracy_after: float
    gain_points: float
    interval_points: tuple[float, float]
    """of the gain, by crossed bootstrap of languages and rows; where the slice is one language, of its rows alone"""
    seed_deviation_points: float | None  # sample standard deviation of the runs' means; None with one run


@dataclass(frozen=True)
class PairedCell:
    """One cell before and after, on the rows that all folders scored."""

    key: Key
    seen: bool | None  # whether the language is a source or target of the tuning; None where that is not recorded
    before: ScoredCell
    afters: Sequence[ScoredCell]  # one for each run
    rows: Sequence[int]  # numbers of the rows, ascending
    corrected: CellScore
    reference: CellScore

    @property
    def language(self) -> str:
        return self.key.language

    @property
    def block(self) -> tuple[str, str]:
        """Task and variant."""
        return self.key.task, self.key.variant

    @property
    def after(self) -> ScoredCell:
        """The first run's."""
        return self.afters[0]

    @property
    def is_rescored(self) -> bool:
        """Whether reference scoring counts other rows as correct than corrected scoring, before or after."""
        one, two = self.corrected, self.reference
        return (one.accuracy_before, one.accuracy_after) != (two.accuracy_before, two.accuracy_after)

    @property
    def left_out(self) -> int:
        """How many rows some scored and others did not."""
        return len({row for cell in (self.before, *self.afters) for row in cell.predictions}) - len(self.rows)


@dataclass(frozen=True)
class MeanGain:
    """The mean gain over some languages of one task and variant."""

    task: str
    variant: str
    kind: str  # all, tuning, script, family or tier
    name: str
    languages: Sequence[str]
    count: int  # rows, those that every language of the task and variant has in common
    corrected: MeanScore
    reference: MeanScore


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side, and the training run of the first AFTER's adapter where it was found."""

    before: Results
    afters: Sequence[Results]  # the same recipe with one seed each
    run: TrainingRun | None
    seen: tuple[str, ...]  # languages tuned on; empty where none are recorded
    cells: Sequence[PairedCell]
    means: Sequence[MeanGain]
    only_before: Sequence[Key]
    only_after: Sequence[Key]
    geometry: PairedChange | None  # of the first AFTER; None where there is nothing to pair
    correlations: PairedChange | None  # the same

    @property
    def after(self) -> Results:
        """The first run's."""
        return self.afters[0]

    @property
    def by_block(self) -> Mapping[tuple[str, str], tuple[list[PairedCell], list[MeanGain]]]:
        """(task, variant) -> its cells and its means."""
        return {
            block: (
                [cell for cell in self.cells if cell.block == block],
                [mean for mean in self.means if (mean.task, mean.variant) == block],
            )
            for block in dict.fromkeys(cell.block for cell in self.cells)
        }

    @property
    def failures(self) -> list[tuple[Path, Failure]]:
        """(folder, cell that could not be evaluated there)."""
        return [(each.folder, failure) for each in (self.before, *self.afters) for failure in each.failures]


def compare(before: Path, *afters: Path) -> Comparison:
    """Reads result folders, pairs the cells that all have, tests each and averages over every slice.

    Several AFTER folders are runs of the same recipe with other seeds.

    Raises:
      InputError: a folder cannot be read, no cell is in all, a common cell was prompted or scored in two ways or holds
        other items, the AFTER folders are not of one recipe, or the languages of one task have no row in common.
    """
    first, runs = read_results(before), [read_results(after) for after in afters]
    check_one_recipe(runs)
    second = runs[0]
    path = find_run(second.adapter, second.folder) if second.adapter else None
    run = read_run(path) if path else None
    seen = (run.languages if run else ()) or tuple(second.tuned_on)
    keys = [key for key in second.cells if all(key in each.cells for each in (first, *runs))]
    if not keys:
        raise InputError(
            f"{before} and {', '.join(map(str, afters))}: no task and language in common ({cells_text(first.cells)} | "
            f"{cells_text(second.cells)}); evaluate both on the same ones"
        )
    rows = [common_rows([first, *runs], key) for key in keys]
    cells = [[each.cells[key] for each in (first, *runs)] for key in keys]
    corrected, reference = (
        scores([right_answers(*each, scoring) for each in zip(cells, rows, strict=True)]) for scoring in SCORINGS
    )
    paired = [
        PairedCell(key, key.language in seen if seen else None, cell[0], cell[1:], numbers, *of_cell)
        for key, cell, numbers, of_cell in zip(keys, cells, rows, zip(corrected, reference, strict=True), strict=True)
    ]
    return Comparison(
        before=first,
        afters=runs,
        run=run,
        seen=seen,
        cells=paired,
        means=[
            mean
            for block in dict.fromkeys(cell.block for cell in paired)
            for mean in mean_gains(*block, [cell for cell in paired if cell.block == block])
        ],
        only_before=[key for key in first.cells if key not in keys],
        only_after=[key for key in second.cells if key not in keys],
        geometry=geometry_change(*(each.probes.get("geometry") for each in (first, second))),
        correlations=correlation_change(*(each.probes.get("pca") for each in (first, second))),
    )


def check_one_recipe(runs: Sequence[Results]) -> None:
    """Refuses AFTER folders that are not evaluations of one recipe, or of which one is given twice."""
    first, *others = runs
    if len({each.folder.resolve() for each in runs}) < len(runs):
        raise InputError(f"{', '.join(str(each.folder) for each in runs)}: a folder is given twice; name each run once")

    def recipe(results: Results) -> dict[str, object]:
        """What runs of one recipe have in common; a cell that failed was chosen too."""
        return {
            "the model": results.model,
            "what it was tuned on": sorted(results.tuned_on),
            "dtype": results.document.get("dtype"),
            "param_dtype": results.document.get("param_dtype"),
            "the choice of cells": cells_text(sorted({*results.cells, *(each.key for each in results.failures)})),
        }

    for other in others:
        advice = "several AFTER folders must be one recipe with other seeds"
        check_alike(first.folder, recipe(first), other.folder, recipe(other), advice)


def common_rows(results: Sequence[Results], key: Key) -> list[int]:
    """The row numbers of a cell that all folders scored, ascending.

    No such row, other items, other prompts or another version of the task are refused.
    """
    before, *afters = results
    for after in afters:
        made = [
            {
                f"{key.task}'s task version": each.task_versions[key.task],
                f"{', '.join(key)}: prompts": each.cells[key].prompts,
            }
            for each in (before, after)
        ]
        check_alike(before.folder, made[0], after.folder, made[1], "evaluate both the same way")
    cells = [each.cells[key].predictions for each in results]
    rows = sorted(set(cells[0]).intersection(*cells[1:]))
    folders = ", ".join(str(each.folder) for each in results)
    if not rows:
        raise InputError(f"{folders}: no row of {', '.join(key)} in common; evaluate all on the same rows")
    for row in rows:
        golds = {cell[row].gold for cell in cells}
        if len(golds) > 1:
            raise InputError(
                f"{folders}: row {row} of {', '.join(key)} has the gold classes {' and '.join(sorted(golds))}; "
                "evaluate all on the same data"
            )
    return rows


def right_answers(cells: Sequence[ScoredCell], rows: Sequence[int], scoring: str) -> np.ndarray:
    """What was answered right on the given row numbers: bool [1 + runs, rows], BEFORE first."""
    return np.array([[getattr(cell.predictions[row], SCORINGS[scoring]) for row in rows] for cell in cells], bool)


def scores(answers: Sequence[np.ndarray]) -> list[CellScore]:
    """The scores of all cells, adjusted over them, of what was right in each: bool [1 + runs, rows], BEFORE first."""
    runs = [
        [RunScore(int(after.sum()), interval_of(after), *mcnemar_exact(before, after)) for after in afters]
        for before, *afters in answers
    ]
    # "Every run differs, in the same direction."
    directions = [{np.sign(run.won - run.lost) for run in of_cell} for of_cell in runs]
    p_values = np.array(
        [
            max(run.p_value for run in each) if len(signs) == 1 else 1.0
            for each, signs in zip(runs, directions, strict=True)
        ]
    )
    # Benjamini and Hochberg's holds for tests that depend positively, as those of the same items in several languages.
    adjusted = (p_values.tolist(), holm(p_values).tolist(), false_discovery_control(p_values).tolist())
    return [score(*each) for each in zip(answers, runs, *adjusted, strict=True)]


def interval_of(right: np.ndarray) -> tuple[float, float]:
    """The Wilson interval of what was right, bool [rows]."""
    return wilson_interval(int(right.sum()), len(right), 1 - LEVEL)


def score(answers: np.ndarray, runs: Sequence[RunScore], p_value: float, p_holm: float, p_bh: float) -> CellScore:
    """The score of one cell; answers bool [1 + runs, rows]."""
    count, right = answers.shape[1], int(answers[0].sum())
    changed = max(run.lost + run.won for run in runs) / count
    detectable = smallest_detectable_difference(count, changed, level=LEVEL, power=POWER)
    before, after = right / count, sum(run.correct for run in runs) / (len(runs) * count)
    return CellScore(
        accuracy_before=before,
        interval_before=interval_of(answers[0]),
        accuracy_after=after,
        interval_after=(min(run.interval[0] for run in runs), max(run.interval[1] for run in runs)),
        gain_points=100 * (after - before),
        p_value=p_value,
        p_holm=p_holm,
        p_benjamini_hochberg=p_bh,
        smallest_detectable_points=100 * detectable if math.isfinite(detectable) else None,
        seed_deviation_points=deviation_in_points(answers[1:].mean(axis=1)),
        correct_before=right,
        runs=runs,
    )


def deviation_in_points(accuracies: np.ndarray) -> float | None:
    """Seed-to-seed deviation of accuracies [runs], in points; None with one run."""
    return 100 * float(accuracies.std(ddof=1)) if len(accuracies) > 1 else None


def mean_gains(task: str, variant: str, cells: Sequence[PairedCell]) -> list[MeanGain]:
    """The slices of one task and variant. All use the same rows: row i is the same item in every language."""
    rows = sorted(set(cells[0].rows).intersection(*(cell.rows for cell in cells[1:])))
    if not rows:
        raise InputError(
            f"{block_title(task, variant)}: no row number is common to all of "
            f"{' '.join(cell.language for cell in cells)}; evaluate every language on the same rows"
        )
    answers = {
        scoring: np.stack([right_answers([cell.before, *cell.afters], rows, scoring) for cell in cells], axis=1)
        for scoring in SCORINGS
    }
    # The two rules mostly count the same, and some scripts hold one family: such means are resampled once.
    known: dict[tuple[int, bytes], MeanScore] = {}
    means = []
    for kind, name, indices in slices(cells):
        of_slice = {}
        for scoring, each in answers.items():
            chosen = each[:, indices]
            key = chosen.shape[1], chosen.tobytes()
            of_slice[scoring] = known[key] = known.get(key) or mean_score(chosen)
        languages = [cells[index].language for index in indices]
        means.append(MeanGain(task, variant, kind, name, languages, len(rows), **of_slice))
    return means


def slices(cells: Sequence[PairedCell]) -> Iterator[tuple[str, str, list[int]]]:
    """(kind, name, indices of cells) of every slice that has a language."""
    tuning = {True: "tuned on", False: "unseen", None: ""}
    facts = [LANGUAGES[cell.language] for cell in cells]
    labels: Mapping[str, Sequence[str]] = {
        "all": ["all languages"] * len(cells),
        "tuning": [tuning[cell.seen] for cell in cells],
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
        accuracy_before=float(before.mean()),
        accuracy_after=float(after.mean()),
        gain_points=100 * gain.mean,
        interval_points=(100 * gain.low, 100 * gain.high),
        seed_deviation_points=deviation_in_points(after.mean(axis=(1, 2))),
    )
