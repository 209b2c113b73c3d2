"""Evaluations side by side: which cells and rows are paired, what is refused; accuracies as plain text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxalign.data.languages import LANGUAGES
from jaxalign.errors import InputError
from jaxalign.reporting.results import VARIANTS, Cell, Failure, Key, Results, read_results
from jaxalign.reporting.runs import TrainingRun, find_run, read_run


@dataclass(frozen=True)
class AccuracyRow:
    """One cell before and after. `seen`: a source or target of the tuning; None where not recorded."""

    key: Key
    seen: bool | None
    before: Cell
    afters: Sequence[Cell]
    """one for each run"""
    rows: Sequence[int]
    """row numbers that all of them scored, ascending"""

    @property
    def task(self) -> str:
        return self.key.task

    @property
    def language(self) -> str:
        return self.key.language

    @property
    def after(self) -> Cell:
        """The first run's."""
        return self.afters[0]

    @property
    def points(self) -> float:
        """Difference of the accuracies in percentage points."""
        return 100 * (self.after.accuracy - self.before.accuracy)

    @property
    def left_out(self) -> int:
        """How many rows some scored and others did not."""
        return len({row for cell in (self.before, *self.afters) for row in cell.predictions}) - len(self.rows)


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
    """Evaluations side by side, and the training run of the first AFTER's adapter where it was found."""

    before: Results
    afters: Sequence[Results]
    """the same recipe with one seed each"""
    run: TrainingRun | None
    seen: tuple[str, ...]
    """languages tuned on; empty where none are recorded"""
    rows: Sequence[AccuracyRow]
    only_before: Sequence[Key]
    only_after: Sequence[Key]

    @property
    def after(self) -> Results:
        """The first run's."""
        return self.afters[0]

    @property
    def by_block(self) -> Mapping[tuple[str, str], list[AccuracyRow]]:
        """(task, variant) -> its rows."""
        blocks = dict.fromkeys((row.task, row.key.variant) for row in self.rows)
        return {block: [row for row in self.rows if (row.task, row.key.variant) == block] for block in blocks}

    @property
    def failures(self) -> list[tuple[Path, Failure]]:
        """(folder, cell that could not be evaluated there)."""
        return [(each.folder, failure) for each in (self.before, *self.afters) for failure in each.failures]


def compare(before: Path, *afters: Path) -> Comparison:
    """Reads result folders and pairs the cells that all have, in the order of the first AFTER.

    Args:
      before: the folder that the others are compared with.
      afters: one or more; several are runs of the same recipe with other seeds.

    Raises:
      InputError: a folder cannot be read, no cell is in all, a common cell was prompted or scored in two ways or holds
        other items, or the AFTER folders are not of one recipe.
    """
    first, runs = read_results(before), [read_results(after) for after in afters]
    check_one_recipe(runs)
    second = runs[0]
    path = find_run(second.adapter, second.folder) if second.adapter else None
    run = read_run(path) if path else None
    seen = (run.languages if run else ()) or tuple(second.tuned_on)
    common = [key for key in second.cells if all(key in each.cells for each in (first, *runs))]
    if not common:
        raise InputError(
            f"{before} and {', '.join(map(str, afters))}: no task and language in common ({cells_text(first.cells)} | "
            f"{cells_text(second.cells)}); evaluate both on the same ones"
        )
    rows = []
    for key in common:
        for each in runs:
            check_comparable(first, each, key)
        is_seen = key.language in seen if seen else None
        cells = [each.cells[key] for each in runs]
        rows.append(AccuracyRow(key, is_seen, first.cells[key], cells, common_rows([first, *runs], key)))
    return Comparison(
        before=first,
        afters=runs,
        run=run,
        seen=seen,
        rows=rows,
        only_before=[key for key in first.cells if key not in common],
        only_after=[key for key in second.cells if key not in common],
    )


def check_one_recipe(runs: Sequence[Results]) -> None:
    """Refuses AFTER folders that are not evaluations of one recipe, or of which one is given twice."""
    first, *others = runs
    if len({each.folder.resolve() for each in runs}) < len(runs):
        raise InputError(f"{', '.join(str(each.folder) for each in runs)}: a folder is given twice; name each run once")
    for other in others:
        for name, one, two in zip(RECIPE, recipe(first), recipe(other), strict=True):
            if one != two:
                raise InputError(
                    f"{first.folder} and {other.folder}: {name} is {one!r} in one and {two!r} in the other; "
                    "several AFTER folders must be one recipe with other seeds"
                )


RECIPE = ("the model", "what it was tuned on", "dtype", "param_dtype", "the choice of cells")


def recipe(results: Results) -> tuple[object, ...]:
    """What runs of one recipe have in common; a cell that failed was chosen too."""
    document = results.document
    chosen = {*results.cells, *(failure.key for failure in results.failures)}
    return (
        results.model,
        sorted(results.tuned_on),
        document.get("dtype"),
        document.get("param_dtype"),
        cells_text(sorted(chosen)),
    )


def check_comparable(before: Results, after: Results, key: Key) -> None:
    """Refuses cells whose prompts or scoring differ."""
    first, second = before.cells[key], after.cells[key]
    for name, then, now in (
        ("task version", before.task_versions[key.task], after.task_versions[key.task]),
        ("prompts", first.prompts, second.prompts),
    ):
        if then != now:
            raise InputError(
                f"{before.folder} and {after.folder}: {', '.join(key)} has {name} {then!r} in one and {now!r} in the "
                "other; evaluate both the same way"
            )


def common_rows(results: Sequence[Results], key: Key) -> list[int]:
    """The row numbers of a cell that all folders scored, ascending; no such row, or other items, are refused."""
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
    for block in dict.fromkeys((row.task, row.key.variant) for row in rows):
        chosen = [row for row in rows if (row.task, row.key.variant) == block]
        lines = [(block_title(*block), "before", "correct", "after", "correct", "difference", "tuned on")]
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


def block_title(task: str, variant: str) -> str:
    """A task and its variant as headings name them; English answers are the rule and not said."""
    return task if variant == "english" else f"{task}, {VARIANTS[variant]}"


def cells_text(keys: Iterable[Key]) -> str:
    """Cells in words: "emotion en de, emotion in_language zh"."""
    blocks: dict[str, list[str]] = {}
    for key in keys:
        name = key.task if key.variant == "english" else f"{key.task} {key.variant}"
        blocks.setdefault(name, []).append(key.language)
    return ", ".join(f"{name} {' '.join(codes)}" for name, codes in blocks.items())
