"""SIGTERM, the notice that a machine is about to be taken away: save, and stop with an exit code of its own."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


@contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Gives the question to ask before the first step and after every one: is this the step to save and stop at?

    Of several processes one may be told first; all agree on a step that none has passed (jax's preemption sync point,
    which listens to SIGTERM itself). It counts from the step last asked about, so one thread asks, in order.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    noticed = threading.Event()
    # Python takes signals in its main thread only; a run inside another one goes without.
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: noticed.set())
    try:
        yield lambda step: noticed.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
