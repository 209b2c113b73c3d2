"""What a run begins with: its own newest checkpoint, another run's, an adapter, or nothing."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jaxalign import files
from jaxalign.errors import InputError
from jaxalign.files import AnyPath
from jaxalign.log import say
from jaxalign.model.sharding import spread
from jaxalign.training.checkpoint import (
    ARRAYS,
    Checkpoints,
    Fingerprint,
    newest_step,
    open_newest,
    parse_record,
    shapes_of,
    state_sha256,
)
from jaxalign.training.damage import Damaged, damage_told
from jaxalign.training.step import TrainState

LENGTH = {"epochs", "steps"}
"""What says how long a run is."""


class Start(NamedTuple):
    """What a run begins with: steps done, state, and whether the evaluation due after these steps is written."""

    step: int
    state: TrainState
    evaluated: bool


def start(
    checkpoints: Checkpoints,
    resume: AnyPath | None,
    like: TrainState,
    initial: Callable[[], TrainState],
    fingerprint: Fingerprint,
) -> Start:
    """What a run begins with. The first of these that exists:

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
    say(f"warning: {folder} is damaged ({damage}); it is kept as {aside}, and the checkpoint before it is used")
    if jax.process_index() == 0:
        # The reason also makes `damaged` a folder on gs://, where there are none without a file.
        files.write_text(aside.with_name(f"{step}.txt"), f"{damage}\n")
        aside.rmtree(missing_ok=True)
        folder.rename(aside)
    multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
    checkpoints.reload()


def restore(checkpoints: Checkpoints, step: int, like: TrainState, fingerprint: Fingerprint) -> Start:
    """The state saved at `step`, on the shardings of `like`. Raises Damaged.

    Refuses where the fingerprint differs. Every process comes to the same end: a file that is damaged for one is so
    for all.
    """
    restored, sha256, damage = None, {}, Damaged("another process could not read it")
    try:
        with damage_told():
            restored, sha256 = read_state(checkpoints.directory / str(step), step, like, fingerprint)
    except Damaged as own:
        damage = own
    read_by_all = multihost_utils.process_allgather(np.array(restored is not None)).all()
    if restored is None or not read_by_all:
        raise damage
    if state_sha256(restored.state) != sha256:
        raise Damaged("its arrays are not those that were saved")
    return restored


def read_state(
    folder: epath.Path, step: int, like: TrainState, fingerprint: Fingerprint
) -> tuple[Start, dict[str, str]]:
    """The state of one checkpoint, and the digests that it should have; only the fingerprint is checked.

    Each process reads for itself, what its devices hold: none waits for one that has met a damaged file.
    """
    saved = ocp.JsonCheckpointHandler().restore(folder / "record")
    record, sha256 = parse_record(saved)
    check_fingerprint(record.fingerprint, fingerprint, folder.parent.parent)
    arrays = ocp.StandardCheckpointHandler()
    for item in ARRAYS:
        # Restoring does without what this reads, but whoever evaluates or exports the run does not; and where it is
        # missing, restoring would report a tree of another structure.
        shapes_of(folder / item)
    trainable = arrays.restore(folder / "trainable", args=ocp.args.StandardRestore(like.trainable))
    opt_state = arrays.restore(folder / "optimizer", args=ocp.args.StandardRestore(like.opt_state))
    done, skipped = (spread(np.array(n, np.int32), like.step.sharding) for n in (step, saved["skipped"]))
    return Start(step, TrainState(done, skipped, trainable, opt_state), saved["evaluated"]), sha256


def check_fingerprint(saved: Fingerprint, wanted: Fingerprint, run: Any) -> None:
    """Raises InputError that names every key in which the two differ, with both values.

    Where the length differs it says how to train on: the learning rate of every step depends on the number of all, so
    that the beginning of a longer run is not this one.
    """
    wanted = json.loads(json.dumps(dict(wanted)))
    # Runs of an earlier version recorded the tokenizer's file in place of all the ids that it makes.
    saved = {"heldout_pairs": wanted["heldout_pairs"]} | dict(saved) if "heldout_pairs" in wanted else dict(saved)
    saved.pop("tokenizer", None)
    absent = "absent"
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
        if LENGTH & changed.keys():
            what_to_do += (
                f": there --config.adapter={run} trains on from what it has tuned, with a new optimizer and a new "
                f"schedule of the learning rate; --config.resume={run} keeps optimizer, schedule and step too, and "
                "with them the old length"
            )
        raise InputError(f"{run}: cannot continue this run, {'; '.join(changed.values())}; {what_to_do}")
