"""The process that compiles: a job as JSON on standard input, what its program costs as JSON on standard output.

A process of its own, since libtpu takes hold of the one that it is loaded into, and may end it.
"""

import dataclasses
import gzip
import hashlib
import json
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies

from jaxalign import files, runtime
from jaxalign.errors import InputError
from jaxalign.planning.chips import parse_slice
from jaxalign.planning.compiler import versions
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
    facts: dict[str, Any] = {
        "mesh": list(mesh.shape.values()),
        "arguments": {kind: bytes_per_device(tree) for kind, tree in program.arguments.items() if tree is not None},
        "trace_seconds": round(time.perf_counter() - started, 2),
    }
    said = said_by_compiler(program.lowered, job.topology)
    if "text" in said:
        facts["costs"] = dataclasses.asdict(count(parse(said.pop("text"))))
    return facts | said


def said_by_compiler(lowered: Any, topology: str) -> dict[str, Any]:
    """`compiled` of the program, kept by its text: a change of this package that leaves a program as it was, or counts
    it in another way, compiles nothing again.
    """
    document = json.dumps([lowered.as_text(), topology, versions()])
    path = runtime.cache_folder() / "programs" / f"{hashlib.sha256(document.encode()).hexdigest()}.json.gz"
    if path.is_file():
        return json.loads(gzip.decompress(path.read_bytes()))
    said = compiled(lowered)
    with files.whole_file(path) as partial:
        partial.write_bytes(gzip.compress(json.dumps(said).encode()))
    return said


def compiled(lowered: Any) -> dict[str, Any]:
    """Compiles: the program's memory and its compiled text, or that the compiler refused it."""
    started = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"refused": str(error), "compile_seconds": round(time.perf_counter() - started, 2)}
    seconds = round(time.perf_counter() - started, 2)
    memory = program.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") for name in names}
    return {"memory": sizes, "text": program.as_text(), "compile_seconds": seconds}


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
