"""The project's own compiled functions with shapes in place of arrays: nothing is allocated, nothing runs."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.data.batches import Batch
from jaxalign.errors import InputError
from jaxalign.evaluation.score import body
from jaxalign.model.attention import Prefix
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import lora_shapes
from jaxalign.model.quantised import SCHEMES, is_projection
from jaxalign.model.ragged import Runner
from jaxalign.model.readout import LabelSets
from jaxalign.model.sharding import laid_out, param_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import Leaf, assemble
from jaxalign.planning.job import Job
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
    state = laid_out(jax.eval_shape(partial(new_state, optimizer=optimizer), trainable), shardings.state)
    frozen = laid_out(frozen, shardings.frozen)
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
    variables = laid_out({"params": base_shapes(job)}, runner.variable_shardings)
    prefix = laid_out(prefix_shapes(decoder), runner.layout(prefix_shapes(decoder)))
    rows = [jax.ShapeDtypeStruct((job.rows, job.length), jnp.int32, sharding=runner.by_row)] * 4
    return Program(runner.lower(body, variables, prefix, *rows), {"parameters": variables, "batch": (prefix, rows)})


def lower_lens(job: Job, mesh: Mesh) -> Program:
    """The logit lens on a batch of what prompts hold behind a shared prefix."""
    decoder = Decoder(job.architecture, dtype=jnp.dtype(job.dtype))
    shapes = {"params": base_shapes(job)}
    runner = Runner(decoder, shapes, mesh, job.rows)
    variables = laid_out(shapes, runner.variable_shardings)
    tokens = jax.ShapeDtypeStruct((job.rows, job.length), jnp.int32, sharding=runner.by_row)
    lengths = jax.ShapeDtypeStruct((job.rows,), jnp.int32, sharding=runner.by_row)
    gram = jax.ShapeDtypeStruct((job.architecture.width,) * 2, jnp.float32)
    inputs = prefix_shapes(decoder), LABELS, gram
    inputs = laid_out(inputs, runner.layout(inputs))
    lowered = runner.lower(lens_batch, variables, tokens, lengths, *inputs)
    return Program(lowered, {"parameters": variables, "batch": (tokens, lengths)})


def prefix_shapes(decoder: Decoder) -> Prefix:
    """A shared prefix of PREFIX positions."""
    config = decoder.config
    keys: Any = jax.ShapeDtypeStruct((config.layers, PREFIX, config.kv_heads, config.head_dim), decoder.dtype)
    length: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return Prefix(keys, keys, length)


def base_shapes(job: Job) -> dict[str, Any]:
    """The base parameters as they are stored."""
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

    return assemble(architecture, lambda weight: stored, nothing_to_read, place)


def nothing_to_read(*_: Any) -> None:
    raise AssertionError("a plan reads no weights")


def bytes_per_device(tree: Any) -> int:
    """What a tree of shapes takes on one device; what names no sharding is whole on each."""

    def size(leaf: Any) -> int:
        dims = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(dims) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))
