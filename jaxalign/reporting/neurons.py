"""Language neurons before and after tuning: how many there are of each class, in each layer, of each language."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.probing.neurons import CLASSES, read_selection
from jaxalign.reporting.fields import field, read_object, texts
from jaxalign.reporting.tables import language_title

SAME = ("layers", "neurons_per_layer", "score", "top_rate", "language")
"""What two selections must agree in to be compared."""
SHOWN = CLASSES[1:3]
"""The classes of layers' tables; the selected neurons of the others belong to no language."""


@dataclass(frozen=True)
class NeuronCount:
    """One row: how many neurons before and after, and how many of those before are among those after."""

    label: str
    before: int
    after: int
    kept: int | None = None

    @property
    def change(self) -> int:
        return self.after - self.before


@dataclass(frozen=True)
class NeuronChanges:
    """Two selections side by side."""

    classes: list[NeuronCount]
    languages: list[NeuronCount]
    layers: dict[str, list[NeuronCount]]
    """class -> a row for each layer"""


def neuron_changes(before: Path, after: Path) -> NeuronChanges | None:
    """The selections that lie in two result folders, compared; None unless both hold one.

    Raises:
      InputError: a file is broken, or the two were made of other languages, sizes, or by another score.
    """
    folders = (before, after)
    if not all((folder / "selection.json").is_file() for folder in folders):
        return None
    first, second = (read_object(folder / "selection.json") for folder in folders)
    for name in SAME:
        if first.get(name) != second.get(name):
            raise InputError(
                f"{before} and {after}: selection.json has {name} {first.get(name)!r} in one and "
                f"{second.get(name)!r} in the other; select both alike"
            )
    languages = texts(first, "language", str(before / "selection.json"))
    pairs = [read_selection(folder / "selection.npz", languages) for folder in folders]
    own = {code: [{tuple(pair) for pair in each[code].tolist()} for each in pairs] for code in languages}
    layers = [class_layers(document, folder) for document, folder in zip((first, second), folders, strict=True)]
    return NeuronChanges(
        classes=[NeuronCount(title(name), *(sum(each[name]) for each in layers)) for name in CLASSES],
        languages=[
            NeuronCount(language_title(code), len(then), len(now), len(then & now)) for code, (then, now) in own.items()
        ],
        layers={
            title(name): [
                NeuronCount(str(layer), *counts)
                for layer, counts in enumerate(zip(*(each[name] for each in layers), strict=True))
            ]
            for name in SHOWN
        },
    )


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
