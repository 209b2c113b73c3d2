"""Checkpoints of a run: `RUN/checkpoints/STEP/{trainable, optimizer, record}`, written by Orbax in the background.

A checkpoint takes its final name when all of it is on disk, so a run killed at any moment leaves only whole ones.
`record` is JSON: the run's config, its adapters' shape (`lora`, null in full tuning), and its fingerprint: all that
the further course of the run depends on. The batch is a function of the step, so no iterator state is needed.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxalign.errors import InputError
from jaxalign.model.lora import LoraConfig
from jaxalign.training.step import TrainState

Fingerprint = Mapping[str, Any]
"""Flat: key as the user knows it -> JSON value."""


@dataclass(frozen=True)
class Record:
    """What a checkpoint says about its run."""

    config: Mapping[str, Any]
    fingerprint: Fingerprint
    lora: LoraConfig | None


class Trained(NamedTuple):
    """A run's newest parameters: `collections` is {"lora": adapters} or, in full tuning, {"params": parameters}."""

    step: int
    record: Record
    collections: dict[str, Any]


def open_checkpoints(run: Path, *, create: bool) -> ocp.CheckpointManager:
    """The run's checkpoints; the newest two are kept. With `create`, left-overs of interrupted saves are removed."""
    return ocp.CheckpointManager(
        (run / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(max_to_keep=2, create=create, cleanup_tmp_directories=create),
        item_handlers={
            "trainable": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "record": ocp.JsonCheckpointHandler(),
        },
    )


def save(checkpoints: ocp.CheckpointManager, step: int, state: TrainState, record: Record) -> None:
    """Copies the state off the devices and returns; writing goes on in the background."""
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            trainable=ocp.args.StandardSave(state.trainable),
            optimizer=ocp.args.StandardSave(state.opt_state),
            record=ocp.args.JsonSave(asdict(record)),
        ),
    )


def start(
    checkpoints: ocp.CheckpointManager, resume: Path | None, initial: TrainState, fingerprint: Fingerprint
) -> tuple[int, TrainState]:
    """The step and state that a run begins with. The first of these that exists:

    1. the run's own newest checkpoint: the same command again continues;
    2. the newest checkpoint of the run that `resume` names: optimizer and step come along;
    3. the initial adapter, and
    4. if none was given a fresh one (or, in full tuning, the model's own parameters): both are in `initial`,
       with an optimizer that starts at step 0.

    In 1 and 2 a fingerprint that differs raises InputError and names its keys. Arrays are restored to the shardings
    of `initial`, whatever mesh they were saved from.
    """
    if (step := checkpoints.latest_step()) is not None:
        return step, restore(checkpoints, step, initial, fingerprint)
    if resume is None:
        return 0, initial
    with open_newest(resume) as (other, step):
        return step, restore(other, step, initial, fingerprint)


def restore(checkpoints: ocp.CheckpointManager, step: int, like: TrainState, fingerprint: Fingerprint) -> TrainState:
    """The state saved at `step`, on the shardings of `like`; refuses where the fingerprint differs."""
    record = checkpoints.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    check_fingerprint(record["fingerprint"], fingerprint, checkpoints.directory)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = checkpoints.restore(
        step,
        args=ocp.args.Composite(
            trainable=ocp.args.StandardRestore(target.trainable),
            optimizer=ocp.args.StandardRestore(target.opt_state),
        ),
    )
    count = jax.device_put(np.int32(step), like.step.sharding)
    return TrainState(count, restored["trainable"], restored["optimizer"])


def check_fingerprint(saved: Fingerprint, wanted: Fingerprint, place: Any) -> None:
    """Raises InputError that names every key in which the two differ, with both values."""
    wanted = json.loads(json.dumps(dict(wanted)))
    absent = "absent"
    changed = [
        f"{key} was {saved.get(key, absent)!r} and is now {wanted.get(key, absent)!r}"
        for key in sorted({*saved, *wanted})
        if saved.get(key, absent) != wanted.get(key, absent)
    ]
    if changed:
        raise InputError(
            f"{place}: cannot continue this run, {'; '.join(changed)}; set it back, or start in a new run folder"
        )


@contextmanager
def open_newest(run: Path) -> Iterator[tuple[ocp.CheckpointManager, int]]:
    """The checkpoints of a run and its newest step; InputError if it has none."""
    if not (run / "checkpoints").is_dir():
        raise InputError(f"{run}: not a run folder (no checkpoints/ in it); name a folder that train wrote")
    with open_checkpoints(run, create=False) as checkpoints:
        if (step := checkpoints.latest_step()) is None:
            raise InputError(f"{run}: no checkpoint yet; start the run again and let it reach its first one")
        yield checkpoints, step


def read_trained(run: Path) -> Trained:
    """The newest parameters of a run as NumPy arrays, whatever devices it ran on."""
    with open_newest(run) as (checkpoints, step):
        shapes = checkpoints.item_metadata(step)["trainable"].tree
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        saved = checkpoints.restore(
            step,
            args=ocp.args.Composite(trainable=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()),
        )
    lora = saved["record"]["lora"]
    if lora is not None:
        lora = LoraConfig(**{**lora, "targets": tuple(lora["targets"])})
    return Trained(step, Record(saved["record"]["config"], saved["record"]["fingerprint"], lora), saved["trainable"])


def read_adapter(run: Path) -> tuple[LoraConfig, Any]:
    """The newest adapters of a run: their config and the float32 tree, ready for `merge_lora` or `apply`."""
    trained = read_trained(run)
    if trained.record.lora is None:
        raise InputError(f"{run}: this run tuned all parameters and has no adapter; export it whole")
    return trained.record.lora, trained.collections["lora"]
