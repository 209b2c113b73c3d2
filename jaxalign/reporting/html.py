"""The report: one HTML file with inline style and inline SVG, no script and no request to anywhere.

Whatever comes from result files is escaped on its way into the page, and characters that would hide or reorder what
stands there (control characters, bidirectional overrides) are shown as their code points.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.files import write_text
from jaxalign.reporting.figures import accuracy_plot, gain_plot, training_plot
from jaxalign.reporting.gain_files import notes
from jaxalign.reporting.gains import CellGain, Gains, MeanGain, measure_gains
from jaxalign.reporting.neurons import missing_selections, neuron_tables
from jaxalign.reporting.probe_page import probe_page
from jaxalign.reporting.probe_sections import probe_sections
from jaxalign.reporting.results import Prediction, Results
from jaxalign.reporting.runs import TrainingRun
from jaxalign.reporting.tables import Comparison, block_title, compare
from jaxalign.reporting.templates import page, versions_table

EXAMPLES_PER_CELL = 3

RUN_FACTS = {
    "model": "model",
    "files": "files of pairs",
    "records": "pairs given from Python",
    "pairs": "pairs read",
    "heldout_pairs": "pairs held out",
    "dropped": "pairs dropped as too long",
    "cut": "pairs cut to length",
    "steps": "optimizer steps",
    "template": "chat template",
    "trainable_parameters": "trainable parameters",
}
"""Keys of `run.json` that are shown as a list, with their labels; absent ones are passed over."""


@dataclass(frozen=True)
class Example:
    """One row of a cell, as both runs answered it."""

    language: str
    before: Prediction
    after: Prediction


def write_report(before: Path, afters: Sequence[Path], out: Path, command: str) -> None:
    """Compares result folders, or shows the probes of one, and writes the page, whole or not at all.

    Args:
      before, afters: folders that `evaluate`, and perhaps `probe`, wrote; see `compare`. Accuracies are means over the
        AFTER folders; label masses, probes and examples are those of the first. Without AFTER: see `probe_page`.
      out: the HTML file.
      command: the command line that makes the report, shown in it.

    Raises:
      InputError: a folder cannot be read, or the folders cannot be compared.
    """
    if out.is_dir():
        raise InputError(f"{out}: a folder; name the HTML file to write, as {out / 'report.html'}")
    write_text(out, render(measure_gains(compare(before, *afters)), command) if afters else probe_page(before, command))


def render(gains: Gains, command: str) -> str:
    """The page's text."""
    comparison, run = gains.comparison, gains.comparison.run
    after_titles = [f"after, run {index + 1}" for index in range(len(comparison.afters))]
    if len(after_titles) == 1:
        after_titles = ["after"]
    sides = {"before": comparison.before, **dict(zip(after_titles, comparison.afters, strict=True))}
    changed = {label: each.probes for label, each in (("before", comparison.before), ("after", comparison.after))}
    selected = {"before": comparison.before.folder, "after": comparison.after.folder}
    neurons = neuron_tables(selected)
    return page(
        "report.html.jinja",
        comparison=comparison,
        command=command,
        blocks=[
            {
                "title": block_title(*block),
                "cells": cells,
                "counts": count_range(cells),
                "means": [mean for mean in means if mean.kind in ("all", "tuning")],
                "plot": accuracy_plot(*block, cells),
                "rescored": [cell for cell in cells if differs_by_scoring(cell)],
                "sharing": [cell.row.language for cell in cells if cell.row.after.shares_candidates],
                "classes": list(next(iter(cells[0].row.after.predictions.values())).masses),
                "examples": examples(cells),
            }
            for block, (cells, means) in gains.by_block.items()
        ],
        gain_plot=gain_plot(gains),
        slices=slice_table(gains),
        remarks=notes(gains),
        run=run,
        run_facts=run_facts(run) if run else {},
        training=training_plot(run) if run and (run.training or run.held_out) else None,
        sections=probe_sections(changed, neurons, gains.geometry, gains.correlations, missing_selections(selected)),
        neurons=neurons,
        sides=sides,
        timings={label: timing_facts(each) for label, each in sides.items()},
        versions=versions(comparison, sides),
        examples_per_cell=EXAMPLES_PER_CELL,
    )


def slice_table(gains: Gains) -> dict[str, list[MeanGain | None]]:
    """Name of every slice -> its mean gain in each task and variant, None where it has no language there."""
    blocks = list(gains.by_block)
    table: dict[str, list[MeanGain | None]] = {mean.name: [None] * len(blocks) for mean in gains.means}
    for mean in gains.means:
        table[mean.name][blocks.index((mean.task, mean.variant))] = mean
    return table


def count_range(cells: Sequence[CellGain]) -> str:
    """How many rows the cells of one task have: "500", or "450 to 500" where they differ."""
    counts = [cell.corrected.count for cell in cells]
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


def differs_by_scoring(cell: CellGain) -> bool:
    """Whether reference scoring counts other rows as correct than corrected scoring, before or after."""
    one, two = cell.corrected, cell.reference
    return (one.before, one.after) != (two.before, two.after)


def examples(cells: Sequence[CellGain]) -> list[Example]:
    """The first rows of every cell that were compared, chosen by nothing but their number."""
    return [
        Example(cell.row.language, cell.row.before.predictions[row], cell.row.after.predictions[row])
        for cell in cells
        for row in cell.row.rows[:EXAMPLES_PER_CELL]
    ]


def run_facts(run: TrainingRun) -> dict[str, str]:
    """label -> value of what `run.json` says of the run, and the first and last losses of its curves."""
    facts = {label: shown(run.document[key]) for key, label in RUN_FACTS.items() if run.document.get(key) is not None}
    for label, points in (("training loss", run.training), ("held-out loss", run.held_out)):
        if points:
            (first_step, first), (last_step, last) = points[0], points[-1]
            facts[label] = (
                f"{first:.4f} at step {first_step:,}, {last:.4f} at step {last_step:,} (nats per target token)"
            )
    return facts


def timing_facts(results: Results) -> dict[str, str]:
    """label -> value of `timing.json`; nested objects are flattened."""
    facts = {}
    for key, value in results.timing.items():
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        facts |= {f"{key} {name}".strip().replace("_", " "): shown(number) for name, number in pairs}
    return facts


def shown(value: Any) -> str:
    """A JSON value in a sentence: thousands separated, lists by commas."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def versions(comparison: Comparison, sides: Mapping[str, Results]) -> dict[str, Any]:
    """`versions_table` of every stage, those of the tasks at its end."""
    stages: dict[str, Mapping[str, Any]] = {label: each.document["versions"] for label, each in sides.items()}
    if comparison.run and isinstance(comparison.run.document.get("versions"), Mapping):
        stages["tuning"] = comparison.run.document["versions"]
    table = versions_table(stages)
    for task in comparison.after.task_versions:
        numbers = [each.task_versions.get(task, "") for each in sides.values()]
        table["packages"][f"task {task}"] = numbers + [""] * (len(stages) - len(sides))
    return table
