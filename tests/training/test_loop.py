import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.model.transformer import Decoder
from jaxalign.training import loop
from jaxalign.training.checkpoint import open_checkpoints, read_adapter, read_trained
from tests.defaults import base_loop, base_lora, base_optimizer, base_step
from tests.training.tiny_runs import LORA, mesh_of, random_adapter, tiny_plan
from tests.training.whole_runs import (
    MODEL,
    PLAN,
    STEPS,
    Interruption,
    assert_equal_bits,
    interrupt_at,
    metrics,
    timeless,
    tiny_training,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(run folder, trained adapters) of a run from start to end."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return run, tiny_training(run, hooks=[interrupt_at(-1)])


def test_a_run_leaves_its_records(undisturbed):
    run, trained = undisturbed
    assert json.loads((run / "run.json").read_text())["config"] == {"model": "tiny", "seed": 0}
    rows = metrics(run)
    held_out = [row for row in rows if "heldout_loss" in row]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == [0, *(step for step in range(1, STEPS + 1) for _ in ("loss", "held out"))]
    assert [row["step"] for row in held_out] == list(range(STEPS + 1))
    assert [row["square"] for row in held_out] == [float(step**2) for step in range(STEPS + 1)]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert set(steps[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens", "skipped", "seconds"}
    assert [row["tokens"] for row in steps] == [PLAN.rows_at(step).loss_mask.sum() for step in range(STEPS)]
    with open_checkpoints(run) as checkpoints:
        assert list(checkpoints.all_steps()) == [8, 9]
    lora, adapter = read_adapter(run)
    assert lora == LORA
    assert_equal_bits(adapter, trained["lora"])
    assert read_trained(run).record.config == {"model": "tiny", "seed": 0}


@pytest.mark.parametrize("stop", [1, 7, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (0, 4))])
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path, undisturbed, stop):
    """Stops before the first checkpoint, right before one is written, and between two."""
    with pytest.raises(Interruption):
        tiny_training(tmp_path, hooks=[interrupt_at(stop)])
    trained = tiny_training(tmp_path, hooks=[interrupt_at(-1)])
    assert_equal_bits(trained, undisturbed[1])
    assert timeless(metrics(tmp_path)) == timeless(metrics(undisturbed[0]))


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, undisturbed):
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.training.kill_at_step", str(tmp_path), "5"]
    killed = subprocess.run(command, cwd=repository, env=os.environ, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "checkpoints" / "6").exists()
    trained = tiny_training(tmp_path, hooks=[interrupt_at(-1)])
    assert_equal_bits(trained, undisturbed[1])
    assert [row["step"] for row in metrics(tmp_path)] == [row["step"] for row in metrics(undisturbed[0])]


def test_a_finished_run_says_so_and_does_nothing(undisturbed, capsys):
    run, trained = undisturbed
    before = (run / "metrics.jsonl").read_bytes()
    assert_equal_bits(tiny_training(run, hooks=[interrupt_at(0)]), trained)
    assert "finished" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"fingerprint": {"model": "another"}}, "model was 'tiny' and is now 'another'"),
        ({"optimizer": base_optimizer(learning_rate=2e-2)}, "optimizer.learning_rate was 0.01"),
        ({"plan": tiny_plan(STEPS, accumulation=2, packed=False)}, "batch.packed"),
        ({"decoder": Decoder(MODEL.config, base_lora(2, 8.0))}, "lora.rank was 4 and is now 2"),
        ({"step": base_step(accumulation=1)}, "batch.accumulation was 2 and is now 1"),
    ],
)
def test_another_fingerprint_is_refused(undisturbed, changes, key):
    with pytest.raises(InputError, match=key):
        tiny_training(undisturbed[0], **changes)


def test_a_named_run_is_continued_in_a_new_folder(tmp_path, undisturbed):
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(Interruption):
        tiny_training(first, hooks=[interrupt_at(5)])
    trained = tiny_training(second, resume=first)
    assert_equal_bits(trained, undisturbed[1])
    assert metrics(second)[0]["step"] == 4
    with pytest.raises(InputError, match="not a run folder"):
        tiny_training(tmp_path / "third", resume=tmp_path / "nothing")


def test_an_initial_adapter_is_the_start_and_stays_usable(tmp_path):
    start = jax.device_put(random_adapter(MODEL.config))
    # The first update of a warm-up is one of learning rate 0.
    warming = base_optimizer(learning_rate=1e-2, warmup_fraction=1.0)
    plan = tiny_plan(1, accumulation=2)
    trained = tiny_training(tmp_path, initial_adapter=start, plan=plan, optimizer=warming)
    assert_equal_bits(trained["lora"], jax.device_get(start))


@pytest.mark.parametrize("other", [base_lora(2, 8.0), base_lora(4, 8.0, ("q_proj",))])
def test_an_initial_adapter_of_another_shape_is_refused(tmp_path, other):
    with pytest.raises(InputError, match="initial adapter: no adapter of rank"):
        tiny_training(tmp_path, decoder=Decoder(MODEL.config, other), initial_adapter=random_adapter(MODEL.config))


def test_full_tuning_trains_the_parameters(tmp_path):
    trained = tiny_training(tmp_path, decoder=Decoder(MODEL.config), plan=tiny_plan(4, accumulation=2))
    assert np.any(trained["params"]["norm"]["scale"] != MODEL.params["norm"]["scale"])
    assert_equal_bits(read_trained(tmp_path).collections, trained)
    with pytest.raises(InputError, match="no adapter"):
        read_adapter(tmp_path)


def test_rows_are_written_every_so_many_steps(tmp_path):
    tiny_training(
        tmp_path,
        loop=base_loop(log_every=4, heldout_every=3, checkpoint_every=5, watch_every=2),
        hooks=[interrupt_at(-1)],
    )
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == [1, 4, 8, 9]
    assert [row["step"] for row in rows if "heldout_loss" in row] == [0, 3, 6, 9]
    assert [row["step"] for row in rows if "square" in row] == [0, 2, 4, 6, 8, 9]
    with open_checkpoints(tmp_path) as checkpoints:
        assert list(checkpoints.all_steps()) == [5, 9]


def test_steps_are_dispatched_ahead_compile_once_and_move_nothing(tmp_path, monkeypatch):
    """Step n + 1 is dispatched before the numbers of step n are read; beside its rows nothing goes to the devices."""
    events: list[tuple[str, int]] = []
    compiled: list[Any] = []
    make, write = loop.make_train_step, loop.MetricsLog.write

    def make_watched(*arguments: Any) -> Callable[..., Any]:
        train_step = make(*arguments)
        compiled.append(train_step)

        def dispatch(*inputs: Any) -> Any:
            events.append(("dispatched", len(events_of("dispatched")) + 1))
            with jax.transfer_guard("allow" if len(events) == 1 else "disallow_explicit"):  # constants come once
                return train_step(*inputs)

        return dispatch

    def events_of(kind: str) -> list[int]:
        return [step for name, step in events if name == kind]

    def write_watched(log: loop.MetricsLog, step: int, **numbers: Any) -> None:
        events.append(("read", step))
        write(log, step, **numbers)

    monkeypatch.setattr(loop, "make_train_step", make_watched)
    monkeypatch.setattr(loop.MetricsLog, "write", write_watched)
    tiny_training(tmp_path, held_out=None, loop=base_loop(log_every=1, checkpoint_every=STEPS))
    assert events_of("dispatched") == events_of("read") == list(range(1, STEPS + 1))
    for step in range(1, STEPS):
        assert events.index(("dispatched", step + 1)) < events.index(("read", step))
    (train_step,) = compiled
    assert train_step._cache_size() == 1


def test_another_mesh_continues_the_run(tmp_path, undisturbed):
    """Saved from one device, restored to four: the same run up to the order of float32 sums."""
    with pytest.raises(Interruption):
        tiny_training(tmp_path, hooks=[interrupt_at(5)])
    trained = tiny_training(tmp_path, mesh=mesh_of(1, 4, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), trained, undisturbed[1])


def test_without_held_out_batches_and_hooks_only_steps_are_logged(tmp_path):
    tiny_training(tmp_path, held_out=None)
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("key", ["log_every", "heldout_every", "checkpoint_every", "watch_every"])
def test_impossible_intervals_are_refused(key):
    with pytest.raises(InputError, match=key):
        base_loop(**{key: 0})
