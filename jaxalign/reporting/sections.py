"""What a section of a page is, and which of two sides' probes can be shown together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.reporting.figures import Plot
from jaxalign.reporting.probe_files import Probe


@dataclass(frozen=True)
class LayerFacts:
    """What the representation probe measured at one layer, a value for each run."""

    layer: int
    explained: Sequence[float]
    """share of the variance on the first two components"""
    correlation: Sequence[float]
    """mean over languages of the correlation with English; empty where English was not probed"""


@dataclass(frozen=True)
class ProbeSection:
    """The plots of one probe, notes on what is missing, and facts by layer."""

    runs: Sequence[str]
    notes: Sequence[str]
    plots: Sequence[Plot] = ()
    folded: Sequence[Plot] = ()
    """shown on request"""
    facts: Sequence[LayerFacts] = ()
    lines: Sequence[Sequence[str]] = ()
    """a headline as a table: column names, then the rows"""
    lines_note: str = ""
    """what the table's columns mean"""


def present(sides: Mapping[str, Probe | None]) -> dict[str, Probe]:
    """Those that were probed."""
    return {label: probe for label, probe in sides.items() if probe is not None}


def absent(sides: Mapping[str, Probe | None]) -> list[str]:
    """Notes on those of two sides that were not probed."""
    without = [label for label, probe in sides.items() if probe is None and len(sides) > 1]
    return [f"The {label} folder holds no such probe." for label in without]


def drawable(sides: Mapping[str, Probe | None], array: str, layer_axis: int) -> tuple[dict[str, Probe], list[str]]:
    """The probes that can be drawn together, and notes on those of two sides that cannot."""
    runs, notes = present(sides), absent(sides)
    depths = [probe.arrays[array].shape[layer_axis] for probe in runs.values()]
    if len(set(depths)) > 1:
        return {}, [f"Not drawn: the two models have different numbers of layers ({' and '.join(map(str, depths))})."]
    if runs and not common_languages(runs, "language"):
        return {}, ["Not drawn: the two probes have no language in common."]
    return runs, notes


def common_languages(runs: Mapping[str, Probe], axis: str) -> list[str]:
    """The labels of an axis that all probes have, in the order of the first."""
    first, *others = (probe.document[axis] for probe in runs.values())
    return [code for code in first if all(code in other for other in others)]


def select(probe: Probe, languages: Sequence[str], axis: str) -> dict[str, np.ndarray]:
    """The probe's arrays with every axis of that name reduced to the given languages."""
    indices = [probe.document[axis].index(code) for code in languages]
    arrays = dict(probe.arrays)
    for name, axes in probe.document["axes"].items():
        for position in (position for position, label in enumerate(axes) if label == axis):
            arrays[name] = np.take(arrays[name], indices, axis=position)
    return arrays
