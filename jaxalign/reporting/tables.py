"""Accuracy before and after, cell by cell, as typed rows and as plain text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxalign.data.languages import LANGUAGES
from jaxalign.errors import InputError
from jaxalign.reporting.results import Cell, Results, read_results
from jaxalign.reporting.runs import TrainingRun, find_run, read_run


@dataclass(frozen=True)
class AccuracyRow:
    """One task in one language, before and after. `seen`: a source or target of the tuning; None where not recorded."""

    task: str
    language: str
    seen: bool | None
    before: Cell
    after: Cell

    @property
    def points(self) -> float:
        """Difference of the accuracies in percentage points."""
        return 100 * (self.after.accuracy - self.before.accuracy)

    @property
    def same_rows(self) -> bool:
        return self.before.predictions.keys() == self.after.predictions.keys()

    def count_changes(self, correct_before: bool, correct_after: bool) -> int:
        """How many rows that both scored were right or wrong as given, before and after."""
        common = self.before.predictions.keys() & self.after.predictions.keys()
        wanted = correct_before, correct_after
        return sum(
            (self.before.predictions[row].correct, self.after.predictions[row].correct) == wanted for row in common
        )


@dataclass(frozen=True)
class MeanRow:
    """Plain mean of the accuracies over some languages of one task."""

    label: str
    languages: int
    before: float
    after: float

    @property
    def points(self) -> float:
        """Difference of the means in percentage points."""
        return 100 * (self.after - self.before)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side, and the training run of the second one's adapter where it was found."""

    before: Results
    after: Results
    run: TrainingRun | None
    seen: tuple[str, ...]
    """languages tuned on; empty where none are recorded"""
    rows: Sequence[AccuracyRow]
    only_before: Sequence[tuple[str, str]]
    only_after: Sequence[tuple[str, str]]

    @property
    def by_task(self) -> Mapping[str, list[AccuracyRow]]:
        tasks = dict.fromkeys(row.task for row in self.rows)
        return {task: [row for row in self.rows if row.task == task] for task in tasks}


def compare(before: Path, after: Path) -> Comparison:
    """Reads two result folders and pairs the cells that both have, in the order of the second.

    Raises:
      InputError: a folder cannot be read, no cell is in both, or a common task was scored in two ways.
    """
    first, second = read_results(before), read_results(after)
    path = find_run(second.adapter, after) if second.adapter else None
    run = read_run(path) if path else None
    seen = (run.languages if run else ()) or tuple(second.tuned_on)
    common = [key for key in second.cells if key in first.cells]
    if not common:
        raise InputError(
            f"{before} and {after}: no task and language in common ({cells_text(first.cells)} | "
            f"{cells_text(second.cells)}); evaluate both on the same ones"
        )
    rows = []
    for key in common:
        check_comparable(first, second, key)
        is_seen = key[1] in seen if seen else None
        rows.append(AccuracyRow(*key, is_seen, first.cells[key], second.cells[key]))
    return Comparison(
        before=first,
        after=second,
        run=run,
        seen=seen,
        rows=rows,
        only_before=[key for key in first.cells if key not in second.cells],
        only_after=[key for key in second.cells if key not in first.cells],
    )


def check_comparable(before: Results, after: Results, key: tuple[str, str]) -> None:
    """Refuses cells whose prompts or scoring differ."""
    task, language = key
    first, second = before.cells[key], after.cells[key]
    for name, then, now in (
        ("task version", before.task_versions[task], after.task_versions[task]),
        ("prompts", first.prompts, second.prompts),
        ("variant", first.variant, second.variant),
    ):
        if then != now:
            raise InputError(
                f"{before.folder} and {after.folder}: {task}, {language} has {name} {then!r} in one and {now!r} in the "
                "other; evaluate both the same way"
            )


def mean_rows(rows: Sequence[AccuracyRow]) -> list[MeanRow]:
    """Means over all languages of one task, and where it is recorded over those tuned on and over the unseen."""
    groups: Mapping[str, Callable[[AccuracyRow], bool]] = {
        "all languages": lambda row: True,
        "tuned on": lambda row: row.seen is True,
        "unseen": lambda row: row.seen is False,
    }
    means = []
    for label, belongs in groups.items():
        chosen = [row for row in rows if belongs(row)]
        if chosen:
            accuracies = zip(*((row.before.accuracy, row.after.accuracy) for row in chosen), strict=True)
            before, after = (sum(values) / len(chosen) for values in accuracies)
            means.append(MeanRow(label, len(chosen), before, after))
    return means


def plain_text_table(rows: Sequence[AccuracyRow]) -> str:
    """The rows, task by task, as aligned columns for a terminal; accuracies in %, differences in percentage points."""
    blocks = []
    for task in dict.fromkeys(row.task for row in rows):
        chosen = [row for row in rows if row.task == task]
        lines = [(task, "before", "correct", "after", "correct", "difference", "tuned on")]
        lines += [
            (
                language_title(row.language),
                percent(row.before.accuracy),
                f"{row.before.correct}/{row.before.count}",
                percent(row.after.accuracy),
                f"{row.after.correct}/{row.after.count}",
                signed(row.points),
                seen_text(row.seen),
            )
            for row in chosen
        ]
        lines += [
            (
                f"mean, {mean.label} ({mean.languages})",
                percent(mean.before),
                "",
                percent(mean.after),
                "",
                signed(mean.points),
                "",
            )
            for mean in mean_rows(chosen)
        ]
        blocks.append(aligned(lines))
    return "\n\n".join(blocks)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """First column to the left, the others to the right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def language_title(code: str) -> str:
    """A language as tables name it: "sw Swahili"."""
    return f"{code} {LANGUAGES[code].name}" if code in LANGUAGES else code


def seen_text(seen: bool | None) -> str:
    return {True: "yes", False: "no", None: "not recorded"}[seen]


def percent(value: float) -> str:
    """A share as a percentage with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def signed(points: float) -> str:
    """Percentage points with one decimal and a sign; what rounds to zero has none."""
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def cells_text(keys: Sequence[tuple[str, str]] | Mapping[tuple[str, str], object]) -> str:
    """(task, language) keys in words: "emotion en de, paws sw"."""
    tasks = dict.fromkeys(task for task, _ in keys)
    return ", ".join(f"{task} {' '.join(code for name, code in keys if name == task)}" for task in tasks)
