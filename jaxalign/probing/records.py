"""What a probe leaves behind: named arrays, and a JSON file that names their axes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.files import whole_file, write_json


def write_probe(out: Path, name: str, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
    """Writes `out/{name}.npz` and `out/{name}.json`, each whole or not at all; only process 0 does."""
    if jax.process_index() > 0:
        return
    with whole_file(out / f"{name}.npz") as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(out / f"{name}.json", document)
