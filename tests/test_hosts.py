"""What several processes agree on, with the others played; tests/cli/test_two_processes.py has real ones."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from jaxalign import runtime
from jaxalign.errors import InputError
from jaxalign.evaluation.grid import OtherOrigin, cell_failure


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[np.ndarray], np.ndarray]], None]:
    """Makes this process the first of two, of which the other says what the function makes of this one's words."""

    def play(other: Callable[[np.ndarray], np.ndarray]) -> None:
        monkeypatch.setattr(runtime, "processes", lambda: 2)
        monkeypatch.setattr("jaxalign.evaluation.grid.processes", lambda: 2)
        gather = "jaxalign.runtime.multihost_utils.process_allgather"
        monkeypatch.setattr(gather, lambda own: np.stack([own, other(own)]))

    return play


def test_one_process_agrees_with_itself_and_answers_for_all():
    runtime.assert_same_on_hosts("anything", object())
    runtime.require_one_process("anything")
    runtime.wait_for_all()
    assert runtime.from_process_0([True, False]) == [True, False] and runtime.from_process_0([]) == []


def test_the_same_facts_are_agreed_on(two):
    two(lambda own: own)
    runtime.assert_same_on_hosts("the rows", {"b": [1, 2], "a": None})


def test_other_facts_are_named(two):
    two(lambda own: own + 1)
    with pytest.raises(runtime.HostsDiffer, match="the rows: not the same on all hosts; give each the same command"):
        runtime.assert_same_on_hosts("the rows", [1])


def test_the_work_of_one_process_is_refused_to_two(two):
    two(lambda own: own)
    with pytest.raises(InputError, match="export runs in one process, and here are 2"):
        runtime.require_one_process("export")


def test_what_is_not_one_cell_s_fault_ends_the_evaluation(two):
    no_memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nand pages more")
    assert cell_failure(no_memory) == "RESOURCE_EXHAUSTED: no memory"
    for error in (OtherOrigin("made with another seed"), runtime.HostsDiffer("not the same")):
        with pytest.raises(InputError, match=str(error)):
            cell_failure(error)
    two(lambda own: own)
    assert cell_failure(InputError("row 3 is empty")) == "row 3 is empty"
    # The other process is still in the program that this one left.
    with pytest.raises(runtime.FatalForAllHosts, match="no memory"):
        cell_failure(no_memory)
