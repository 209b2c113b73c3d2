"""Costs read from compiled text: programs whose costs are known by hand, and loops against the same unrolled."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.model import transformer
from jaxalign.model.lora import projection_sizes
from jaxalign.planning import hlo
from jaxalign.planning.chips import Job
from jaxalign.planning.hlo import Costs, count, group_size, parse, parse_instruction, valid_positions
from tests.planning.toy import TOY, costs_on_cpu, toy_job
from tests.training.tiny_runs import mesh_of


def counted(lowered: jax.stages.Lowered) -> Costs:
    """The costs of a program once compiled."""
    text = lowered.compile().as_text()
    assert text is not None
    return count(parse(text))


def costs_of(function, *shapes: jax.ShapeDtypeStruct) -> Costs:
    return counted(jax.jit(function).lower(*shapes))


def float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_in_nested_loops_counts_as_often_as_it_runs():
    def inner(x, w):
        return jnp.tanh(x @ w), None

    def outer(x, weights):
        return jax.lax.scan(inner, x, weights)

    costs = costs_of(lambda x, weights: jax.lax.scan(outer, x, weights)[0], float32(16, 32), float32(3, 5, 32, 32))
    assert costs.flops == 3 * 5 * 2 * 16 * 32 * 32


def test_a_loop_reads_one_layer_s_weights_at_a_time():
    """2 MiB of weights, 8 KiB of activations: read whole in every one of 8 runs they would be 16 MiB."""
    costs = costs_of(
        lambda x, weights: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0],
        float32(8, 256),
        float32(8, 256, 256),
    )
    weights = 8 * 256 * 256 * 4
    assert weights <= costs.bytes <= 3.2 * weights  # the CPU compiler copies a slice before it multiplies


def test_collectives_by_kind_and_size():
    mesh = mesh_of(fsdp=8)
    rows, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    gather = counted(jax.jit(lambda x: x * 2, out_shardings=whole).lower(x)).collectives
    reduction = counted(jax.jit(lambda x: x.sum(axis=0), out_shardings=whole).lower(x)).collectives
    assert (gather["all-gather"].count, gather["all-gather"].bytes) == (1, 64 * 16 * 4)
    assert gather["all-gather"].sent == 7 / 8 * 64 * 16 * 4
    assert (reduction["all-reduce"].count, reduction["all-reduce"].bytes) == (1, 16 * 4)
    assert reduction["all-reduce"].sent == 2 * 7 / 8 * 16 * 4


def seen_without_a_loop(job: Job) -> int:
    """Products of an adapter step, on each of 8 devices, that XLA leaves out where layers are not a loop's body.

    Nobody asks for the gradient of the first layer's input, nor of its keys; and the scores that attention's gradient
    computes again, layer by layer, are those that it computed before.
    """
    sizes = {name: size for name, (_, size) in projection_sizes(TOY).items()}
    assert job.lora is not None
    weights = sum(math.prod(sizes[name]) for name in ("q_proj", "k_proj", "v_proj"))
    factors = sum(sizes[name][0] * job.lora.rank for name in job.lora.targets)
    of_all_pairs = 2 * job.rows * job.length**2 * TOY.heads * TOY.head_dim
    return (2 * job.rows * job.length * (weights + factors) + (1 + TOY.layers) * of_all_pairs) // 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "left_out"),
    [({"lora": None, "remat": "full"}, lambda job: 0), ({"remat": "none"}, seen_without_a_loop)],
    ids=["all_parameters", "adapters"],
)
def test_a_scanned_step_costs_what_the_same_step_unrolled_does(changes, left_out, monkeypatch):
    """Products, and what is sent within 5 %; traffic within a quarter, for without a loop other things are fused.

    The CPU's compiler copies whole what layers keep for the backward pass, on its way from one loop to the other: a
    twelfth of the adapter step's traffic, which is left aside.
    """
    monkeypatch.setattr(hlo, "NO_TRAFFIC", hlo.NO_TRAFFIC | {"copy"})
    job = toy_job(**changes)
    scanned = costs_on_cpu(job)
    monkeypatch.setattr(transformer.nn, "scan", partial(nn.scan, unroll=TOY.layers))
    unrolled = costs_on_cpu(job)
    assert unrolled.flops == pytest.approx(scanned.flops - left_out(job), rel=1e-9)
    assert unrolled.bytes == pytest.approx(scanned.bytes, rel=0.25)
    for kind, collective in scanned.collectives.items():
        assert unrolled.collectives[kind].bytes == pytest.approx(collective.bytes, rel=0.05), kind


# How the TPU compiler writes things, cut from a program that it made for v5e:4x4.
TPU_LOOP = """HloModule step

%condition (state: (f32[128,64], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8), metadata={op_name="limit"}
  %state = (f32[128,64]{1,0:T(8,128)}, u32[]{:T(128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%state), index=1
  ROOT %compare = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%started (part: bf16[1,32,64]) -> (bf16[1,32,64], bf16[1,256,64]) {
  %part = bf16[1,32,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[1,256,64]{2,1,0:T(8,128)(2,1)} all-gather(%part), channel_id=7, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={1}, use_global_device_ids=true
  ROOT %start = (bf16[1,32,64]{2,1,0:T(8,128)(2,1)}, bf16[1,256,64]{2,1,0:T(8,128)(2,1)}) custom-call(%part, %gather.1)
}

%multiplied (rows: bf16[128,2,32], weights: bf16[2,32,64]) -> f32[128,64] {
  %rows = bf16[128,2,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %weights = bf16[2,32,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  %part.2 = bf16[1,32,64]{2,1,0:T(8,128)(2,1)} bitcast(%weights)
  %gather.2 = bf16[1,256,64]{2,1,0:T(8,128)(2,1)} all-gather(%part.2), channel_id=7, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={1}, use_global_device_ids=true
  %product = f32[128,64,1]{1,0,2:T(8,128)} convolution(%rows, %weights), window={size=2}, dim_labels=b0f_0io->bf0
  ROOT %out = f32[128,64]{1,0:T(8,128)} bitcast(%product)
}

%body (state.2: (f32[128,64], u32[])) -> (f32[128,64], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %state.2 = (f32[128,64]{1,0:T(8,128)}, u32[]{:T(128)}) parameter(0)
  %counter.2 = u32[]{:T(128)} get-tuple-element(%state.2), index=1
  %next = u32[]{:T(128)} add(%counter.2, %two)
  %rows.2 = bf16[128,2,32]{2,1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %weights.2 = bf16[2,32,64]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %out.2 = f32[128,64]{1,0:T(8,128)} fusion(%rows.2, %weights.2), kind=kOutput, calls=%multiplied
  ROOT %both = (f32[128,64]{1,0:T(8,128)}, u32[]{:T(128)}) tuple(%out.2, %next)
}

ENTRY %main (part.3: bf16[1,32,64], out.3: f32[128,64]) -> (f32[128,64], u32[]) {
  %zero = u32[]{:T(128)} constant(0)
  %part.3 = bf16[1,32,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %out.3 = f32[128,64]{1,0:T(8,128)} parameter(1)
  %begun = (bf16[1,32,64]{2,1,0:T(8,128)(2,1)}, bf16[1,256,64]{2,1,0:T(8,128)(2,1)}) fusion(%part.3), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%started
  %begin = (f32[128,64]{1,0:T(8,128)}, u32[]{:T(128)}) tuple(%out.3, %zero)
  ROOT %loop = (f32[128,64]{1,0:T(8,128)}, u32[]{:T(128)}) while(%begin), condition=%condition, body=%body
}
"""


def test_the_tpu_compiler_s_text():
    costs = count(parse(TPU_LOOP))
    # Up to 8 by twos: four runs, each a product over 2 x 32.
    assert costs.flops == costs.bfloat16_flops == 4 * 2 * 128 * 64 * 64
    # One collective, though it is written where it starts and in what runs beside it; among 8 of the 16 devices.
    assert (costs.collectives["all-gather"].count, costs.collectives["all-gather"].bytes) == (1, 8 * 32 * 64 * 2)
    # Rows lie on the chip. The weights are read and the product is written in each run, and the counter, 12 bytes;
    # what was gathered is written once.
    assert costs.bytes == 4 * (2 * 2 * 32 * 64 + 4 * 128 * 64 + 12) + 2 * 256 * 64


def test_an_operand_that_is_several_outputs_is_passed_over_once():
    """What a collective under way fills is handed through a fusion as two of its outputs; the fusion reads the rest."""
    text = """HloModule passed

%beside (under_way: bf16[256,64], rows: bf16[8,64]) -> (bf16[256,64], bf16[256,64], bf16[8,64]) {
  %under_way = bf16[256,64]{1,0} parameter(0)
  %rows = bf16[8,64]{1,0} parameter(1)
  %doubled = bf16[8,64]{1,0} add(%rows, %rows)
  ROOT %three = (bf16[256,64]{1,0}, bf16[256,64]{1,0}, bf16[8,64]{1,0}) tuple(%under_way, %under_way, %doubled)
}

ENTRY %main (under_way.1: bf16[256,64], rows.1: bf16[8,64]) -> (bf16[256,64], bf16[256,64], bf16[8,64]) {
  %under_way.1 = bf16[256,64]{1,0} parameter(0)
  %rows.1 = bf16[8,64]{1,0} parameter(1)
  ROOT %passed = (bf16[256,64]{1,0}, bf16[256,64]{1,0}, bf16[8,64]{1,0}) fusion(%under_way.1, %rows.1), kind=kOutput, \
output_to_operand_aliasing={{0}: (0, {}), {1}: (0, {})}, calls=%beside
}
"""
    assert count(parse(text)).bytes == 2 * 2 * 8 * 64


def test_float32_takes_six_passes_and_a_mixed_product_three():
    text = TPU_LOOP.replace("dim_labels=b0f_0io->bf0", "dim_labels=b0f_0io->bf0, operand_precision={highest,highest}")
    mixed = text.replace("%rows = bf16", "%rows = f32")
    both = mixed.replace("%weights = bf16", "%weights = f32")
    ratios = [count(parse(one)).bfloat16_flops / count(parse(one)).flops for one in (text, mixed, both)]
    assert ratios == [1, 3, 6]


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=8,'axis_1'=2] {'axis_0','axis_1'}", 16),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", 4),
    ],
)
def test_every_spelling_of_groups(groups, members):
    instruction = parse_instruction("x", f"f32[8]{{0}} all-reduce(%y), replica_groups={groups}, to_apply=%add", True)
    assert group_size(instruction) == members


def test_padding_and_holes_are_not_multiplied():
    # Three taps over five inputs padded by one: the first and last output meet two inputs.
    assert valid_positions(5, 3, 5, stride=1, padding=1, base_dilation=1, window_dilation=1) == 13
    # A batch of four as a window: each output meets its own input alone.
    assert valid_positions(4, 4, 4, stride=3, padding=0, base_dilation=4, window_dilation=1) == 4
