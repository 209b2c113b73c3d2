"""What a probe found: named arrays, and a JSON document that says what they are; `NAME.npz` and `NAME.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.files import read_json, read_npz, whole_file, write_json
from jaxalign.statistics import MEASURES

BY_LANGUAGE = ["language", "layer"]
BY_ROW, BY_BOUND = [*BY_LANGUAGE, "row"], [*BY_LANGUAGE, "bound"]
PROBE_ARRAYS: Mapping[str, Mapping[str, list[str]]] = {
    "logit_lens": {
        f"{way}{quantity}_{statistic}": BY_LANGUAGE
        for way in ("", "unshared_")
        for quantity in ("latent", "out", "all_possible_latent", "all_possible_out", "entropy", "energy")
        for statistic in ("mean", "half_width")
    },
    "attribution": {
        f"{kind}_mass_{statistic}": ["language", "layer", "position", f"token_{kind}"]
        for kind in ("language", "script")
        for statistic in ("mean", "half_width")
    },
    "pca": {
        "points": ["layer", "scatter_language", "row", "component"],
        "explained_variance_ratio": ["layer", "component"],
        "correlations": ["layer", "language", "language"],
        "correlations_interval": ["layer", "language", "language", "bound"],
        "first_component": ["layer", "language", "row"],
    },
    "geometry": {
        **dict.fromkeys(("cka_rows", "rank", "rank_centred"), BY_ROW),
        **dict.fromkeys(("cka_chance", *MEASURES), BY_LANGUAGE),
        **dict.fromkeys((f"{measure}_interval" for measure in MEASURES), BY_BOUND),
    },
    "masking": {"log_perplexity_change": ["effect", "masked_language", "language", "estimate"]},
    "masked_accuracy": {"accuracy_change": ["effect", "masked_language", "language", "estimate"]},
    "transplant": {
        "log_perplexity_change": ["effect", "transplanted_language", "language", "estimate"],
        "perplexity": ["weights", "language"],
    },
}
"""Probe -> the arrays that reports are made of, and their axes.

What geometry compares with English has no English on its language axis. The PCA's `points` and their shares of
variance are of a fit of two components to the scatter languages alone, the others of a fit of one to all languages.
"""


@dataclass(frozen=True)
class Probe:
    """document: under "axes" the names of each array's axes; under an axis's name its labels, in order; and more."""

    arrays: Mapping[str, np.ndarray]
    document: Mapping[str, Any]

    @property
    def languages(self) -> list[str]:
        return self.document["language"]


def write_probe(folder: Path, name: str, probe: Probe) -> None:
    """Writes `folder/{name}.npz` and `folder/{name}.json`, each whole or not at all."""
    with whole_file(folder / f"{name}.npz") as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **probe.arrays)
    write_json(folder / f"{name}.json", probe.document)


def read_probe(folder: Path, name: str) -> Probe:
    """What `write_probe` has written; nothing is known of its content."""
    return Probe(read_npz(folder / f"{name}.npz"), read_json(folder / f"{name}.json"))
