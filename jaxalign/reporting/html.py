"""The report: one HTML file with inline style and inline SVG, no script and no request to anywhere.

Whatever comes from result files is escaped on its way into the page, and characters that would hide or reorder what
stands there (control characters, bidirectional overrides) are shown as their code points.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from jaxalign.errors import InputError
from jaxalign.files import write_text
from jaxalign.reporting.escaping import visible
from jaxalign.reporting.figures import (
    accuracy_plot,
    attribution_section,
    gain_plot,
    geometry_section,
    lens_section,
    masking_section,
    representation_section,
    training_plot,
)
from jaxalign.reporting.gain_files import interval_text, notes, number_text, p_text
from jaxalign.reporting.gains import CellGain, Gains, MeanGain, measure_gains
from jaxalign.reporting.geometry import geometry_lines, geometry_note
from jaxalign.reporting.lens import LENS_NOTE
from jaxalign.reporting.neurons import neuron_changes
from jaxalign.reporting.results import Prediction, Results
from jaxalign.reporting.runs import TrainingRun
from jaxalign.reporting.tables import Comparison, block_title, cells_text, compare, language_title, percent, signed

EXAMPLES_PER_CELL = 3

RUN_FACTS = {
    "model": "model",
    "files": "files of pairs",
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
    """Compares result folders and writes the report, whole or not at all.

    Args:
      before, afters: folders that `evaluate`, and perhaps `probe`, wrote; see `compare`. Accuracies are means over the
        AFTER folders; label masses, probes and examples are those of the first.
      out: the HTML file.
      command: the command line that makes the report, shown in it.

    Raises:
      InputError: a folder cannot be read, or the folders cannot be compared.
    """
    if out.is_dir():
        raise InputError(f"{out}: a folder; name the HTML file to write, as {out / 'report.html'}")
    write_text(out, render(measure_gains(compare(before, *afters)), command))


def render(gains: Gains, command: str) -> str:
    """The page's text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=visible, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "title": language_title,
        "cells": cells_text,
        "p": p_text,
        "interval": interval_text,
        "number": number_text,
        "pretty": pretty,
    }
    source = package_files("jaxalign.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    comparison, run = gains.comparison, gains.comparison.run
    after_titles = [f"after, run {index + 1}" for index in range(len(comparison.afters))]
    if len(after_titles) == 1:
        after_titles = ["after"]
    sides = {"before": comparison.before, **dict(zip(after_titles, comparison.afters, strict=True))}
    page = environment.from_string(source).render(
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
        notes=notes(gains),
        run=run,
        run_facts=run_facts(run) if run else {},
        training=training_plot(run) if run and (run.training or run.held_out) else None,
        lens=lens_section(comparison),
        lens_note=LENS_NOTE,
        representation=representation_section(comparison),
        attribution=attribution_section(comparison),
        masking=masking_section(comparison),
        neurons=neuron_changes(comparison.before.folder, comparison.after.folder),
        geometry=geometry_section(comparison),
        geometry_lines=geometry_lines(gains.geometry) if gains.geometry else [],
        geometry_note=geometry_note(gains.geometry) if gains.geometry else "",
        sides=sides,
        timings={label: timing_facts(each) for label, each in sides.items()},
        versions=versions(comparison, sides),
        examples_per_cell=EXAMPLES_PER_CELL,
    )
    return page


def slice_table(gains: Gains) -> dict[str, list[MeanGain | None]]:
    """Name of every slice -> its mean gain in each task and variant, None where it has no language there."""
    blocks = list(gains.by_block)
    table: dict[str, list[MeanGain | None]] = {mean.name: [None] * len(blocks) for mean in gains.means}
    for mean in gains.means:
        table[mean.name][blocks.index((mean.task, mean.variant))] = mean
    return table


def pretty(document: Any) -> str:
    """A JSON document, indented, native script as it is."""
    return json.dumps(document, ensure_ascii=False, indent=2)


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
    """Package versions of every stage: {"stages": names, "packages": package -> a version per stage}."""
    stages: dict[str, Mapping[str, Any]] = {label: each.document["versions"] for label, each in sides.items()}
    if comparison.run and isinstance(comparison.run.document.get("versions"), Mapping):
        stages["tuning"] = comparison.run.document["versions"]
    packages = sorted({package for stage in stages.values() for package in stage})
    return {
        "stages": list(stages),
        "packages": {package: [stage.get(package, "") for stage in stages.values()] for package in packages},
    }
