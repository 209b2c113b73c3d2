"""A tiny model trained for twenty steps on a mesh, in this process or in several that jax.distributed joins.

As a program, `python -m tests.training.cluster JOBS`, it is one of several processes. JOBS is a JSON list of the
arguments of `train_job` or `read_job`, done one after the other; the environment says which process it is.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign import runtime
from jaxalign.data.batches import heldout_plan
from jaxalign.errors import Preempted
from jaxalign.model.config import ModelConfig
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import Index, Leaf, load_params, place_on
from jaxalign.training.loop import Hook, RunFolder, TrainConfig, run_training
from tests.defaults import base_layout, base_loop, base_optimizer, base_retention, base_step
from tests.training.tiny_runs import LORA, mesh_of, random_pairs, tiny_plan

STEPS = 20
CONFIG = ModelConfig(
    family="llama",
    vocab_size=64,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    norm_eps=1e-6,
    query_scale=8**-0.5,
    rope_base=10_000.0,
    tied_head=False,
)

ADAPTERS = {"adapter": LORA, "dora": replace(LORA, dora=True)}
"""What `tune` trains; anything else: all parameters."""


@cache
def base_params() -> Any:
    """The model's parameters, NumPy, the same in every process."""
    one = jnp.ones((1, 1), jnp.int32)
    return jax.device_get(Decoder(CONFIG).init(jax.random.key(0), one, one, one)["params"])


def train_job(
    run: str,
    shape: Sequence[int],
    tune: str = "adapter",
    checkpoint_every: int = 4,
    send: str = "",
    to: int = 0,
    at: int = 0,
    hooks: Sequence[Hook] = (),
) -> dict[str, Any]:
    """Twenty steps on the first devices as a mesh; before step `at + 1` process `to` sends itself the signal `send`."""
    mesh = mesh_of(*shape)
    row_multiple = mesh.shape["data"] * mesh.shape["fsdp"]

    def hook(step: int, collections: Any) -> dict[str, float]:
        if send and step == at and jax.process_index() == to:
            os.kill(os.getpid(), signal.Signals[send])
        return {}

    return run_training(
        Decoder(CONFIG, ADAPTERS.get(tune)),
        base_params(),
        tiny_plan(STEPS, accumulation=2, row_multiple=row_multiple),
        heldout_plan(random_pairs(20, seed=9), base_layout(8, row_multiple=row_multiple)),
        TrainConfig(
            base_optimizer(learning_rate=1e-3 if tune == "all" else 1e-2),
            base_step(accumulation=2),
            base_loop(log_every=1, heldout_every=1, checkpoint_every=checkpoint_every, watch_every=1),
            base_retention(),
            seed=0,
        ),
        RunFolder(Path(run), {"config": {"model": "tiny"}}, {"model": "tiny"}),
        mesh,
        hooks=[hook, *hooks],
    )


def read_job(folder: str, shape: Sequence[int], order: Sequence[int]) -> None:
    """Reads a model folder onto a mesh of the devices in this order.

    `FOLDER/read_PROCESS.json` says how many numbers of which leaf were read.
    """
    numbers: dict[str, int] = {}
    mesh = Mesh(np.array(jax.devices())[list(order)].reshape(shape), mesh_of(*shape).axis_names)

    def place(leaf: Leaf) -> Any:
        def read(index: Index) -> np.ndarray:
            part = leaf.read(index)
            numbers[leaf.path] = numbers.get(leaf.path, 0) + part.size
            return part

        return place_on(mesh)(replace(leaf, read=read))

    params = load_params(Path(folder), CONFIG, jnp.float32, place)
    for array, whole in zip(*map(jax.tree.leaves, (params, base_params())), strict=True):
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
    (Path(folder) / f"read_{jax.process_index()}.json").write_text(json.dumps(numbers))


def main(jobs: list[dict[str, Any]]) -> int:
    # Losses are noticed sooner than where networks are slow.
    runtime.HEARTBEAT_SECONDS = runtime.SHUTDOWN_SECONDS = 10
    runtime.start()
    try:
        for job in jobs:
            (read_job if "folder" in job else train_job)(**job)
    except Preempted:
        return 75
    return 0


if __name__ == "__main__":
    raise SystemExit(main(json.loads(sys.argv[1])))
