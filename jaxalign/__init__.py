"""Question-translation alignment of language models: tuning, evaluation and probes in JAX.

`ja.demo`, `ja.load`, `ja.train`, `ja.evaluate`, `ja.probe`, `ja.compare`, `ja.report` and `ja.export` are those of
library.py.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxalign.library import LoadedModel, compare, demo, evaluate, export, load, probe, report, train

__all__ = ["LoadedModel", "compare", "demo", "evaluate", "export", "load", "probe", "report", "train"]


def __getattr__(name: str) -> Any:
    """The library's functions, imported when the first of them is asked for: jax alone takes a second."""
    if name in __all__:
        return getattr(importlib.import_module("jaxalign.library"), name)
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")
