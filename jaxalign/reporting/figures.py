"""The figures of a report: which data of a comparison go into which plot, and what is said where there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxalign.data.tasks import TASKS
from jaxalign.reporting import plots
from jaxalign.reporting.gains import CellGain, Gains
from jaxalign.reporting.language_pages import attribution_pages
from jaxalign.reporting.lens import lens_lines
from jaxalign.reporting.neuron_plots import MASKING_AXES, masking_heat_map
from jaxalign.reporting.probe_files import ATTRIBUTION_AXES, Probe, read_probe
from jaxalign.reporting.runs import TrainingRun
from jaxalign.reporting.tables import Comparison, block_title, language_title

PANELS_PER_FIGURE = 3
"""Languages side by side in one figure of the lens; more would be too small to read."""


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


def lens_section(comparison: Comparison) -> ProbeSection:
    """The logit lens of each language that has surviving rows, before and after."""
    runs, notes = probes(comparison.before.lens, comparison.after.lens, "latent_mean", 1)
    if not runs:
        return ProbeSection((), notes)
    languages = common_languages(runs, "language")
    arrays = {label: select(probe, languages, "language") for label, probe in runs.items()}
    has_rows = np.all([np.isfinite(each["latent_mean"]).all(axis=1) for each in arrays.values()], axis=0)
    shown = [code for code, full in zip(languages, has_rows, strict=True) if full]
    without = [language_title(code) for code in languages if code not in shown]
    if without:
        notes.append(f"No row of {', '.join(without)} survives: its label words share tokens with the English ones.")
    figures = []
    for start in range(0, len(shown), PANELS_PER_FIGURE):
        codes = shown[start : start + PANELS_PER_FIGURE]
        figure = plots.logit_lens(arrays, languages, codes)
        label = f"logit lens of {', '.join(map(language_title, codes))}"
        figures.append(inline(figure, f"lens-{start}", label, surviving_text(runs, codes)))
    return ProbeSection(tuple(runs), notes, figures[:1], figures[1:], lines=lens_lines(arrays, languages))


def representation_section(comparison: Comparison) -> ProbeSection:
    """PCA scatter at the study's relative depths, correlation with English over all layers, and both as numbers."""
    runs, notes = probes(comparison.before.pca, comparison.after.pca, "points", 0)
    if not runs:
        return ProbeSection((), notes)
    figures, folded = [], []
    depth = len(next(iter(runs.values())).arrays["points"])
    layers = chosen_layers(depth - 1)
    scattered = common_languages(runs, "scatter_language")
    if scattered:
        points = {label: select(probe, scattered, "scatter_language")["points"] for label, probe in runs.items()}
        # The middle of the model first, where the study sees languages move; its end on request.
        figures = [scatter_plot(points, scattered, layers[:2])]
        folded = [scatter_plot(points, scattered, layers[2:])] if layers[2:] else []
    languages = common_languages(runs, "language")
    correlations = {label: select(probe, languages, "language")["correlations"] for label, probe in runs.items()}
    if "en" in languages and len(languages) > 1:
        figure = plots.correlation_heat_map(correlations, languages)
        caption = "Pearson correlation, over the same rows, of the coordinates on the first joint component."
        figures.append(inline(figure, "correlation", "correlation with English over the layers", caption))
        others = [index for index, code in enumerate(languages) if code != "en"]
        english = {label: array[:, languages.index("en"), others] for label, array in correlations.items()}
    else:
        english = {}
        notes.append("English or a second language was not probed in both: no correlation with English.")
    facts = [
        LayerFacts(
            layer,
            [float(probe.arrays["explained_variance_ratio"][layer].sum()) for probe in runs.values()],
            [float(values[layer].mean()) for values in english.values()],
        )
        for layer in layers
    ]
    return ProbeSection(tuple(runs), notes, figures, folded, facts)


def geometry_section(comparison: Comparison) -> ProbeSection:
    """Likeness to English over the layers: centred measures, and on request the uncentred ones."""
    runs, notes = probes(comparison.before.geometry, comparison.after.geometry, "cka", 1)
    if not runs:
        return ProbeSection((), notes)
    languages = common_languages(runs, "language")
    arrays = {label: select(probe, languages, "language") for label, probe in runs.items()}
    layers = next(iter(runs.values())).document["layer"]
    caption = (
        "Of each row's states (by language, against the same row in English); dotted: what rows in any order have on "
        "average. Layer 0: embeddings; the last: after the final norm. States: "
    ) + ", ".join(f"{label} {probe.document['position']}" for label, probe in runs.items())
    figures = []
    for name, measures in (("geometry", plots.CENTRED_GEOMETRY), ("geometry-uncentred", plots.UNCENTRED_GEOMETRY)):
        figure = plots.geometry(arrays, languages, layers, measures)
        titles = ", ".join(plots.GEOMETRY_TITLES[measure].replace("\n", " ") for measure in measures)
        figures.append(inline(figure, name, f"{titles} over the layers", f"{caption}."))
    return ProbeSection(tuple(runs), notes, figures[:1], figures[1:])


def attribution_section(comparison: Comparison) -> ProbeSection:
    """Which languages, and on request which scripts, each layer would write in, before and after."""
    runs = in_folders(comparison, "attribution", ATTRIBUTION_AXES)
    pages = {label: attribution_pages(probe, label) for label, probe in runs.items()}
    caption = "The lens distribution at the prompts' last position, summed over the tokens of each"
    by_language, by_script = (
        [
            inline(page[name], f"{name}-{label}", f"{name.replace('_', ' ')}, {label}", f"{caption} {kind}; {label}.")
            for label, page in pages.items()
        ]
        for name, kind in (("attribution", "language"), ("attribution_scripts", "script"))
    )
    return ProbeSection(tuple(runs), (), by_language, by_script)


def masking_section(comparison: Comparison) -> ProbeSection:
    """What the neurons of each language do for each, beside random ones, before and after."""
    runs = in_folders(comparison, "masking", MASKING_AXES)
    caption = "Change of the log perplexity, in nats per token, with the neurons of each language switched off"
    figures = [
        inline(
            masking_heat_map(probe.arrays["log_perplexity_change"], probe.languages),
            f"masking-{label}",
            f"neurons switched off, {label}",
            f"{caption}; {label}.",
        )
        for label, probe in runs.items()
    ]
    return ProbeSection(tuple(runs), (), figures)


def in_folders(comparison: Comparison, name: str, axes: Mapping[str, Sequence[str]]) -> dict[str, Probe]:
    """A probe as it lies in the two result folders, "before" and "after", where it does."""
    folders = {"before": comparison.before.folder, "after": comparison.after.folder}
    found = {label: read_probe(folder, name, axes) for label, folder in folders.items()}
    return {label: probe for label, probe in found.items() if probe is not None}


def scatter_plot(points: Mapping[str, np.ndarray], languages: Sequence[str], layers: Sequence[int]) -> Plot:
    """PCA of the runs at some layers."""
    caption = (
        "One mark a prompt: its mean state on the first two joint components. Every panel is a fit of its own, so axes "
        "of different panels are not the same directions. Layer 0: embeddings; the last: after the final norm."
    )
    label = f"PCA at layers {' and '.join(map(str, layers))}"
    return inline(plots.pca_scatter(points, languages, layers), f"pca-{layers[0]}", label, caption)


def surviving_text(runs: Mapping[str, Probe], languages: Sequence[str]) -> str:
    """How many rows of each language the lens averages over."""
    counts = []
    for code in languages:
        sides = {label: probe.document["surviving_rows"][code] for label, probe in runs.items()}
        numbers = " and ".join(map(str, sorted(set(sides.values()))))
        counts.append(f"{language_title(code)} {numbers} of {max(p.document['rows'][code] for p in runs.values())}")
    return f"Rows whose gold words can be told apart: {', '.join(counts)}."


def probes(
    before: Probe | None, after: Probe | None, array: str, layer_axis: int
) -> tuple[dict[str, Probe], list[str]]:
    """The probes that can be drawn together, "before" and "after", and notes on those that cannot."""
    both = {"before": before, "after": after}
    runs = {label: probe for label, probe in both.items() if probe is not None}
    notes = [f"The {label} folder holds no such probe." for label in both if label not in runs]
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


def chosen_layers(layers: int) -> list[int]:
    """The study's relative depths: layers 20, 25, 30 and 32 of its 32."""
    return sorted({round(layers * of_32 / 32) for of_32 in (20, 25, 30, 32)})
