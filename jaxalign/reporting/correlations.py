"""Correlations of languages' first components in numbers, and what a tuning changed in them, over the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from jaxalign.reporting.geometry import Change, change_texts, middle
from jaxalign.reporting.probe_files import Probe
from jaxalign.reporting.tables import language_title
from jaxalign.statistics import percentile_interval, resampled_correlations


@dataclass(frozen=True)
class CorrelationChange:
    """After minus before of Pearson's r of every pair of languages."""

    pairs: Sequence[tuple[str, str]]
    layers: Sequence[int]
    rows: int
    change: np.ndarray
    """float64 [pairs, layers]"""
    interval: np.ndarray
    """float64 [pairs, layers, 2]: 95 % percentile bootstrap over the rows, the same drawn before and after"""
    layer: int
    """of the headline: see `middle`"""
    headline: Mapping[str, Change]
    """by what `headline_pairs` calls them"""

    def document(self) -> dict[str, Any]:
        """As JSON; arrays are lists over pairs, then layers."""
        return {
            "pair": [list(pair) for pair in self.pairs],
            "layer": list(self.layers),
            "rows": self.rows,
            "headline_layer": self.layer,
            "headline": {name: vars(change) for name, change in self.headline.items()},
            "change": self.change.tolist(),
            "interval": self.interval.tolist(),
        }


def correlation_change(before: Probe | None, after: Probe | None) -> CorrelationChange | None:
    """Pairs two PCA probes; None where one is missing, or they differ in languages, rows or layers.

    In languages too, since each probe's first component is that of all its languages together.
    """
    if before is None or after is None or len(before.languages) < 2:
        return None
    first, second = before.document, after.document
    if sorted(before.languages) != sorted(after.languages) or any(
        first[each] != second[each] for each in ("row", "layer")
    ):
        return None
    languages, layers = before.languages, first["layer"]
    order = [after.languages.index(code) for code in languages]
    coordinates = before.arrays["first_component"], after.arrays["first_component"][:, order]
    of_pairs = np.triu_indices(len(languages), 1)
    # [pairs, layers]
    then, now = (
        array[:, *of_pairs].T.astype(np.float64)
        for array in (before.arrays["correlations"], after.arrays["correlations"][:, order][:, :, order])
    )
    k = middle(layers)
    return CorrelationChange(
        pairs=list(combinations(languages, 2)),
        layers=layers,
        rows=len(first["row"]),
        change=now - then,
        interval=np.stack([percentile_interval(drawn_changes(*sides)) for sides in zip(*coordinates, strict=True)], 1),
        layer=layers[k],
        headline=headline(languages, then[:, k], now[:, k], drawn_changes(*(each[k] for each in coordinates))),
    )


def drawn_changes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """After minus before in resamples of the same rows: float64 [pairs, resamples] of two [languages, rows]."""
    return resampled_correlations(after) - resampled_correlations(before)


def headline(languages: Sequence[str], before: np.ndarray, after: np.ndarray, drawn: np.ndarray) -> dict[str, Change]:
    """The changes at one layer, by line; r before and after [pairs], and `drawn_changes`."""
    changes = {}
    for name, members in headline_pairs(languages).items():
        low, high = percentile_interval(drawn[members].mean(axis=0)).tolist()
        changes[name] = Change(float(before[members].mean()), float(after[members].mean()), low, high, p_holm=None)
    return changes


def headline_pairs(languages: Sequence[str]) -> dict[str, list[int]]:
    """Lines of the headline -> indices of the pairs that each is a mean over: one with English, all of these, all."""
    pairs = list(combinations(languages, 2))
    with_english = {other: i for i, pair in enumerate(pairs) if "en" in pair for other in pair if other != "en"}
    lines = {language_title(code): [index] for code, index in with_english.items()}
    if len(with_english) > 1:
        lines[f"mean ({len(with_english)} languages)"] = list(with_english.values())
    if len(pairs) > len(with_english):
        several = f"mean of all {len(pairs)} pairs"
        lines[several if len(pairs) > 1 else " and ".join(pairs[0])] = list(range(len(pairs)))
    return lines


def correlation_lines(change: CorrelationChange) -> list[list[str]]:
    """The headline as a table: a line of column names, then the lines."""
    head = [f"correlation, layer {change.layer}", "r", "change  ", "95 %"]
    return [head, *([name, *change_texts(each)] for name, each in change.headline.items())]


def correlation_values(probe: Probe) -> list[list[str]]:
    """The correlations of one model with English as a table: a line of column names, then a line a language."""
    layer, english = middle(probe.document["layer"]), probe.languages.index("en")
    lines = [[f"correlation, layer {probe.document['layer'][layer]}", "r", "95 %"]]
    for index, code in enumerate(probe.languages):
        if code != "en":
            low, high = probe.arrays["correlations_interval"][layer, english, index]
            value = probe.arrays["correlations"][layer, english, index]
            lines.append([language_title(code), f"{value:.3f}", f"{low:.3f} to {high:.3f}"])
    return lines


def correlation_note(change: CorrelationChange) -> str:
    """What the columns of a change mean."""
    return f"{what_is_correlated(change.layer, change.rows)}, paired; no test is made of the changes."


def correlation_values_note(probe: Probe) -> str:
    """What the columns of one model's table mean."""
    layers = probe.document["layer"]
    return f"{what_is_correlated(layers[middle(layers)], len(probe.document['row']))}."


def what_is_correlated(layer: int, rows: int) -> str:
    """What the columns of both tables are."""
    return (
        f"Correlation: Pearson's r of two languages (a language alone: with English), over the same {rows} rows, of "
        f"the coordinates on the first joint component at layer {layer}, the middle one. Intervals: bootstrap over "
        "rows of the component as fitted"
    )
