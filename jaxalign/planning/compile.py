"""Facts about compiled programs: from the cache, or from a process that compiles the project's own functions with
shapes in place of arrays. Nothing is allocated, nothing runs.

A process of its own, since libtpu takes hold of the one that it is loaded into, and may end it: this file as a program,
a job as JSON on standard input, what its program costs as JSON on standard output.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

import jaxalign
from jaxalign import files, runtime
from jaxalign.data.batches import Batch
from jaxalign.errors import InputError
from jaxalign.evaluation.score import body
from jaxalign.model.attention import Prefix
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import lora_shapes
from jaxalign.model.quantised import SCHEMES, is_projection
from jaxalign.model.ragged import Runner
from jaxalign.model.readout import LabelSets
from jaxalign.model.sharding import param_shardings, with_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import Leaf, assemble, weight_table
from jaxalign.planning.chips import Job, from_json, parse_slice
from jaxalign.planning.hlo import count, parse
from jaxalign.probing.logit_lens import lens_batch
from jaxalign.training.optimizer import cosine_schedule, make_optimizer
from jaxalign.training.step import make_loss_sums, make_shardings, make_train_step, new_state

PREFIX = 1024
"""Positions of the few-shot text before the scored rows, about the study's."""
LABELS = LabelSets(jax.ShapeDtypeStruct((8, 32), jnp.int32), jax.ShapeDtypeStruct((8, 32), jnp.bool))
"""Candidates of a task's labels, as `pad_label_sets` rounds them up."""
STEPS = 1000
"""Of the run that the step belongs to: a constant of the schedule, of no weight."""


@dataclass(frozen=True)
class Program:
    """A traced program, and its arguments by kind: trees of shapes with shardings."""

    lowered: Any
    arguments: dict[str, Any]


def lower(job: Job, mesh: Mesh) -> Program:
    """Traces the job's program. InputError where the mesh does not divide a weight."""
    try:
        param_shardings(base_shapes(job), mesh)
    except ValueError as error:
        raise InputError(f"config.mesh: {error}; choose other sizes") from None
    return {"train": lower_train, "score": lower_score, "lens": lower_lens}[job.program](job, mesh)


def lower_train(job: Job, mesh: Mesh) -> Program:
    """One optimizer step, built as in training/loop.py; every position may be a target, the most there can be."""
    decoder = Decoder(job.architecture, job.lora, dtype=jnp.dtype(job.dtype), remat=job.remat)
    params = base_shapes(job)
    frozen, trainable = {}, {"params": params}
    if job.lora is not None:
        frozen, trainable = {"params": params}, {"lora": lora_shapes(job.architecture, job.lora)}
    schedule = cosine_schedule(job.optimizer, STEPS)
    optimizer = make_optimizer(job.optimizer, schedule)
    shardings = make_shardings(trainable, frozen, optimizer, mesh)
    state = with_shardings(jax.eval_shape(partial(new_state, optimizer=optimizer), trainable), shardings.state)
    frozen = with_shardings(frozen, shardings.frozen)
    ids = jax.ShapeDtypeStruct((job.rows, job.length), jnp.int32, sharding=shardings.batch)
    batch = Batch(ids, ids, ids, ids, ids.update(dtype=jnp.bool))
    loss_sums = make_loss_sums(decoder, job.length, job.step.loss_chunk)
    step = make_train_step(loss_sums, optimizer, schedule, shardings, job.step)
    arguments = {
        "parameters": frozen.get("params", state.trainable.get("params")),
        "adapters": state.trainable.get("lora"),
        "optimizer": state.opt_state,
        "batch": batch,
    }
    return Program(step.lower(state, frozen, batch), arguments)


def lower_score(job: Job, mesh: Mesh) -> Program:
    """The scorer's largest program: rows of continuations behind a shared prefix."""
    decoder = Decoder(job.architecture, dtype=jnp.dtype(job.dtype))
    runner = Runner(decoder, {"params": base_shapes(job)}, mesh)
    variables = with_shardings({"params": base_shapes(job)}, runner.variable_shardings)
    prefix = with_shardings(prefix_shapes(decoder), runner.layout(prefix_shapes(decoder)))
    rows = [jax.ShapeDtypeStruct((job.rows, job.length), jnp.int32, sharding=runner.by_row)] * 4
    return Program(runner.lower(body, variables, prefix, *rows), {"parameters": variables, "batch": (prefix, rows)})


def lower_lens(job: Job, mesh: Mesh) -> Program:
    """The logit lens on a batch of what prompts hold behind a shared prefix."""
    decoder = Decoder(job.architecture, dtype=jnp.dtype(job.dtype))
    shapes = {"params": base_shapes(job)}
    runner = Runner(decoder, shapes, mesh, job.rows)
    variables = with_shardings(shapes, runner.variable_shardings)
    tokens = jax.ShapeDtypeStruct((job.rows, job.length), jnp.int32, sharding=runner.by_row)
    lengths = jax.ShapeDtypeStruct((job.rows,), jnp.int32, sharding=runner.by_row)
    gram = jax.ShapeDtypeStruct((job.architecture.width,) * 2, jnp.float32)
    inputs = prefix_shapes(decoder), LABELS, gram
    inputs = with_shardings(inputs, runner.layout(inputs))
    lowered = runner.lower(lens_batch, variables, tokens, lengths, *inputs)
    return Program(lowered, {"parameters": variables, "batch": (tokens, lengths)})


def prefix_shapes(decoder: Decoder) -> Prefix:
    """A shared prefix of PREFIX positions."""
    config = decoder.config
    keys: Any = jax.ShapeDtypeStruct((config.layers, PREFIX, config.kv_heads, config.head_dim), decoder.dtype)
    length: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return Prefix(keys, keys, length)


def base_shapes(job: Job) -> dict[str, Any]:
    return stored_shapes(job.architecture, job.dtype, job.param_dtype)


def stored_shapes(architecture: ModelConfig, dtype: str, param_dtype: str) -> dict[str, Any]:
    """An architecture's parameters stored as `param_dtype` says, from the same table that reads them; what a scheme
    does not quantise is stored as `dtype`."""
    stored = dtype if param_dtype in SCHEMES else param_dtype

    def place(leaf: Leaf) -> Any:
        shape = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(stored))
        if param_dtype in SCHEMES and is_projection(leaf.path):
            return jax.eval_shape(SCHEMES[param_dtype].quantise, shape)
        return shape

    def read(*_: Any) -> Any:
        raise AssertionError("a plan reads no weights")

    return assemble(weight_table(architecture), architecture.layers, read, place)


def bytes_per_device(tree: Any) -> int:
    """What a tree of shapes takes on one device; what names no sharding is whole on each."""

    def size(leaf: Any) -> int:
        dims = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(dims) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


SOURCES = ("data/batches.py", "model", "training", "planning", "runtime.py")
"""What of this package decides what a training step is, where it runs and how it is counted."""
MORE_SOURCES = {"train": (), "score": ("evaluation",), "lens": ("probing",)}
"""And what decides another program."""

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU host to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
OF_OTHER_PROCESSES = ("JAXALIGN_DISTRIBUTED", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def facts_of(job: Job) -> dict[str, Any]:
    """What `compiled_facts` says of the job, compiled only where no earlier call has.

    They are kept by all that they depend on: the job, the compiler's versions and this package's source.

    Raises:
      InputError: libtpu is missing or knows no such slice, the mesh does not suit it, or the compiler failed.
    """
    package = Path(jaxalign.__file__).parent
    digest = hashlib.sha256(json.dumps([asdict(job), versions()], sort_keys=True).encode())
    for name in SOURCES + MORE_SOURCES[job.program]:
        place = package / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    path = runtime.cache_folder() / "plans" / f"{digest.hexdigest()}.json"
    if path.is_file():
        return files.read_json(path)
    facts = compiled_elsewhere(job)
    files.write_json(path, facts)
    return facts


def versions() -> dict[str, str]:
    """Of the packages that decide what a program compiles to."""
    try:
        return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax", "optax")}
    except metadata.PackageNotFoundError:
        raise InputError("plan compiles with libtpu, which is not installed: pip install 'jaxalign[plan]'") from None


def compiled_elsewhere(job: Job) -> dict[str, Any]:
    """Runs compile.py on the job."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_OTHER_PROCESSES}
    package = str(Path(jaxalign.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "jaxalign.planning.compile"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=environment | ENVIRONMENT | {"PYTHONPATH": path},
    )
    if done.returncode:
        said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
        raise InputError(f"{job.topology}: the compiler ended with code {done.returncode}: {said[:300]}")
    facts = json.loads(done.stdout.splitlines()[-1])
    if "input_error" in facts:
        raise InputError(facts["input_error"])
    return facts


def compiled_facts(job: Job) -> dict[str, Any]:
    """Compiles the job's program for its slice, and says what the compiler and the compiled text say of it, or that the
    compiler refused it.

    Raises:
      InputError: no such slice, or the mesh does not suit it.
      jax.errors.JaxRuntimeError: the compiler failed in another way than by RESOURCE_EXHAUSTED.
    """
    mesh = runtime.make_mesh(*job.mesh, devices=topology_devices(job.topology))
    started = time.perf_counter()
    program = lower(job, mesh)
    facts: dict[str, Any] = {
        "mesh": list(mesh.shape.values()),
        "arguments": {kind: bytes_per_device(tree) for kind, tree in program.arguments.items() if tree is not None},
        "trace_seconds": round(time.perf_counter() - started, 2),
    }
    started = time.perf_counter()
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return facts | {"refused": str(error), "compile_seconds": round(time.perf_counter() - started, 2)}
    facts["compile_seconds"] = round(time.perf_counter() - started, 2)
    memory = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    facts["memory"] = {name: getattr(memory, f"{name}_size_in_bytes") for name in names}
    facts["costs"] = asdict(count(parse(compiled.as_text())))
    return facts


def topology_devices(name: str) -> list[Any]:
    """The devices of a slice that need not be there."""
    # A single chip is less than a whole host, which libtpu takes for granted.
    settings = {"chips_per_host_bounds": (1, 1, 1)} if parse_slice(name).chips == 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"--config.topology={name}: libtpu has no such slice ({error})") from None


def compile_one() -> None:
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
    compile_one()
