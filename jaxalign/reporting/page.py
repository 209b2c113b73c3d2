"""The report: one HTML file with inline style and inline SVG, no script and no request to anywhere.

Whatever comes from result files is escaped on its way into the page, and characters that would hide or reorder what
stands there (control characters, bidirectional overrides) are shown as their code points.

`sides` are labels of what is shown, "before" and "after" or one model's alone, and the probes in the folder of each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxalign.data.fields import field, read_object
from jaxalign.data.tasks import TASKS
from jaxalign.errors import InputError
from jaxalign.files import published, write_text
from jaxalign.probe_files import Probe
from jaxalign.reporting import figures, words
from jaxalign.reporting.changes import (
    NEURON_EFFECTS,
    PairedChange,
    attribution_table,
    effect_table,
    lens_table,
    likeness_table,
    read_neurons,
)
from jaxalign.reporting.compare import Comparison, PairedCell, compare
from jaxalign.reporting.folders import model_documents, model_of_all, read_probes
from jaxalign.reporting.text import notes

EXAMPLES_PER_CELL = 3
PANELS_PER_FIGURE = 3
"""Languages side by side in one figure of the lens; more would be too small to read."""

RUN_FACTS = {
    "model": "model",
    "files": "files of pairs",
    "records": "pairs given from Python",
    "pairs": "pairs read",
    "heldout_pairs": "pairs held out",
    "dropped": "pairs dropped as too long",
    "cut": "pairs cut to length",
    "steps": "optimizer steps",
    "template": "chat template",
    "trainable_parameters": "trainable parameters",
}
"""Keys of `run.json` that are shown as a list, with their labels; absent ones are passed over."""

Sides = Mapping[str, Mapping[str, Probe]]


@dataclass(frozen=True)
class Plot:
    """An inline SVG with its caption."""

    svg: Markup
    label: str  # what a screen reader says in its place
    caption: str
    inches: float  # how wide it was drawn


@dataclass(frozen=True)
class Section:
    """What a page says of one probe."""

    title: str
    text: str = ""
    plots: Sequence[Plot] = ()
    folded: Sequence[Plot] = ()  # shown on request
    tables: Sequence[words.Table] = ()
    notes: Sequence[str] = ()  # on what is missing


def inline(figure: Figure, name: str, label: str, caption: str) -> Plot:
    """The figure as a plot whose ids begin with `name`."""
    # Markup: the texts in it are our own, and escaped by matplotlib.
    return Plot(Markup(figures.svg(figure, name)), label, caption, inches=figure.get_figwidth())


def write_report(before: Path, afters: Sequence[Path], out: Path, command: str) -> None:
    """Compares result folders, or shows the probes of one, and writes the page, whole or not at all.

    Accuracies are means over the AFTER folders; label masses, probes and examples are those of the first. Folders that
    cannot be read or compared raise InputError. `command`, which makes the report, is shown in it.
    """
    if out.is_dir():
        raise InputError(f"{out}: a folder; name the HTML file to write, as {out / 'report.html'}")
    write_text(out, comparison_page(compare(before, *afters), command) if afters else probe_page(before, command))


def page(template: str, **values: Any) -> str:
    """The text of a page; whatever is not Markup is escaped on its way into it, and names no place on this machine."""
    names = (
        "percent",
        "signed",
        "language_title",
        "cells_text",
        "p_text",
        "interval_text",
        "number_text",
        "count_text",
    )
    filters = {name: getattr(words, name) for name in names}
    environment = words.templates(
        filters | {"fact_text": fact_text, "pretty": partial(json.dumps, ensure_ascii=False, indent=2)},
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else words.visible(published(str(value))),
    )
    return environment.get_template(template).render(**values)


def comparison_page(comparison: Comparison, command: str) -> str:
    """The page of evaluations and probes before and after."""
    several = len(comparison.afters) > 1
    after = {f"after, run {k}" if several else "after": each for k, each in enumerate(comparison.afters, 1)}
    pair = {"before": comparison.before, "after": comparison.after}
    training, run = None, comparison.run
    if run and (run.training or run.held_out):
        figure = figures.training_curves(run.training, run.held_out)
        label = "Training and held-out loss by step"
        training = inline(figure, "training", label, "Loss over response tokens only.")
    return page(
        "report.html.jinja",
        comparison=comparison,
        run=run,
        sides={"before": comparison.before, **after},
        blocks=[
            {"title": words.block_title(*block), "cells": cells, "means": means, "plot": accuracy_plot(block, cells)}
            for block, (cells, means) in comparison.by_block.items()
        ],
        gain_plot=gain_plot(comparison),
        training=training,
        sections=probe_sections(
            {label: each.probes for label, each in pair.items()},
            {label: each.folder for label, each in pair.items()},
            comparison.geometry,
            comparison.correlations,
        ),
        remarks=notes(comparison),
        run_facts=RUN_FACTS,
        examples_per_cell=EXAMPLES_PER_CELL,
        command=command,
    )


def accuracy_plot(block: tuple[str, str], cells: Sequence[PairedCell]) -> Plot:
    """Accuracy of every common language of a task before and after."""
    languages, scores = [cell.language for cell in cells], [cell.corrected for cell in cells]
    accuracies, intervals = (
        {side: [getattr(score, f"{quantity}_{side}") for score in scores] for side in ("before", "after")}
        for quantity in ("accuracy", "interval")
    )
    figure = figures.accuracy_dots(languages, accuracies, intervals, chance=1 / len(TASKS[block[0]].classes))
    label = f"Accuracy on {words.block_title(*block)} before and after, by language"
    return inline(figure, f"accuracy-{'-'.join(block)}", label, words.said("accuracy"))


def gain_plot(comparison: Comparison) -> Plot:
    """The gain of every cell, marked where it is significant."""
    blocks = list(comparison.by_block)
    languages = list(dict.fromkeys(cell.language for cell in comparison.cells))
    values = np.full((len(blocks), len(languages)), np.nan)
    marks = {}
    for cell in comparison.cells:
        place = blocks.index(cell.block), languages.index(cell.language)
        values[place], marks[place] = cell.corrected.gain_points, cell.corrected.mark
    figure = figures.gain_map(
        [words.block_title(*block).replace(", ", ",\n") for block in blocks], languages, values, marks
    )
    return inline(figure, "gains", "Gain in every task and language", words.said("gains"))


def fact_text(value: Any) -> str:
    """A JSON value in a sentence: thousands separated, lists by commas."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def probe_page(folder: Path, command: str) -> str:
    """The page of one model's probes, as `probe`, and perhaps `neurons`, wrote them."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `jaxalign probe` wrote, or two to compare")
    probes, documents = read_probes(folder), model_documents(folder)
    if not documents:
        raise InputError(f"{folder}: no probe in it; give a folder that `jaxalign probe` wrote, or two to compare")
    model, adapter = model_of_all(folder, documents)
    label = "tuned" if adapter else "base"
    selection = folder / "selection.json"
    if selection.is_file():
        documents["selection"] = read_object(selection)
    elif not probes:
        raise InputError(f"{folder}: neurons are counted and none selected; `jaxalign neurons neuron_counts.npz` does")
    return page(
        "probe_page.html.jinja",
        model=model,
        adapter=adapter,
        languages=list(dict.fromkeys(code for probe in probes.values() for code in probe.languages)),
        making=made_by(folder, documents),
        sections=probe_sections({label: probes}, {label: folder}),
        command=command,
    )


def made_by(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What was made by one command of one config, by name -> command, config and versions."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, document in documents.items():
        where = f"{folder}, {name}"
        # From Python several calls have one command line.
        made_from = (json.dumps(field(document, key, dict, where), sort_keys=True) for key in ("config", "versions"))
        names.setdefault((field(document, "command", str, where), *made_from), []).append(name)
    return {", ".join(each).replace("_", " "): documents[each[0]] for each in names.values()}


def probe_sections(
    sides: Sides,
    folders: Mapping[str, Path],
    geometry: PairedChange | None = None,
    correlations: PairedChange | None = None,
) -> dict[str, Section]:
    """Name -> section, of those in which there is something to show or to say.

    folders: where the sides lie, perhaps with selections of neurons. geometry, correlations: what changed.
    """
    neurons = neurons_section(folders)  # first, as it reads files
    sections = {
        "lens": lens_section(sides),
        "representation": representation_section(sides, correlations),
        "attribution": attribution_section(sides),
        "neurons": neurons,
        "masking": effect_section("masking", "Masked neurons: perplexity", sides),
        "masked_accuracy": effect_section("masked_accuracy", "Masked neurons: accuracy", sides),
        "transplant": effect_section("transplant", "Transplanted neurons", sides),
        "geometry": geometry_section(sides, geometry),
    }
    return {name: each for name, each in sections.items() if each.plots or each.folded or each.tables or each.notes}


def probed(name: str, sides: Sides) -> tuple[dict[str, Probe], list[str]]:
    """Label -> the probe of that name, and notes on those of two sides that have none."""
    runs = {label: probes[name] for label, probes in sides.items() if name in probes}
    absent = [label for label in sides if label not in runs and len(sides) > 1]
    return runs, [f"The {label} folder holds no such probe." for label in absent]


def drawable(name: str, sides: Sides) -> tuple[dict[str, Probe], list[str]]:
    """As `probed`; none where they cannot be drawn together, and a note of that too."""
    runs, notes = probed(name, sides)
    depths = [len(probe.document["layer"]) for probe in runs.values()]
    if len(set(depths)) > 1:
        return {}, [f"Not drawn: the two models have different numbers of layers ({' and '.join(map(str, depths))})."]
    if runs and not common(runs):
        return {}, ["Not drawn: the two probes have no language in common."]
    return runs, notes


def common(runs: Mapping[str, Probe], axis: str = "language") -> list[str]:
    """The labels of an axis that all probes have, in the order of the first."""
    first, *others = (probe.document[axis] for probe in runs.values())
    return [code for code in first if all(code in other for other in others)]


def select(probe: Probe, codes: Sequence[str], axis: str = "language") -> dict[str, np.ndarray]:
    """The probe's arrays with every axis of that name reduced to the given languages."""
    indices = [probe.document[axis].index(code) for code in codes]
    arrays = dict(probe.arrays)
    for name in arrays:
        for position, label in enumerate(probe.document["axes"][name]):
            if label == axis:
                arrays[name] = np.take(arrays[name], indices, axis=position)
    return arrays


def lens_section(sides: Sides) -> Section:
    """The logit lens of each language that has surviving rows: of two models a row each, of one all on a page."""
    title = "Logit lens"
    runs, notes = drawable("logit_lens", sides)
    if not runs:
        return Section(title, notes=notes)
    codes = common(runs)
    values = {code: {label: figures.lens_values(probe, code) for label, probe in runs.items()} for code in codes}
    has_rows = [code for code in codes if all(np.isfinite(each["latent_mean"]).all() for each in values[code].values())]
    if without := [words.language_title(code) for code in codes if code not in has_rows]:
        notes.append(words.said("lens_without", languages=without))
    plots = []
    for start in range(0, len(has_rows), PANELS_PER_FIGURE):
        chosen = has_rows[start : start + PANELS_PER_FIGURE]
        panels = [(f"{words.language_title(c)}, {label}", c, values[c][label]) for label in runs for c in chosen]
        counts = []
        for code in chosen:
            survive = sorted({probe.document["surviving_rows"][code] for probe in runs.values()})
            rows = max(probe.document["rows"][code] for probe in runs.values())
            counts.append(f"{words.language_title(code)} {' and '.join(map(str, survive))} of {rows}")
        label = f"logit lens of {', '.join(map(words.language_title, chosen))}"
        figure = figures.lens_figure(panels, len(chosen))
        plots.append(inline(figure, f"lens-{start}", label, words.said("lens_rows", counts=counts)))
    first, folded = plots[:1], plots[1:]
    if len(runs) == 1:
        [(label, probe)] = runs.items()
        first, folded = small_multiples(probe, label), plots
    table = lens_table(runs, codes)
    return Section(title, words.said("lens") if first else "", first, folded, [table] if table.lines else [], notes)


def small_multiples(probe: Probe, label: str) -> list[Plot]:
    """The lens of all languages in one figure: by the study's choice of rows; without shared ids if that differs."""
    pages = figures.lens_pages(probe, label)
    # Rows that survive the study's filter share nothing, so that nothing is left out of them.
    if probe.document["surviving_rows"] == probe.document["unshared_surviving_rows"]:
        pages.pop("logit_lens_unshared", None)
    return [
        inline(figure, f"{name}-{label}", f"{name.replace('_', ' ')} by language", words.said(name))
        for name, figure in pages.items()
    ]


def representation_section(sides: Sides, change: PairedChange | None) -> Section:
    """PCA scatter at the study's relative depths, correlation with English over all layers, and both as numbers."""
    title = "Representation"
    runs, notes = drawable("pca", sides)
    if not runs:
        return Section(title, notes=notes)
    plots, folded = [], []
    layers = figures.chosen_layers(len(next(iter(runs.values())).document["layer"]) - 1)
    if scattered := common(runs, "scatter_language"):
        points = {label: select(probe, scattered, "scatter_language")["points"] for label, probe in runs.items()}
        # The middle of the model first, where the study sees languages move; its end on request.
        for chosen, place in ((layers[:2], plots), (layers[2:], folded)):
            if chosen:
                label = f"PCA at layers {' and '.join(map(str, chosen))}"
                figure = figures.pca_scatter(points, scattered, chosen)
                place.append(inline(figure, f"pca-{chosen[0]}", label, words.said("pca")))
    codes = common(runs)
    correlations = {label: select(probe, codes)["correlations"] for label, probe in runs.items()}
    groups, lines = [("variance on two components", len(runs))], []
    for layer in layers:
        explained = [probe.arrays["explained_variance_ratio"][layer].sum() for probe in runs.values()]
        lines.append([str(layer), *(f"{words.percent(float(value))} %" for value in explained)])
    has_english = "en" in codes and len(codes) > 1
    if has_english:
        figure = figures.correlation_map(correlations, codes)
        plots.append(
            inline(figure, "correlation", "correlation with English over the layers", words.said("correlation"))
        )
        english, others = codes.index("en"), [index for index, code in enumerate(codes) if code != "en"]
        groups.append(("mean correlation with English", len(runs)))
        for layer, line in zip(layers, lines, strict=True):
            line += [f"{float(values[layer, english, others].mean()):.3f}" for values in correlations.values()]
    else:
        where = " in both" if len(sides) > 1 else ""
        notes.append(f"English or a second language was not probed{where}: no correlation with English.")
    tables = [words.Table(["layer", *(label for _ in groups for label in runs)], lines, groups=groups)]
    if change:
        tables.append(change.table())
    elif len(runs) > 1 and any(len(probe.languages) > 1 for probe in runs.values()):
        notes.append("The two probes differ in languages or rows: the changes of their correlations are not paired.")
    elif has_english:
        [probe] = runs.values()
        tables.append(likeness_table("pca", probe))
    return Section(title, "", plots, folded, tables, notes)


def geometry_section(sides: Sides, change: PairedChange | None) -> Section:
    """Likeness to English over the layers: centred measures, on request the uncentred ones; the middle as numbers."""
    title = "Geometry"
    runs, notes = drawable("geometry", sides)
    if not runs:
        return Section(title, notes=notes)
    layers = next(iter(runs.values())).document["layer"]
    if any(probe.document["layer"] != layers for probe in runs.values()):
        return Section(title, notes=[*notes, "The two probes read different layers: they are not drawn side by side."])
    codes = common(runs)
    arrays = {label: select(probe, codes) for label, probe in runs.items()}
    of_two = len(runs) > 1
    positions = [(f"{label} " if of_two else "") + probe.document["position"] for label, probe in runs.items()]
    plots = []
    for name, measures in (
        ("geometry", figures.CENTRED_GEOMETRY),
        ("geometry-uncentred", figures.UNCENTRED_GEOMETRY),
    ):
        titles = ", ".join(figures.GEOMETRY_TITLES[measure].replace("\n", " ") for measure in measures)
        figure = figures.geometry_lines(arrays, codes, layers, measures)
        plots.append(inline(figure, name, f"{titles} over the layers", words.said("geometry", positions=positions)))
    tables = []
    if change:
        tables = [change.table()]
    elif of_two:
        notes.append("The two probes differ in rows, layers or states: their changes are not paired.")
    else:
        tables = [likeness_table("geometry", probe) for probe in runs.values()]
    return Section(title, "", plots[:1], plots[1:], tables, notes)


def attribution_section(sides: Sides) -> Section:
    """Which languages, and on request which scripts, each layer would write in."""
    title = "Languages of the layers"
    runs, absent = probed("attribution", sides)
    if not runs:
        return Section(title)
    by_kind: dict[str, list[Plot]] = {"language": [], "script": []}
    for label, probe in runs.items():
        pages = figures.attribution_pages(probe, label).items()
        for (name, figure), (kind, plots) in zip(pages, by_kind.items(), strict=True):
            caption = words.said("attribution", kind=kind, label=label)
            plots.append(inline(figure, f"{name}-{label}", f"{name.replace('_', ' ')}, {label}", caption))
    notes = [*dict.fromkeys(token_map_text(probe.document) for probe in runs.values()), *absent]
    tables = [attribution_table(runs, common(runs))] if common(runs) else []
    return Section(title, "", by_kind["language"], by_kind["script"], tables, notes)


def token_map_text(attribution: Mapping[str, Any]) -> str:
    """How good the map from tokens to languages is on texts that it was not made from; of `attribution.json`."""
    held_out = attribution["token_map"]["held_out"]["all"]
    return words.said("token_map", decided=held_out.get("decided"), accuracy=held_out.get("accuracy"))


def neurons_section(folders: Mapping[str, Path]) -> Section:
    """Where each language's neurons are, of folders by label that all hold a selection."""
    title = "Language neurons"
    without = [label for label, folder in folders.items() if not (folder / "selection.json").is_file()]
    if without:
        missing = [f"The {label} folder holds no selection.json: no neurons are compared." for label in without]
        return Section(title, notes=missing if len(without) < len(folders) else [])
    neurons = read_neurons(folders)
    most = max(1, *(int(each.max()) for each in neurons.by_layer.values()))
    figure = figures.layers_map(neurons.by_layer, neurons.codes, "neurons", "viridis", (0, most))
    plot = inline(figure, "neurons", "neurons of each language over the layers", words.said("neurons"))
    return Section(title, "", [plot], tables=neurons.tables)


def effect_section(name: str, title: str, sides: Sides) -> Section:
    """What each language's neurons do for every language, beside random ones; `name`: of NEURON_EFFECTS."""
    (runs, absent), effect = probed(name, sides), NEURON_EFFECTS[name]
    if not runs:
        return Section(title)
    # One folder alone holds a transplant: of base and tuned model at once.
    notes = [] if name == "transplant" else absent
    plots = []
    for label, probe in runs.items():
        caption = words.said("effect", quantity=effect.quantity, done=effect.done, label=label)
        figure = figures.effect_map(probe, name)
        plots.append(inline(figure, f"{name}-{label}", f"{name.replace('_', ' ')}, {label}", caption))
    if not common(runs):
        return Section(title, "", plots, notes=[*notes, "No table: the two probes have no language in common."])
    return Section(title, "", plots, (), [effect_table(name, runs, common(runs))], notes)
