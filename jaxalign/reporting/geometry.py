"""The geometry in numbers at the middle layer, and what a tuning changed in it: paired differences in every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.probing.geometry import MEASURES, row_values
from jaxalign.reporting.probe_files import Probe
from jaxalign.reporting.tables import language_title
from jaxalign.statistics import Gain, bootstrap_intervals, crossed_bootstrap, holm, sign_flip_p_values

LEVEL = 0.05
HEADLINE = {"cka": "CKA", "retrieval_centred": "retrieval@1", "reciprocal_rank_centred": "recip. rank"}
"""Measures of the headline and what its columns call them: centred, as uncentred cosines are mostly what all texts of
a language share."""


@dataclass(frozen=True)
class Change:
    """A measure of one language at the headline's layer; `mean` of all: over the languages."""

    before: float
    after: float
    low: float
    high: float
    """95 % interval of after - before"""
    p_holm: float | None
    """of exchanging before and after in every row, adjusted over the headline's languages and measures; None where no
    test is made"""

    @property
    def mark(self) -> str:
        return "**" if self.p_holm is not None and self.p_holm <= LEVEL else ""


@dataclass(frozen=True)
class GeometryChange:
    """After minus before on the same rows."""

    languages: Sequence[str]
    layers: Sequence[int]
    rows: int
    position: str
    change: Mapping[str, np.ndarray]
    """measure -> float64 [languages, layers]"""
    interval: Mapping[str, np.ndarray]
    """measure -> float64 [languages, layers, 2]: 95 % percentile bootstrap over the rows"""
    layer: int
    """of the headline: see `middle`"""
    headline: Mapping[str, Mapping[str, Change]]
    """language, then "mean" -> measure of HEADLINE -> its change"""

    def document(self) -> dict[str, Any]:
        """As JSON; arrays are lists over languages, then layers."""
        arrays = {
            name: {"change": self.change[name].tolist(), "interval": self.interval[name].tolist()} for name in MEASURES
        }
        headline = {
            name: {measure: vars(change) for measure, change in changes.items()}
            for name, changes in self.headline.items()
        }
        axes = {"language": list(self.languages), "layer": list(self.layers)}
        described = {"rows": self.rows, "position": self.position, "headline_layer": self.layer}
        return {**axes, **described, "headline": headline, **arrays}


def geometry_change(before: Probe | None, after: Probe | None) -> GeometryChange | None:
    """Pairs two geometry probes; None where one is missing, or no language is in both with the same rows and layers."""
    if before is None or after is None:
        return None
    first, second = before.document, after.document
    languages = [code for code in before.languages if code in after.languages]
    if not languages or any(first[name] != second[name] for name in ("row", "layer", "position")):
        return None
    values = [
        {
            measure: of_rows[[probe.languages.index(code) for code in languages]].astype(np.float64)
            for measure, of_rows in row_values(probe.arrays).items()
        }
        for probe in (before, after)
    ]
    differences = {measure: values[1][measure] - values[0][measure] for measure in MEASURES}
    layer = middle(first["layer"])
    return GeometryChange(
        languages=languages,
        layers=first["layer"],
        rows=len(first["row"]),
        position=first["position"],
        change={measure: each.mean(axis=-1) for measure, each in differences.items()},
        interval={measure: bootstrap_intervals(each) for measure, each in differences.items()},
        layer=first["layer"][layer],
        headline=headline(languages, *({m: each[m][:, layer] for m in HEADLINE} for each in values)),
    )


def middle(layers: Sequence[int]) -> int:
    """Which of the probed layers the headline is of: the middle one, fixed before anything is seen."""
    return len(layers) // 2


def headline(
    languages: Sequence[str], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Change]]:
    """The changes at one layer.

    Args:
      before, after: measure -> what each row adds to it, float64 [languages, rows].
    """
    differences = np.stack([after[measure] - before[measure] for measure in before])
    intervals = bootstrap_intervals(differences).tolist()
    adjusted = holm(sign_flip_p_values(differences).ravel()).reshape(differences.shape[:2]).tolist()
    table: dict[str, dict[str, Change]] = {}
    for m, measure in enumerate(before):
        then, now = before[measure].mean(axis=1).tolist(), after[measure].mean(axis=1).tolist()
        for index, code in enumerate(languages):
            change = Change(then[index], now[index], *intervals[m][index], p_holm=adjusted[m][index])
            table.setdefault(code, {})[measure] = change
    if len(languages) > 1:
        table["mean"] = {measure: mean_change(before[measure], after[measure]) for measure in before}
    return table


def mean_change(before: np.ndarray, after: np.ndarray) -> Change:
    """Over languages, with an interval that speaks for further languages and rows; float64 [languages, rows] both."""
    gain: Gain = crossed_bootstrap(before, after)
    return Change(float(before.mean()), float(after.mean()), gain.low, gain.high, None)


def geometry_lines(change: GeometryChange) -> list[list[str]]:
    """The headline as a table: a line of column names, then a line a language and their mean."""
    columns = [text for name in HEADLINE.values() for text in (name, "change  ", "95 %")]
    lines = [[f"geometry, layer {change.layer}", *columns]]
    for language, changes in change.headline.items():
        title = f"mean ({len(change.languages)} languages)" if language == "mean" else language_title(language)
        lines.append([title, *(text for measure in HEADLINE for text in change_texts(changes[measure]))])
    return lines


def geometry_values(probe: Probe) -> list[list[str]]:
    """The geometry of one model as a table: a line of column names, then a line a language."""
    layer = middle(probe.document["layer"])
    columns = [text for name in HEADLINE.values() for text in (name, "95 %")]
    lines = [[f"geometry, layer {probe.document['layer'][layer]}", *columns]]
    for index, code in enumerate(probe.languages):
        line = [language_title(code)]
        for measure in HEADLINE:
            low, high = probe.arrays[f"{measure}_interval"][index, layer]
            line += [f"{probe.arrays[measure][index, layer]:.3f}", f"{low:.3f} to {high:.3f}"]
        lines.append(line)
    return lines


def change_texts(change: Change) -> list[str]:
    """before > after, the difference with its mark, and its interval."""
    return [
        f"{change.before:.3f} \N{RIGHTWARDS ARROW} {change.after:.3f}",
        signed_share(change.after - change.before) + change.mark.ljust(2),
        f"{signed_share(change.low)} to {signed_share(change.high)}",
    ]


def signed_share(value: float, decimals: int = 3) -> str:
    """So many decimals and a sign; what rounds to zero has none."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def values_note(probe: Probe) -> str:
    """What the columns of one model's table mean."""
    document = probe.document
    layer = document["layer"][middle(document["layer"])]
    return f"{what_is_compared(layer, len(document['row']), document['position'])} Intervals: bootstrap over rows."


def what_is_compared(layer: int, rows: int, position: str) -> str:
    """What the columns of both tables are."""
    return (
        f"Geometry: likeness to English at layer {layer}, the middle one, over {rows} rows (states: {position}; in "
        "retrieval and reciprocal rank each language's mean is taken off)."
    )


def geometry_note(change: GeometryChange) -> str:
    """What the headline's columns and marks mean."""
    return (
        f"{what_is_compared(change.layer, change.rows, change.position)} Intervals: paired bootstrap over rows, of the "
        "mean over languages too. ** significant at 5 % by sign flips of the rows' differences after "
        f"Holm's correction over the {len(HEADLINE) * len(change.languages)} changes shown."
    )
