"""The headline of the logit lens, and what a tuning changed in it: of each language, over the rows that survive."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxalign.probing.logit_lens import UNSHARED
from jaxalign.reporting.geometry import signed_share
from jaxalign.reporting.tables import language_title


def lens_note(runs: Collection[str]) -> str:
    """What the headline's columns mean; `runs`: one, or "before" and "after"."""
    of_changes = " No test is made of the changes; the bands say how sure each mean is." if len(runs) > 1 else ""
    return (
        "Means over rows, read without the tokens that an English and an in-language label word share. Largest: over "
        f"the layers, with the layer.{of_changes}"
    )


def lens_lines(runs: Mapping[str, Mapping[str, np.ndarray]], languages: Sequence[str]) -> list[list[str]]:
    """A line of column names, then a line for each language of which rows survive.

    Args:
      runs: "before" and "after", or one alone -> float [language, L] by name, as `logit_lens.npz` has them.
    """
    lines = [["lens", "largest English mass", "in-language mass at the output", "entropy at the output, bits"]]
    for index, code in enumerate(languages):
        values = [
            {name: arrays[f"{UNSHARED}{name}_mean"][index] for name in ("latent", "out", "entropy")}
            for arrays in runs.values()
        ]
        if not all(np.isfinite(each["latent"]).all() for each in values):
            continue
        peaks = [int(each["latent"].argmax()) for each in values]
        english = [float(each["latent"][peak]) for each, peak in zip(values, peaks, strict=True)]
        where = [f" (layer {peak + 1})" for peak in peaks]
        lines.append(
            [
                language_title(code),
                change_text(english, where),
                # English has one set of words: its in-language mass is the same.
                change_text([float(each["out"][-1]) for each in values]) if code != "en" else "",
                change_text([float(each["entropy"][-1]) for each in values]),
            ]
        )
    return lines


def change_text(values: Sequence[float], besides: Sequence[str] = ("", "")) -> str:
    """before > after and the difference; of one run its value alone."""
    texts = [f"{value:.3f}{beside}" for value, beside in zip(values, besides, strict=False)]
    arrow = " \N{RIGHTWARDS ARROW} ".join(texts)
    return f"{arrow}, {signed_share(values[1] - values[0])}" if len(values) == 2 else arrow
