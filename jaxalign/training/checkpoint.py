"""Checkpoints of a run: `RUN/checkpoints/STEP/{trainable, optimizer, record}`, written by Orbax in the background.

A checkpoint takes its final name when all of it is on disk (on gs://, where nothing can be renamed, Orbax writes a file
into it last of all), so a run killed at any moment leaves only whole ones. `record` is JSON: the run's config, its
adapters' shape (`lora`, null in full tuning), its fingerprint: all that the further course of the run depends on; and
digests of the arrays, by which damage on disk is noticed. The batch is a function of the step: no iterator state.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxalign import files
from jaxalign.errors import InputError
from jaxalign.files import AnyPath
from jaxalign.log import log_status
from jaxalign.model.lora import LoraConfig
from jaxalign.model.sharding import put
from jaxalign.model.weights import weights_sha256
from jaxalign.runtime import assert_same_on_hosts
from jaxalign.training.step import TrainState

Fingerprint = Mapping[str, Any]
"""Flat: key as the user knows it -> JSON value."""
ARRAYS = ("trainable", "optimizer")
"""The items of a checkpoint that have a digest."""
OF_DAMAGE = (
    *(FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError),
    # Orbax on metadata that is JSON, and not what it wrote
    *(KeyError, AttributeError, TypeError, IndexError, NotImplementedError),
)
TENSORSTORE_SAYS = ("DATA_LOSS:", "NOT_FOUND:", "OUT_OF_RANGE:", "FAILED_PRECONDITION:", "Error ")
"""How a ValueError of tensorstore begins where what it reads is damaged, and not, say, forbidden or unavailable."""


class Damaged(Exception):
    """A checkpoint's files are not those that were saved: cut off, missing or garbage."""


@contextmanager
def damage_told() -> Iterator[None]:
    """Turns what readers raise on damaged files, or raise from it, into Damaged. Other errors pass: memory that runs
    out, a mesh that does not fit or a network that fails says nothing against a checkpoint."""
    try:
        yield
    except Exception as error:
        told: BaseException | None = error
        while told is not None:
            if isinstance(told, OF_DAMAGE) or (isinstance(told, ValueError) and str(told).startswith(TENSORSTORE_SAYS)):
                raise Damaged(" ".join(f"{type(told).__name__}: {told}".split())[:200]) from error
            told = told.__cause__
        raise


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


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `last`, and the `best` of least held-out loss (among those saved right after
    it was measured)."""

    last: int
    best: int

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0:
            raise InputError(f"keep_last={self.last}, keep_best={self.best}: set them to 1 or more, and to 0 or more")


class Checkpoints(ocp.CheckpointManager):
    """CheckpointManager with two overrides."""

    def metrics(self, step: int) -> Any:
        """What a checkpoint is ranked by; None, too, where that file is damaged, which is no reason to stop."""
        try:
            return super().metrics(step)
        except ValueError:
            return None

    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks. Orbax would ask again, in the background and about a step gone by, and so set back
        the count from which jax derives the step to stop at."""
        return False


def open_checkpoints(run: AnyPath, retention: Retention | None = None) -> Checkpoints:
    """The run's checkpoints: to be read or, with `retention`, to be added to. Left-overs of interrupted saves are then
    removed."""
    folder, policy, heldout_loss = run / "checkpoints", None, itemgetter("heldout_loss")
    if retention is not None:
        check_name(run)
        best = ocp.checkpoint_managers.BestN(
            get_metric_fn=heldout_loss, reverse=True, n=retention.best, keep_checkpoints_without_metrics=False
        )
        newest = ocp.checkpoint_managers.LatestN(retention.last)
        policy = ocp.checkpoint_managers.AnyPreservationPolicy([newest, best])
    for file in folder.glob("*/_CHECKPOINT_METADATA"):  # by which Orbax dates a checkpoint
        try:
            is_damaged = not isinstance(json.loads(file.read_bytes()), dict)
        except ValueError:  # at which Orbax does not stop
            continue
        if is_damaged:
            raise InputError(f"{file}: damaged; delete this file, the checkpoint is whole without it")
    return Checkpoints(
        folder if files.is_remote(folder) else folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=heldout_loss,
            best_mode="min",
            create=retention is not None,
            cleanup_tmp_directories=retention is not None,
        ),
        item_handlers={
            "trainable": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "record": ocp.JsonCheckpointHandler(),
        },
    )


def check_name(run: AnyPath) -> None:
    """Refuses a place at which Orbax would write checkpoints that hold nothing.

    It takes `*?[` as patterns, tensorstore a backslash for a slash; and any `gs:/` (a folder `logs:`) becomes `gs://`.
    """
    path = run if files.is_remote(run) else run.absolute()
    inside = str(path).removeprefix("gs://") + "/"
    if wrong := [mark for mark in ("*", "?", "[", "\\", "gs:/") if mark in inside]:
        raise InputError(f"{path}: no checkpoint can be written where the path has {' '.join(wrong)}; choose another")


def save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    record: Record,
    heldout_loss: float | None = None,
    *,
    evaluated: bool = True,
) -> None:
    """Copies the state off the devices and returns; writing goes on in the background.

    `evaluated`: whether the evaluation that is due at this step, if any, is done and written.
    """
    saved = asdict(record) | {"skipped": int(state.skipped), "evaluated": evaluated}
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            trainable=ocp.args.StandardSave(state.trainable),
            optimizer=ocp.args.StandardSave(state.opt_state),
            record=ocp.args.JsonSave(saved | {"sha256": state_sha256(state) | {"record": record_sha256(saved)}}),
        ),
        metrics=None if heldout_loss is None else {"heldout_loss": heldout_loss},
    )


def state_sha256(state: TrainState) -> dict[str, str]:
    return {"trainable": weights_sha256(state.trainable), "optimizer": weights_sha256(state.opt_state)}


def record_sha256(saved: Mapping[str, Any]) -> str:
    """The digest of what `save` writes of a run, digests apart, through JSON as it is read back."""
    plain = json.loads(json.dumps({key: value for key, value in saved.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def shapes_of(item: AnyPath) -> Any:
    """The tree of one item of a checkpoint, its leaves with `shape` and `dtype`. Raises Damaged."""
    try:
        return ocp.StandardCheckpointHandler().metadata(item).tree
    except ValueError as error:
        if re.match("[A-Z_]+: ", str(error)):  # tensorstore's, whose codes `damage_told` knows
            raise
        raise Damaged(f"{item.name}: {error}") from error


def newest_step(checkpoints: Checkpoints) -> int | None:
    step = checkpoints.latest_step()
    assert_same_on_hosts(f"{checkpoints.directory}, its newest checkpoint", step)
    return step


@contextmanager
def open_newest(run: AnyPath) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a run and its newest step; InputError if it has none."""
    if not (run / "checkpoints").is_dir():
        raise InputError(f"{run}: not a run folder (no checkpoints/ in it); name a folder that train wrote")
    with open_checkpoints(run) as checkpoints:
        if (step := newest_step(checkpoints)) is None:
            raise InputError(f"{run}: no checkpoint yet; start the run again and let it reach its first one")
        yield checkpoints, step


def read_trained(run: AnyPath) -> Trained:
    """The newest parameters of a run as NumPy arrays, whatever devices it ran on; InputError if they are damaged."""
    with open_newest(run) as (checkpoints, step):
        folder = checkpoints.directory / str(step)
    try:
        with damage_told():
            saved, arrays = ocp.JsonCheckpointHandler().restore(folder / "record"), ocp.StandardCheckpointHandler()
            record, sha256 = parse_record(saved)
            shapes = shapes_of(folder / "trainable")
            target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
            collections = arrays.restore(folder / "trainable", args=ocp.args.StandardRestore(target))
        if weights_sha256(collections) != sha256["trainable"]:
            raise Damaged("its arrays are not those that were saved")
    except Damaged as damage:
        raise InputError(
            f"{folder} is damaged ({damage}); start the run again, which sets it aside and goes on from the one before"
        ) from None
    assert_same_on_hosts(str(folder), [record.lora, sha256["trainable"]])
    return Trained(step, record, collections)


def parse_record(saved: Any) -> tuple[Record, dict[str, str]]:
    """What `save` wrote of a run, and the digests of its arrays. Raises Damaged where that is not it."""
    try:
        lora, sha256 = saved["lora"], saved["sha256"]
        if lora is not None:
            lora = LoraConfig(**{**lora, "targets": tuple(lora["targets"])})
        # Those of older versions have no digest of the record.
        if sha256.get("record", own := record_sha256(saved)) != own:
            raise Damaged("its record is not the one that was saved")
        return Record(saved["config"], saved["fingerprint"], lora), {name: sha256[name] for name in ARRAYS}
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its record is not one that was saved ({type(error).__name__}: {error})") from None


def read_adapter(run: AnyPath) -> tuple[LoraConfig, Any]:
    """The newest adapters of a run: their config and the float32 tree, ready for `merge_lora` or `apply`."""
    trained = read_trained(run)
    if trained.record.lora is None:
        raise InputError(f"{run}: this run tuned all parameters and has no adapter; export it whole")
    return trained.record.lora, trained.collections["lora"]


class Start(NamedTuple):
    """What a run begins with: steps done, state, and whether the evaluation due after these steps is written."""

    step: int
    state: TrainState
    evaluated: bool


def beginning(
    checkpoints: Checkpoints,
    resume: AnyPath | None,
    like: TrainState,
    initial: Callable[[], TrainState],
    fingerprint: Fingerprint,
) -> Start:
    """The first of these that exists:

    1. the run's own newest checkpoint: the same command again continues; a damaged one is set aside, with a warning,
       for the one before;
    2. the newest checkpoint of the run that `resume` names: optimizer and step come along;
    3. the initial adapter, and
    4. if none was given a fresh one (or, in full tuning, the model's own parameters): both are what `initial` makes,
       with an optimizer that starts at step 0.

    In 1 and 2 a fingerprint that differs raises InputError and names its keys. Arrays are restored to the shapes and
    shardings that `like` gives, whatever mesh they were saved from; `initial` is not called, so that no second state
    lies beside what is restored.
    """
    while (step := newest_step(checkpoints)) is not None:
        try:
            return restore(checkpoints, step, like, fingerprint)
        except Damaged as damage:
            set_aside(checkpoints, step, damage)
    if resume is None:
        return Start(0, initial(), evaluated=False)
    with open_newest(resume) as (other, step):
        try:
            return restore(other, step, like, fingerprint)._replace(evaluated=False)
        except Damaged as damage:
            raise InputError(
                f"{resume}: checkpoint {step} is damaged ({damage}); start that run again to go on before it"
            ) from None


def set_aside(checkpoints: Checkpoints, step: int, damage: Damaged) -> None:
    """Moves a damaged checkpoint out of the way, into `RUN/damaged/`, and says so, there too.

    On gs:// its files move one by one; what an interruption leaves behind is damaged still, and moves the next time.
    """
    folder = checkpoints.directory / str(step)
    aside = folder.parent.parent / "damaged" / str(step)
    log_status(f"warning: {folder} is damaged ({damage}); it is kept as {aside}, and the checkpoint before it is used")
    if jax.process_index() == 0:
        # The reason also makes `damaged` a folder on gs://, where there are none without a file.
        files.write_text(aside.with_name(f"{step}.txt"), f"{damage}\n")
        aside.rmtree(missing_ok=True)
        folder.rename(aside)
    multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
    checkpoints.reload()


def restore(checkpoints: Checkpoints, step: int, like: TrainState, fingerprint: Fingerprint) -> Start:
    """The state saved at `step`, on the shardings of `like`; refused where the fingerprint differs. Raises Damaged.

    Each process reads for itself, what its devices hold: none waits for one that has met a damaged file. Every process
    comes to the same end: a file that is damaged for one is so for all.
    """
    folder, arrays = checkpoints.directory / str(step), ocp.StandardCheckpointHandler()
    restored, sha256, damage = None, {}, Damaged("another process could not read it")
    try:
        with damage_told():
            saved = ocp.JsonCheckpointHandler().restore(folder / "record")
            record, sha256 = parse_record(saved)
            check_fingerprint(record.fingerprint, fingerprint, folder.parent.parent)
            for item in ARRAYS:
                # Restoring does without what this reads, but whoever evaluates or exports the run does not; and where
                # it is missing, restoring would report a tree of another structure.
                shapes_of(folder / item)
            trainable = arrays.restore(folder / "trainable", args=ocp.args.StandardRestore(like.trainable))
            opt_state = arrays.restore(folder / "optimizer", args=ocp.args.StandardRestore(like.opt_state))
            done, skipped = (put(np.array(n, np.int32), like.step.sharding) for n in (step, saved["skipped"]))
            restored = Start(step, TrainState(done, skipped, trainable, opt_state), saved["evaluated"])
    except Damaged as own:
        damage = own
    read_by_all = multihost_utils.process_allgather(np.array(restored is not None)).all()
    if restored is None or not read_by_all:
        raise damage
    if state_sha256(restored.state) != sha256:
        raise Damaged("its arrays are not those that were saved")
    return restored


def check_fingerprint(saved: Fingerprint, wanted: Fingerprint, run: Any) -> None:
    """Raises InputError that names every key in which the two differ, with both values.

    Where the length differs it says how to train on: the learning rate of every step depends on the number of all, so
    that the beginning of a longer run is not this one.
    """
    wanted, absent = json.loads(json.dumps(dict(wanted))), "absent"
    # Runs of an earlier version recorded the tokenizer's file in place of all the ids that it makes.
    saved = {"heldout_pairs": wanted["heldout_pairs"]} | dict(saved) if "heldout_pairs" in wanted else dict(saved)
    saved.pop("tokenizer", None)
    changed = {
        key: f"{key} was {saved.get(key, absent)!r} and is now {wanted.get(key, absent)!r}"
        for key in sorted({*saved, *wanted})
        if saved.get(key, absent) != wanted.get(key, absent)
    }
    steps = changed.pop("total_steps", None)  # no setting: it follows from those that are
    if steps and not changed:
        changed["steps"] = steps.replace("total_steps", "the number of its steps")
    if changed:
        what_to_do = "set it back, or start in a new run folder"
        if {"epochs", "steps"} & changed.keys():
            what_to_do += (
                f": there --config.adapter={run} trains on from what it has tuned, with a new optimizer and a new "
                f"schedule of the learning rate; --config.resume={run} keeps optimizer, schedule and step too, and "
                "with them the old length"
            )
        raise InputError(f"{run}: cannot continue this run, {'; '.join(changed.values())}; {what_to_do}")
