"""Whole runs of the training loop on a tiny model, for the tests of what a run leaves and survives."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jaxalign.data.batches import BatchPlan, heldout_plan
from jaxalign.files import AnyPath
from jaxalign.model.transformer import Decoder
from jaxalign.training.checkpoint import open_checkpoints
from jaxalign.training.loop import Hook, RunFolder, TrainConfig, run_training
from tests.defaults import base_layout, base_loop, base_optimizer, base_retention, base_step
from tests.model.tiny_models import tiny_case
from tests.training.tiny_runs import LORA, mesh_of, random_pairs, tiny_plan

STEPS = 9
MODEL = tiny_case("llama_gqa_llama3_rope")
PLAN = tiny_plan(STEPS, accumulation=2, row_multiple=4)
HELD_OUT = heldout_plan(random_pairs(20, seed=9), base_layout(8, row_multiple=4))
CONFIG = TrainConfig(
    base_optimizer(learning_rate=1e-2),
    base_step(accumulation=2),
    base_loop(log_every=1, heldout_every=1, checkpoint_every=2, watch_every=1),
    base_retention(),
    seed=0,
)


class Interruption(Exception):
    """Stands for whatever ends a process."""


def tiny_training(
    run: AnyPath,
    decoder: Decoder = Decoder(MODEL.config, LORA),  # noqa: B008 - frozen
    params: Any = MODEL.params,
    plan: BatchPlan = PLAN,
    held_out: BatchPlan | None = HELD_OUT,
    fingerprint: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
    initial_adapter: Any = None,
    hooks: Sequence[Hook] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Nine steps on the tiny Llama: evaluation every step, a checkpoint every second one."""
    folder = RunFolder(run, {"config": {"model": "tiny", "seed": 0}}, fingerprint or {"model": "tiny"})
    config = replace(CONFIG, **settings)
    trained = run_training(decoder, params, plan, held_out, config, folder, mesh or mesh_of(), initial_adapter, hooks)
    return jax.device_get(trained)


def interrupt_at(stop: int):
    """A hook that ends the run at a step, and else reports the step's square."""

    def hook(step: int, collections: Any) -> dict[str, float]:
        if step == stop:
            raise Interruption
        return {"square": float(step**2)}

    return hook


def metrics(run: AnyPath) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_equal_bits(tree: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def end_state(run: AnyPath) -> tuple[int, Any]:
    """The newest checkpoint: its step, and parameters and optimizer state as NumPy arrays."""
    with open_checkpoints(run) as checkpoints:
        step = checkpoints.latest_step()
        assert step is not None
        folder, reader = checkpoints.directory / str(step), ocp.StandardCheckpointHandler()
        arrays = [reader.restore(folder / item) for item in ("trainable", "optimizer")]
    return step, jax.tree.map(np.asarray, arrays)


def assert_same_run(run: AnyPath, undisturbed: AnyPath) -> None:
    """Both end with the same bits, and have the same metrics."""
    step, state = end_state(run)
    expected_step, expected = end_state(undisturbed)
    assert step == expected_step
    assert len(jax.tree.leaves(state)) > 12
    assert_equal_bits(state, expected)
    assert timeless(metrics(run)) == timeless(metrics(undisturbed))


def kept_steps(run: Path) -> list[int]:
    with open_checkpoints(run) as checkpoints:
        return list(checkpoints.all_steps())
