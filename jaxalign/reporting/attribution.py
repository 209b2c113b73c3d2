"""The headline of the attribution: how much each language's prompts lie on tokens of English and of their own."""

from collections.abc import Collection, Mapping, Sequence

from jaxalign.reporting.lens import change_text
from jaxalign.reporting.probe_files import Probe
from jaxalign.reporting.tables import language_title


def attribution_note(runs: Collection[str]) -> str:
    """What the headline's columns mean; `runs`: one, or "before" and "after"."""
    of_changes = " No test is made of the changes." if len(runs) > 1 else ""
    return (
        "Means over rows of the lens distribution's mass at the prompts' last position. Largest: over the layers, with "
        f"the layer.{of_changes}"
    )


def attribution_lines(runs: Mapping[str, Probe], languages: Sequence[str]) -> list[list[str]]:
    """A line of column names, then a line a language; empty where no token is counted as of that language.

    Args:
      runs: "before" and "after", or one alone.
      languages: those that all runs have.
    """
    lines = [["languages of the layers", "largest mass on English", "mass on its own language at the output"]]
    for code in languages:
        english, own = ([token_mass(probe, code, tokens) for probe in runs.values()] for tokens in ("en", code))
        # Of English that is the same language.
        at_output = change_text([mass[-1] for mass in own]) if code != "en" and all(own) else ""
        lines.append([language_title(code), largest_text(english) if all(english) else "", at_output])
    return lines


def largest_text(masses: Sequence[Sequence[float]]) -> str:
    """The largest mass of each run's layers, and which layer has it."""
    peaks = [max(range(len(mass)), key=mass.__getitem__) for mass in masses]
    largest = [mass[peak] for mass, peak in zip(masses, peaks, strict=True)]
    return change_text(largest, [f" (layer {peak + 1})" for peak in peaks])


def token_mass(probe: Probe, prompts: str, tokens: str) -> list[float]:
    """The mass in each layer on one language's tokens, of the prompts of another; empty where it has no tokens."""
    known = probe.document["token_language"]
    if tokens not in known:
        return []
    means = probe.arrays["language_mass_mean"][probe.languages.index(prompts)]
    return means[:, -1, known.index(tokens)].astype(float).tolist()
