"""Question-translation alignment of language models: tuning, evaluation and probes in JAX.

`ja.demo`, `ja.load`, `ja.train`, `ja.evaluate`, `ja.probe`, `ja.compare`, `ja.report` and `ja.export` are those of
`jaxalign.api`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxalign.api import LoadedModel as LoadedModel
    from jaxalign.api import compare as compare
    from jaxalign.api import demo as demo
    from jaxalign.api import evaluate as evaluate
    from jaxalign.api import export as export
    from jaxalign.api import load as load
    from jaxalign.api import probe as probe
    from jaxalign.api import report as report
    from jaxalign.api import train as train

# Not `__all__`, by which pdoc would leave out the modules.
_LIBRARY = ("LoadedModel", "compare", "demo", "evaluate", "export", "load", "probe", "report", "train")


def __getattr__(name: str) -> Any:
    """The library's functions, imported when the first of them is asked for: jax alone takes a second."""
    if name in _LIBRARY:
        return getattr(importlib.import_module("jaxalign.api"), name)
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LIBRARY]
