"""Figures as a page takes them, and those of a comparison: accuracies, gains and the tuning's losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxalign.data.tasks import TASKS
from jaxalign.reporting import plots
from jaxalign.reporting.gains import CellGain, Gains
from jaxalign.reporting.runs import TrainingRun
from jaxalign.reporting.tables import block_title


@dataclass(frozen=True)
class Plot:
    """An inline SVG with its caption.

    label: what a screen reader says in its place.
    inches: how wide it was drawn.
    """

    svg: Markup
    label: str
    caption: str
    inches: float

    @property
    def wide(self) -> bool:
        """Too wide for a phone, which scrolls it instead of shrinking it."""
        return self.inches > 7


def inline(figure: Figure, name: str, label: str, caption: str) -> Plot:
    """The figure as a plot whose ids begin with `name`."""
    # Markup: the texts in it are our own, and escaped by matplotlib.
    return Plot(Markup(plots.svg(figure, name)), label, caption, inches=figure.get_figwidth())


def gain_plot(gains: Gains) -> Plot:
    """The gain of every cell, marked where it is significant."""
    blocks = list(gains.by_block)
    languages = list(dict.fromkeys(cell.row.language for cell in gains.cells))
    values = np.full((len(blocks), len(languages)), np.nan)
    marks = {}
    for cell in gains.cells:
        place = blocks.index((cell.row.task, cell.row.key.variant)), languages.index(cell.row.language)
        values[place], marks[place] = cell.corrected.gain, cell.corrected.mark
    titles = [block_title(*block).replace(", ", ",\n") for block in blocks]
    caption = (
        "Gain in percentage points; blue is better after, red worse, white no change. Framed and **: significant at "
        "5 % after Holm's correction over all cells; *: only after Benjamini and Hochberg's; no mark: neither."
    )
    figure = plots.gain_heat_map(titles, languages, values, marks)
    return inline(figure, "gains", "Gain in every task and language", caption)


def accuracy_plot(task: str, variant: str, cells: Sequence[CellGain]) -> Plot:
    """Accuracy of every common language of a task before and after."""
    scores = [cell.corrected for cell in cells]
    figure = plots.accuracy_dots(
        [cell.row.language for cell in cells],
        {"before": [score.before for score in scores], "after": [score.after for score in scores]},
        {"before": [score.interval_before for score in scores], "after": [score.interval_after for score in scores]},
        chance=1 / len(TASKS[task].classes),
    )
    label = f"Accuracy on {block_title(task, variant)} before and after, by language"
    caption = "Bars are 95 % Wilson intervals of each accuracy by itself; dotted: one over the number of classes."
    return inline(figure, f"accuracy-{task}-{variant}", label, caption)


def training_plot(run: TrainingRun) -> Plot:
    """Training and held-out loss over the steps of a run."""
    steps, losses = zip(*run.training, strict=True) if run.training else ((), ())
    heldout_steps, heldout_losses = zip(*run.held_out, strict=True) if run.held_out else ((), ())
    figure = plots.training_curves(steps, losses, heldout_steps, heldout_losses)
    return inline(figure, "training", "Training and held-out loss by step", "Loss over response tokens only.")
