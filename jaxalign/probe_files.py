"""What a probe found: named arrays, and a JSON document that says what they are; `NAME.npz` and `NAME.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.files import read_json, read_npz, whole_file, write_json


@dataclass(frozen=True)
class Probe:
    """What one probe found.

    document: under "axes" the names of each array's axes; under an axis's name its labels, in order; and whatever else
      is to be known of the arrays.
    """

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
