"""A comparison for reading and for machines: tables for a terminal, `compare.json`, `compare.csv`, `compare.md`."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxalign.data.languages import LANGUAGES
from jaxalign.errors import InputError
from jaxalign.files import published, write_text
from jaxalign.reporting import words
from jaxalign.reporting.changes import LEVEL
from jaxalign.reporting.compare import POWER, RESAMPLES, SEED, Comparison, MeanGain, PairedCell
from jaxalign.reporting.folders import Results

TERMINAL_KINDS = ("all", "tuning", "tier")
"""Slices that the terminal shows; the files hold the others too."""


def write_files(comparison: Comparison, folder: Path, command: str) -> list[Path]:
    """Writes the three files, each whole or not at all; `command` is the command line that makes them."""
    if folder.is_file():
        raise InputError(f"{folder}: a file; name a folder for compare.json, compare.csv and compare.md")
    texts = {
        # Escapes, so that a broken name in a result (a lone surrogate) can be written too.
        "compare.json": json.dumps(document(comparison, command), indent=1) + "\n",
        "compare.csv": csv_text(comparison),
        "compare.md": markdown(comparison, command),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def document(comparison: Comparison, command: str) -> dict[str, Any]:
    """Everything that was computed, and from what."""
    return {
        "before": source(comparison.before),
        "after": [source(each) for each in comparison.afters],
        "tuned_on": list(comparison.seen) or None,
        "cells": [cell_document(cell) for cell in comparison.cells],
        "means": [asdict(mean) for mean in comparison.means],
        "only_before": [key._asdict() for key in comparison.only_before],
        "only_after": [key._asdict() for key in comparison.only_after],
        "failures": [
            {"folder": published(str(folder)), **failure.key._asdict(), "error": published(failure.error)}
            for folder, failure in comparison.failures
        ],
        "method": {"level": LEVEL, "power": POWER, "resamples": RESAMPLES, "seed": SEED, "notes": notes(comparison)},
        "geometry": comparison.geometry.document() if comparison.geometry else None,
        "correlations": comparison.correlations.document() if comparison.correlations else None,
        "command": published(command),
    }


def source(results: Results) -> dict[str, Any]:
    """Where one side of the comparison comes from."""
    kept = ("dtype", "param_dtype", "tuned_on")
    shown = {name: published(results.document.get(name) or "") or None for name in ("model", "adapter", "command")}
    return {"folder": published(str(results.folder)), **shown, **{name: results.document.get(name) for name in kept}}


def cell_document(cell: PairedCell) -> dict[str, Any]:
    language = LANGUAGES[cell.language]
    return {
        **cell.key._asdict(),
        "prompts": cell.before.prompts,
        "seen": cell.seen,
        "script": language.script,
        "family": language.family,
        "tier": language.tier,
        "count": len(cell.rows),
        "rows_left_out": cell.left_out,
        "corrected": asdict(cell.corrected),
        "reference": asdict(cell.reference),
        "whole_word_before": cell.before.accuracy_whole_word,
        "whole_word_after": [each.accuracy_whole_word for each in cell.afters],
    }


def csv_text(comparison: Comparison) -> str:
    """One line per cell: the JSON's cells, nested fields joined by "_", values of several runs by a space."""
    lines = [dict(flat(cell_document(cell))) for cell in comparison.cells]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([lines[0], *(line.values() for line in lines)])
    return text.getvalue()


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(column, value) pairs; an interval becomes the columns low and high."""
    columns: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = prefix + key
        if isinstance(item, Mapping):
            columns += flat(item, f"{name}_")
        elif key.startswith("interval"):
            columns += [(f"{name}_low", item[0]), (f"{name}_high", item[1])]
        elif key == "runs":
            columns += [
                (f"{prefix}run_{of_run}", " ".join(str(run[of_run]) for run in item))
                for of_run in ("correct", "lost", "won", "p_value")
            ]
        elif isinstance(item, list):
            columns.append((name, " ".join("" if each is None else str(each) for each in item)))
        else:
            columns.append((name, item))
    return columns


def plain_text(comparison: Comparison) -> str:
    """The tables of every task for a terminal, and what their columns and marks mean."""
    failures = [
        words.one_line(f"Failed in {folder}: {words.cells_text([failure.key])}: {failure.error}")
        for folder, failure in comparison.failures
    ]
    tables = [table.text() for _, of_part in tables_of(comparison, TERMINAL_KINDS) for table in of_part]
    return "\n\n".join([*tables, "\n".join([*failures, *notes(comparison)])])


def accuracy_tables(comparison: Comparison) -> str:
    """The tables of every task alone."""
    titled = tables_of(comparison, TERMINAL_KINDS)[: len(comparison.by_block)]
    return "\n\n".join(table.text() for _, tables in titled for table in tables)


def markdown(comparison: Comparison, command: str) -> str:
    """The same tables, with every slice, for a README."""
    sides = []
    for index, each in enumerate((comparison.before, *comparison.afters)):
        model, folder = (words.code_span(published(text)) for text in (each.model, str(each.folder)))
        adapter = f", adapter {words.code_span(published(each.adapter))}" if each.adapter else ""
        sides.append(f"- {'After' if index else 'Before'}: model {model}{adapter}, in {folder}")
    parts = ["\n".join(sides)]
    for title, tables in tables_of(comparison, ("all", "tuning", "script", "family", "tier"), "language"):
        parts += [f"### {title}", *(table.markdown() for table in tables)]
    if comparison.failures:
        parts.append(
            "\n".join(
                f"- Failed in {words.code_span(published(str(folder)))}: {words.cells_text([failure.key])}: "
                f"{words.code_span(published(failure.error))}"
                for folder, failure in comparison.failures
            )
        )
    parts.append("\n".join(f"- {words.own_markdown(note)}" for note in notes(comparison)))
    parts.append(f"Made by {words.code_span(published(command))}.")
    return "\n\n".join(parts) + "\n"


def tables_of(comparison: Comparison, kinds: Sequence[str], first: str = "") -> list[tuple[str, list[words.Table]]]:
    """(title, tables) of every task and of what the probes changed; means of those kinds of slices.

    `first`: what the first column of a task's cells is called, in place of the task.
    """
    spread = ["seed dev."] if len(comparison.afters) > 1 else []
    titled = []
    for block, (cells, means) in comparison.by_block.items():
        title = words.block_title(*block)
        head = ["before", "after", "gain  ", *spread, "p", "Holm", "B-H", "detectable", "rows", "tuned on"]
        of_cells = words.Table([first or title, *head], [cell_line(cell, spread) for cell in cells])
        head = ["mean over", "languages", "before", "after", "gain", "95 % interval", *spread]
        of_means = words.Table(head, [mean_line(mean, spread) for mean in means if mean.kind in kinds])
        titled.append((title, [of_cells, of_means]))
    for title, change in (("geometry", comparison.geometry), ("correlations", comparison.correlations)):
        if change:
            titled.append((title, [change.table()]))
    return titled


def cell_line(cell: PairedCell, spread: Sequence[str]) -> list[str]:
    score = cell.corrected
    return [
        words.language_title(cell.language),
        *map(words.percent, (score.accuracy_before, score.accuracy_after)),
        words.signed(score.gain_points) + score.mark.ljust(2),
        *[words.number_text(score.seed_deviation_points) for _ in spread],
        *map(words.p_text, (score.p_value, score.p_holm, score.p_benjamini_hochberg)),
        words.number_text(score.smallest_detectable_points),
        str(len(cell.rows)),
        {True: "yes", False: "no", None: "not recorded"}[cell.seen],
    ]


def mean_line(mean: MeanGain, spread: Sequence[str]) -> list[str]:
    score = mean.corrected
    return [
        mean.name,
        str(len(mean.languages)),
        *map(words.percent, (score.accuracy_before, score.accuracy_after)),
        words.signed(score.gain_points),
        words.interval_text(score.interval_points),
        *[words.number_text(score.seed_deviation_points) for _ in spread],
    ]


def notes(comparison: Comparison) -> list[str]:
    """What the tables' columns and marks mean, and what was left out, one sentence or two each."""
    means_over = {
        words.block_title(*block): words.count_text(means[0].count, "row")
        for block, (cells, means) in comparison.by_block.items()
        if any(len(cell.rows) > means[0].count for cell in cells)
    }
    text = words.said(
        "comparison",
        runs=len(comparison.afters),
        cells=words.count_text(len(comparison.cells), "cell"),
        level=f"{100 * LEVEL:.0f} %",
        power=f"{100 * POWER:.0f} %",
        resamples=f"{RESAMPLES:,}",
        left_out=words.cells_text(cell.key for cell in comparison.cells if cell.left_out),
        means_over=means_over,
        changes=[change.table().note for change in (comparison.geometry, comparison.correlations) if change],
        only={"before": words.cells_text(comparison.only_before), "after": words.cells_text(comparison.only_after)},
    )
    return text.split("\n")[:-1]
