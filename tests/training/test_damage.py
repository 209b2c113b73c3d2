"""Checkpoints that are damaged on disk: set aside for the one before, and never read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxalign.errors import InputError
from jaxalign.training.checkpoint import beginning, open_checkpoints, read_trained
from tests.defaults import base_optimizer, base_retention
from tests.training.tiny_runs import tiny_run
from tests.training.whole_runs import (
    MODEL,
    PLAN,
    assert_equal_bits,
    kept_steps,
    metrics,
    timeless,
    tiny_training,
)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


def flip(file: Path) -> None:
    """One bit in the middle is another."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": cut_off,
    "missing": Path.unlink,
    "garbage": garble,
    "flipped": flip,
}


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def largest_file(checkpoint: Path) -> Path:
    return max(files_of(checkpoint), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before(copy, finished, damage, capsys):
    DAMAGE[damage](largest_file(copy / "checkpoints" / "9" / "trainable"))
    trained = tiny_training(copy)
    said = capsys.readouterr().err
    assert "warning: " in said and f"{copy / 'checkpoints' / '9'} is damaged" in said
    assert (copy / "damaged" / "9" / "record").is_dir() and kept_steps(copy) == [8, 9]
    assert_equal_bits(trained, finished[1])
    assert timeless(metrics(copy)) == timeless(metrics(finished[0]))


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
def test_errors_that_say_nothing_against_a_checkpoint_end_the_run(copy, finished, monkeypatch, error):
    def fail(*_: Any, **__: Any):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
        for read in (tiny_training, read_trained):
            with pytest.raises(type(error)) as caught:
                read(copy)
            assert caught.value is error
    assert kept_steps(copy) == [8, 9] and not (copy / "damaged").exists()
    assert_equal_bits(tiny_training(copy), finished[1])


@pytest.mark.parametrize("damage", [*DAMAGE, "another's"])
def test_damaged_parameters_are_not_read(copy, finished, damage):
    assert_equal_bits(read_trained(copy).collections, finished[1])
    trainable = copy / "checkpoints" / "9" / "trainable"
    if damage in DAMAGE:
        DAMAGE[damage](largest_file(trainable))
    else:
        # Whole files with other numbers in them, which only their digest tells.
        shutil.rmtree(trainable)
        shutil.copytree(copy / "checkpoints" / "8" / "trainable", trainable)
    with pytest.raises(InputError, match=r"checkpoints/9 is damaged \(.*\); start the run again"):
        read_trained(copy)
    # That advice helps.
    tiny_training(copy)
    assert_equal_bits(read_trained(copy).collections, finished[1])


def write(content: bytes) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.write_bytes(content)

    return damage


def rename_key(file: Path) -> None:
    """One letter of the first key is another, as of a bit that has flipped."""
    text = file.read_bytes()
    start = text.index(b'"') + 1
    file.write_bytes(text[:start] + bytes([text[start] ^ 1]) + text[start + 1 :])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("trainable/_METADATA", Path.unlink),
        ("trainable/_METADATA", write(b"{}")),
        ("trainable/_METADATA", rename_key),
        ("trainable/_sharding", cut_off),
        ("trainable/array_metadatas/process_0", write(b"[1]")),
        ("optimizer/array_metadatas/process_0", write(b"null")),
        ("optimizer/_METADATA", write(b'"x"')),
        ("record/metadata", rename_key),
    ],
)
def test_damaged_metadata_is_told_alike_by_all_who_read_it(copy, finished, capsys, file, damage):
    """Whoever evaluates or exports reads what is whole, or is told to start the run again, which then helps."""
    damage(copy / "checkpoints" / "9" / file)
    try:
        assert_equal_bits(read_trained(copy).collections, finished[1])
    except InputError as refusal:
        assert "checkpoints/9 is damaged" in str(refusal) and "start the run again" in str(refusal)
    assert_equal_bits(tiny_training(copy), finished[1])
    assert "warning: " in capsys.readouterr().err and (copy / "damaged" / "9").is_dir()
    assert_equal_bits(read_trained(copy).collections, finished[1])


def test_a_record_with_another_alpha_is_damaged(copy, finished):
    file = copy / "checkpoints" / "9" / "record" / "metadata"
    record = json.loads(file.read_text())
    record["lora"]["alpha"] *= 2
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"checkpoints/9 is damaged \(its record is not the one that was saved"):
        read_trained(copy)
    assert_equal_bits(tiny_training(copy), finished[1])


def test_a_damaged_date_is_named(copy, finished):
    file = copy / "checkpoints" / "9" / "_CHECKPOINT_METADATA"
    file.write_text("[1]")
    for read in (read_trained, tiny_training):
        with pytest.raises(InputError, match=f"{file}: damaged; delete this file"):
            read(copy)
    file.unlink()
    assert_equal_bits(tiny_training(copy), finished[1])


@pytest.mark.slow
def test_no_damage_to_any_file_goes_unnoticed_or_ends_a_run(tmp_path, finished):
    """Each file of the newest checkpoint, damaged in each way: the state is the saved one, or the one before it; the
    parameters alone are the saved ones, or refused."""
    run, _ = finished
    like = tiny_run(MODEL, PLAN, base_optimizer(learning_rate=1e-2)).state
    fingerprint = read_trained(run).record.fingerprint

    def state_in(folder: Path) -> tuple[int, Any]:
        with open_checkpoints(folder, base_retention()) as checkpoints:
            step, state, _ = beginning(checkpoints, None, like, lambda: like, fingerprint)
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
            is_refused = False
            try:
                assert_equal_bits(read_trained(copy).collections, finished[1])
            except InputError as refusal:
                assert "checkpoints/9 is damaged" in str(refusal)
                is_refused = True
            step, state = state_in(copy)
            assert step == 8 or not is_refused
            assert_equal_bits(state, saved[step])
            begun_with[name, str(file.relative_to(run / "checkpoints" / "9"))] = step
            shutil.rmtree(copy)
    assert set(begun_with.values()) == {8, 9}
    # What ranks a checkpoint may be lost; what it holds may not.
    assert begun_with["garbage", "metrics/metrics"] == 9
    assert {begun_with[damage, "record/metadata"] for damage in DAMAGE} == {8}


def test_all_checkpoints_damaged_is_a_fresh_start(copy, finished):
    for step in (8, 9):
        cut_off(largest_file(copy / "checkpoints" / str(step) / "optimizer"))
    assert_equal_bits(tiny_training(copy), finished[1])


def test_a_damaged_named_run_is_refused(tmp_path, copy):
    garble(largest_file(copy / "checkpoints" / "9" / "trainable"))
    with pytest.raises(InputError, match=r"run: checkpoint 9 is damaged"):
        tiny_training(tmp_path / "next", resume=copy)
    assert (copy / "checkpoints" / "9").is_dir()
