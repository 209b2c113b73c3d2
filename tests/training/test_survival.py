"""What a run survives: losses that are not finite, a notice to stop; and which checkpoints it keeps."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.data.batches import Batch, TokenisedPairs, training_plan
from jaxalign.errors import InputError, Preempted
from jaxalign.training.checkpoint import check_fingerprint, read_trained
from jaxalign.training.step import place_batch
from tests.defaults import base_layout, base_loop, base_optimizer, base_retention, base_step
from tests.training.tiny_runs import random_adapter, random_pairs, tiny_plan, tiny_run
from tests.training.whole_runs import (
    MODEL,
    STEPS,
    assert_equal_bits,
    kept_steps,
    metrics,
    timeless,
    tiny_training,
)

RARE, RARE_PAIR = 60, tiny_plan(STEPS, accumulation=2).rows[1][0][0]
"""An id that stands in one pair alone, first shown in step 2: where its embedding is NaN, the steps that show that pair
fail, and no other."""


def pairs_with_a_rare_id() -> TokenisedPairs:
    pairs = random_pairs(48)
    ids = np.where(pairs.ids == RARE, 1, pairs.ids)
    ids[pairs.starts[RARE_PAIR]] = RARE
    return TokenisedPairs(ids, pairs.starts, pairs.prompt_lengths)


RARE_PLAN = training_plan(pairs_with_a_rare_id(), base_layout(16, accumulation=2), epochs=1, steps=STEPS, seed=5)
SKIP = base_step(accumulation=2, nonfinite="skip", loss_chunk=16)
BAD_STEPS = [step + 1 for step, rows in enumerate(RARE_PLAN.rows) if any(RARE_PAIR in row for row in rows)]


def broken_params() -> Any:
    broken = jax.tree.map(np.copy, MODEL.params)
    broken["embed_tokens"]["embedding"][RARE] = np.nan
    return broken


def test_a_loss_that_is_not_finite_stops_the_run_with_its_rows_on_disk(tmp_path, capsys):
    bad = BAD_STEPS[0]
    assert 1 < bad < STEPS
    settings: dict[str, Any] = {"plan": RARE_PLAN, "held_out": None, "loop": base_loop(1, 9, 9, 9)}
    undisturbed = tiny_training(tmp_path / "undisturbed", **settings)

    run = tmp_path / "run"
    with pytest.raises(InputError, match=rf"step {bad}: the loss is nan .*nonfinite.* Lower optimizer\.learning_rate"):
        tiny_training(run, params=broken_params(), **settings)
    with np.load(run / "nonfinite" / f"{bad}.npz") as dump:
        rows = Batch(**dump)
    assert_equal_bits(rows, RARE_PLAN.rows_at(bad - 1))
    document = json.loads((run / "nonfinite" / f"{bad}.json").read_text())
    assert document["step"] == bad and document["loss"] == "nan" and document["gradient_norm"] == "nan"
    assert any(RARE_PAIR in row for row in document["pairs_in_rows"])
    # The dump replays: its loss is not finite, on the model that the run had.
    broken = tiny_run(MODEL, RARE_PLAN, base_optimizer())
    broken.frozen = {"params": broken_params()}
    total, _ = broken.eval_loss(broken.state.trainable, broken.frozen, place_batch(rows, broken.shardings.batch))
    assert np.isnan(total)

    # The newest checkpoint is the state before it: with a mended model the run goes on as if nothing had been.
    assert kept_steps(run) == [bad - 1]
    assert_equal_bits(tiny_training(run, **settings), undisturbed)
    assert [row["step"] for row in metrics(run)] == list(range(1, STEPS + 1))


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path, capsys):
    run = tmp_path / "run"
    trained = tiny_training(
        run,
        params=broken_params(),
        plan=RARE_PLAN,
        held_out=None,
        step=SKIP,
        initial_adapter=random_adapter(MODEL.config),
    )
    rows = metrics(run)
    assert [row["skipped"] for row in rows] == [sum(bad <= step for bad in BAD_STEPS) for step in range(1, STEPS + 1)]
    assert len(BAD_STEPS) > 1 and rows[-1]["skipped"] == len(BAD_STEPS)
    assert f"({len(BAD_STEPS)} so far)" in capsys.readouterr().err

    # The same updates without those of the bad steps.
    by_hand = tiny_run(MODEL, RARE_PLAN, base_optimizer(learning_rate=1e-2), step_config=SKIP)
    rates = []
    for step in range(1, STEPS + 1):
        if step not in BAD_STEPS:
            batch = place_batch(RARE_PLAN.rows_at(step - 1), by_hand.shardings.batch)
            by_hand.state, numbers = by_hand.step(by_hand.state, by_hand.frozen, batch)
            rates.append(numbers.learning_rate.item())
    assert_equal_bits(trained, jax.device_get(by_hand.state.trainable))
    assert [row["learning_rate"] for row in rows if row["step"] not in BAD_STEPS] == rates


def notice_at(step: int) -> Callable[[int, Any], dict[str, float]]:
    """A hook by which the process is told to stop after this step: the next one is its last."""

    def hook(at: int, collections: Any) -> dict[str, float]:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return hook


def test_skips_of_an_earlier_call_are_no_reason_to_stop(tmp_path):
    with pytest.raises(Preempted):
        tiny_training(tmp_path, params=broken_params(), plan=RARE_PLAN, step=SKIP, hooks=[notice_at(BAD_STEPS[0])])
    assert metrics(tmp_path)[-1]["skipped"] == 1
    before = read_trained(tmp_path).collections
    after = tiny_training(tmp_path, plan=RARE_PLAN)
    assert metrics(tmp_path)[-2]["skipped"] == 0
    assert all(np.any(new != old) for new, old in zip(*map(jax.tree.leaves, (after, before)), strict=True))


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    """Of losses that rise and fall; across an interruption, too."""
    heights = [0.0, 5.0, 1.0, 4.0, 2.0, 6.0, 3.0, 7.0, 8.0, 9.0]
    run = tmp_path / "run"
    settings: dict[str, Any] = {
        "retention": base_retention(last=2, best=2),
        "loop": base_loop(1, heldout_every=1, checkpoint_every=1, watch_every=1),
        "held_out": None,
        "hooks": [lambda step, collections: {"heldout_loss": heights[step]}],
    }

    with pytest.raises(Preempted):
        tiny_training(run, **{**settings, "hooks": [*settings["hooks"], notice_at(5)]})
    assert kept_steps(run) == [2, 4, 5, 6]
    tiny_training(run, **settings)
    assert kept_steps(run) == [2, 4, 8, 9]


@pytest.mark.parametrize("wrong", [{"last": 0}, {"best": -1}])
def test_impossible_numbers_of_checkpoints_are_refused(wrong):
    with pytest.raises(InputError, match="keep_"):
        base_retention(**wrong)


def test_a_longer_run_is_told_the_way_that_exists(copy):
    """Its learning rates would be others from the first step on."""
    longer = tiny_plan(STEPS + 3, accumulation=2, row_multiple=4)
    with pytest.raises(InputError, match=f"steps was {STEPS} and is now {STEPS + 3}") as caught:
        tiny_training(copy, plan=longer)
    said = str(caught.value)
    assert f"--config.adapter={copy} trains on" in said and f"--config.resume={copy} keeps optimizer" in said
    assert "total_steps" not in said
    # Of a plan that has become longer by itself.
    with pytest.raises(InputError, match="the number of its steps was 9 and is now 12"):
        check_fingerprint({"total_steps": 9}, {"total_steps": 12}, copy)


@pytest.mark.parametrize("name", ["run[1]", "run*", "a?/run", "a\\b", "logs:/run", "logs:"])
def test_a_place_that_orbax_takes_for_another_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no checkpoint can be written where the path has"):
        tiny_training(tmp_path / name)


@pytest.mark.parametrize("step", [5, STEPS])
def test_a_notice_to_stop_saves_first(tmp_path, finished, step):
    """SIGTERM before a step: it is done and saved, whether or not a checkpoint was due, and nothing after it."""
    notice = notice_at(step - 1)
    if step == STEPS:
        trained = tiny_training(tmp_path, hooks=[notice])
    else:
        with pytest.raises(Preempted, match=f"step {step} is saved"):
            tiny_training(tmp_path, hooks=[notice])
        assert kept_steps(tmp_path)[-1] == step
        trained = tiny_training(tmp_path)
    assert_equal_bits(trained, finished[1])
    assert timeless(metrics(tmp_path)) == timeless(metrics(finished[0]))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
