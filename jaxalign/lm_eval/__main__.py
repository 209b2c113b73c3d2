"""lm-eval's own command line, with one model more: `python -m jaxalign.lm_eval --model jaxalign --model_args path=...`.

All its subcommands, flags and other models are as they are.
"""

import sys
from importlib.util import find_spec

from jaxalign.cli.main import complain, open_standard_streams
from jaxalign.errors import InputError


def main() -> int:
    """Runs lm-eval; what our model refuses is one line on stderr and exit code 2."""
    open_standard_streams()
    try:
        run()
        sys.stdout.flush()
    except (InputError, OSError) as error:
        return complain(str(error), 2)
    return 0


def run() -> None:
    """lm-eval's command, once our model is registered."""
    if find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed: pip install 'jaxalign[lm-eval]'")
    from lm_eval.__main__ import cli_evaluate

    import jaxalign.lm_eval.language_model  # noqa: F401 (this registers the model)

    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())
