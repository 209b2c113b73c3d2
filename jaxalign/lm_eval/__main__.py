"""lm-eval's own command line, with one model more: `python -m jaxalign.lm_eval --model jaxalign --model_args path=...`.

All its subcommands, flags and other models are as they are.
"""

import sys
from importlib.util import find_spec

from jaxalign.cli.main import complain
from jaxalign.errors import InputError

MODEL = "jaxalign.lm_eval.language_model:JaxalignLM"


def main() -> int:
    """Runs lm-eval; what our model refuses is one line on stderr and exit code 2."""
    try:
        run()
    except InputError as error:
        return complain(str(error), 2)
    return 0


def run() -> None:
    """lm-eval's command, once our model is registered."""
    if find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed: pip install 'jaxalign[lm-eval]'")
    import lm_eval.models  # noqa: F401: lm-eval registers its own models only where there is none yet
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    model_registry.register("jaxalign", target=MODEL)
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())
