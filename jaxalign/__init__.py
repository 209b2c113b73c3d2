"""Question-translation alignment of language models: tuning, evaluation and probes in JAX.

`ja.demo`, `ja.load`, `ja.train`, `ja.evaluate`, `ja.probe`, `ja.compare`, `ja.report` and `ja.export` are those of
`jaxalign.library`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxalign.library import LoadedModel as LoadedModel
    from jaxalign.library import compare as compare
    from jaxalign.library import demo as demo
    from jaxalign.library import evaluate as evaluate
    from jaxalign.library import export as export
    from jaxalign.library import load as load
    from jaxalign.library import probe as probe
    from jaxalign.library import report as report
    from jaxalign.library import train as train

# Not `__all__`, by which pdoc would leave out the modules.
_LIBRARY = ("LoadedModel", "compare", "demo", "evaluate", "export", "load", "probe", "report", "train")


def __getattr__(name: str) -> Any:
    """The library's functions, imported when the first of them is asked for: jax alone takes a second."""
    if name in _LIBRARY:
        return getattr(importlib.import_module("jaxalign.library"), name)
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LIBRARY]
