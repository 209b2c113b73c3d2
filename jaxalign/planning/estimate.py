"""An estimate of a step's memory and time without compiling, by which candidates are sorted before some are compiled.

Arguments are exact; temporaries are the tensors known to live at once. Axis letters as in model/transformer.py.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from jaxalign import runtime
from jaxalign.model.lora import lora_shapes
from jaxalign.model.quantised import SCHEMES
from jaxalign.model.sharding import param_shardings, with_shardings
from jaxalign.planning import flops, vector
from jaxalign.planning.chips import parse_slice
from jaxalign.planning.job import Job
from jaxalign.planning.programs import base_shapes, bytes_per_device
from jaxalign.training.optimizer import cosine_schedule, make_optimizer
from jaxalign.training.step import new_state


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device, and positions/s of the whole slice."""

    memory: int
    tokens_per_second: float


def estimate(job: Job) -> Estimate:
    """The estimate for a training step. ValueError where the mesh does not divide a weight."""
    slice = parse_slice(job.topology)
    data, fsdp, tensor = job.mesh
    # What lies on the devices between steps is the same for every batch.
    state, base = argument_bytes(replace(job, rows=0, length=0, remat="none"), (data, fsdp, tensor))
    memory = state + base + temporaries(job, data * fsdp, tensor)
    compute = max(flops.train_step(job) / slice.devices / slice.flops, vector.operations(job) / slice.vector)
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
    """What the state and the model take on each device of a mesh of these sizes.

    Where all parameters are tuned, the state holds them too, and the model that they were copied from stays beside it.
    """
    mesh = AbstractMesh(sizes, runtime.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    base = {"params": base_shapes(job)}
    trainable = {"lora": lora_shapes(job.architecture, job.lora)} if job.lora else base
    optimizer = make_optimizer(job.optimizer, cosine_schedule(job.optimizer, 1))
    state = jax.eval_shape(partial(new_state, optimizer=optimizer), trainable)

    def size(tree: Any) -> int:
        return bytes_per_device(with_shardings(tree, param_shardings(tree, mesh)))

    return size(state), size(base)


def temporaries(job: Job, batch_ways: int, tensor: int) -> int:
    """Residuals kept for the backward pass, one layer's work, and the loss's logits and gradients."""
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
