"""The probes' part of a page: what is drawn and said of one model, or of two side by side.

Every section takes label -> what was probed, "before" and "after" or one label alone; None where it was not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.reporting import geometry_plots, plots
from jaxalign.reporting.attribution import attribution_lines, attribution_note
from jaxalign.reporting.correlations import (
    CorrelationChange,
    correlation_lines,
    correlation_note,
    correlation_values,
    correlation_values_note,
)
from jaxalign.reporting.figures import Plot, inline
from jaxalign.reporting.geometry import GeometryChange, geometry_lines, geometry_note, geometry_values, values_note
from jaxalign.reporting.language_pages import attribution_pages, lens_pages
from jaxalign.reporting.lens import lens_lines, lens_note
from jaxalign.reporting.neuron_effects import NEURON_EFFECTS
from jaxalign.reporting.neuron_sections import effect_section, neurons_section
from jaxalign.reporting.neurons import NeuronTables
from jaxalign.reporting.probe_files import Probe, Probes
from jaxalign.reporting.sections import LayerFacts, ProbeSection, absent, common_languages, drawable, present, select
from jaxalign.reporting.tables import language_title

PANELS_PER_FIGURE = 3
"""Languages side by side in one figure of the lens; more would be too small to read."""


def probe_sections(
    sides: Mapping[str, Probes],
    neurons: NeuronTables | None,
    change: GeometryChange | None = None,
    correlations: CorrelationChange | None = None,
    neuron_notes: Sequence[str] = (),
) -> dict[str, ProbeSection]:
    """Name -> section, of those in which there is something to show or to say.

    Args:
      sides: label -> the probes of one folder.
      neurons: the selections beside them.
      change, correlations: between two sides' geometry and first components.
      neuron_notes: why there are no `neurons`.
    """
    sections = {
        "lens": lens_section({label: probes.logit_lens for label, probes in sides.items()}),
        "representation": representation_section({label: probes.pca for label, probes in sides.items()}, correlations),
        "attribution": attribution_section({label: probes.attribution for label, probes in sides.items()}),
        "neurons": neurons_section(neurons, neuron_notes),
        **{
            name: effect_section(name, {label: probes.found.get(name) for label, probes in sides.items()})
            for name in NEURON_EFFECTS
        },
        "geometry": geometry_section({label: probes.geometry for label, probes in sides.items()}, change),
    }
    return {name: section for name, section in sections.items() if section.runs or section.notes}


def lens_section(sides: Mapping[str, Probe | None]) -> ProbeSection:
    """The logit lens of each language that has surviving rows: of two models a row each, of one all on a page."""
    runs, notes = drawable(sides, "latent_mean", 1)
    if not runs:
        return ProbeSection((), notes)
    languages = common_languages(runs, "language")
    arrays = {label: select(probe, languages, "language") for label, probe in runs.items()}
    has_rows = np.all([np.isfinite(each["latent_mean"]).all(axis=1) for each in arrays.values()], axis=0)
    shown = [code for code, full in zip(languages, has_rows, strict=True) if full]
    without = [language_title(code) for code in languages if code not in shown]
    if without:
        its = "its" if len(without) == 1 else "their"
        notes.append(f"No row of {', '.join(without)} survives: {its} label words share tokens with the English ones.")
    figures = []
    for start in range(0, len(shown), PANELS_PER_FIGURE):
        codes = shown[start : start + PANELS_PER_FIGURE]
        figure = plots.logit_lens(arrays, languages, codes)
        label = f"logit lens of {', '.join(map(language_title, codes))}"
        figures.append(inline(figure, f"lens-{start}", label, surviving_text(runs, codes)))
    if len(runs) > 1:
        first, folded = figures[:1], figures[1:]
    else:
        [(label, probe)] = runs.items()
        first, folded = small_multiples(probe, label), figures
    return ProbeSection(
        tuple(runs), notes, first, folded, lines=lens_lines(arrays, languages), lines_note=lens_note(runs)
    )


def small_multiples(probe: Probe, label: str) -> list[Plot]:
    """The lens of all languages in one figure: by the study's choice of rows; without shared ids if that differs."""
    captions = {
        "logit_lens": "The study's choice of rows: those whose English and in-language label words share no token.",
        "logit_lens_unshared": "Shared tokens left out, so that more languages keep rows: those whose label words have "
        "a token each besides.",
    }
    pages = lens_pages(probe, label)
    # Rows that survive the study's filter share nothing, so that nothing is left out of them.
    if probe.document["surviving_rows"] == probe.document["unshared_surviving_rows"]:
        pages.pop("logit_lens_unshared", None)
    return [
        inline(figure, f"{name}-{label}", f"{name.replace('_', ' ')} by language", f"{captions[name]} n: rows.")
        for name, figure in pages.items()
    ]


def representation_section(sides: Mapping[str, Probe | None], change: CorrelationChange | None) -> ProbeSection:
    """PCA scatter at the study's relative depths, correlation with English over all layers, and both as numbers."""
    runs, notes = drawable(sides, "points", 0)
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
        where = " in both" if len(sides) > 1 else ""
        notes.append(f"English or a second language was not probed{where}: no correlation with English.")
    facts = [
        LayerFacts(
            layer,
            [float(probe.arrays["explained_variance_ratio"][layer].sum()) for probe in runs.values()],
            [float(values[layer].mean()) for values in english.values()],
        )
        for layer in layers
    ]
    lines: list[list[str]] = []
    note = ""
    if change:
        lines, note = correlation_lines(change), correlation_note(change)
    elif len(runs) > 1 and any(len(probe.languages) > 1 for probe in runs.values()):
        notes.append("The two probes differ in languages or rows: the changes of their correlations are not paired.")
    elif english:
        [probe] = runs.values()
        lines, note = correlation_values(probe), correlation_values_note(probe)
    return ProbeSection(tuple(runs), notes, figures, folded, facts, lines, note)


def geometry_section(sides: Mapping[str, Probe | None], change: GeometryChange | None) -> ProbeSection:
    """Likeness to English over the layers: centred measures, on request the uncentred ones; the middle as numbers."""
    runs, notes = drawable(sides, "cka", 1)
    if not runs:
        return ProbeSection((), notes)
    layers = next(iter(runs.values())).document["layer"]
    if any(probe.document["layer"] != layers for probe in runs.values()):
        return ProbeSection((), [*notes, "The two probes read different layers: they are not drawn side by side."])
    languages = common_languages(runs, "language")
    arrays = {label: select(probe, languages, "language") for label, probe in runs.items()}
    positions = [probe.document["position"] for probe in runs.values()]
    if len(runs) > 1:
        positions = [f"{label} {position}" for label, position in zip(runs, positions, strict=True)]
    caption = (
        "Of each row's states (by language, against the same row in English); dotted: what rows in any order have on "
        f"average. Layer 0: embeddings; the last: after the final norm. States: {', '.join(positions)}."
    )
    figures = []
    for name, measures in (
        ("geometry", geometry_plots.CENTRED_GEOMETRY),
        ("geometry-uncentred", geometry_plots.UNCENTRED_GEOMETRY),
    ):
        figure = geometry_plots.geometry(arrays, languages, layers, measures)
        titles = ", ".join(geometry_plots.GEOMETRY_TITLES[measure].replace("\n", " ") for measure in measures)
        figures.append(inline(figure, name, f"{titles} over the layers", caption))
    lines: list[list[str]] = []
    note = ""
    if change:
        lines, note = geometry_lines(change), geometry_note(change)
    elif len(runs) > 1:
        notes.append("The two probes differ in rows, layers or states: their changes are not paired.")
    else:
        [probe] = runs.values()
        lines, note = geometry_values(probe), values_note(probe)
    return ProbeSection(tuple(runs), notes, figures[:1], figures[1:], lines=lines, lines_note=note)


def attribution_section(sides: Mapping[str, Probe | None]) -> ProbeSection:
    """Which languages, and on request which scripts, each layer would write in."""
    runs = present(sides)
    pages = {label: attribution_pages(probe, label) for label, probe in runs.items()}
    caption = "The lens distribution at the prompts' last position, summed over the tokens of each"
    by_language, by_script = (
        [
            inline(page[name], f"{name}-{label}", f"{name.replace('_', ' ')}, {label}", f"{caption} {kind}; {label}.")
            for label, page in pages.items()
        ]
        for name, kind in (("attribution", "language"), ("attribution_scripts", "script"))
    )
    notes = list(dict.fromkeys(token_map_text(probe.document) for probe in runs.values()))
    notes += absent(sides) if runs else []
    languages = common_languages(runs, "language") if runs else []
    lines = attribution_lines(runs, languages) if languages else []
    return ProbeSection(tuple(runs), notes, by_language, by_script, lines=lines, lines_note=attribution_note(runs))


def token_map_text(attribution: Mapping[str, Any]) -> str:
    """How good the map from tokens to languages is on texts that it was not made from; of `attribution.json`."""
    held_out = attribution["token_map"]["held_out"]["all"]
    if held_out.get("decided") is None or held_out.get("accuracy") is None:
        return "No token of the held-out texts has a language of its own."
    return (
        f"Of the tokens of held-out texts, {held_out['decided']:.0%} have a language of their own, and for "
        f"{held_out['accuracy']:.0%} of these it is the right one."
    )


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


def chosen_layers(layers: int) -> list[int]:
    """The study's relative depths: layers 20, 25, 30 and 32 of its 32."""
    return sorted({round(layers * of_32 / 32) for of_32 in (20, 25, 30, 32)})
