"""The search with a compiler that is played: what it compiles, how often, and what it returns."""

from dataclasses import replace
from typing import Any

import pytest

from jaxalign.model import architectures
from jaxalign.planning.chips import GIB, Job
from jaxalign.planning.plan import COMPILATIONS, candidates, estimate, meshes, search
from tests.defaults import base_step
from tests.planning.test_plan import facts_with
from tests.planning.toy import toy_job

LIMIT = int(0.95 * 15.75 * GIB)


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
