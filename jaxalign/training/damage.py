"""What reading a damaged checkpoint raises, told apart from what reading a good one can raise."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

TENSORSTORE_SAYS = ("DATA_LOSS:", "NOT_FOUND:", "OUT_OF_RANGE:", "FAILED_PRECONDITION:", "Error ")
"""How a ValueError of tensorstore begins where what it reads is damaged, and not, say, forbidden or unavailable: with
the code, or, of what cannot be decoded, without one."""


def has_code(error: ValueError) -> bool:
    """Whether it is one of tensorstore's that begins with a code: that tells damage from what says nothing of files."""
    return re.match("[A-Z_]+: ", str(error)) is not None


class Damaged(Exception):
    """A checkpoint's files are not those that were saved: cut off, missing or garbage."""


@contextmanager
def damage_told() -> Iterator[None]:
    """Turns what readers raise on damaged files into Damaged. Other errors pass: memory that runs out, a mesh that does
    not fit or a network that fails says nothing against a checkpoint."""
    try:
        yield
    except Exception as error:
        if (told := damage_in(error)) is None:
            raise
        raise Damaged(" ".join(f"{type(told).__name__}: {told}".split())[:200]) from error


def damage_in(error: BaseException | None) -> BaseException | None:
    """The error that tells of a damaged file: this one, or one that it was raised from; None where there is none."""
    match error:
        case None | FileNotFoundError() | json.JSONDecodeError() | UnicodeDecodeError():
            return error
        case ValueError() if str(error).startswith(TENSORSTORE_SAYS):
            return error
        case KeyError() | AttributeError() | TypeError() | IndexError() | NotImplementedError():
            return error  # Orbax on metadata that is JSON, and not what it wrote
    return damage_in(error.__cause__)
