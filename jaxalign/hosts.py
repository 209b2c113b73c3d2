"""Several processes at one job, one a host: each reads files for itself, and all have to do the same."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.errors import InputError


class EndsAll(InputError):
    """After which several processes cannot go on together, whatever one of them could still do."""


class HostsDiffer(EndsAll):
    """What has to be the same on all hosts is not. All of them raise it, together."""


def processes() -> int:
    """How many there are, without waking the devices where this is the only one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def agree(what: str, facts: Any) -> None:
    """Raises HostsDiffer where the processes have not all the same facts, of which the text as JSON is compared.

    NumPy arrays belong into them as lists: their own text leaves out the middle.
    Arrays that are put together from the parts of several hosts would be a mixture, and nothing would say so.
    """
    if processes() == 1:
        return
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).digest()
    own = np.frombuffer(digest, np.uint8)
    if not (multihost_utils.process_allgather(own) == own).all():
        raise HostsDiffer(f"{what}: not the same on all hosts; give each the same command and the same files")


def of_the_first(answers: Sequence[bool]) -> list[bool]:
    """Process 0's answers to as many questions: what is done follows from what it finds on its disk."""
    return multihost_utils.broadcast_one_to_all(np.array(answers, bool)).tolist()


def alone(what: str) -> None:
    """Refuses company: `what` is the work of one process."""
    if processes() > 1:
        raise InputError(f"{what} runs in one process, and here are {processes()}; start it on one host")


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if processes() > 1:
        multihost_utils.sync_global_devices("wait for all")
