"""The batch, mesh and rematerialisation of most positions/s that fit a slice: estimated for all, compiled for few."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from jaxalign.errors import InputError
from jaxalign.planning.chips import parse_slice
from jaxalign.planning.compiler import facts_of
from jaxalign.planning.estimate import Estimate, estimate
from jaxalign.planning.job import Job
from jaxalign.planning.plan import LARGEST_SHARE, memory_of, step_of

COMPILATIONS = 3
"""At most so many a search."""
LENGTHS = (512, 1024, 2048, 4096)
ROWS_OF_A_DEVICE = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Candidate:
    job: Job
    estimate: Estimate


def search(job: Job, facts_of: Callable[[Job], dict[str, Any]] = facts_of) -> tuple[Job, dict[str, Any]]:
    """The best candidate that was compiled and fits, with its facts; the one of the smallest peak where none fits.

    What a compiled candidate takes beyond its estimate is expected of the others too.
    """
    limit = LARGEST_SHARE * parse_slice(job.topology).chip.capacity
    left = sorted(candidates(job), key=preference)
    if not left:
        raise InputError(f"--config.topology={job.topology}: no mesh of its devices divides this model's weights")
    compiled: list[tuple[Job, dict[str, Any]]] = []
    correction = 1.0
    while left and len(compiled) < COMPILATIONS:
        likely = [one for one in left if one.estimate.memory * correction <= limit]
        chosen = likely[0] if likely else min(left, key=lambda one: one.estimate.memory)
        facts = facts_of(chosen.job)
        compiled.append((chosen.job, facts))
        if not likely:
            break
        correction = max(correction, peak(chosen.job, facts) / chosen.estimate.memory)
        # Of those that differ in their rows alone, the best that fits was tried first; where it did not, fewer may.
        fits, size = peak(chosen.job, facts) <= limit, chosen.estimate.memory
        left = [one for one in left if kind(one.job) != kind(chosen.job) or (not fits and one.estimate.memory < size)]
    fitting = [one for one in compiled if peak(*one) <= limit]
    return max(fitting, key=lambda one: speed(*one)) if fitting else min(compiled, key=lambda one: peak(*one))


def candidates(job: Job) -> Iterator[Candidate]:
    """An estimate of every batch on every mesh that divides the model's weights."""
    for mesh in meshes(parse_slice(job.topology).devices, job.architecture.kv_heads):
        with suppress(ValueError):  # the mesh does not divide a weight
            yield from (Candidate(other, estimate(other)) for other in batches(replace(job, mesh=mesh)))


def batches(job: Job) -> Iterator[Job]:
    """The job with other batches, all rows at once, none longer than the job's; and with each rematerialisation."""
    lengths = {job.length, *(length for length in LENGTHS if length < job.length)}
    step = replace(job.step, accumulation=1, rows_at_once=0)
    for length in sorted(lengths):
        for rows in ROWS_OF_A_DEVICE:
            for remat in ("none", "dots", "full"):
                yield replace(job, rows=rows * job.mesh[0] * job.mesh[1], length=length, remat=remat, step=step)


def meshes(devices: int, most_tensor: int) -> Iterator[tuple[int, int, int]]:
    """Sizes of the three axes whose product is `devices`; `tensor` at most the key/value heads."""
    for tensor in range(1, min(devices, most_tensor) + 1):
        for fsdp in range(1, devices // tensor + 1):
            if devices % (tensor * fsdp) == 0:
                yield devices // (tensor * fsdp), fsdp, tensor


def preference(one: Candidate) -> tuple[float, int, float]:
    """Sorts the fastest first. Of those that are estimated alike (memory traffic is not) the one of most rows: it reads
    the weights once for more of them.
    """
    return -round(one.estimate.tokens_per_second), -one.job.rows * one.job.length, one.estimate.memory


def kind(job: Job) -> tuple[Any, ...]:
    """What candidates share that differ in their batch alone."""
    return job.mesh, job.remat, job.length


def peak(job: Job, facts: dict[str, Any]) -> int:
    """The bytes that a compiled candidate takes on each device."""
    return memory_of(job, facts, parse_slice(job.topology))["peak"]


def speed(job: Job, facts: dict[str, Any]) -> float:
    """A compiled candidate's positions/s at peak rates."""
    return step_of(job, facts["costs"], parse_slice(job.topology))["tokens_per_second"]
