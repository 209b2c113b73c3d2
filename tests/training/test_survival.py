"""What a run survives: losses that are not finite, damage on disk, a notice to stop; and which checkpoints it keeps."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxalign.data.batches import Batch, BatchLayout, TokenisedPairs, training_plan
from jaxalign.errors import InputError, Preempted
from jaxalign.training.checkpoint import Kept, open_checkpoints, read_trained, start
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.step import StepConfig, place_batch
from tests.training.tiny_runs import random_adapter, random_pairs, tiny_plan, tiny_run
from tests.training.whole_runs import (
    MODEL,
    PLAN,
    STEPS,
    assert_equal_bits,
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


RARE_PLAN = training_plan(pairs_with_a_rare_id(), BatchLayout(16, accumulation=2), epochs=1, steps=STEPS, seed=5)
SKIP = StepConfig(accumulation=2, nonfinite="skip", loss_chunk=16)
BAD_STEPS = [step + 1 for step, rows in enumerate(RARE_PLAN.rows) if any(RARE_PAIR in row for row in rows)]


def broken_params() -> Any:
    broken = jax.tree.map(np.copy, MODEL.params)
    broken["embed_tokens"]["embedding"][RARE] = np.nan
    return broken


def kept_steps(run: Path) -> list[int]:
    with open_checkpoints(run, create=False) as checkpoints:
        return list(checkpoints.all_steps())


def test_a_loss_that_is_not_finite_stops_the_run_with_its_rows_on_disk(tmp_path, capsys):
    bad = BAD_STEPS[0]
    assert 1 < bad < STEPS
    settings: dict[str, Any] = {"plan": RARE_PLAN, "held_out": None, "loop_config": LoopConfig(1, 9, 9, 9)}
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
    broken = tiny_run(MODEL, RARE_PLAN, OptimizerConfig())
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
        step_config=SKIP,
        initial_adapter=random_adapter(MODEL.config),
    )
    rows = metrics(run)
    assert [row["skipped"] for row in rows] == [sum(bad <= step for bad in BAD_STEPS) for step in range(1, STEPS + 1)]
    assert len(BAD_STEPS) > 1 and rows[-1]["skipped"] == len(BAD_STEPS)
    assert f"({len(BAD_STEPS)} so far)" in capsys.readouterr().err

    # The same updates without those of the bad steps.
    by_hand = tiny_run(MODEL, RARE_PLAN, OptimizerConfig(learning_rate=1e-2), step_config=SKIP)
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
        tiny_training(
            tmp_path, params=broken_params(), plan=RARE_PLAN, step_config=SKIP, hooks=[notice_at(BAD_STEPS[0])]
        )
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
        "kept": Kept(last=2, best=2),
        "loop_config": LoopConfig(1, heldout_every=1, checkpoint_every=1, watch_every=1),
        "held_out": None,
        "hooks": [lambda step, collections: {"heldout_loss": heights[step]}],
    }

    with pytest.raises(Preempted):
        tiny_training(run, **settings | {"hooks": [*settings["hooks"], notice_at(5)]})
    assert kept_steps(run) == [2, 4, 5, 6]
    tiny_training(run, **settings)
    assert kept_steps(run) == [2, 4, 8, 9]


@pytest.mark.parametrize("wrong", [{"last": 0}, {"best": -1}])
def test_impossible_numbers_of_checkpoints_are_refused(wrong):
    with pytest.raises(InputError, match="keep_"):
        Kept(**wrong)


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Any]:
    """(run folder, trained adapters) of an undisturbed run; its checkpoints are 8 and 9."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, tiny_training(run)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


DAMAGE: dict[str, Callable[[Path], None]] = {"truncated": cut_off, "missing": Path.unlink, "garbage": garble}


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def largest_file(checkpoint: Path) -> Path:
    return max(files_of(checkpoint), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before(tmp_path, finished, damage, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    DAMAGE[damage](largest_file(run / "checkpoints" / "9" / "trainable"))
    trained = tiny_training(run)
    said = capsys.readouterr().err
    assert "warning: " in said and f"{run / 'checkpoints' / '9'} is damaged" in said
    assert (run / "damaged" / "9" / "record").is_dir() and kept_steps(run) == [8, 9]
    assert_equal_bits(trained, finished[1])
    assert timeless(metrics(run)) == timeless(metrics(finished[0]))


def caused(error: Exception, cause: Exception) -> Exception:
    """An error as `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
        PermissionError(13, "Permission denied"),
        ConnectionResetError(104, "Connection reset by peer"),
        ValueError("UNAVAILABLE: Error reading gs://bucket/run: 503"),
        ValueError("One of device_put args was given a sharding whose sizes do not divide it"),
        caused(Exception("Encountered error while reading array index"), ValueError("PERMISSION_DENIED: 403")),
    ],
)
def test_errors_that_say_nothing_against_a_checkpoint_end_the_run(tmp_path, finished, monkeypatch, error):
    def fail(*_: Any, **__: Any):
        raise error

    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
        for read in (tiny_training, read_trained):
            with pytest.raises(type(error)) as caught:
                read(run)
            assert caught.value is error
    assert kept_steps(run) == [8, 9] and not (run / "damaged").exists()
    assert_equal_bits(tiny_training(run), finished[1])


@pytest.mark.parametrize("damage", [*DAMAGE, "another's"])
def test_damaged_parameters_are_not_read(tmp_path, finished, damage):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    assert_equal_bits(read_trained(run).collections, finished[1])
    trainable = run / "checkpoints" / "9" / "trainable"
    if damage in DAMAGE:
        DAMAGE[damage](largest_file(trainable))
    else:
        # Whole files with other numbers in them, which only their digest tells.
        shutil.rmtree(trainable)
        shutil.copytree(run / "checkpoints" / "8" / "trainable", trainable)
    with pytest.raises(InputError, match=r"checkpoints/9 is damaged \(.*\); start the run again"):
        read_trained(run)
    # That advice helps.
    tiny_training(run)
    assert_equal_bits(read_trained(run).collections, finished[1])


@pytest.mark.slow
def test_no_damage_to_any_file_goes_unnoticed_or_ends_a_run(tmp_path, finished):
    """Each file of the newest checkpoint, damaged in each way: the state is the saved one, or the one before it; the
    parameters alone are the saved ones, or refused."""
    run, _ = finished
    like = tiny_run(MODEL, PLAN, OptimizerConfig(learning_rate=1e-2)).state
    fingerprint = read_trained(run).record.fingerprint

    def state_in(folder: Path) -> tuple[int, Any]:
        with open_checkpoints(folder, create=True) as checkpoints:
            step, state, _ = start(checkpoints, None, like, fingerprint)
            return step, jax.device_get((state.trainable, state.opt_state))

    saved = {9: state_in(run)[1]}
    shutil.copytree(run, tmp_path / "before")
    shutil.rmtree(tmp_path / "before" / "checkpoints" / "9")
    saved[8] = state_in(tmp_path / "before")[1]
    begun_with = {}
    for file in files_of(run / "checkpoints" / "9"):
        for name, damage in DAMAGE.items():
            copy = tmp_path / "copy"
            shutil.copytree(run, copy)
            damage(copy / file.relative_to(run))
            try:
                assert_equal_bits(read_trained(copy).collections, finished[1])
            except InputError as refusal:
                assert "checkpoints/9 is damaged" in str(refusal)
            step, state = state_in(copy)
            assert_equal_bits(state, saved[step])
            begun_with[name, str(file.relative_to(run / "checkpoints" / "9"))] = step
            shutil.rmtree(copy)
    assert set(begun_with.values()) == {8, 9}
    # What ranks a checkpoint may be lost; what it holds may not.
    assert begun_with["garbage", "metrics/metrics"] == 9
    assert {begun_with[damage, "record/metadata"] for damage in DAMAGE} == {8}


def test_all_checkpoints_damaged_is_a_fresh_start(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    for step in (8, 9):
        cut_off(largest_file(run / "checkpoints" / str(step) / "optimizer"))
    assert_equal_bits(tiny_training(run), finished[1])


def test_a_damaged_named_run_is_refused(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    garble(largest_file(run / "checkpoints" / "9" / "trainable"))
    with pytest.raises(InputError, match=r"run: checkpoint 9 is damaged"):
        tiny_training(tmp_path / "next", resume=run)
    assert (run / "checkpoints" / "9").is_dir()
