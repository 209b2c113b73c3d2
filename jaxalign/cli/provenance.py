"""What a result says about its making: the command, the config and the versions."""

import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxalign.files import recorded

PACKAGES = ("jaxalign", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "tokenizers")


def command() -> str:
    """The command line as it was given, with `~` for home; from Python, that of the program which called."""
    program = Path(sys.argv[0]).stem
    return shlex.join(
        recorded(["jaxalign" if program in ("jaxalign", "__main__") else Path(sys.argv[0]).name, *sys.argv[1:]])
    )


def versions() -> dict[str, str]:
    """Package versions, Python's, and the kind of device."""
    import jax  # here alone: what is made from files needs none

    packages = {name: metadata.version(name) for name in PACKAGES}
    return {**packages, "python": platform.python_version(), "device": jax.devices()[0].device_kind}


def provenance(config: ConfigDict) -> dict[str, Any]:
    """The three of them, as results.json and run.json hold them."""
    return {"config": recorded(config.to_dict()), "command": command(), "versions": versions()}
