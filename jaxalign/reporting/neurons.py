"""Language neurons, before and after tuning too: how many there are of each class, in each layer, of each language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.probing.neurons import CLASSES, check_fits, read_selection
from jaxalign.reporting.fields import field, languages, read_object
from jaxalign.reporting.tables import language_title

SAME = ("layers", "neurons_per_layer", "score", "top_rate", "language")
"""What two selections must agree in to be compared."""
SHOWN = CLASSES[1:3]
"""The classes of layers' tables; the selected neurons of the others belong to no language."""


@dataclass(frozen=True)
class NeuronCount:
    """One row: how many neurons in each folder, and of two folders how many are in both."""

    label: str
    counts: tuple[int, ...]
    kept: int | None = None

    @property
    def change(self) -> int:
        return self.counts[-1] - self.counts[0]


@dataclass(frozen=True)
class NeuronTables:
    """The selection of one folder, or two side by side."""

    labels: list[str]
    codes: list[str]
    classes: list[NeuronCount]
    languages: list[NeuronCount]
    layers: dict[str, list[NeuronCount]]
    """class -> a row for each layer"""
    by_layer: dict[str, np.ndarray]
    """label -> how many neurons each language has in each layer, int [K, L]"""


def neuron_tables(folders: Mapping[str, Path]) -> NeuronTables | None:
    """The selections that lie in one or two folders, by label; None unless all of them hold one.

    Raises:
      InputError: a file is broken, or the two were made of other languages, sizes, or by another score.
    """
    if not all((folder / "selection.json").is_file() for folder in folders.values()):
        return None
    paths = list(folders.values())
    documents = [read_object(folder / "selection.json") for folder in paths]
    (before, first), (after, second) = ((paths[end], documents[end]) for end in (0, -1))
    for name in SAME:
        if first.get(name) != second.get(name):
            raise InputError(
                f"{before} and {after}: selection.json has {name} {first.get(name)!r} in one and "
                f"{second.get(name)!r} in the other; select both alike"
            )
    where = str(before / "selection.json")
    codes = languages(first, "language", where)
    if not codes:
        raise InputError(f"{where}: language is empty; run `jaxalign neurons` again")
    selections = [read_selection(folder / "selection.npz", codes) for folder in paths]
    layers = [class_layers(*each) for each in zip(documents, paths, strict=True)]
    for own in selections:
        check_fits(own, first["layers"], field(first, "neurons_per_layer", int, where))
    return NeuronTables(
        labels=list(folders),
        codes=codes,
        classes=[NeuronCount(title(name), tuple(sum(each[name]) for each in layers)) for name in CLASSES],
        languages=[language_count(code, [own[code] for own in selections]) for code in codes],
        layers={
            title(name): [
                NeuronCount(str(layer), counts)
                for layer, counts in enumerate(zip(*(each[name] for each in layers), strict=True))
            ]
            for name in SHOWN
        },
        by_layer={
            label: np.array(
                [np.bincount(own[code][:, 0].astype(np.int64), minlength=first["layers"]) for code in codes]
            )
            for label, own in zip(folders, selections, strict=True)
        },
    )


def missing_selections(folders: Mapping[str, Path]) -> list[str]:
    """Notes on the folders, by label, without whose selection that of the others has nothing beside it."""
    without = [label for label, folder in folders.items() if not (folder / "selection.json").is_file()]
    if len(without) == len(folders):
        return []
    return [f"The {label} folder holds no selection.json: no neurons are compared." for label in without]


def language_count(code: str, selections: Sequence[np.ndarray]) -> NeuronCount:
    """How many neurons a language has; (layer, index) int [n, 2] of each folder."""
    own = [{tuple(pair) for pair in pairs.tolist()} for pairs in selections]
    kept = len(set.intersection(*own)) if len(own) > 1 else None
    return NeuronCount(language_title(code), tuple(map(len, own)), kept)


def title(name: str) -> str:
    """A class as tables name it."""
    return name.replace("_", " ")


def class_layers(document: dict[str, Any], folder: Path) -> dict[str, list[int]]:
    """Class -> number of selected neurons in each layer."""
    where = str(folder / "selection.json")
    per_layer = field(document, "classes_per_layer", dict, where)
    lengths = field(document, "layers", int, where)
    for name in CLASSES:
        counts = field(per_layer, name, list, f"{where}, classes_per_layer")
        if len(counts) != lengths or not all(type(count) is int for count in counts):
            raise InputError(f"{where}, classes_per_layer, {name}: {lengths} whole numbers are needed; select again")
    return per_layer
