"""The report: one HTML file with inline style and inline SVG, no script and no request to anywhere.

Whatever comes from result files is escaped on its way into the page, and characters that would hide or reorder what
stands there (control characters, bidirectional overrides) are shown as their code points.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from jaxalign.errors import InputError
from jaxalign.files import write_text
from jaxalign.reporting.figures import accuracy_plot, lens_section, representation_section, training_plot
from jaxalign.reporting.results import Prediction, Results
from jaxalign.reporting.runs import TrainingRun
from jaxalign.reporting.tables import (
    AccuracyRow,
    Comparison,
    cells_text,
    compare,
    language_title,
    mean_rows,
    percent,
    signed,
)

EXAMPLES_PER_CELL = 3

# Controls except tab and newline; bidirectional embeddings, overrides and isolates; surrogates; non-characters.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

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


def write_report(before: Path, after: Path, out: Path, command: str) -> None:
    """Compares two result folders and writes the report, whole or not at all.

    Args:
      before, after: folders that `evaluate`, and perhaps `probe`, wrote.
      out: the HTML file.
      command: the command line that makes the report, shown in it.

    Raises:
      InputError: a folder cannot be read, or the two have no task and language in common.
    """
    if out.is_dir():
        raise InputError(f"{out}: a folder; name the HTML file to write, as {out / 'report.html'}")
    write_text(out, render(compare(before, after), command))


def render(comparison: Comparison, command: str) -> str:
    """The page's text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=visible, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "title": language_title,
        "cells": cells_text,
        "pretty": pretty,
    }
    source = package_files("jaxalign.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    run = comparison.run
    page = environment.from_string(source).render(
        comparison=comparison,
        command=command,
        tasks=[
            {
                "name": task,
                "rows": rows,
                "counts": count_range(rows),
                "means": mean_rows(rows),
                "plot": accuracy_plot(task, rows),
                "rescored": [row for row in rows if differs_by_scoring(row)],
                "uneven": [row.language for row in rows if not row.same_rows],
                "classes": list(next(iter(rows[0].after.predictions.values())).masses),
                "examples": examples(rows),
            }
            for task, rows in comparison.by_task.items()
        ],
        run=run,
        run_facts=run_facts(run) if run else {},
        training=training_plot(run) if run and (run.training or run.held_out) else None,
        lens=lens_section(comparison),
        representation=representation_section(comparison),
        sides={"before": comparison.before, "after": comparison.after},
        timings={"before": timing_facts(comparison.before), "after": timing_facts(comparison.after)},
        versions=versions(comparison),
        examples_per_cell=EXAMPLES_PER_CELL,
    )
    return page


def visible(value: Any) -> Any:
    """Text as it may stand in a page: hidden characters as [U+XXXX]. Markup made here passes through."""
    if hasattr(value, "__html__"):
        return value
    return HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", str(value))


def pretty(document: Any) -> str:
    """A JSON document, indented, native script as it is."""
    return json.dumps(document, ensure_ascii=False, indent=2)


def count_range(rows: Sequence[AccuracyRow]) -> str:
    """How many rows the cells of one task have: "500", or "450 to 500" where they differ."""
    counts = [cell.count for row in rows for cell in (row.before, row.after)]
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


def differs_by_scoring(row: AccuracyRow) -> bool:
    """Whether reference scoring counts other rows as correct than corrected scoring, before or after."""
    return any(cell.correct != cell.correct_reference for cell in (row.before, row.after))


def examples(rows: Sequence[AccuracyRow]) -> list[Example]:
    """The first rows of every cell that both runs scored, chosen by nothing but their number."""
    chosen = []
    for row in rows:
        common = sorted(row.before.predictions.keys() & row.after.predictions.keys())
        for index in common[:EXAMPLES_PER_CELL]:
            chosen.append(Example(row.language, row.before.predictions[index], row.after.predictions[index]))
    return chosen


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


def versions(comparison: Comparison) -> dict[str, Any]:
    """Package versions of every stage: {"stages": names, "packages": package -> a version per stage}."""
    stages: dict[str, Mapping[str, Any]] = {
        "before": comparison.before.document["versions"],
        "after": comparison.after.document["versions"],
    }
    if comparison.run and isinstance(comparison.run.document.get("versions"), Mapping):
        stages["tuning"] = comparison.run.document["versions"]
    packages = sorted({package for stage in stages.values() for package in stage})
    return {
        "stages": list(stages),
        "packages": {package: [stage.get(package, "") for stage in stages.values()] for package in packages},
    }
