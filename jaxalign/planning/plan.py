"""A plan: what a compiled program needs of a slice, whether that fits, and how long a step takes at least."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.planning import flops, vector
from jaxalign.planning.chips import GIB, Slice, parse_slice
from jaxalign.planning.job import Job

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
        "tune": "all" if job.lora is None else dataclasses.asdict(job.lora),
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
    document["vector_operations"] = vector.operations(job)
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


UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def refused_peak(message: str) -> int:
    """The bytes that the compiler would have needed, arguments among them, from its refusal."""
    size = r"([\d.]+)([KMGT])"
    said = re.search(rf"\({size}\) exceeds available", message) or re.search(rf"Used {size} of", message)
    if said is None:
        raise InputError(f"the compiler ran out of memory and did not say by how much: {message[:300]}")
    return int(float(said[1]) * UNITS[said[2]])


def step_of(job: Job, costs: dict[str, Any], slice: Slice) -> dict[str, Any]:
    """Seconds of a step at the chip's peak rates, and tokens/s from them."""
    sent = sum(collective["sent"] for collective in costs["collectives"].values())
    seconds = {
        "compute": costs["bfloat16_flops"] / slice.flops,
        "vector": vector.operations(job) / slice.vector,
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
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    batch = plan["batch"]
    tuned = "all parameters" if plan["tune"] == "all" else f"adapter of rank {plan['tune']['rank']}"
    said = [
        f"{plan['architecture']} {plan['program']} on {plan['topology']}: {plan['chips']} chips, mesh {mesh}",
        f"  {batch['rows']} rows x {batch['length']} positions in {batch['accumulation']} micro-batches, computed in "
        f"{plan['dtype']}, stored in {plan['param_dtype']}, remat {plan['remat']}, {tuned}",
        verdict(plan),
        f"  memory per device: {', '.join(f'{kind} {gib(size)}' for kind, size in held(plan['memory']).items())}",
    ]
    if "step" in plan:
        said += cost_lines(plan)
    said += [f"  {note}" for note in plan.get("advice", [])]
    if "note" in batch:
        said.append(f"  {batch['note']}")
    return [*said, f"  compiled in {plan['compile_seconds']:.1f} s"]


def verdict(plan: dict[str, Any]) -> str:
    """Whether it fits, and by how much."""
    memory = plan["memory"]
    share = memory["peak"] / memory["capacity"]
    said = f"peak {gib(memory['peak'])} of {gib(memory['capacity'])} a device ({share:.0%})"
    if plan["fits"]:
        return f"  fits: {said}"
    return f"  does not fit: {said}, {gib(memory['over'])} more than the {LARGEST_SHARE:.0%} that may be used"


def held(memory: dict[str, Any]) -> dict[str, int]:
    """What takes memory, without the sums."""
    return {kind: size for kind, size in memory.items() if kind not in ("peak", "limit", "capacity", "over")}


def cost_lines(plan: dict[str, Any]) -> list[str]:
    """Arithmetic, traffic, collectives and time."""
    arithmetic = f"{plan['flops']['per_device']:.3g} FLOPs"
    if "analytic_per_step" in plan["flops"]:
        ratio = plan["flops"]["per_step"] / plan["flops"]["analytic_per_step"]
        arithmetic += f" ({ratio:.3f} of the analytic count)"
    collectives = [
        f"{one['count']} {kind} ({gib(one['bytes'])})" for kind, one in plan["collectives"].items() if one["count"]
    ]
    step = plan["step"]
    seconds = {name: f"{value * 1e3:.3g} ms" for name, value in step["seconds"].items()}
    return [
        f"  a device, a step: {arithmetic}, {gib(plan['bytes'])} of memory traffic",
        f"  collectives: {', '.join(collectives) or 'none'}",
        f"  time at peak rates: compute {seconds['compute']}, vector unit {seconds['vector']} (weights from "
        f"{plan['param_dtype']}), memory {seconds['memory']}, interconnect {seconds['interconnect']}; at least "
        f"{seconds['roofline']} (the largest), {seconds['serial']} without overlap",
        f"  at most {step['tokens_per_second']:,.0f} positions/s, {step['tokens_per_second_per_chip']:,.0f} a chip; "
        f"bound by {step['bound']}; rates from {step['constants']}",
    ]


def gib(size: float) -> str:
    """Bytes as GiB, or as MiB where that is more readable."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
