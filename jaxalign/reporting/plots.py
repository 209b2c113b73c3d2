"""Figures as SVG text: plain arrays in, no display, the same bytes every time.

Languages appear by code and English name, so that no font needs native script. Colours are those of Okabe and Ito
(2008), which stay apart in colour-blind vision. `runs` are labels of what is compared, such as "before" and "after".
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, MultipleLocator

from jaxalign.data.languages import LANGUAGES

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
MARKERS = "os^Dv<>P"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}

COORDINATES = re.compile(r' (?:d|x|y)="[^"]*"')
DECIMALS = re.compile(r"-?\d+\.\d{3,}")

LENS_LINES = (
    ("latent", "English word of the gold class", GREEN, "-"),
    ("out", "in-language word of the gold class", ORANGE, "-"),
    ("all_possible_latent", "both English words", VERMILLION, "--"),
    ("all_possible_out", "both in-language words", BLUE, "--"),
)


def svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element; every id in it begins with `name`, so that several fit into one page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    element = buffer.getvalue()
    element = COORDINATES.sub(rounded, element[element.index("<svg") :])
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)


def rounded(attribute: re.Match[str]) -> str:
    """Numbers to the hundredth of a point, 3.5 micrometres, which makes a page of many figures a third smaller."""
    return DECIMALS.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute[0])


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF page whose text stays text, the same bytes every time."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None}, bbox_inches="tight")
    return buffer.getvalue()


def logit_lens(
    runs: Mapping[str, Mapping[str, np.ndarray]], languages: Sequence[str], shown: Sequence[str] | None = None
) -> Figure:
    """The lens, a row for each run and a column for each language: entropy strip above, masses below.

    Args:
      runs: label -> the arrays of `logit_lens.npz`, `{quantity}_mean` and `{quantity}_half_width` [languages, L].
      languages: the arrays' language axis.
      shown: the columns; by default every language that has surviving rows.
    """
    first = next(iter(runs.values()))["latent_mean"]
    has_rows = np.asarray(np.isfinite(first).all(axis=1))
    shown = shown or [code for code, full in zip(languages, has_rows.tolist(), strict=True) if full]
    most = largest_entropy([arrays["entropy_mean"] for arrays in runs.values()])
    layers = np.arange(1, first.shape[1] + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(shown) + 1.2, 2.6 * len(runs)), layout="constrained")
        panels = figure.subplots(
            2 * len(runs), len(shown), squeeze=False, sharex=True, height_ratios=[1, 8] * len(runs)
        )
        for r, (label, arrays) in enumerate(runs.items()):
            for c, code in enumerate(shown):
                strip, panel = panels[2 * r, c], panels[2 * r + 1, c]
                values = {name: array[languages.index(code)] for name, array in arrays.items()}
                mesh = entropy_strip(strip, values["entropy_mean"], most)
                strip.set(title=f"{title(code)}, {label}")
                lens_panel(panel, layers, values, code)
                panel.set(xlabel="layer" if r == len(runs) - 1 else "", ylabel="probability" if c == 0 else "")
            figure.colorbar(mesh, ax=panels[2 * r : 2 * r + 2, :], label="entropy (bits)", pad=0.01)
        handles = {line.get_label(): line for panel in panels[1::2].flat for line in panel.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


def largest_entropy(entropies: Sequence[np.ndarray]) -> float:
    """Where the scale of the strips ends: the study's 14 bits, unless a large vocabulary exceeds it."""
    return max(float(np.fmax.reduce(entropy, axis=None, initial=14.0)) for entropy in entropies)  # passes over NaN


def entropy_strip(strip: Axes, entropy: np.ndarray, most: float) -> QuadMesh:
    """Entropy in bits [L] as colours; returns what a colour bar is made of."""
    strip.set(yticks=[])
    return strip.pcolormesh(np.arange(0.5, len(entropy) + 1), [0, 1], entropy[None], cmap="plasma", vmin=0, vmax=most)


def lens_panel(panel: Axes, layers: np.ndarray, values: Mapping[str, np.ndarray], code: str) -> None:
    """The masses of one language over the layers, each with its 95 % band."""
    for quantity, label, colour, line in LENS_LINES:
        # In English the in-language word is the English word.
        if code == "en" and quantity.endswith("out"):
            continue
        mean, half_width = values[f"{quantity}_mean"], values[f"{quantity}_half_width"]
        panel.plot(layers, mean, line, color=colour, label=label, linewidth=1.4)
        panel.fill_between(layers, mean - half_width, mean + half_width, color=colour, alpha=0.2, linewidth=0)
    panel.set(ylim=(0, 1), xlim=(0.5, len(layers) + 0.5))
    layer_ticks(panel, len(layers))


def layer_ticks(panel: Axes, layers: int) -> None:
    """Layers on the x axis, with the study's dashed guides every 5 where so many can be told apart."""
    every_5 = 10 <= layers <= 40
    panel.xaxis.set_major_locator(MultipleLocator(5) if every_5 else MaxNLocator(integer=True, nbins=6))
    panel.grid(axis="x", linestyle="--", linewidth=0.5, color="#cccccc")
    panel.set_axisbelow(True)


def pca_scatter(runs: Mapping[str, np.ndarray], languages: Sequence[str], layers: Sequence[int]) -> Figure:
    """Joint two-component PCA, a row for each layer and a column for each run, one mark a prompt.

    Of one run the layers stand side by side.

    Args:
      runs: label -> `points` of `pca.npz`, float [L + 1, languages, rows, 2].
      languages: the arrays' language axis.
      layers: which layers, counted as in `pca.npz`.
    """
    rows, columns = (1, len(layers)) if len(runs) == 1 else (len(layers), len(runs))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * columns, 3.0 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        shown = [(layer, label, points) for layer in layers for label, points in runs.items()]
        for panel, (layer, label, points) in zip(panels.flat, shown, strict=True):
            for index, code in enumerate(languages):
                x, y = points[layer, index].T
                colour, marker = mark(index)
                panel.scatter(x, y, s=14, linewidths=0, alpha=0.7, label=title(code), color=colour, marker=marker)
            panel.set(title=f"layer {layer}, {label}", xticks=[], yticks=[])
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(languages)), markerscale=1.5)
    return figure


def correlation_heat_map(runs: Mapping[str, np.ndarray], languages: Sequence[str]) -> Figure:
    """Each language's correlation with English over the layers, one panel a run.

    Args:
      runs: label -> `correlations` of `pca.npz`, float [L + 1, languages, languages].
      languages: the arrays' language axes; English among them.
    """
    english = languages.index("en")
    others = [index for index, code in enumerate(languages) if code != "en"]
    values = {label: correlations[:, english, others].T for label, correlations in runs.items()}
    names = [languages[index] for index in others]
    return layers_heat_map(values, names, "correlation with English", "cividis", -1, 1)


def layers_heat_map(
    runs: Mapping[str, np.ndarray], languages: Sequence[str], quantity: str, colours: str, low: float, high: float
) -> Figure:
    """A quantity of every language over the layers, counted from 0, one panel a run.

    Args:
      runs: label -> values [languages, layers].
      languages: codes, from top to bottom.
      quantity: what the colours are.
      colours: matplotlib's name of a colour map, from `low` to `high`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(runs) + 1.6, 0.24 * len(languages) + 1.2), layout="constrained")
        panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
        for panel, (label, values) in zip(panels, runs.items(), strict=True):
            rows, edges = (np.arange(-0.5, size) for size in values.shape)
            mesh = panel.pcolormesh(edges, rows, values, cmap=colours, vmin=low, vmax=high)
            panel.set(title=label, xlabel="layer", yticks=range(len(languages)), yticklabels=map(title, languages))
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        panels[0].invert_yaxis()
        whole = all(np.issubdtype(values.dtype, np.integer) for values in runs.values())
        figure.colorbar(mesh, ax=panels, label=quantity, ticks=MaxNLocator(nbins=8, integer=whole))
    return figure


def gain_heat_map(
    tasks: Sequence[str], languages: Sequence[str], gains: np.ndarray, marks: Mapping[tuple[int, int], str]
) -> Figure:
    """Gains in percentage points, tasks from top to bottom and languages from left to right, as colours and numbers.

    Args:
      tasks: titles of the rows.
      languages: codes of the columns.
      gains: float [tasks, languages], NaN where there is no cell.
      marks: (task, language) indices -> what stands below the number; where it is "**" the cell is framed.
    """
    # Small gains stay pale: the scale reaches 5 points at least.
    most = float(np.fmax.reduce(np.abs(gains), axis=None, initial=5.0))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.44 * len(languages) + 2.2, 0.42 * len(tasks) + 1.9), layout="constrained")
        panel = figure.subplots()
        mesh = panel.pcolormesh(gains, cmap="RdBu", vmin=-most, vmax=most, edgecolors="none")
        for (row, column), gain in np.ndenumerate(gains):
            if np.isnan(gain):
                continue
            # Not pure white or black, which a page may map to its own colours.
            colour = "#fefefe" if abs(gain) > 0.6 * most else "#111111"
            mark = marks[row, column]
            text = signed(gain) + (f"\n{mark}" if mark else "")
            panel.text(column + 0.5, row + 0.5, text, color=colour, fontsize=8, ha="center", va="center")
            if mark == "**":
                panel.add_patch(Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, fill=False, ec=colour, lw=1.2))
        panel.set(xticks=np.arange(len(languages)) + 0.5, yticks=np.arange(len(tasks)) + 0.5, yticklabels=tasks)
        panel.set_xticklabels(map(title, languages), rotation=45, ha="right", rotation_mode="anchor")
        panel.tick_params(length=0)
        panel.invert_yaxis()
        panel.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=panel, location="bottom", shrink=0.5, aspect=40, pad=0.02)
        bar.set_label("gain in percentage points")
        bar.outline.set_visible(False)
    return figure


def training_curves(
    steps: Sequence[int], losses: Sequence[float], heldout_steps: Sequence[int], heldout_losses: Sequence[float]
) -> Figure:
    """Training loss and held-out loss, nats per target token, over optimizer steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        panel = figure.subplots()
        panel.plot(steps, losses, color=BLUE, linewidth=1.0, label="training")
        panel.plot(heldout_steps, heldout_losses, "o-", color=VERMILLION, markersize=4, linewidth=1.4, label="held out")
        panel.set(xlabel="optimizer step", ylabel="loss (nats per target token)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend()
    return figure


def accuracy_dots(
    languages: Sequence[str],
    accuracies: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[Sequence[float]]],
    chance: float,
) -> Figure:
    """Accuracy of each run in each language, with its interval, languages from top to bottom.

    Args:
      languages: codes.
      accuracies: run -> accuracy in each language, between 0 and 1.
      intervals: run -> (low, high) in each language.
      chance: accuracy of guessing, drawn as a line.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.26 * len(languages) + 1.2), layout="constrained")
        panel = figure.subplots()
        panel.axvline(100 * chance, color=BLACK, linewidth=0.8, linestyle=":", label="chance")
        for index, (label, values) in enumerate(accuracies.items()):
            shift = 0.3 * ((index + 0.5) / len(accuracies) - 0.5)
            centre, bounds = 100 * np.asarray(values), 100 * np.asarray(intervals[label])
            reach = np.maximum(np.abs(bounds - centre[:, None]).T, 0)
            colour, marker = mark(index)
            y = np.arange(len(languages)) + shift
            panel.errorbar(centre, y, xerr=reach, fmt=marker, color=colour, markersize=5, elinewidth=0.8, label=label)
        panel.set(xlabel="accuracy (%), 95 % interval", yticks=range(len(languages)), yticklabels=map(title, languages))
        panel.invert_yaxis()
        figure.legend(loc="outside lower center", ncols=len(accuracies) + 1)
    return figure


def signed(points: float) -> str:
    """One decimal and a sign, in ASCII; what rounds to zero has none."""
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def title(code: str) -> str:
    """A language as figures name it: "sw Swahili"."""
    return f"{code} {LANGUAGES[code].name}"


def mark(index: int) -> tuple[str, str]:
    """Colour and marker of the index-th series; both differ, for those who do not see colours."""
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
