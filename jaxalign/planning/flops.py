"""Operations of one optimizer step, counted from the architecture.

Matrix products: [m,k] x [k,n] costs 2 m k n. Attention is counted as it is computed, every query against every key of
its row. Axis letters as in model/transformer.py; P positions of a step, r an adapter's rank.

And what the vector unit has to do whatever is fused: turn every layer's weights from the form in which they are stored
into the type in which they are multiplied. Counted in our own code, an operation an element; the compiler's estimates
of such loops are several times too large.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import LoraConfig, projection_sizes
from jaxalign.model.quantised import SCHEMES, kernel_of
from jaxalign.planning.chips import Job


def layer_weights(config: ModelConfig) -> int:
    """In the projections of one layer."""
    return sum(inputs * outputs for _, (inputs, outputs) in projection_sizes(config).values())


def projections(config: ModelConfig, positions: int) -> int:
    """All layers' projections, forward."""
    return 2 * layer_weights(config) * config.layers * positions


def attention(config: ModelConfig, pairs: int) -> int:
    """Scores and weighted values, forward, for so many (layer, query, key)."""
    return 4 * config.heads * config.head_dim * pairs


def adapters(config: ModelConfig, lora: LoraConfig, positions: int) -> int:
    """All layers' adapters, forward: x A and (x A) B."""
    sizes = projection_sizes(config)
    return sum(2 * lora.rank * sum(sizes[name][1]) for name in lora.targets) * config.layers * positions


def logits(config: ModelConfig, positions: int) -> int:
    """The logits of so many positions."""
    return 2 * config.width * config.vocab_size * positions


def train_step(job: Job) -> int:
    """One step: forward, backward with what it recomputes, and the head on every position (see `lower_train`).

    The backward pass of a product is one product for its input's gradient, and one more where its weights are tuned.
    """
    config, lora, P = job.architecture, job.lora, job.tokens
    weights, scores = projections(config, P), attention(config, config.layers * P * job.length)
    total = weights + scores  # forward
    total += weights + 2 * scores  # gradients of the inputs; of q, k, v and the attention weights
    total += recomputed(job)
    # The positions that fill up the last chunk of the loss meet the head, too.
    columns = min(max(1, job.step.loss_chunk // (job.rows_at_once // (job.mesh[0] * job.mesh[1]))), job.length)
    total += logits(config, job.rows * -(-job.length // columns) * columns) * (3 if lora is None else 2)
    if lora is None:
        return total + weights
    total += 3 * adapters(config, lora, P)
    if lora.dora:
        # `updated_norms`: A^T W, A^T A and its product with B
        sizes, r = [projection_sizes(config)[name][1] for name in lora.targets], lora.rank
        times = job.rows // job.rows_at_once * (1 if job.remat == "none" else 2)
        total += times * config.layers * sum(2 * r * i * o + 2 * r * r * (i + o) for i, o in sizes)
    return total


def recomputed(job: Job) -> int:
    """What the backward pass computes a second time: the scores in any case (`attention.grouped_attention`)."""
    config, lora, P = job.architecture, job.lora, job.tokens
    scores = attention(config, config.layers * P * job.length)
    if job.remat in ("none", "dots"):
        return scores // 2
    total = projections(config, P) + scores + (adapters(config, lora, P) if lora else 0)
    is_scaled = lora is not None and lora.dora and "down_proj" in lora.targets
    if not (config.post_norms or is_scaled):
        # The last product of a layer only adds to the residual: nothing asks for its value again.
        total -= 2 * config.mlp_dim * config.width * config.layers * P
        if lora is not None and "down_proj" in lora.targets:
            total -= 2 * lora.rank * config.width * config.layers * P
    return total


LAYOUT = ("broadcast_in_dim", "concatenate", "reshape", "slice", "split", "squeeze", "transpose")
"""Primitives that compute nothing."""
SIZE = 512
"""Inputs and outputs of the kernel that is counted: whole blocks."""


def operations(job: Job) -> float:
    """Element-wise operations of each device, for one run of the program.

    In training the weights are turned twice for each block of rows, there and back: what is computed again on the way
    back and the gradient share them (so compiled for v5e). Codes are gathered over `fsdp` first, so that a device turns
    all that it multiplies.
    """
    is_training = job.program == "train"
    stored = "float32" if is_training and job.lora is None else job.param_dtype  # those tuned are float32
    weights = layer_weights(job.architecture) * job.architecture.layers / job.mesh[2]
    times = 2 * (job.rows // job.rows_at_once) if is_training else 1
    return weights * times * operations_a_weight(stored, job.dtype)


@lru_cache
def operations_a_weight(stored: str, dtype: str) -> float:
    """Of a weight that is stored so and multiplied in `dtype`."""
    kernel = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32 if stored in SCHEMES else jnp.dtype(stored))
    leaves = jax.eval_shape(SCHEMES[stored].quantise, kernel) if stored in SCHEMES else {"kernel": kernel}
    return counted(jax.make_jaxpr(lambda leaves: kernel_of(leaves).astype(dtype))(leaves)) / SIZE**2


def counted(jaxpr: Any) -> int:
    """The elements that its primitives make, but for those that only lay them out."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "eqns")]
        if inner:
            total += sum(map(counted, inner))
        elif equation.primitive.name not in LAYOUT:
            total += sum(output.aval.size for output in equation.outvars)
    return total
