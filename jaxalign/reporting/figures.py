"""Figures as SVG text or PDF: plain arrays in, no display, the same bytes every time.

Languages appear by code and English name, so that no font needs native script. Colours are those of Okabe and Ito
(2008), which stay apart in colour-blind vision. `runs` are labels of what is compared, such as "before" and "after".
Those of one model by language can be printed in a paper: up to twenty panels in four columns, 7.2 inches wide at most.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, MultipleLocator

from jaxalign.data.languages import LANGUAGES
from jaxalign.files import whole_file, write_text
from jaxalign.probe_files import Probe
from jaxalign.reporting.changes import NEURON_EFFECTS
from jaxalign.reporting.folders import read_probes
from jaxalign.reporting.words import language_title, signed

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
MARKERS = "os^Dv<>P"
GREY = "#BBBBBB"
# Not pure white or black, which a page may map to its own colours.
ON_DARK, ON_LIGHT = "#fefefe", "#111111"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
SMALL: dict[Any, Any] = {**STYLE, "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 8}

COORDINATES = re.compile(r' (?:d|x|y|width|height)="[^"]*"')
DECIMALS = re.compile(r"-?\d+\.\d{3,}")
NAMES = re.compile(r'(\bid="|href="#|url\(#)([^")]+)')
HASHED = re.compile(r"[a-z][0-9a-f]{10}")

LENS_LINES = (
    ("latent", "English word of the gold class", GREEN, "-"),
    ("out", "in-language word of the gold class", ORANGE, "-"),
    ("all_possible_latent", "both English words", VERMILLION, "--"),
    ("all_possible_out", "both in-language words", BLUE, "--"),
)
BAND_COLOURS = {
    "English": BLUE,
    "the prompt's language": ORANGE,
    "other languages": SKY,
    "undecidable": GREY,
    "Latin script": BLUE,
    "the prompt's script": ORANGE,
    "other scripts": SKY,
    "no letters, or part of one": GREY,
}
GEOMETRY_TITLES = {
    "cka": "linear CKA",
    "retrieval": "retrieval@1",
    "reciprocal_rank": "mean reciprocal rank",
    "retrieval_centred": "retrieval@1, centred",
    "reciprocal_rank_centred": "mean reciprocal rank,\ncentred",
}
CENTRED_GEOMETRY = ("cka", "retrieval_centred", "reciprocal_rank_centred")
UNCENTRED_GEOMETRY = ("retrieval", "reciprocal_rank")


def svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element; every id in it begins with `name`, so that several fit into one page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    element = buffer.getvalue()
    numbers: dict[str, int] = {}

    def renamed(match: re.Match[str]) -> str:
        """What matplotlib names by a hash of coordinates is numbered: their last digits differ from run to run."""
        own = match[2]
        return f"{match[1]}{name}-{numbers.setdefault(own, len(numbers)) if HASHED.fullmatch(own) else own}"

    def rounded(attribute: re.Match[str]) -> str:
        """To the hundredth of a point, 3.5 micrometres, which makes a page of many figures a third smaller."""
        return DECIMALS.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute[0])

    return NAMES.sub(renamed, COORDINATES.sub(rounded, element[element.index("<svg") :]))


@matplotlib.rc_context(STYLE)
def pdf(figure: Figure) -> bytes:
    """The figure as a PDF page whose text stays text, the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None}, bbox_inches="tight")
    return buffer.getvalue()


def write_plots(out: Path, label: str) -> None:
    """Draws what the probes left in `out`, each figure as SVG and as PDF; `label`: what was probed."""
    probes, figures = read_probes(out), {}
    if lens := probes.get("logit_lens"):
        figures |= lens_pages(lens, label)
    if attribution := probes.get("attribution"):
        figures |= attribution_pages(attribution, label)
    if pca := probes.get("pca"):
        layers = chosen_layers(len(pca.arrays["points"]) - 1)
        figures["pca"] = pca_scatter({label: pca.arrays["points"]}, pca.document["scatter_language"], layers)
        if "en" in pca.languages and len(pca.languages) > 1:
            figures["pca_correlations"] = correlation_map({label: pca.arrays["correlations"]}, pca.languages)
    figures |= {name: effect_map(probes[name], name) for name in NEURON_EFFECTS if name in probes}
    if geometry := probes.get("geometry"):
        layers = geometry.document["layer"]
        figures["geometry"] = geometry_lines({label: geometry.arrays}, geometry.languages, layers, CENTRED_GEOMETRY)
    for name, figure in figures.items():
        write_text(out / f"{name}.svg", svg(figure, name))
        with whole_file(out / f"{name}.pdf") as partial:
            partial.write_bytes(pdf(figure))


def chosen_layers(layers: int) -> list[int]:
    """The study's relative depths: layers 20, 25, 30 and 32 of its 32."""
    return sorted({round(layers * of_32 / 32) for of_32 in (20, 25, 30, 32)})


def mark(index: int) -> tuple[str, str]:
    """Colour and marker of the index-th series; both differ, for those who do not see colours."""
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def lens_pages(lens: Probe, label: str) -> dict[str, Figure]:
    """`logit_lens`, the study's way, and `logit_lens_unshared`, which keeps more languages; those that have rows."""
    pages = {"logit_lens": ("", "surviving_rows"), "logit_lens_unshared": ("unshared_", "unshared_surviving_rows")}
    figures = {}
    for name, (prefix, counts) in pages.items():
        rows = {code: count for code, count in lens.document[counts].items() if count}
        if rows:
            titles = {code: f"{language_title(code)}, n = {count}" for code, count in rows.items()}
            panels = [(titles[code], code, lens_values(lens, code, prefix)) for code in rows]
            figures[name] = lens_figure(panels, columns=4, label=label)
    return figures


def lens_values(lens: Probe, code: str, prefix: str = "") -> dict[str, np.ndarray]:
    """`{quantity}_mean` and `{quantity}_half_width` [L] of one language."""
    index = lens.languages.index(code)
    return {name.removeprefix(prefix): values[index] for name, values in lens.arrays.items() if name.startswith(prefix)}


@matplotlib.rc_context(SMALL)
def lens_figure(panels: Sequence[tuple[str, str, Mapping[str, np.ndarray]]], columns: int, label: str = "") -> Figure:
    """The study's figure of each panel: a strip of entropies above, masses with their 95 % bands below.

    panels: title, language and `lens_values`, from left to right and from top to bottom, so many side by side.
    """
    # The study's scale ends at 14 bits, which a large vocabulary may exceed; a language without rows has NaN.
    most = max(float(np.fmax.reduce(values["entropy_mean"], initial=14.0)) for _, _, values in panels)
    figure, axes = panel_grid(len(panels), columns, label, strips=True)
    for (title, code, values), (strip, panel) in zip(panels, axes, strict=True):
        layers = np.arange(1, len(values["latent_mean"]) + 1)
        edges = np.arange(0.5, len(layers) + 1)
        strip.set(yticks=[], title=title)
        mesh = strip.pcolormesh(edges, [0, 1], values["entropy_mean"][None], cmap="plasma", vmin=0, vmax=most)
        for quantity, name, colour, line in LENS_LINES:
            # In English the in-language word is the English word.
            if code != "en" or not quantity.endswith("out"):
                mean, half_width = values[f"{quantity}_mean"], values[f"{quantity}_half_width"]
                panel.plot(layers, mean, line, color=colour, label=name, linewidth=1.4)
                panel.fill_between(layers, mean - half_width, mean + half_width, color=colour, alpha=0.2, linewidth=0)
        panel.set(ylim=(0, 1), xlim=(0.5, len(layers) + 0.5))
        layer_ticks(panel, len(layers))
    bar = figure.colorbar(mesh, ax=figure.axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label("entropy (bits)")
    lines = {str(line.get_label()): line for _, panel in axes for line in panel.get_lines()}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=2)
    return figure


def attribution_pages(attribution: Probe, label: str) -> dict[str, Figure]:
    """`attribution`, by language, and `attribution_scripts`: shares of the lens distribution at the last position."""
    figures = {}
    for name, kind in (("attribution", "language"), ("attribution_scripts", "script")):
        mass, tokens = attribution.arrays[f"{kind}_mass_mean"][:, :, -1], attribution.document[f"token_{kind}"]
        shares = {
            code: {band: mass[index][:, held].sum(-1) for band, held in bands_of(kind, tokens, code).items()}
            for index, code in enumerate(attribution.languages)
        }
        figures[name] = bands_figure(shares, label)
    return figures


def bands_of(kind: str, labels: Sequence[str], code: str) -> dict[str, list[int]]:
    """Band of a prompt in language `code` -> indices of the tokens' labels in it, in the order of BAND_COLOURS.

    kind: "language" or "script", which the labels are.
    """
    script, others = LANGUAGES[code].script, f"other {kind}s"
    wanted = {
        "English": ["en"],
        "the prompt's language": [code] if code != "en" else [],
        "undecidable": ["undecidable"],
    }
    if kind == "script":
        wanted = {
            "Latin script": ["Latin"],
            "the prompt's script": ["Han", "Kana"] if script == "Japanese" else [script] if script != "Latin" else [],
            "no letters, or part of one": ["no letters", "part of a character"],
        }
    bands = {band: [i for i, label in enumerate(labels) if label in of_band] for band, of_band in wanted.items()}
    bands[others] = sorted(set(range(len(labels))) - {i for members in bands.values() for i in members})
    return {band: bands[band] for band in BAND_COLOURS if bands.get(band)}


@matplotlib.rc_context(SMALL)
def bands_figure(shares: Mapping[str, Mapping[str, np.ndarray]], label: str) -> Figure:
    """Shares [L] stacked to 1, a panel for each language: language -> band -> share."""
    figure, axes = panel_grid(len(shares), 4, label, strips=False)
    for (code, bands), (_, panel) in zip(shares.items(), axes, strict=True):
        layers = np.arange(1, len(next(iter(bands.values()))) + 1)
        colours = [BAND_COLOURS[band] for band in bands]
        panel.stackplot(layers, list(bands.values()), colors=colours, labels=list(bands))
        panel.set(title=language_title(code), ylim=(0, 1), xlim=(1, max(2, len(layers))))
        layer_ticks(panel, len(layers))
    areas = {area.get_label(): area for _, panel in axes for area in panel.collections}
    present = [band for band in BAND_COLOURS if band in areas]
    figure.legend([areas[band] for band in present], present, loc="outside lower center", ncols=4)
    return figure


def panel_grid(count: int, columns: int, label: str, strips: bool) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A figure of panels of probabilities over layers, each with a low strip above; without `strips` its own strip."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    # A language alone has the size of the study's figure.
    width, height = (4.6, 2.6) if count == 1 else (2.6, 2.2) if columns < 4 else (1.72, 1.5)
    figure = Figure(
        figsize=(width * columns + 0.3, height * rows + (1.1 if strips else 0.7)),
        layout=ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.03, hspace=0, wspace=0),
    )
    ratios = [1, 7] * rows if strips else [1] * rows
    grid = figure.subplots(len(ratios), columns, squeeze=False, sharex=True, sharey="row", height_ratios=ratios)
    upper, lower = (grid[::2], grid[1::2]) if strips else (grid, grid)
    cells = list(zip(upper.flat, lower.flat, strict=True))
    for unused in cells[count:]:
        for axes in unused:
            axes.set_axis_off()
    for index, (strip, panel) in enumerate(cells[:count]):
        strip.tick_params(bottom=not strips)
        # The lowest of its column.
        if index + columns >= count:
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("layer")
    figure.suptitle(label, fontsize=8)
    figure.supylabel("probability", fontsize=8)
    return figure, cells[:count]


def layer_ticks(panel: Axes, layers: int) -> None:
    """Layers on the x axis, with the study's dashed guides every 5 where so many can be told apart."""
    every_5 = 10 <= layers <= 40
    panel.xaxis.set_major_locator(MultipleLocator(5) if every_5 else MaxNLocator(integer=True, nbins=6))
    panel.grid(axis="x", linestyle="--", linewidth=0.5, color="#cccccc")
    panel.set_axisbelow(True)


@matplotlib.rc_context(STYLE)
def pca_scatter(runs: Mapping[str, np.ndarray], languages: Sequence[str], layers: Sequence[int]) -> Figure:
    """Joint two-component PCA, a row for each layer and a column for each run, one mark a prompt.

    Of one run the layers stand side by side. runs: label -> `points` of `pca.npz`, float [L + 1, languages, rows, 2].
    """
    rows, columns = (1, len(layers)) if len(runs) == 1 else (len(layers), len(runs))
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    shown = [(layer, label, points) for layer in layers for label, points in runs.items()]
    for panel, (layer, label, points) in zip(panels.flat, shown, strict=True):
        for index, code in enumerate(languages):
            x, y = points[layer, index].T
            colour, marker = mark(index)
            name = language_title(code)
            panel.scatter(x, y, s=14, linewidths=0, alpha=0.7, label=name, color=colour, marker=marker)
        panel.set(title=f"layer {layer}, {label}", xticks=[], yticks=[])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(languages)), markerscale=1.5)
    return figure


@matplotlib.rc_context(STYLE)
def geometry_lines(
    runs: Mapping[str, Mapping[str, np.ndarray]],
    languages: Sequence[str],
    layers: Sequence[int],
    measures: Sequence[str],
) -> Figure:
    """Likeness to English over the layers, a row for each measure and a column for each run, one line a language.

    Dotted: what the measure is on average if the rows are in any order. runs: label -> the arrays of `geometry.npz`.
    """
    size = (3.8 * len(runs) + 1.0, 2.1 * len(measures) + 0.22 * -(-len(languages) // 5) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(measures), len(runs), squeeze=False, sharex=True, sharey="row")
    for c, (label, arrays) in enumerate(runs.items()):
        rows = arrays["rank"].shape[2]
        chance = {
            "cka": arrays["cka_chance"].mean(axis=0),
            "retrieval": np.full(len(layers), 1 / rows),
            "reciprocal_rank": np.full(len(layers), (1 / np.arange(1, rows + 1)).mean()),
        }
        for r, measure in enumerate(measures):
            panel = panels[r, c]
            for index, values in enumerate(arrays[measure]):
                colour, marker = mark(index)
                name = language_title(languages[index])
                panel.plot(layers, values, "-", color=colour, marker=marker, markersize=3, linewidth=1.1, label=name)
            panel.plot(layers, chance[measure.removesuffix("_centred")], ":", color=BLACK, linewidth=0.8)
            panel.set(ylim=(-0.02, 1.02), title=label if r == 0 else "", ylabel="" if c else GEOMETRY_TITLES[measure])
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        panels[-1, c].set_xlabel("layer")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(languages)))
    return figure


@matplotlib.rc_context(STYLE)
def heat_map(
    panels: Mapping[str, np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str] | None,
    quantity: str,
    colours: str,
    limits: tuple[float, float],
    size: tuple[float, float],
) -> Figure:
    """Values [rows, columns] as colours, one panel a label, a colour bar for all.

    Args:
      rows, columns: what they are called; None for layers, counted from 0.
      quantity, colours, limits: what the colours are, matplotlib's name of a colour map, and the values at its ends.
      size: of the figure, inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (label, values) in zip(axes, panels.items(), strict=True):
        y, x = (np.arange(-0.5, length) for length in values.shape)
        mesh = panel.pcolormesh(x, y, values, cmap=colours, vmin=limits[0], vmax=limits[1])
        panel.set(title=label, yticks=range(len(rows)), yticklabels=rows)
        if columns is None:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            panel.set_xlabel("layer")
        else:
            panel.set(xticks=range(len(columns)), xticklabels=columns)
    axes[0].invert_yaxis()
    whole = all(np.issubdtype(values.dtype, np.integer) for values in panels.values())
    figure.colorbar(mesh, ax=axes, label=quantity, ticks=MaxNLocator(nbins=8, integer=whole))
    return figure


def layers_map(
    runs: Mapping[str, np.ndarray], languages: Sequence[str], quantity: str, colours: str, limits: tuple[float, float]
) -> Figure:
    """A quantity [languages, layers] of every language over the layers, one panel a run."""
    size = (3.6 * len(runs) + 1.6, 0.24 * len(languages) + 1.2)
    return heat_map(runs, [*map(language_title, languages)], None, quantity, colours, limits, size)


def correlation_map(runs: Mapping[str, np.ndarray], languages: Sequence[str]) -> Figure:
    """Each language's correlation with English over the layers, of `correlations` of `pca.npz` [L + 1, K, K]."""
    others = [index for index, code in enumerate(languages) if code != "en"]
    values = {label: array[:, languages.index("en"), others].T for label, array in runs.items()}
    names = [languages[index] for index in others]
    return layers_map(values, names, "correlation with English", "cividis", (-1, 1))


def gain_map(
    tasks: Sequence[str], languages: Sequence[str], gains: np.ndarray, marks: Mapping[tuple[int, int], str]
) -> Figure:
    """Gains in percentage points, tasks from top to bottom and languages from left to right, as colours and numbers.

    Args:
      gains: float [tasks, languages], NaN where there is no cell.
      marks: (task, language) indices -> what stands below the number; where it is "**" the cell is framed.
    """
    # Small gains stay pale: the scale reaches 5 points at least.
    most = float(np.fmax.reduce(np.abs(gains), axis=None, initial=5.0))
    size = (0.44 * len(languages) + 3.2, 0.42 * len(tasks) + 1.9)
    names = [*map(language_title, languages)]
    figure = heat_map({"": gains}, tasks, names, "gain in percentage points", "RdBu", (-most, most), size)
    panel = figure.axes[0]
    for (row, column), gain in np.ndenumerate(gains):
        if not np.isnan(gain):
            colour = ON_DARK if abs(gain) > 0.6 * most else ON_LIGHT
            mark = marks[row, column]
            text = signed(gain).replace("\N{MINUS SIGN}", "-") + (f"\n{mark}" if mark else "")
            panel.text(column, row, text, color=colour, fontsize=8, ha="center", va="center")
            if mark == "**":
                panel.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec=colour, lw=1.2))
    panel.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return figure


def effect_map(probe: Probe, name: str) -> Figure:
    """Change of a quantity, by the language's own neurons on the left and by random ones on the right.

    A dot: the two differ, by the 95 % interval of their difference. `name`: of NEURON_EFFECTS.
    """
    effect, languages = NEURON_EFFECTS[name], probe.languages
    # [own, random, their difference; masked language; measured language; change, low, high]
    change = effect.scale * probe.arrays[effect.array]
    most = max(float(np.abs(change[:2, ..., 0]).max()), 1e-3)
    panels: dict[str, np.ndarray] = {"its own neurons": change[0, ..., 0], "random neurons": change[1, ..., 0]}
    size = (0.56 * len(languages) + 3.4, 0.26 * len(languages) + 1.7)
    names = [*map(language_title, languages)]
    figure = heat_map(panels, names, languages, effect.quantity, "RdBu_r", (-most, most), size)
    own, random, *_ = figure.axes
    rows, columns = np.nonzero((change[2, ..., 1] > 0) | (change[2, ..., 2] < 0))
    dark = np.abs(change[0, rows, columns, 0]) > 0.6 * most
    own.scatter(columns, rows, s=8, color=np.where(dark, ON_DARK, ON_LIGHT), linewidths=0)
    own.set(xlabel="measured", ylabel=effect.done)
    random.set_xlabel("measured")
    return figure


@matplotlib.rc_context(STYLE)
def training_curves(training: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]]) -> Figure:
    """Training loss and held-out loss, nats per target token, over optimizer steps."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    panel = figure.subplots()
    # [2, points], of none too
    panel.plot(*np.reshape(training, (-1, 2)).T, color=BLUE, linewidth=1.0, label="training")
    panel.plot(*np.reshape(held_out, (-1, 2)).T, "o-", color=VERMILLION, markersize=4, linewidth=1.4, label="held out")
    panel.set(xlabel="optimizer step", ylabel="loss (nats per target token)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend()
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_dots(
    languages: Sequence[str],
    accuracies: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[Sequence[float]]],
    chance: float,
) -> Figure:
    """Accuracy (a share) of each run in each language, with its interval, languages from top to bottom.

    `chance`, the accuracy of guessing, is drawn as a line.
    """
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
    panel.set(xlabel="accuracy (%), 95 % interval", yticks=range(len(languages)))
    panel.set_yticklabels(map(language_title, languages))
    panel.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(accuracies) + 1)
    return figure
