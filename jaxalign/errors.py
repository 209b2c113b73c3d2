"""The errors that a user is meant to read, and how several become one."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
LONGEST = 2000
"""Characters of a message."""


class InputError(Exception):
    """Bad input: one line on what is wrong, where (file, row, field) and what to do; the exit code is 2."""

    def __init__(self, message: str):
        # Names and values of files stand in messages, whatever they hold and however long they are.
        line = " ".join(message.split())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 500]} [...] {line[-400:]}")


class InputErrors(InputError):
    """Errors of several fields or rows: the message is the first one, `messages` are all."""

    def __init__(self, messages: list[str]):
        more = f" (and {len(messages) - 1} more; jaxalign data validate lists them)" if len(messages) > 1 else ""
        super().__init__(messages[0] + more)
        self.messages = messages


def messages_of(error: InputError) -> list[str]:
    return error.messages if isinstance(error, InputErrors) else [str(error)]


def gather(reads: Iterable[Callable[[], T]]) -> list[T]:
    """What every call returns. Where any raises InputError all are made, and InputErrors tells of each."""
    values: list[T] = []
    messages: list[str] = []
    remaining = iter(reads)
    while True:
        try:
            values.append(next(remaining)())
        except StopIteration:
            break
        except InputError as error:  # of a call, or of finding the next one: that ends an iterator
            messages += messages_of(error)
    if messages:
        raise InputErrors(list(dict.fromkeys(messages)))
    return values


class Preempted(Exception):
    """A run was told to stop (SIGTERM), and has saved what it had; the exit code is 75."""


def listed(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
