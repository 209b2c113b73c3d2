"""A comparison for reading and for machines: tables for a terminal, `compare.json`, `compare.csv`, `compare.md`."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.languages import LANGUAGES
from jaxalign.errors import InputError
from jaxalign.files import published, write_text
from jaxalign.reporting.correlations import correlation_lines, correlation_note
from jaxalign.reporting.escaping import code_span, one_line
from jaxalign.reporting.gains import LEVEL, POWER, RESAMPLES, SEED, CellGain, Gains, MeanGain, MeanScore, Score
from jaxalign.reporting.geometry import geometry_lines, geometry_note
from jaxalign.reporting.results import Key, Results
from jaxalign.reporting.tables import aligned, block_title, cells_text, language_title, percent, seen_text, signed

TERMINAL_KINDS = ("all", "tuning", "tier")
"""Slices that the terminal shows; the files hold the others too."""


def write_files(gains: Gains, folder: Path, command: str) -> list[Path]:
    """Writes the three files, each whole or not at all; `command` is the command line that makes them."""
    if folder.is_file():
        raise InputError(f"{folder}: a file; name a folder for compare.json, compare.csv and compare.md")
    texts = {
        # Escapes, so that a broken name in a result (a lone surrogate) can be written too.
        "compare.json": json.dumps(document(gains, command), indent=1) + "\n",
        "compare.csv": csv_text(gains),
        "compare.md": markdown(gains, command),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def document(gains: Gains, command: str) -> dict[str, Any]:
    """Everything that was computed, and from what."""
    comparison = gains.comparison
    return {
        "before": source(comparison.before),
        "after": [source(each) for each in comparison.afters],
        "tuned_on": list(comparison.seen) or None,
        "cells": [cell_document(cell) for cell in gains.cells],
        "means": [mean_document(mean) for mean in gains.means],
        "only_before": [key._asdict() for key in comparison.only_before],
        "only_after": [key._asdict() for key in comparison.only_after],
        "failures": [
            {"folder": published(str(folder)), **failure.key._asdict(), "error": published(failure.error)}
            for folder, failure in comparison.failures
        ],
        "method": {"level": LEVEL, "power": POWER, "resamples": RESAMPLES, "seed": SEED, "notes": notes(gains)},
        "geometry": gains.geometry.document() if gains.geometry else None,
        "correlations": gains.correlations.document() if gains.correlations else None,
        "command": published(command),
    }


def source(results: Results) -> dict[str, Any]:
    """Where one side of the comparison comes from."""
    kept = ("dtype", "param_dtype", "tuned_on")
    shown = {name: published(results.document.get(name) or "") or None for name in ("model", "adapter", "command")}
    return {"folder": published(str(results.folder)), **shown, **{name: results.document.get(name) for name in kept}}


def cell_document(cell: CellGain) -> dict[str, Any]:
    row, language = cell.row, LANGUAGES[cell.row.language]
    return {
        **row.key._asdict(),
        "prompts": row.before.prompts,
        "seen": row.seen,
        "script": language.script,
        "family": language.family,
        "tier": language.tier,
        "count": cell.corrected.count,
        "rows_left_out": row.left_out,
        "corrected": score_document(cell.corrected),
        "reference": score_document(cell.reference),
        "whole_word_before": row.before.accuracy_whole_word,
        "whole_word_after": [each.accuracy_whole_word for each in row.afters],
    }


def score_document(score: Score) -> dict[str, Any]:
    return {
        "accuracy_before": score.before,
        "interval_before": list(score.interval_before),
        "accuracy_after": score.after,
        "interval_after": list(score.interval_after),
        "gain_points": score.gain,
        "p_value": score.p_value,
        "p_holm": score.p_holm,
        "p_benjamini_hochberg": score.p_benjamini_hochberg,
        "smallest_detectable_points": score.smallest_detectable,
        "seed_deviation_points": score.seed_deviation,
        "correct_before": score.correct_before,
        "runs": [{**vars(run), "interval": list(run.interval)} for run in score.runs],
    }


def mean_document(mean: MeanGain) -> dict[str, Any]:
    def numbers(score: MeanScore) -> dict[str, Any]:
        return {
            "accuracy_before": score.before,
            "accuracy_after": score.after,
            "gain_points": score.gain,
            "interval_points": list(score.interval),
            "seed_deviation_points": score.seed_deviation,
        }

    named = {name: getattr(mean, name) for name in ("task", "variant", "kind", "name", "languages", "count")}
    return {**named, "corrected": numbers(mean.corrected), "reference": numbers(mean.reference)}


def csv_text(gains: Gains) -> str:
    """One line per cell: the JSON's cells, nested fields joined by "_", values of several runs by a space."""
    lines = [dict(flat(cell_document(cell))) for cell in gains.cells]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
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


def plain_text(gains: Gains) -> str:
    """The tables of every task for a terminal, and what their columns and marks mean."""
    blocks = []
    for block, (cells, means) in gains.by_block.items():
        shown = [mean for mean in means if mean.kind in TERMINAL_KINDS]
        blocks.append(
            aligned([[block_title(*block), *cell_columns(gains)], *(cell_line(gains, each) for each in cells)])
        )
        blocks.append(aligned([["mean over", *mean_columns(gains)], *(mean_line(gains, each) for each in shown)]))
    if gains.geometry:
        blocks.append(aligned(geometry_lines(gains.geometry)))
    if gains.correlations:
        blocks.append(aligned(correlation_lines(gains.correlations)))
    failures = [
        one_line(f"Failed in {folder}: {cells_text([failure.key])}: {failure.error}")
        for folder, failure in gains.comparison.failures
    ]
    return "\n\n".join([*blocks, "\n".join([*failures, *notes(gains)])])


def markdown(gains: Gains, command: str) -> str:
    """The same tables, with every slice, for a README."""
    comparison = gains.comparison
    sides = [("Before", comparison.before), *(("After", each) for each in comparison.afters)]
    parts = ["\n".join(f"- {label}: {source_text(each)}" for label, each in sides)]
    for block, (cells, means) in gains.by_block.items():
        parts.append(f"### {block_title(*block)}")
        parts.append(pipe_table([["language", *cell_columns(gains)], *(cell_line(gains, each) for each in cells)]))
        parts.append(pipe_table([["mean over", *mean_columns(gains)], *(mean_line(gains, each) for each in means)]))
    if gains.geometry:
        parts += ["### geometry", pipe_table(geometry_lines(gains.geometry))]
    if gains.correlations:
        parts += ["### correlations", pipe_table(correlation_lines(gains.correlations))]
    if comparison.failures:
        parts.append(
            "\n".join(
                f"- Failed in {code_span(published(str(folder)))}: {cells_text([failure.key])}: "
                f"{code_span(published(failure.error))}"
                for folder, failure in comparison.failures
            )
        )
    parts.append("\n".join(f"- {escaped_marks(note)}" for note in notes(gains)))
    parts.append(f"Made by {code_span(published(command))}.")
    return "\n\n".join(parts) + "\n"


def source_text(results: Results) -> str:
    adapter = f", adapter {code_span(published(results.adapter))}" if results.adapter else ""
    return f"model {code_span(published(results.model))}{adapter}, in {code_span(published(str(results.folder)))}"


def cell_columns(gains: Gains) -> list[str]:
    spread = ["seed dev."] if several(gains) else []
    return ["before", "after", "gain  ", *spread, "p", "Holm", "B-H", "detectable", "rows", "tuned on"]


def cell_line(gains: Gains, cell: CellGain) -> list[str]:
    score = cell.corrected
    spread = [number_text(score.seed_deviation)] if several(gains) else []
    return [
        language_title(cell.row.language),
        percent(score.before),
        percent(score.after),
        signed(score.gain) + score.mark.ljust(2),
        *spread,
        *map(p_text, (score.p_value, score.p_holm, score.p_benjamini_hochberg)),
        number_text(score.smallest_detectable),
        str(score.count),
        seen_text(cell.row.seen),
    ]


def mean_columns(gains: Gains) -> list[str]:
    spread = ["seed dev."] if several(gains) else []
    return ["languages", "before", "after", "gain", "95 % interval", *spread]


def mean_line(gains: Gains, mean: MeanGain) -> list[str]:
    score = mean.corrected
    spread = [number_text(score.seed_deviation)] if several(gains) else []
    return [
        mean.name,
        str(len(mean.languages)),
        percent(score.before),
        percent(score.after),
        signed(score.gain),
        interval_text(score.interval),
        *spread,
    ]


def several(gains: Gains) -> bool:
    return len(gains.comparison.afters) > 1


def p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def interval_text(interval: Sequence[float]) -> str:
    """An interval in points: "+1.0 to +3.2"."""
    return f"{signed(interval[0])} to {signed(interval[1])}"


def number_text(points: float | None) -> str:
    """Points with one decimal; a dash where there is no number."""
    return "\N{EN DASH}" if points is None else f"{points:.1f}"


def pipe_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every text in it is our own."""
    head, *body = [[escaped_marks(cell.strip()) for cell in line] for line in lines]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def escaped_marks(text: str) -> str:
    """Our own text, its marks and signs kept from being markup."""
    return text.replace("*", r"\*").replace("<", "&lt;")


def notes(gains: Gains) -> list[str]:
    """What the tables' columns and marks mean, and what was left out, one sentence or two each."""
    runs, cells = len(gains.comparison.afters), len(gains.cells)
    level = f"{100 * LEVEL:.0f} %"
    resampled = "languages and of rows" if runs == 1 else "languages, of rows and of runs"
    texts = [
        "Accuracies in %, gains and deviations in percentage points, under corrected scoring; only rows that all "
        "folders scored.",
        f"** significant at {level} after Holm's correction over the {counted(cells, 'cell')} of this comparison; "
        f"* only after Benjamini and Hochberg's (of all marks {level} are false on average at most).",
        "p: exact McNemar test, two-sided; Holm, B-H: p after correction; detectable: the smallest gain that one "
        f"uncorrected test of this cell finds with {100 * POWER:.0f} % power.",
        f"Intervals of mean gains: 95 %, crossed bootstrap, {RESAMPLES:,} resamples of {resampled}, a row being the "
        "same item in every language. Of one language, its rows alone are resampled.",
    ]
    if runs > 1:
        texts.append(
            f"Means over {runs} runs. Their p-values are not pooled: p is the largest of them, and 1 where they point "
            "in different directions; so is detectable the largest. seed dev.: sample standard deviation over the runs."
        )
    left_out = [cell.row.key for cell in gains.cells if cell.row.left_out]
    if left_out:
        texts.append(f"Rows that not every folder scored were left out of {cells_text(left_out)}.")
    for block, (of_block, means) in gains.by_block.items():
        if any(cell.corrected.count > means[0].count for cell in of_block):
            texts.append(
                f"Means of {block_title(*block)} are over the {counted(means[0].count, 'row')} that all its languages "
                "have; the others were left out."
            )
    if gains.geometry:
        texts.append(geometry_note(gains.geometry))
    if gains.correlations:
        texts.append(correlation_note(gains.correlations))
    texts += left_over("before", gains.comparison.only_before) + left_over("after", gains.comparison.only_after)
    return texts


def left_over(side: str, keys: Sequence[Key]) -> list[str]:
    return [f"Only {side}, not compared: {cells_text(keys)}."] if keys else []


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
