"""Jobs of toy models, and their programs compiled for the CPU devices of the tests."""

from dataclasses import replace
from typing import Any

from jaxalign.model.config import ModelConfig
from jaxalign.planning.chips import Job
from jaxalign.planning.compile import lower
from jaxalign.planning.hlo import Costs, count, parse
from tests.defaults import base_lora, base_optimizer, base_step
from tests.training.tiny_runs import mesh_of

TOY = ModelConfig(
    family="llama",
    vocab_size=96,
    width=64,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_dim=160,
    norm_eps=1e-6,
    query_scale=0.25,
    rope_base=1e4,
    tied_head=False,
)


def toy_job(**changes: Any) -> Job:
    """A training step of 8 rows x 32 positions; the keys of `architecture` may be changed by their own names."""
    job = Job(
        architecture=TOY,
        topology="v5e:2x4",
        mesh=(1, 8, 1),
        rows=8,
        length=32,
        dtype="float32",
        param_dtype="float32",
        lora=base_lora(4, 8.0),
        remat="none",
        optimizer=base_optimizer(),
        step=base_step(loss_chunk=64),
    )
    return replace(job, **changes)


def costs_on_cpu(job: Job) -> Costs:
    """What the job's program does on each of data * fsdp * tensor CPU devices."""
    return count(parse(lower(job, mesh_of(*job.mesh)).lowered.compile().as_text()))
