"""The analytic counts: products against those in compiled steps, for every kind of tuning and rematerialisation;
element-wise work against sums by hand, and what the CPU's compiler makes of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxalign.model import architectures
from jaxalign.model.quantised import SCHEMES
from jaxalign.planning import flops
from jaxalign.planning.flops import counted, operations, operations_a_weight
from jaxalign.planning.hlo import parse
from tests.defaults import base_lora, base_step
from tests.planning.toy import TOY, costs_on_cpu, toy_job

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GEMMA = replace(
    TOY,
    family="gemma3_text",
    tied_head=True,
    qk_norm=True,
    norm_offset=True,
    post_norms=True,
    embedding_scale=8.0,
    window=8,
    local_layers=(True, True, False, True),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remat": "dots"},
        {"remat": "full", "step": base_step(accumulation=2, loss_chunk=48)},
        {"remat": "full", "step": base_step(accumulation=2, loss_chunk=48, rows_at_once=2)},
        {"remat": "full", "lora": base_lora(4, 8.0, EVERY)},
        {"remat": "full", "lora": base_lora(4, 8.0, EVERY, dora=True)},
        {"remat": "full", "lora": None},
        {"remat": "full", "architecture": GEMMA},
        {"param_dtype": "int8", "dtype": "bfloat16"},
    ],
    ids=["plain", "dots", "accumulation", "rows_at_once", "every_projection", "dora", "full_tuning", "gemma", "int8"],
)
def test_the_analytic_count_is_that_of_the_compiled_step(changes):
    """Within 5 %: the analytic count leaves out products of a few numbers, such as norms as products with ones."""
    job = toy_job(mesh=(1, 1, 1), **changes)
    assert costs_on_cpu(job).flops == pytest.approx(flops.train_step(job), rel=0.05)


def test_a_step_of_a_7b_model_by_hand():
    """Mistral-7B, 16 rows x 2048, adapters of rank 8 on q and v, full rematerialisation: an independent sum."""
    mistral = replace(TOY, vocab_size=32000, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_dim=14336)
    job = toy_job(architecture=mistral, rows=16, length=2048, remat="full", lora=base_lora(8, 16.0))
    tokens = 16 * 2048
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    passes = 3 * 2 * weights - 2 * 32 * 4096 * 14336  # there, again without the last product, back
    attention = 4 * 32 * 4 * 4096 * 2048  # there, again, and twice as much back
    adapters = 4 * 32 * 2 * 8 * ((4096 + 4096) + (4096 + 1024))
    head = 2 * 2 * 4096 * 32000
    assert flops.train_step(job) == tokens * (passes + attention + adapters + head)


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
    text = jax.jit(lambda stored: nf4.dequantise(stored["codes"], stored["absmax"])).lower(codes).compile().as_text()
    assert text is not None
    every = [one for computation in parse(text).computations.values() for one in computation.instructions.values()]
    for opcode, count in {"select": 15, "compare": 4}.items():
        assert sum(one.shapes[0].size for one in every if one.opcode == opcode) == count * 128**2


def test_element_wise_work_of_a_7b_model_by_hand():
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
