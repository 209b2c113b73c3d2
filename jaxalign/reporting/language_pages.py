"""Pages that a paper can print: a small panel for each language, layers from left to right.

At most 7.2 inches wide, up to twenty languages in four columns.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from jaxalign.data.languages import LANGUAGES
from jaxalign.reporting import plots
from jaxalign.reporting.plots import BLUE, ORANGE, SKY
from jaxalign.reporting.probe_files import Probe

COLUMNS = 4
SMALL: dict[Any, Any] = {**plots.STYLE, "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 8}
GREY = "#BBBBBB"
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


def lens_pages(lens: Probe, label: str) -> dict[str, Figure]:
    """`logit_lens`, the study's way, and `logit_lens_unshared`, which keeps more languages; those that have rows."""
    pages = {"logit_lens": ("", "surviving_rows"), "logit_lens_unshared": ("unshared_", "unshared_surviving_rows")}
    figures = {}
    for name, (prefix, counts) in pages.items():
        rows = {code: count for code, count in lens.document[counts].items() if count}
        arrays = {key.removeprefix(prefix): lens.arrays[key] for key in lens.arrays if key.startswith(prefix)}
        if rows:
            figures[name] = lens_page(arrays, lens.languages, rows, label)
    return figures


def lens_page(
    arrays: Mapping[str, np.ndarray], languages: Sequence[str], rows: Mapping[str, int], label: str
) -> Figure:
    """The study's figure, entropy strip above and masses below, for each language of `rows`.

    Args:
      arrays: `{quantity}_mean` and `{quantity}_half_width` [languages, L].
      languages: the arrays' language axis.
      rows: language -> how many rows it is the mean of.
      label: what was probed.
    """
    layers = np.arange(1, arrays["latent_mean"].shape[1] + 1)
    shown = [languages.index(code) for code in rows]
    most = plots.largest_entropy([arrays["entropy_mean"][shown]])
    with page(len(rows), label, strips=True) as (figure, panels):
        for (code, count), (strip, panel) in zip(rows.items(), panels, strict=False):
            values = {name: array[languages.index(code)] for name, array in arrays.items()}
            mesh = plots.entropy_strip(strip, values["entropy_mean"], most)
            strip.set_title(f"{plots.title(code)}, n = {count}")
            plots.lens_panel(panel, layers, values, code)
        bar = figure.colorbar(mesh, ax=figure.axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
        bar.set_label("entropy (bits)")
        labels = {str(line.get_label()): line for _, panel in panels for line in panel.get_lines()}
        figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=2)
        figure.supylabel("probability", fontsize=8)
    return figure


def attribution_pages(attribution: Probe, label: str) -> dict[str, Figure]:
    """`attribution`, by language, and `attribution_scripts`; at the last position of the prompts."""
    axes = attribution.document
    figures = {}
    for name, kind, bands_of in (
        ("attribution", "language", language_bands),
        ("attribution_scripts", "script", script_bands),
    ):
        mass = attribution.arrays[f"{kind}_mass_mean"][:, :, -1]
        bands = {
            code: {band: mass[index][:, members].sum(-1) for band, members in bands_of(axes[f"token_{kind}"], code)}
            for index, code in enumerate(attribution.languages)
        }
        figures[name] = bands_page(bands, label)
    return figures


def language_bands(token_languages: Sequence[str], code: str) -> list[tuple[str, list[int]]]:
    """Bands of a prompt in language `code`: what they are called, and which tokens' languages they hold."""
    own, english, undecidable = (
        [i for i, each in enumerate(token_languages) if each == one] for one in (code, "en", "undecidable")
    )
    others = sorted(set(range(len(token_languages))) - {*own, *english, *undecidable})
    bands = [("English", english), ("the prompt's language", own)]
    return [*bands[: 1 if code == "en" else 2], ("other languages", others), ("undecidable", undecidable)]


def script_bands(token_scripts: Sequence[str], code: str) -> list[tuple[str, list[int]]]:
    """Bands of a prompt in language `code`: what they are called, and which scripts they hold."""
    script = LANGUAGES[code].script
    own_scripts = ("Han", "Kana") if script == "Japanese" else (script,)
    none = [i for i, each in enumerate(token_scripts) if each in ("no letters", "part of a character")]
    latin = [token_scripts.index("Latin")]
    own = [token_scripts.index(each) for each in own_scripts if each != "Latin"]
    others = sorted(set(range(len(token_scripts))) - {*none, *latin, *own})
    bands = [("Latin script", latin), ("the prompt's script", own), ("other scripts", others)]
    return [(band, members) for band, members in bands if members] + [("no letters, or part of one", none)]


def bands_page(bands: Mapping[str, Mapping[str, np.ndarray]], label: str) -> Figure:
    """Shares [L] of the lens distribution stacked to 1, a panel for each language: language -> band -> share."""
    with page(len(bands), label, strips=False) as (figure, panels):
        for (code, shares), (_, panel) in zip(bands.items(), panels, strict=False):
            layers = np.arange(1, len(next(iter(shares.values()))) + 1)
            panel.stackplot(
                layers, list(shares.values()), colors=[BAND_COLOURS[band] for band in shares], labels=[*shares]
            )
            panel.set(title=plots.title(code), ylim=(0, 1), xlim=(1, max(2, len(layers))))
            plots.layer_ticks(panel, len(layers))
        areas = {area.get_label(): area for _, panel in panels for area in panel.collections}
        present = [band for band in BAND_COLOURS if band in areas]
        figure.legend([areas[band] for band in present], present, loc="outside lower center", ncols=4)
        figure.supylabel("probability", fontsize=8)
    return figure


@contextmanager
def page(count: int, label: str, strips: bool) -> Iterator[tuple[Figure, list[tuple[Axes, Axes]]]]:
    """A figure of `count` panels, each with a low strip above it where `strips`; or else a panel is its own strip."""
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    # A language alone has the size of the study's figure.
    width, height = (4.6, 2.6) if count == 1 else (1.72, 1.5)
    with matplotlib.rc_context(SMALL):
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
        yield figure, cells[:count]
