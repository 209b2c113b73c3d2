"""The figure of the probe masking: what switching off each language's neurons does to every language."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxalign.reporting.plots import BLACK, STYLE, title

MASKING_AXES = {"log_perplexity_change": ["effect", "masked_language", "language", "estimate"]}


def masking_heat_map(change: np.ndarray, languages: Sequence[str]) -> Figure:
    """Change of log perplexity, the language's own neurons switched off on the left and random ones on the right.

    A dot: the two differ, by the 95 % interval of their difference.

    Args:
      change: `log_perplexity_change` of `masking.npz`, float [3, K, K, 3].
      languages: codes, length K.
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
        panels[0].scatter(columns + 0.5, rows + 0.5, s=8, color=BLACK)
        panels[0].set_ylabel("switched off")
        panels[0].invert_yaxis()
        figure.colorbar(mesh, ax=panels, label="change of log perplexity (nats per token)")
    return figure
