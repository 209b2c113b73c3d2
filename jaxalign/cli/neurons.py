"""`jaxalign neurons FILE`: the language neurons of counts that the probe `neurons` (or another program) has written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxalign.cli.settings import chosen_languages, out_folder
from jaxalign.configuration import provenance
from jaxalign.errors import InputError
from jaxalign.files import recorded
from jaxalign.probing.neurons import (
    GENERAL,
    LAYER_AND_INDEX,
    SCORES,
    ActivationCounts,
    Selection,
    activation_probabilities,
    general_neurons,
    language_neurons,
    read_counts,
    read_selection,
    select_neurons,
    selection_document,
    specific_neurons,
)
from jaxalign.probing.probe import write_probe
from jaxalign.reporting.fields import field, read_object

MASKED = ("specific", "related", "general")
"""What may be switched off of a language: `config.neurons.masked`."""


def neurons(config: ConfigDict, paths: Sequence[str]) -> None:
    """Selects the neurons into `config.out`: selection.npz and selection.json, and those of all languages beside."""
    check_selection_settings(config)
    out, form, rate = out_folder(config), config.neurons.score, config.neurons.top_rate
    counts = read_counts(Path(paths[0]))
    probabilities = activation_probabilities(counts)
    selection = selected_of(counts, config)
    made_from = {"counts": recorded(paths[0]), **counted_model(Path(paths[0])), **provenance(config)}
    document = {
        **selection_document(selection, probabilities, counts.languages, form, rate),
        "tokens": dict(zip(counts.languages, counts.tokens.tolist(), strict=True)),
        **made_from,
    }
    own = {code: language_neurons(selection, index) for index, code in enumerate(counts.languages)}
    write_probe(out, "selection", own, document)
    of_all = {"axes": {GENERAL: ["neuron", LAYER_AND_INDEX]}, "neurons": "active in every language, selected or not"}
    write_probe(out, "general_neurons", {GENERAL: general_neurons(selection)}, of_all | made_from)
    print(f"lambda {selection.weight}, tau {selection.threshold:.7f}; {document['selected']} neurons selected")
    print(f"active in 0, 1, ... languages: {' '.join(map(str, document['histogram']))}")
    print(f"of a language: {', '.join(f'{code} {number}' for code, number in document['neurons'].items())}")
    print(f"selection: {out}")


def check_selection_settings(config: ConfigDict) -> None:
    """Refuses a score and a rate that there are not."""
    if config.neurons.score not in SCORES:
        raise InputError(f"--config.neurons.score={config.neurons.score}: choose {', '.join(SCORES)}")
    if not 0 < config.neurons.top_rate <= 1:
        raise InputError(f"--config.neurons.top_rate={config.neurons.top_rate}: set it above 0, and to 1 at most")


def selected_of(counts: ActivationCounts, config: ConfigDict) -> Selection:
    """The neurons that `config.neurons` selects from counts."""
    rate, neurons = config.neurons.top_rate, counts.active[0].size
    if not round(rate * neurons):
        raise InputError(f"--config.neurons.top_rate={rate}: none of {neurons} neurons; set at least {1 / neurons:.2g}")
    return select_neurons(activation_probabilities(counts), config.neurons.score, rate)


def document_beside(arrays: Path) -> dict[str, Any]:
    """The JSON file of an .npz file; {} where there is none."""
    described = arrays.with_suffix(".json")
    return read_object(described) if described.is_file() else {}


def counted_model(counts: Path) -> dict[str, str]:
    """Model and adapter that the JSON file beside a file of counts names; {} where it names none, or there is none."""
    document, where = {"adapter": "", **document_beside(counts)}, f"{counts}'s JSON file"
    return {name: field(document, name, str, where) for name in ("model", "adapter")} if "model" in document else {}


def check_selected_of(selection: Path, model: str) -> None:
    """Refuses a selection whose JSON file names another model. Its adapter may differ: tuning keeps neurons' places.

    By the name alone: the folder that holds the model may be another on another machine.
    """
    document, where = document_beside(selection), f"{selection}'s JSON file"
    if "model" in document and Path(other := field(document, "model", str, where)).name != Path(model).name:
        raise InputError(
            f"{selection}: neurons of {other}, the model is {model}; take a selection of this model's counts"
        )


def neurons_to_mask(config: ConfigDict) -> dict[str, np.ndarray]:
    """(layer, index) of the neurons of each language that the probe masking switches off.

    They are nested: `related` holds the specific ones too, `general` both of these and those of every language.
    """
    chosen = config.neurons
    if chosen.masked not in MASKED:
        raise InputError(f"--config.neurons.masked={chosen.masked}: choose {', '.join(MASKED[:-1])} or {MASKED[-1]}")
    if not chosen.selection:
        raise InputError("--config.neurons.selection= is needed: the selection.npz that `jaxalign neurons` wrote")
    own = read_selection(Path(chosen.selection), chosen_languages(config))
    if chosen.masked == "specific":
        return specific_neurons(own)
    if chosen.masked == "related":
        return own
    general = read_selection(Path(chosen.selection).with_name("general_neurons.npz"), [GENERAL])[GENERAL]
    return {code: np.unique(np.concatenate([pairs, general]), axis=0) for code, pairs in own.items()}
