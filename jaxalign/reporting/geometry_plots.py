"""Likeness to English drawn over the layers."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxalign.reporting.plots import BLACK, STYLE, mark, title

GEOMETRY_TITLES = {
    "cka": "linear CKA",
    "retrieval": "retrieval@1",
    "reciprocal_rank": "mean reciprocal rank",
    "retrieval_centred": "retrieval@1, centred",
    "reciprocal_rank_centred": "mean reciprocal rank,\ncentred",
}
CENTRED_GEOMETRY = ("cka", "retrieval_centred", "reciprocal_rank_centred")
UNCENTRED_GEOMETRY = ("retrieval", "reciprocal_rank")


def geometry(
    runs: Mapping[str, Mapping[str, np.ndarray]],
    languages: Sequence[str],
    layers: Sequence[int],
    measures: Sequence[str] = CENTRED_GEOMETRY,
) -> Figure:
    """Likeness to English over the layers, a row for each measure and a column for each run, one line a language.

    Args:
      runs: label -> the arrays of `geometry.npz`; measures are float [languages, layers].
      languages, layers: the arrays' axes.
      measures: keys of GEOMETRY_TITLES.
    """
    with matplotlib.rc_context(STYLE):
        legend_rows = -(-len(languages) // 5)
        size = (3.8 * len(runs) + 1.0, 2.1 * len(measures) + 0.22 * legend_rows + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(measures), len(runs), squeeze=False, sharex=True, sharey="row")
        for c, (label, arrays) in enumerate(runs.items()):
            for r, measure in enumerate(measures):
                panel = panels[r, c]
                for index, values in enumerate(arrays[measure]):
                    colour, marker = mark(index)
                    name = title(languages[index])
                    panel.plot(
                        layers, values, "-", color=colour, marker=marker, markersize=3, linewidth=1.1, label=name
                    )
                panel.plot(layers, chance_level(arrays, measure), ":", color=BLACK, linewidth=0.8)
                panel.set(
                    ylim=(-0.02, 1.02), title=label if r == 0 else "", ylabel="" if c else GEOMETRY_TITLES[measure]
                )
                panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            panels[-1, c].set_xlabel("layer")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(languages)))
    return figure


def chance_level(arrays: Mapping[str, np.ndarray], measure: str) -> np.ndarray:
    """What a measure of `geometry` is on average if the rows are in any order: float [layers], mean over languages."""
    if measure == "cka":
        return arrays["cka_chance"].mean(axis=0)
    _, layers, rows = arrays["rank"].shape
    return np.full(layers, 1 / rows if measure.startswith("retrieval") else (1 / np.arange(1, rows + 1)).mean())
