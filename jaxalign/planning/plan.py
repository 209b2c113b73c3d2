"""A plan: what a compiled program needs of a slice, whether that fits, and how long a step takes at least.

Below it, an estimate of the same without compiling; from that, which keys to change when a program does not fit, and
the search for the batch, mesh and rematerialisation of most positions/s. At the end, what the machine at hand holds.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from jaxalign import runtime
from jaxalign.errors import InputError
from jaxalign.model import architectures
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import lora_shapes
from jaxalign.model.quantised import SCHEMES
from jaxalign.model.sharding import param_shardings, with_shardings
from jaxalign.planning import flops
from jaxalign.planning.chips import CHIPS, GIB, Job, Slice, parse_slice
from jaxalign.planning.compile import base_shapes, bytes_per_device, facts_of, stored_shapes
from jaxalign.training.optimizer import cosine_schedule, make_optimizer
from jaxalign.training.step import new_state

LARGEST_SHARE = 0.95
"""Of a device's capacity: more is not called a fit. Other programs of a run (the held-out loss) need some too."""

CONSTANTS = "docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}, key specifications; the vector unit's is derived"
COMBINED = (
    "each rate alone at its peak; `roofline` is the largest of the four (they overlap without a gap), `serial` their "
    "sum (they never overlap); `vector` is the dequantisation alone"
)


def make_plan(job: Job, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The plan of one job as a JSON document, bytes and FLOPs for one device unless a key says otherwise.

    `facts` as `compile.compiled_facts` gives them; a program that the compiler refused has no costs.
    """
    slice = parse_slice(job.topology)
    memory = memory_of(job, facts, slice)
    document = {
        "architecture": name,
        "program": job.program,
        "topology": job.topology,
        "chips": slice.chips,
        "devices": slice.devices,
        "mesh": dict(zip(("data", "fsdp", "tensor"), facts["mesh"], strict=True)),
        "batch": {"rows": job.rows, "length": job.length, "accumulation": job.step.accumulation},
        "dtype": job.dtype,
        "param_dtype": job.param_dtype,
        "remat": job.remat,
        "tune": "all" if job.lora is None else asdict(job.lora),
        "fits": memory["peak"] <= memory["limit"],
        "memory": memory,
        "compile_seconds": facts["compile_seconds"],
    }
    if "costs" not in facts:
        return document
    costs = facts["costs"]
    document["flops"] = {"per_device": costs["flops"], "per_step": costs["flops"] * slice.devices}
    if job.program == "train":
        document["flops"]["analytic_per_step"] = flops.train_step(job)
    document["vector_operations"] = flops.operations(job)
    document["bytes"] = costs["bytes"]
    document["collectives"] = costs["collectives"]
    return document | {"step": step_of(job, costs, slice)}


def memory_of(job: Job, facts: dict[str, Any], slice: Slice) -> dict[str, Any]:
    """Bytes on each device by what they hold, the peak, and the largest peak that is called a fit.

    The peak is what the compiler asks for: arguments, temporaries and the program itself, at once. Outputs take the
    place of the arguments that the step consumes. Where all parameters are tuned, the model that they were copied from
    stays on the devices beside them.
    """
    capacity = slice.chip.capacity
    kinds = dict(facts["arguments"])
    arguments = sum(kinds.values())
    if job.program == "train" and job.lora is None:
        kinds["model"] = kinds["parameters"] * jnp.dtype(job.param_dtype).itemsize // 4  # those tuned are float32
    if "refused" in facts:
        kinds["temporaries"] = refused_peak(facts["refused"]) - arguments
    else:
        of = facts["memory"]
        kinds["temporaries"] = of["temp"]
        # Padding of small arrays to whole tiles is the rest of the arguments.
        kinds["program"] = of["generated_code"] + of["output"] - of["alias"] + max(0, of["argument"] - arguments)
    peak, limit = sum(kinds.values()), int(LARGEST_SHARE * capacity)
    return kinds | {"peak": peak, "limit": limit, "capacity": capacity, "over": max(0, peak - limit)}


def refused_peak(message: str) -> int:
    """The bytes that the compiler would have needed, arguments among them, from its refusal."""
    size = r"([\d.]+)([KMGT])"
    said = re.search(rf"\({size}\) exceeds available", message) or re.search(rf"Used {size} of", message)
    if said is None:
        raise InputError(f"the compiler ran out of memory and did not say by how much: {message[:300]}")
    return int(float(said[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[said[2]])


def step_of(job: Job, costs: dict[str, Any], slice: Slice) -> dict[str, Any]:
    """Seconds of a step at the chip's peak rates, and tokens/s from them."""
    sent = sum(collective["sent"] for collective in costs["collectives"].values())
    seconds = {
        "compute": costs["bfloat16_flops"] / slice.flops,
        "vector": flops.operations(job) / slice.vector,
        "memory": costs["bytes"] / slice.hbm,
        "interconnect": sent / slice.ici if sent else 0.0,
    }
    roofline, serial = max(seconds.values()), sum(seconds.values())
    return {
        "seconds": seconds | {"roofline": roofline, "serial": serial},
        "bound": max(seconds, key=lambda name: seconds[name]),
        "tokens": job.tokens,
        "tokens_per_second": job.tokens / roofline,
        "tokens_per_second_per_chip": job.tokens / roofline / slice.chips,
        "tokens_per_second_serial": job.tokens / serial,
        "combined": COMBINED,
        "constants": CONSTANTS,
        "rates": {
            "bfloat16_flops": slice.flops,
            "vector_operations": slice.vector,
            "hbm_bytes": slice.hbm,
            "interconnect_bytes": slice.ici,
        },
    }


def lines(plan: dict[str, Any]) -> list[str]:
    """The plan for a reader."""
    batch, memory = plan["batch"], plan["memory"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    tuned = "all parameters" if plan["tune"] == "all" else f"adapter of rank {plan['tune']['rank']}"
    kinds = [kind for kind in memory if kind not in ("peak", "limit", "capacity", "over")]
    share = memory["peak"] / memory["capacity"]
    peak = f"peak {gib(memory['peak'])} of {gib(memory['capacity'])} a device ({share:.0%})"
    fits = f"fits: {peak}"
    if not plan["fits"]:
        fits = f"does not fit: {peak}, {gib(memory['over'])} more than the {LARGEST_SHARE:.0%} that may be used"
    said = [
        f"{plan['architecture']} {plan['program']} on {plan['topology']}: {plan['chips']} chips, mesh {mesh}",
        f"  {batch['rows']} rows x {batch['length']} positions in {batch['accumulation']} micro-batches, computed in "
        f"{plan['dtype']}, stored in {plan['param_dtype']}, remat {plan['remat']}, {tuned}",
        f"  {fits}",
        f"  memory per device: {', '.join(f'{kind} {gib(memory[kind])}' for kind in kinds)}",
    ]
    if "step" in plan:
        arithmetic = f"{plan['flops']['per_device']:.3g} FLOPs"
        if "analytic_per_step" in plan["flops"]:
            ratio = plan["flops"]["per_step"] / plan["flops"]["analytic_per_step"]
            arithmetic += f" ({ratio:.3f} of the analytic count)"
        collectives = [
            f"{one['count']} {kind} ({gib(one['bytes'])})" for kind, one in plan["collectives"].items() if one["count"]
        ]
        step = plan["step"]
        seconds = {name: f"{value * 1e3:.3g} ms" for name, value in step["seconds"].items()}
        said += [
            f"  a device, a step: {arithmetic}, {gib(plan['bytes'])} of memory traffic",
            f"  collectives: {', '.join(collectives) or 'none'}",
            f"  time at peak rates: compute {seconds['compute']}, vector unit {seconds['vector']} (weights from "
            f"{plan['param_dtype']}), memory {seconds['memory']}, interconnect {seconds['interconnect']}; at least "
            f"{seconds['roofline']} (the largest), {seconds['serial']} without overlap",
            f"  at most {step['tokens_per_second']:,.0f} positions/s, {step['tokens_per_second_per_chip']:,.0f} a "
            f"chip; bound by {step['bound']}; rates from {step['constants']}",
        ]
    said += [f"  {note}" for note in [*plan.get("advice", []), *([batch["note"]] if "note" in batch else [])]]
    return [*said, f"  compiled in {plan['compile_seconds']:.1f} s"]


def gib(size: float) -> str:
    """Bytes as GiB, or as MiB where that is more readable."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def table(plans: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines, a row a plan; times are those at peak rates, the largest bound."""
    columns = ("model", "program", "slice", "chips", "stored in", "fits", "peak a device", "step", "positions/s a chip")
    rows = [columns, ("---",) * len(columns)]
    for plan in plans:
        memory, step = plan["memory"], plan.get("step")
        cells = (
            *(plan[key] for key in ("architecture", "program", "topology", "chips", "param_dtype")),
            "yes" if plan["fits"] else f"no, {gib(memory['over'])} over",
            f"{gib(memory['peak'])} of {gib(memory['capacity'])}",
            f"{step['seconds']['roofline'] * 1e3:.3g} ms" if step else "",
            f"{step['tokens_per_second_per_chip']:,.0f}" if step else "",
        )
        rows.append(tuple(map(str, cells)))
    return [f"| {' | '.join(cells)} |" for cells in rows]


def smallest_that_fits(plans: Sequence[dict[str, Any]]) -> str | None:
    """The slice of fewest chips, then of least memory, on which all planned programs fit."""
    names = dict.fromkeys(plan["topology"] for plan in plans)
    fitting = [name for name in names if all(plan["fits"] for plan in plans if plan["topology"] == name)]

    def size(name: str) -> tuple[int, int]:
        slice = parse_slice(name)
        return slice.chips, slice.chip.capacity

    return min(fitting, key=size, default=None)


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device, and positions/s of the whole slice."""

    memory: int
    tokens_per_second: float


def estimate(job: Job) -> Estimate:
    """Of a training step: arguments are exact, temporaries those known to live at once. ValueError where the mesh does
    not divide a weight."""
    slice = parse_slice(job.topology)
    data, fsdp, tensor = job.mesh
    # What lies on the devices between steps is the same for every batch.
    state, base = argument_bytes(replace(job, rows=0, length=0, remat="none"), (data, fsdp, tensor))
    memory = state + base + temporaries(job, data * fsdp, tensor)
    compute = max(flops.train_step(job) / slice.devices / slice.flops, flops.operations(job) / slice.vector)
    # Parameters are gathered over fsdp in every pass (forward, recomputed, backward) over the rows computed at once.
    whole = (base if job.lora else state) * fsdp
    gathered = whole * (fsdp - 1) / fsdp * (2 if job.remat == "none" else 3) * (job.rows // job.rows_at_once)
    positions = job.tokens / (data * fsdp)
    item = jnp.dtype(job.dtype).itemsize
    # The residual is summed over tensor twice a layer, there and back: an all-reduce sends twice what it sums.
    summed = 2 * 4 * job.architecture.layers * positions * job.architecture.width * item * (tensor - 1) / tensor
    interconnect = (gathered + summed) / slice.ici if slice.devices > 1 else 0.0
    return Estimate(memory, job.tokens / max(compute, interconnect))


@lru_cache
def argument_bytes(job: Job, sizes: tuple[int, int, int]) -> tuple[int, int]:
    """What the state (with the parameters that are tuned) and the model take on each device of such a mesh."""
    base = {"params": base_shapes(job)}
    trainable = {"lora": lora_shapes(job.architecture, job.lora)} if job.lora else base
    optimizer = make_optimizer(job.optimizer, cosine_schedule(job.optimizer, 1))
    state = jax.eval_shape(partial(new_state, optimizer=optimizer), trainable)
    return bytes_on_mesh(state, sizes), bytes_on_mesh(base, sizes)


def bytes_on_mesh(shapes: Any, sizes: tuple[int, ...]) -> int:
    """What parameters take on each device of a mesh of these sizes. ValueError where it does not divide one."""
    mesh = AbstractMesh(sizes, runtime.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    return bytes_per_device(with_shardings(shapes, param_shardings(shapes, mesh)))


def temporaries(job: Job, batch_ways: int, tensor: int) -> int:
    """Residuals kept for the backward pass, one layer's work, and the loss's logits and gradients, in bytes. Axis
    letters as in model/transformer.py."""
    config, item = job.architecture, jnp.dtype(job.dtype).itemsize
    rows = job.rows_at_once / batch_ways
    positions = rows * job.length
    D, F, V, N = config.width, config.mlp_dim, config.vocab_size, config.heads
    hidden = positions * D * item
    scores = rows * N / tensor * job.length**2 * (4 + item)
    widths = sum(outputs for _, (_, outputs) in flops.projection_sizes(config).values())
    outputs = positions * widths / tensor * item
    attended = positions * N * config.head_dim / tensor * item
    # Norms keep a float32 copy of their input, the MLP the gate before and after its activation; attention no scores.
    layer = outputs + attended + positions * (2 * F / tensor * item + 8 * D)
    kept = {"full": 0.0, "dots": outputs + attended, "none": layer}[job.remat] * config.layers
    weights = 2 * flops.layer_weights(config) / tensor * item
    if job.param_dtype in SCHEMES:
        weights += 4 * max(i * o for _, (i, o) in flops.projection_sizes(config).values()) / tensor
    head = D * V / tensor * item + 3 * 4 * min(job.step.loss_chunk, positions) * V / tensor
    return int(config.layers * hidden + kept + scores + layer + weights + head + 2 * hidden)


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
    slice = parse_slice(job.topology)
    limit = LARGEST_SHARE * slice.chip.capacity
    # The fastest first. Of those that are estimated alike (memory traffic is not) the one of most positions: it reads
    # the weights once for more of them.
    left = sorted(
        candidates(job),
        key=lambda one: (-round(one.estimate.tokens_per_second), -one.job.tokens, one.estimate.memory),
    )
    if not left:
        raise InputError(f"--config.topology={job.topology}: no mesh of its devices divides this model's weights")
    compiled: list[tuple[int, Job, dict[str, Any]]] = []
    correction = 1.0
    while left and len(compiled) < COMPILATIONS:
        likely = [one for one in left if one.estimate.memory * correction <= limit]
        chosen = likely[0] if likely else min(left, key=lambda one: one.estimate.memory)
        facts, size = facts_of(chosen.job), chosen.estimate.memory
        peak = memory_of(chosen.job, facts, slice)["peak"]
        compiled.append((peak, chosen.job, facts))
        if not likely:
            break
        correction = max(correction, peak / size)
        # Of those that differ in their rows alone, the best that fits was tried first; where it did not, fewer may.
        kind = (chosen.job.mesh, chosen.job.remat, chosen.job.length)
        left = [
            one
            for one in left
            if (one.job.mesh, one.job.remat, one.job.length) != kind or (peak > limit and one.estimate.memory < size)
        ]
    fitting = [one for one in compiled if one[0] <= limit]
    if not fitting:
        return min(compiled, key=lambda one: one[0])[1:]
    return max(fitting, key=lambda one: step_of(one[1], one[2]["costs"], slice)["tokens_per_second"])[1:]


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


@dataclass(frozen=True)
class Machine:
    """Devices of one kind."""

    kind: str
    devices: int
    memory: int | None
    """bytes of each device; of a CPU, an equal share of the host's; None where nobody says"""


KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""What jax calls the devices of a chip -> its name in CHIPS (jax/_src/pallas/mosaic/tpu_info.py)."""


def this_machine() -> Machine:
    """What jax runs on here."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Machine(device.device_kind, jax.device_count(), host // jax.local_device_count())
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None and device.device_kind in KINDS:
        memory = CHIPS[KINDS[device.device_kind]].capacity
    return Machine(device.device_kind, jax.device_count(), memory)


def machine_lines(machine: Machine) -> list[str]:
    """For a reader: the machine, and of every known architecture what its weights alone take on each device; "no" where
    the devices do not divide them."""
    said = [
        f"{machine.devices} x {machine.kind}, {gib(machine.memory) if machine.memory else 'unknown memory'} each",
        "",
        f"weights alone, GiB a device; in brackets what is above {LARGEST_SHARE:.0%} of its memory",
    ]
    forms = ("float32", "bfloat16", "int8", "nf4")
    rows = [("", forms)]
    for name in architectures.names():
        cells = []
        for stored in forms:
            try:
                size = weight_bytes(architectures.read(name), stored, machine.devices)
            except ValueError:
                cells.append("no")
                continue
            too_large = machine.memory is not None and size > LARGEST_SHARE * machine.memory
            cells.append(f"({size / GIB:.1f})" if too_large else f"{size / GIB:.1f} ")
        rows.append((name, tuple(cells)))
    said += [f"{name:18}" + "".join(f"{text:>10}" for text in cells) for name, cells in rows]
    return [*said, "", "What a step needs beside them: jaxalign plan --config.model=NAME --config.topology=v5e:2x4"]


def weight_bytes(architecture: ModelConfig, param_dtype: str, devices: int) -> int:
    """Bytes on each device of weights split over so many, as `config.mesh` does by default.

    Of int8 and nf4 the embeddings and norms are in bfloat16. ValueError where the devices do not divide a weight.
    """
    return bytes_on_mesh(stored_shapes(architecture, "bfloat16", param_dtype), runtime.mesh_sizes(1, -1, 1, devices))
