"""What the vector unit has to do whatever is fused: turn every layer's weights from the form in which they are stored
into the type in which they are multiplied.

Counted in our own code, an operation an element; the compiler's estimates of such loops are several times too large.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.model.quantised import SCHEMES, kernel_of
from jaxalign.planning import flops
from jaxalign.planning.job import Job

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
    weights = flops.layer_weights(job.architecture) * job.architecture.layers / job.mesh[2]
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
