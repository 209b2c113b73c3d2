"""What is compiled: the arguments by kind, and the programs of scoring and lens."""

from dataclasses import replace

import jax
import pytest

from jaxalign.errors import InputError
from jaxalign.planning import flops
from jaxalign.planning.compile import PREFIX, bytes_per_device, lower
from tests.defaults import base_step
from tests.planning.toy import TOY, costs_on_cpu, toy_job
from tests.training.tiny_runs import mesh_of


def test_arguments_are_counted_by_kind():
    arguments = lower(toy_job(param_dtype="int8", dtype="bfloat16"), mesh_of(fsdp=8)).arguments
    sizes = {kind: bytes_per_device(tree) for kind, tree in arguments.items()}
    # Adapters of rank 4 on q [64, 64] and v [64, 32] in 4 layers, float32: A cut in eight, B whole.
    factors = 4 * 4 * 4 * (64 / 8 + 64 + 64 / 8 + 32)
    assert sizes["adapters"] == factors
    assert sizes["optimizer"] == 2 * factors + 2 * 4  # two moments, two counters
    assert sizes["batch"] == 32 * (4 * 4 + 1)
    codes = [leaf for leaf in jax.tree.leaves(arguments["parameters"]) if leaf.dtype.name == "int8"]
    assert sum(leaf.size for leaf in codes) == TOY.layers * flops.layer_weights(TOY)


def test_scoring_computes_rows_behind_the_prefix():
    job = toy_job(program="score", mesh=(1, 1, 1), rows=4, length=128)
    pairs = TOY.layers * 4 * 128 * (PREFIX + 128)
    expected = flops.projections(TOY, 4 * 128) + flops.attention(TOY, pairs)
    assert costs_on_cpu(job).flops == pytest.approx(expected, rel=0.01)


def test_the_lens_reads_every_layer_at_one_position_behind_the_prefix():
    job = toy_job(program="lens", mesh=(1, 1, 1), rows=4, length=64)
    expected = flops.projections(TOY, 4 * 64) + flops.attention(TOY, TOY.layers * 4 * 64 * (PREFIX + 64))
    expected += flops.logits(TOY, TOY.layers * 4)
    assert costs_on_cpu(job).flops == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("program", ["train", "score", "lens"])
def test_weights_that_are_stored_narrower_take_less(program):
    """On a CPU, too, which computes in float32: a layer is widened when its turn comes, not all of them before."""
    deep = replace(TOY, layers=24)

    def peak(param_dtype: str) -> int:
        job = toy_job(architecture=deep, program=program, param_dtype=param_dtype, rows=1, step=base_step(loss_chunk=8))
        of = lower(job, mesh_of()).lowered.compile().memory_analysis()
        return of.argument_size_in_bytes + of.temp_size_in_bytes

    weights = deep.layers * flops.layer_weights(deep)
    assert peak("float32") - peak("bfloat16") > 1.5 * weights  # of 2 bytes each


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"config\.mesh: .*choose other sizes"):
        lower(toy_job(architecture=replace(TOY, vocab_size=90)), mesh_of(tensor=8))


def test_smaller_chunks_of_the_loss_gather_nothing_more():
    """The head is gathered before the chunks, not for each of them."""
    one, many = (costs_on_cpu(toy_job(step=base_step(loss_chunk=chunk))).collectives for chunk in (32, 4))
    assert many["all-gather"] == one["all-gather"]


def test_quantised_weights_are_gathered_as_they_are_stored():
    """In codes of one byte, or of half a byte: turned into weights on each device, not before."""

    def gathered(param_dtype: str) -> int:
        job = toy_job(architecture=replace(TOY, mlp_dim=256), dtype="bfloat16", param_dtype=param_dtype, remat="full")
        return costs_on_cpu(job).collectives["all-gather"].bytes

    whole, int8, nf4 = map(gathered, ("bfloat16", "int8", "nf4"))
    assert int8 < whole / 2 and nf4 < whole / 4
