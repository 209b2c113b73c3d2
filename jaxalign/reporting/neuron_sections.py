"""The sections of language neurons: where they are, and what masking or transplanting them does."""

from collections.abc import Mapping, Sequence

from jaxalign.reporting.figures import inline
from jaxalign.reporting.neuron_effects import NEURON_EFFECTS, effect_lines, effect_note
from jaxalign.reporting.neuron_plots import effect_heat_map, neurons_heat_map
from jaxalign.reporting.neurons import NeuronTables
from jaxalign.reporting.probe_files import Probe
from jaxalign.reporting.sections import ProbeSection, absent, common_languages, present


def neurons_section(neurons: NeuronTables | None, notes: Sequence[str]) -> ProbeSection:
    """Where each language's neurons are; `notes`: why there are no tables of them."""
    if neurons is None:
        return ProbeSection((), notes)
    figure = neurons_heat_map(neurons.by_layer, neurons.codes)
    caption = "Selected neurons that are active in a language but not in all, by layer; layers are counted from 0."
    return ProbeSection(
        neurons.labels, notes, [inline(figure, "neurons", "neurons of each language over the layers", caption)]
    )


def effect_section(name: str, sides: Mapping[str, Probe | None]) -> ProbeSection:
    """What each language's neurons do for every language, beside random ones; `name`: of NEURON_EFFECTS."""
    runs, effect = present(sides), NEURON_EFFECTS[name]
    if not runs:
        return ProbeSection((), ())
    # One folder alone holds a transplant: of base and tuned model at once.
    notes = [] if name == "transplant" else absent(sides)
    figures = []
    for label, probe in runs.items():
        change = effect.scale * probe.arrays[effect.array]
        figure = effect_heat_map(change, probe.languages, effect.quantity, effect.done)
        caption = (
            f"{effect.quantity.capitalize()} with the neurons of each language {effect.done}, beside as many random "
            "ones of the same layers; a dot: the 95 % interval of the two's difference leaves out 0; "
            f"{label}."
        )
        figures.append(inline(figure, f"{name}-{label}", f"{name.replace('_', ' ')}, {label}", caption))
    languages = common_languages(runs, "language")
    if not languages:
        return ProbeSection(tuple(runs), [*notes, "No table: the two probes have no language in common."], figures)
    return ProbeSection(
        tuple(runs), notes, figures, lines=effect_lines(name, runs, languages), lines_note=effect_note(name, runs)
    )
