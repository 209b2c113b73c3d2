"""Slices by name and their rates; plans from facts that are made up; the search, with a compiler that is played."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from jaxalign.errors import InputError
from jaxalign.model import architectures
from jaxalign.planning.chips import CHIPS, GIB, Job, from_json, parse_slice
from jaxalign.planning.hlo import COLLECTIVES
from jaxalign.planning.plan import (
    COMPILATIONS,
    advice,
    candidates,
    changes,
    estimate,
    lines,
    make_plan,
    meshes,
    refused_peak,
    search,
    smallest_that_fits,
    table,
)
from tests.defaults import base_step
from tests.planning.toy import TOY, toy_job


def test_a_slice_is_its_chips():
    pod = parse_slice("v5e:16x16")
    assert (pod.chips, pod.devices, pod.chip.capacity) == (256, 256, int(15.75 * GIB))
    # A 7x chip is two devices, with half the chip's rates each.
    small = parse_slice("tpu7x:2x2x1")
    assert (small.chips, small.devices, small.flops) == (4, 8, 2307e12 / 2)
    assert small.vector == 4096 * 2.2e9


@pytest.mark.parametrize(("chip", "cores", "units", "side"), [("v5e", 1, 4, 128), ("v5p", 2, 4, 128)])
def test_the_vector_unit_runs_at_the_clock_of_the_matrix_units(chip: str, cores: int, units: int, side: int):
    """A matrix unit multiplies and adds side x side numbers a cycle; a vector unit has 4096 ALUs."""
    clock = CHIPS[chip].flops / (cores * units * side**2 * 2)
    assert CHIPS[chip].vector == pytest.approx(cores * 4096 * clock, rel=0.01)


def test_links_that_a_slice_uses():
    """50 GB/s one way a link of v5e: two a chip on an axis of 16, which is a ring; one on a shorter axis; none on 1."""
    assert parse_slice("v5e:16x16").ici == 200e9
    assert parse_slice("v5e:4x4").ici == 100e9
    assert parse_slice("v5e:1x1").ici == 0
    assert parse_slice("v5p:4x4x4").ici == 600e9


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:4x4x4", "v5e:0x4", "v5e:4by4"])
def test_what_names_no_slice_is_refused(name):
    with pytest.raises(InputError, match=r"--config\.topology"):
        parse_slice(name)


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


LIMIT = int(0.95 * CAPACITY)


def mistral_job(**changes: Any) -> Job:
    mistral = architectures.read("mistral-7b-v0.1")
    job = toy_job(architecture=mistral, topology="v5e:2x4", mesh=(1, 8, 1), rows=16, length=1024, dtype="bfloat16")
    return replace(job, param_dtype="bfloat16", **changes)


def compiler(share: float, asked: list[Job]):
    """Says that a program takes so much of what is estimated."""

    def facts_of(job: Job) -> dict[str, Any]:
        asked.append(job)
        return facts_with(int(share * estimate(job).memory))

    return facts_of


def test_it_compiles_three_at_most_and_returns_one_that_fits():
    asked: list[Job] = []
    best, facts = search(mistral_job(), compiler(1.0, asked))
    assert best in asked and len(set(asked)) == len(asked) <= COMPILATIONS
    assert facts["memory"]["temp"] <= LIMIT
    assert all(estimate(job).memory <= LIMIT for job in asked)


def test_a_larger_program_than_estimated_makes_the_others_larger_too():
    asked: list[Job] = []
    _, facts = search(mistral_job(), compiler(1.5, asked))
    assert estimate(asked[1]).memory * 1.5 <= LIMIT * 1.01
    assert facts["memory"]["temp"] <= LIMIT


def test_where_nothing_fits_the_smallest_is_returned():
    asked: list[Job] = []
    job = replace(mistral_job(topology="v5e:1x1"), param_dtype="float32")
    best, facts = search(job, compiler(1.0, asked))
    assert len(asked) == 1 and facts["memory"]["temp"] > LIMIT
    assert estimate(best).memory == min(candidate.estimate.memory for candidate in candidates(job))


def test_meshes_use_every_device_and_cut_no_head():
    assert set(meshes(8, 2)) == {(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2)}


def test_where_weights_are_dequantised_more_rows_at_once_are_faster():
    """Once for all rows of a device: of few rows it is what bounds, of many the products are."""
    job = replace(
        mistral_job(), topology="v6e:2x4", mesh=(8, 1, 1), length=512, remat="full", step=base_step(loss_chunk=256)
    )

    def speed(rows_of_a_device: int, stored: str) -> float:
        return estimate(replace(job, rows=8 * rows_of_a_device, param_dtype=stored)).tokens_per_second

    assert speed(2, "nf4") == pytest.approx(2 * speed(1, "nf4"))
    assert speed(1, "nf4") < 0.5 * speed(1, "bfloat16")
    assert speed(8, "nf4") == speed(8, "bfloat16") == speed(1, "bfloat16")


def test_of_batches_that_are_estimated_alike_the_largest_that_fits_is_tried_first():
    """The estimate knows no memory traffic, in which a larger batch is ahead."""
    asked: list[Job] = []
    search(mistral_job(), compiler(1.0, asked))
    first = estimate(asked[0])
    alike = [
        one.job.rows * one.job.length
        for one in candidates(mistral_job())
        if round(one.estimate.tokens_per_second) == round(first.tokens_per_second) and one.estimate.memory <= LIMIT
    ]
    assert min(alike) < asked[0].rows * asked[0].length == max(alike)
