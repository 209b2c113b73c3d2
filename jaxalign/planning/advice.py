"""Which keys to change when a program does not fit, and what each is worth."""

from collections.abc import Iterator
from dataclasses import replace

from jaxalign.planning.chips import parse_slice
from jaxalign.planning.estimate import estimate
from jaxalign.planning.job import Job
from jaxalign.planning.plan import gib


def advice(job: Job) -> list[str]:
    """Changes of one key each that are estimated to save memory, the one that saves most first."""
    before = estimate(job).memory
    saved = []
    for flags, other in changes(job):
        try:
            saved.append((before - estimate(other).memory, flags))
        except ValueError:  # a mesh that does not divide the weights
            continue
    return [f"{flags} saves about {gib(size)} a device" for size, flags in sorted(saved, reverse=True) if size > 0]


def changes(job: Job) -> Iterator[tuple[str, Job]]:
    """(the flags, the job with them): what a user can change on the same slice."""
    devices = parse_slice(job.topology).devices
    data, fsdp, tensor = job.mesh
    if job.remat != "full":
        yield "--config.remat=full", replace(job, remat="full")
    ways, micro_rows = data * fsdp, job.rows // job.step.accumulation
    if job.rows_at_once > ways:
        yield "--config.batch.rows_at_once=1", replace(job, step=replace(job.step, rows_at_once=1))
        yield "half of --config.batch.rows_per_step or pairs_per_step", replace(job, rows=job.rows // 2)
    yield f"--config.batch.length={job.length // 2}", replace(job, length=job.length // 2)
    if data > 1:
        yield "--config.mesh.data=1 --config.mesh.fsdp=-1", replace(job, mesh=(1, devices // tensor, tensor))
    elif fsdp % 2 == 0:
        sizes = (1, fsdp // 2, tensor * 2)
        rows = max(1, micro_rows // 2) * job.step.accumulation
        yield f"--config.mesh.tensor={tensor * 2}, and so half the rows", replace(job, mesh=sizes, rows=rows)
    for stored in ("bfloat16", "int8", "nf4"):
        if job.lora is not None or stored == "bfloat16":
            yield f"--config.param_dtype={stored}", replace(job, param_dtype=stored)
