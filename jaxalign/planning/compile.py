"""The process that compiles: a job as JSON on standard input, what its program costs as JSON on standard output.

A process of its own, since libtpu takes hold of the one that it is loaded into, and may end it.
"""

import dataclasses
import json
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies

from jaxalign import runtime
from jaxalign.errors import InputError
from jaxalign.planning.chips import parse_slice
from jaxalign.planning.costs import count
from jaxalign.planning.hlo import parse
from jaxalign.planning.job import Job, from_json
from jaxalign.planning.programs import bytes_per_device, lower


def compiled_facts(job: Job) -> dict[str, Any]:
    """Compiles the job's program for its slice, and says what the compiler and the compiled text say of it.

    Raises:
      InputError: no such slice, or the mesh does not suit it.
      jax.errors.JaxRuntimeError: the compiler's refusal, among them RESOURCE_EXHAUSTED.
    """
    mesh = runtime.make_mesh(*job.mesh, devices=topology_devices(job.topology))
    started = time.perf_counter()
    program = lower(job, mesh)
    traced = time.perf_counter()
    facts: dict[str, Any] = {
        "mesh": list(mesh.shape.values()),
        "arguments": {kind: bytes_per_device(tree) for kind, tree in program.arguments.items() if tree is not None},
        "trace_seconds": round(traced - started, 2),
    }
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return facts | {"refused": str(error), "compile_seconds": round(time.perf_counter() - traced, 2)}
    facts["compile_seconds"] = round(time.perf_counter() - traced, 2)
    memory = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    facts["memory"] = {name: getattr(memory, f"{name}_size_in_bytes") for name in names}
    facts["costs"] = dataclasses.asdict(count(parse(compiled.as_text())))
    return facts


def topology_devices(name: str) -> list[Any]:
    """The devices of a slice that need not be there."""
    # A single chip is less than a whole host, which libtpu takes for granted.
    settings = {"chips_per_host_bounds": (1, 1, 1)} if parse_slice(name).chips == 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"--config.topology={name}: libtpu has no such slice ({error})") from None


def main() -> None:
    """Reads one job, writes its facts, or {"input_error": ...}."""
    job = from_json(json.load(sys.stdin))
    runtime.start()
    # Kept as facts, not as programs: those for other machines are of no use here.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        facts = compiled_facts(job)
    except InputError as error:
        facts = {"input_error": str(error)}
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
