"""Element-wise work, counted in our own code: against sums by hand, and what the CPU's compiler makes of it."""

import jax
import jax.numpy as jnp
import pytest

from jaxalign.model import architectures
from jaxalign.model.quantised import SCHEMES
from jaxalign.planning.flops import counted, operations, operations_a_weight
from jaxalign.planning.hlo import parse
from tests.defaults import base_step
from tests.planning.toy import toy_job


@pytest.mark.parametrize(
    ("stored", "dtype", "count"),
    [
        ("nf4", "bfloat16", 4 + 4 + 15 + 1 + 1),  # bits, comparisons, choices, product with the scale, rounding
        ("nf4", "float32", 4 + 4 + 15 + 1),
        ("int8", "bfloat16", 1 + 1 + 1),  # to float32, product, rounding; scales are few
        ("float32", "bfloat16", 1),
        ("bfloat16", "bfloat16", 0),
        ("float32", "float32", 0),
    ],
)
def test_operations_a_weight(stored: str, dtype: str, count: int):
    assert operations_a_weight(stored, dtype) == pytest.approx(count, abs=0.01)


def test_what_only_lays_out_is_not_counted():
    def function(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x.T, jax.jit(jnp.abs)(x)]).reshape(-1) + 1

    assert counted(jax.make_jaxpr(function)(jnp.ones((4, 4)))) == 16 + 32


def test_the_compiler_leaves_as_many():
    """Of NF4: choices and comparisons in the compiled program, an element each."""
    kernel = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    nf4 = SCHEMES["nf4"]
    codes = jax.eval_shape(nf4.quantise, kernel)
    text = jax.jit(lambda stored: nf4.dequantise(**stored)).lower(codes).compile().as_text()
    assert text is not None
    every = [one for computation in parse(text).computations.values() for one in computation.instructions.values()]
    for opcode, count in {"select": 15, "compare": 4}.items():
        assert sum(one.shapes[0].size for one in every if one.opcode == opcode) == count * 128**2


def test_a_step_of_a_7b_model_by_hand():
    """Mistral-7B in NF4, adapters: there and back, for each block of rows; half of it where `tensor` is 2."""
    mistral = architectures.read("mistral-7b-v0.1")
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    job = toy_job(architecture=mistral, mesh=(1, 4, 2), rows=16, dtype="bfloat16", param_dtype="nf4")
    assert operations(job) == 2 * 25 * weights / 2
    in_blocks = toy_job(architecture=mistral, mesh=(1, 8, 1), rows=16, dtype="bfloat16", param_dtype="nf4")
    in_blocks = toy_job(**vars(in_blocks) | {"step": base_step(rows_at_once=1, loss_chunk=256)})
    assert operations(in_blocks) == 2 * 2 * 25 * weights
    scored = toy_job(**vars(in_blocks) | {"program": "score"})
    assert operations(scored) == 25 * weights
    # All parameters tuned: they are float32, whatever they were loaded as.
    tuned = toy_job(**vars(in_blocks) | {"lora": None, "param_dtype": "bfloat16"})
    assert operations(tuned) == 2 * 2 * weights
