"""Figures of language neurons: where they are, and what masking or transplanting each language's does to every one."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxalign.reporting.plots import STYLE, layers_heat_map, title


def neurons_heat_map(counts: Mapping[str, np.ndarray], languages: Sequence[str]) -> Figure:
    """How many neurons each language has in each layer, one panel a run.

    Args:
      counts: label -> int [K, L].
      languages: codes, length K.
    """
    most = max(1, *(int(each.max()) for each in counts.values()))
    return layers_heat_map(counts, languages, "neurons", "viridis", 0, most)


def effect_heat_map(change: np.ndarray, languages: Sequence[str], quantity: str, done: str) -> Figure:
    """Change of a quantity, by the language's own neurons on the left and by random ones on the right.

    A dot: the two differ, by the 95 % interval of their difference.

    Args:
      change: `log_perplexity_change` of `masking.npz`, say, float [3, K, K, 3].
      languages: codes, length K.
      quantity: what the colours are, with its unit.
      done: to the neurons: "switched off", say.
    """
    most = max(float(np.abs(change[:2, ..., 0]).max()), 1e-3)
    apart = (change[2, ..., 1] > 0) | (change[2, ..., 2] < 0)
    ticks = np.arange(len(languages))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.56 * len(languages) + 3.4, 0.26 * len(languages) + 1.7), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, values, name in zip(panels, change[:2, ..., 0], ("its own neurons", "random neurons"), strict=True):
            mesh = panel.pcolormesh(values, cmap="RdBu_r", vmin=-most, vmax=most)
            panel.set(title=name, xlabel="measured", xticks=ticks + 0.5, xticklabels=languages)
            panel.set(yticks=ticks + 0.5, yticklabels=[title(code) for code in languages])
        rows, columns = np.nonzero(apart)
        # Not pure white or black, which a page may map to its own colours.
        dark = np.abs(change[0, rows, columns, 0]) > 0.6 * most
        panels[0].scatter(columns + 0.5, rows + 0.5, s=8, color=np.where(dark, "#fefefe", "#111111"), linewidths=0)
        panels[0].set_ylabel(done)
        panels[0].invert_yaxis()
        figure.colorbar(mesh, ax=panels, label=quantity)
    return figure
