"""Plans from facts that are made up: what counts as a fit, times, advice, and the table."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from jaxalign.errors import InputError
from jaxalign.model import architectures
from jaxalign.planning.chips import GIB, from_json
from jaxalign.planning.hlo import COLLECTIVES
from jaxalign.planning.plan import advice, changes, lines, make_plan, refused_peak, smallest_that_fits, table
from tests.defaults import base_step
from tests.planning.toy import TOY, toy_job

CAPACITY = int(15.75 * GIB)


def facts_with(temporaries: int) -> dict[str, Any]:
    """Of a program that takes 1000 bytes of arguments, 200 of itself, and so many temporaries."""
    none = {kind: {"count": 0, "bytes": 0, "sent": 0} for kind in COLLECTIVES}
    return {
        "mesh": [1, 8, 1],
        "arguments": {"parameters": 600, "adapters": 100, "optimizer": 200, "batch": 100},
        "compile_seconds": 1.0,
        "memory": {"argument": 1000, "output": 300, "alias": 300, "temp": temporaries, "generated_code": 200},
        "costs": {
            "flops": 1e12,
            "bfloat16_flops": 197e9,
            "bytes": 819_000_000 * 2,
            "collectives": none | {"all-gather": {"count": 3, "bytes": 400, "sent": 75_000_000 * 4}},
        },
    }


def test_nothing_beyond_95_percent_is_called_a_fit():
    limit = int(0.95 * CAPACITY)
    at_the_limit = make_plan(toy_job(), "toy", facts_with(limit - 1200))
    above = make_plan(toy_job(), "toy", facts_with(limit - 1199))
    assert at_the_limit["fits"] and at_the_limit["memory"]["peak"] == limit
    assert not above["fits"] and above["memory"]["over"] == 1


def test_times_are_costs_over_rates():
    """1 ms of products, 2 ms of memory, 3 ms of links: v5e:2x4 has two axes that are no rings, 100 GB/s."""
    step = make_plan(toy_job(), "toy", facts_with(0))["step"]
    expected = {"compute": 0.001, "vector": 0, "memory": 0.002, "interconnect": 0.003}
    assert step["seconds"] == pytest.approx(expected | {"roofline": 0.003, "serial": 0.006})
    assert step["bound"] == "interconnect"
    assert step["tokens_per_second"] == pytest.approx(8 * 32 / 0.003)


def test_storages_are_ranked_with_what_it_takes_to_dequantise_them():
    """Mistral-7B on v6e, a row on each chip: all else alike, the form of most work is the slowest."""
    mistral = architectures.read("mistral-7b-v0.1")
    step = base_step(rows_at_once=1, loss_chunk=256)
    job = toy_job(architecture=mistral, topology="v6e:2x4", length=512, dtype="bfloat16", step=step)
    plans = {
        stored: make_plan(replace(job, param_dtype=stored), "mistral", facts_with(0))
        for stored in ("nf4", "int8", "bfloat16")
    }
    seconds = {stored: plan["step"]["seconds"] for stored, plan in plans.items()}
    assert seconds["nf4"]["roofline"] > seconds["int8"]["roofline"] > seconds["bfloat16"]["roofline"]
    assert plans["nf4"]["step"]["bound"] == "vector" and seconds["bfloat16"]["vector"] == 0
    assert plans["nf4"]["vector_operations"] == seconds["nf4"]["vector"] * 4096 * 1.75e9
    assert "vector unit" in "\n".join(lines(plans["nf4"]))


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("the total memory required for HLO temporaries (18.09G) exceeds available HBM (15.75G).", 18.09),
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.", 20.5),
    ],
)
def test_a_refusal_says_how_much_was_needed(said, size):
    assert refused_peak(f"RESOURCE_EXHAUSTED: {said}") == int(size * GIB)
    facts = facts_with(0) | {"refused": said}
    del facts["memory"], facts["costs"]
    plan = make_plan(toy_job(), "toy", facts)
    assert not plan["fits"] and "step" not in plan
    assert f"does not fit: peak {size:.2f} GiB" in "\n".join(lines(plan))


def test_another_refusal_is_passed_on():
    with pytest.raises(InputError, match="of some other kind"):
        refused_peak("RESOURCE_EXHAUSTED: of some other kind")


def test_advice_names_keys_by_what_they_save():
    mistral = architectures.read("mistral-7b-v0.1")
    job = toy_job(architecture=mistral, topology="v5e:1x1", mesh=(1, 1, 1), rows=4, length=2048)
    said = advice(replace(job, dtype="bfloat16"))
    # 184 kB a position and layer, 8,192 x 32 of them; of 27 GiB of float32 weights 4 bits leave about an eighth.
    assert said[0].startswith("--config.remat=full saves about 45")
    assert any(one.startswith("--config.param_dtype=nf4 saves about 2") for one in said)
    assert any(one.startswith("--config.batch.rows_at_once=1 saves") for one in said)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (1, 7, 1), (1, 9, 2), (4, 3, 1), (2, 2, 2)])
def test_advice_names_meshes_of_as_many_devices(mesh):
    devices = math.prod(mesh)
    job = toy_job(topology={7: "v5e:1x7", 8: "v5e:2x4", 12: "v5e:3x4", 18: "v5e:3x6"}[devices], mesh=mesh)
    assert {math.prod(other.mesh) for _, other in changes(job)} == {devices}


def test_the_smallest_slice_is_the_one_of_fewest_chips():
    def plan(topology: str, temporaries: int) -> dict[str, Any]:
        return make_plan(toy_job(topology=topology), "toy", facts_with(temporaries))

    plans = [plan("v5e:4x4", 0), plan("v5e:2x4", 16 * GIB), plan("v6e:2x4", 16 * GIB)]
    assert smallest_that_fits(plans) == "v6e:2x4"
    assert smallest_that_fits(plans[1:2]) is None
    of_as_many_chips = [plan("v6e:2x4", 0), plan("v5e:2x4", 0)]
    assert smallest_that_fits(of_as_many_chips) == "v5e:2x4"  # a chip of half the memory
    assert [line.count("|") for line in table(plans)] == [10] * 5


def test_a_job_survives_json():
    job = toy_job(architecture=replace(TOY, local_layers=(True, False, True, False), window=8))
    llama = toy_job(architecture=architectures.read("llama-3.1-8b"), lora=None)
    for one in (job, llama):
        assert from_json(json.loads(json.dumps(asdict(one)))) == one
