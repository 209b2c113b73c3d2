"""Comparing result folders: what is paired and what is not; statistics by hand and by scipy, slices by counting."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, false_discovery_control, ttest_rel

from jaxalign.data.languages import LANGUAGES
from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json, write_text
from jaxalign.reporting.compare import Comparison, compare
from jaxalign.statistics import smallest_detectable_difference
from tests.reporting.folders import write_answers, write_evaluation

ROWS = 20


def bits(right: Sequence[int]) -> list[bool]:
    """What was answered right of ROWS rows."""
    return [row in right for row in range(ROWS)]


# Rows answered right, before and after: 12 won and 1 lost; 2 won and 2 lost; 9 won and none lost.
BEFORE = {("emotion", "en"): [0], ("emotion", "de"): [0, 1, 2], ("snli", "sw"): range(5)}
AFTER = {("emotion", "en"): range(1, 13), ("emotion", "de"): [2, 3, 4], ("snli", "sw"): range(14)}
CHANGES = ((12, 1), (2, 2), (9, 0))


def measured(tmp_path: Path, before: dict, *afters: dict, tuned_on: Sequence[str] = ("en", "de")) -> Comparison:
    folders = []
    for index, cells in enumerate((before, *afters)):
        answers = {key: bits(right) for key, right in cells.items()}
        description = {"tuned_on": list(tuned_on), "adapter": f"run{index}"} if index else {}
        folders.append(write_answers(tmp_path / f"folder{index}", answers, **description))
    return compare(*folders)


def test_cells_by_hand(tmp_path: Path) -> None:
    gains = measured(tmp_path, BEFORE, AFTER)
    scores = [cell.corrected for cell in gains.cells]
    assert [(score.runs[0].won, score.runs[0].lost) for score in scores] == list(CHANGES)
    assert [(score.accuracy_before, score.accuracy_after) for score in scores] == [
        (0.05, 0.6),
        (0.15, 0.15),
        (0.25, 0.7),
    ]
    # Exact up to rounding of float64, here and below.
    assert [score.gain_points for score in scores] == pytest.approx([55, 0, 45], abs=1e-9)
    p_values = [binomtest(won, won + lost).pvalue for won, lost in CHANGES]
    assert [score.p_value for score in scores] == pytest.approx(p_values, rel=1e-12)
    least, none, second = 28 / 2**13, 1.0, 2 / 2**9
    assert p_values == pytest.approx([least, none, second], rel=1e-12)
    # Twice the second is below three times the least, and may not be.
    assert [score.p_holm for score in scores] == pytest.approx([3 * least, none, 3 * least], rel=1e-12)
    assert [score.p_benjamini_hochberg for score in scores] == pytest.approx(
        false_discovery_control(p_values).tolist(), rel=1e-12
    )
    assert [score.mark for score in scores] == ["**", "", "**"]
    for score, correct in zip(scores, (12, 3, 14), strict=True):
        interval = binomtest(correct, ROWS).proportion_ci(method="wilson")
        assert score.interval_after == pytest.approx((interval.low, interval.high), abs=1e-9)
        assert score.seed_deviation_points is None


def test_a_mark_of_benjamini_hochberg_alone(tmp_path: Path) -> None:
    """p = 2^-5 in three cells: times 3 above 5 %, but each third of the ranking is at 2^-5."""
    keys = [("emotion", language) for language in ("en", "de", "sw")]
    gains = measured(tmp_path, dict.fromkeys(keys, range(0)), dict.fromkeys(keys, range(6)))
    for cell in gains.cells:
        assert cell.corrected.p_value == pytest.approx(2**-5)
        assert cell.corrected.p_holm == pytest.approx(3 * 2**-5)
        assert cell.corrected.p_benjamini_hochberg == pytest.approx(2**-5)
        assert cell.corrected.mark == "*"


def test_of_several_runs_the_largest_p_counts_and_only_in_one_direction(tmp_path: Path) -> None:
    keys = [("emotion", "en"), ("emotion", "sw")]
    before = dict.fromkeys(keys, range(10))
    first = {keys[0]: range(18), keys[1]: range(20)}
    second = {keys[0]: range(20), keys[1]: range(0)}
    one, two = (cell.corrected for cell in measured(tmp_path, before, first, second).cells)
    assert [run.p_value for run in one.runs] == pytest.approx([2 * 2**-8, 2 * 2**-10])
    assert one.p_value == pytest.approx(2 * 2**-8)
    assert one.gain_points == pytest.approx(45)
    assert one.seed_deviation_points == pytest.approx(100 * np.std([0.9, 1.0], ddof=1))
    assert max(run.p_value for run in two.runs) < 0.01 and two.p_value == 1.0 and two.gain_points == pytest.approx(0)


def test_means_by_hand(tmp_path: Path) -> None:
    before = {("emotion", code): range(10) for code in ("en", "de", "sw", "th")}
    after = dict(zip(before, (range(12), range(11), range(17), range(13)), strict=True))
    gains = measured(tmp_path, before, after)
    means = {mean.name: mean for mean in gains.means}
    expected = {
        "all languages": (["en", "de", "sw", "th"], (10 + 5 + 35 + 15) / 4),
        "tuned on": (["en", "de"], 7.5),
        "unseen": (["sw", "th"], 25),
        "Latin script": (["en", "de", "sw"], 50 / 3),
        "Thai script": (["th"], 15),
        "Germanic": (["en", "de"], 7.5),
        "Niger-Congo": (["sw"], 35),
        "Kra-Dai": (["th"], 15),
        "high-resource": (["en", "de"], 7.5),
        "low-resource": (["sw", "th"], 25),
    }
    assert {
        name: (mean.languages, pytest.approx(mean.corrected.gain_points)) for name, mean in means.items()
    } == expected
    for mean in means.values():
        assert mean.corrected.interval_points[0] <= mean.corrected.gain_points <= mean.corrected.interval_points[1]
        assert 100 * (mean.corrected.accuracy_after - mean.corrected.accuracy_before) == pytest.approx(
            mean.corrected.gain_points
        )


def test_an_interval_without_chance_is_a_point(tmp_path: Path) -> None:
    keys = [("emotion", code) for code in ("en", "de", "sw")]
    gains = measured(tmp_path, dict.fromkeys(keys, range(0)), dict.fromkeys(keys, range(ROWS)))
    for mean in gains.means:
        assert mean.corrected.interval_points == pytest.approx((100, 100), abs=1e-9)


def test_the_interval_of_one_language_is_of_its_rows(tmp_path: Path) -> None:
    """Bootstrap of a mean of ROWS differences, against the t interval of a paired test."""
    gains = measured(tmp_path, {("emotion", "sw"): range(10)}, {("emotion", "sw"): range(5, 18)}, tuned_on=["en"])
    [mean] = [mean for mean in gains.means if mean.name == "unseen"]
    before, after = (np.array(bits(right), float) for right in (range(10), range(5, 18)))
    expected = ttest_rel(after, before).confidence_interval(0.95)
    # Resampled means move in steps of one row, 5 points, widened by Student's t: quantiles are no finer than that.
    assert mean.corrected.interval_points == pytest.approx((100 * expected.low, 100 * expected.high), abs=6)


def test_a_cell_too_small_to_find_anything_says_so(tmp_path: Path) -> None:
    cells = {("emotion", "en"): 0.5}
    folders = [write_evaluation(tmp_path / name, cells, rows=range(5)) for name in ("before", "after")]
    [cell] = compare(*folders).cells
    assert cell.corrected.smallest_detectable_points is None


def test_what_a_cell_can_detect_takes_the_share_that_changed(tmp_path: Path) -> None:
    scores = [cell.corrected for cell in measured(tmp_path, BEFORE, AFTER).cells]
    for score, (won, lost) in zip(scores, CHANGES, strict=True):
        expected = 100 * smallest_detectable_difference(ROWS, (won + lost) / ROWS)
        assert score.smallest_detectable_points == pytest.approx(expected)


def test_languages_of_one_mean_share_their_rows(tmp_path: Path) -> None:
    """English has rows 0 to 19, Swahili 10 to 29: both are averaged over 10 to 19, and tested on their own."""
    sides = []
    for name in ("before", "after"):
        parts = [
            write_evaluation(tmp_path / f"{name}{start}", {("emotion", code): 0.5}, rows=range(start, start + 20))
            for code, start in (("en", 0), ("sw", 10))
        ]
        sides.append(merged(tmp_path / name, parts))
    gains = compare(*sides)
    assert [len(cell.rows) for cell in gains.cells] == [20, 20]
    assert {mean.count for mean in gains.means} == {10}


def test_languages_without_a_common_row_are_refused(tmp_path: Path) -> None:
    parts = [
        write_evaluation(tmp_path / code, {("emotion", code): 0.5}, rows=range(start, start + 20))
        for code, start in (("en", 0), ("sw", 20))
    ]
    folder = merged(tmp_path / "both", parts)
    with pytest.raises(InputError, match="emotion: no row number is common to all of en sw"):
        compare(folder, folder)


def merged(folder: Path, parts: Sequence[Path]) -> Path:
    """The cells of several evaluations in one."""
    write_text(folder / "predictions.jsonl", "".join((part / "predictions.jsonl").read_text() for part in parts))
    documents = [read_json(part / "results.json") for part in parts]
    write_json(
        folder / "results.json", {**documents[0], "cells": [cell for each in documents for cell in each["cells"]]}
    )
    return folder


def test_reference_scoring_beside_it(tmp_path: Path) -> None:
    """Norwegian SNLI files exchange two words: of right answers in three classes, a third is right by reference."""
    cells = {("snli", "no"): 0.9}
    before = write_evaluation(tmp_path / "before", cells, rows=range(30))
    after = write_evaluation(tmp_path / "after", cells, rows=range(30), seed=5)
    [cell] = compare(before, after).cells
    for side, score in ((cell.before, cell.reference.correct_before), (cell.after, cell.reference.runs[0].correct)):
        assert score == sum(prediction.correct_reference for prediction in side.predictions.values())
    assert (cell.corrected.correct_before, cell.corrected.runs[0].correct) == (cell.before.correct, cell.after.correct)
    assert cell.reference.accuracy_after < 0.5 < cell.corrected.accuracy_after


def test_every_language_is_in_one_slice_of_every_kind(tmp_path: Path) -> None:
    cells = {("emotion", code): 0.5 for code in LANGUAGES}
    before = write_evaluation(tmp_path / "before", cells, rows=range(12))
    after = write_evaluation(tmp_path / "after", cells, rows=range(12), seed=3, tuned_on=["en", "zh"])
    means = compare(before, after).means
    for kind in ("all", "tuning", "script", "family", "tier"):
        codes = [code for mean in means if mean.kind == kind for code in mean.languages]
        assert sorted(codes) == sorted(LANGUAGES)
    assert next(mean.languages for mean in means if mean.name == "unseen") == [*LANGUAGES][2:]
