"""What a language's neurons do, as a table: masked or transplanted, on the language itself and on the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.reporting.geometry import signed_share
from jaxalign.reporting.probe_files import Probe
from jaxalign.reporting.tables import language_title


@dataclass(frozen=True)
class NeuronEffect:
    """A probe that does something to the neurons of each language in turn and measures every language."""

    array: str
    """of the probe's: float [effect, language whose neurons, measured language, (change, low, high)]"""
    quantity: str
    """what it is a change of, with the unit"""
    scale: float
    """from the array's unit to that one"""
    decimals: int
    done: str
    """to the neurons"""


NEURON_EFFECTS = {
    "masking": NeuronEffect("log_perplexity_change", "change of log perplexity (nats per token)", 1, 3, "switched off"),
    "masked_accuracy": NeuronEffect(
        "accuracy_change", "change of accuracy (percentage points)", 100, 1, "switched off"
    ),
    "transplant": NeuronEffect(
        "log_perplexity_change", "change of log perplexity (nats per token)", 1, 3, "transplanted"
    ),
}
"""By the probe's name."""
BEYOND_RANDOM, WHOLE_TUNING = "own less random neurons", "the whole tuning"
COLUMNS = ["own neurons", "the same, on other languages", BEYOND_RANDOM]
"""Of a transplant there is one more, WHOLE_TUNING."""


def effect_lines(name: str, runs: Mapping[str, Probe], languages: Sequence[str]) -> list[list[str]]:
    """A line of column names, then a line a language and their mean.

    Args:
      name: of NEURON_EFFECTS.
      runs: "before" and "after", or one alone.
      languages: those that all runs have.
    """
    effect, sides = NEURON_EFFECTS[name], " \N{RIGHTWARDS ARROW} ".join(runs)
    columns = [*COLUMNS, WHOLE_TUNING] if name == "transplant" else COLUMNS
    lines = [[f"{effect.quantity}: {sides}", *columns]]
    # [languages, columns, runs]
    effects = [[language_effects(name, probe, code, languages) for probe in runs.values()] for code in languages]
    values = np.moveaxis(np.array(effects), 2, 1)
    for code, of_language in zip(languages, values, strict=True):
        intervals = [interval_text(effect, probe, code) for probe in runs.values()]
        texts = [
            effect_text(of_runs, effect.decimals, intervals if column == BEYOND_RANDOM else ("", ""))
            for column, of_runs in zip(columns, of_language, strict=True)
        ]
        lines.append([language_title(code), *texts])
    if len(languages) > 1:
        means = [effect_text(of_runs, effect.decimals, ("", "")) for of_runs in values.mean(axis=0)]
        lines.append([f"mean ({len(languages)} languages)", *means])
    return lines


def language_effects(name: str, probe: Probe, code: str, languages: Sequence[str]) -> list[float]:
    """What a language's neurons change in it, in the others on average (NaN without one), and beyond random neurons.

    Args:
      languages: of which the others are.
    """
    effect, k = NEURON_EFFECTS[name], probe.languages.index(code)
    change = effect.scale * probe.arrays[effect.array][:, k, :, 0]
    others = change[0, [probe.languages.index(other) for other in languages if other != code]]
    values = [change[0, k], others.mean() if others.size else np.nan, change[2, k]]
    if name == "transplant":
        base, tuned = probe.arrays["perplexity"][:2, k]
        values.append(np.log(tuned / base))
    return [float(value) for value in values]


def interval_text(effect: NeuronEffect, probe: Probe, code: str) -> str:
    """The 95 % interval of what a language's neurons do in it beyond random ones."""
    k = probe.languages.index(code)
    bounds = effect.scale * probe.arrays[effect.array][2, k, k, 1:]
    low, high = (signed_share(bound, effect.decimals) for bound in bounds)
    return f" ({low} to {high})"


def effect_text(values: np.ndarray, decimals: int, besides: Sequence[str]) -> str:
    """before > after and the difference; of one run its value alone, and of NaN nothing."""
    if np.isnan(values).any():
        return ""
    shown = [signed_share(value, decimals) + beside for value, beside in zip(values, besides, strict=False)]
    difference = [signed_share(values[1] - values[0], decimals)] if len(values) == 2 else []
    return ", ".join([" \N{RIGHTWARDS ARROW} ".join(shown), *difference])


def effect_note(name: str, runs: Mapping[str, Probe]) -> str:
    """What the columns of `effect_lines` mean."""
    done = NEURON_EFFECTS[name].done
    of_tuning = ""
    if name == "transplant":
        done += " from the tuned into the base model"
        of_tuning = " The whole tuning: all of the tuned model in place of the base."
    of_changes = "; no test is made of before against after" if len(runs) > 1 else ""
    return (
        f"On a language's own texts, its neurons {done}; on other languages: their mean; random: as many of the same "
        f"layers, the difference with its 95 % interval over rows{of_changes}.{of_tuning}"
    )
