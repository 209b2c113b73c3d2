"""Architectures known by name: what the config.json of released models says of their shape, as files beside this one.

For planning, which needs no weights. A model that is tuned or evaluated brings its own config.json.
"""

from pathlib import Path

from jaxalign import files
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig, config_from_hf

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every known architecture, in order of name: "gemma-3-1b", "llama-2-13b", ..."""
    return sorted(file.name.removesuffix(".json") for file in FOLDER.glob("*.json"))


def read(name: str) -> ModelConfig:
    """The architecture of this name; InputError where there is none, with those that there are."""
    if name not in names():
        raise InputError(f"{name}: no such architecture; known are {', '.join(names())}")
    file = FOLDER / f"{name}.json"
    return config_from_hf(files.read_json(file), str(file))
