"""The training loop: everything that happens around the pure step, in the order in which it happens."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jaxalign import files
from jaxalign.data.batches import Batch, BatchPlan, prefetch
from jaxalign.errors import InputError, Preempted
from jaxalign.holding import check_held
from jaxalign.log import CurvesConfig, MetricsLog, Progress, log_status
from jaxalign.model.lora import check_adapter, init_lora
from jaxalign.model.sharding import with_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import assert_same_on_hosts
from jaxalign.training import checkpoint
from jaxalign.training.optimizer import OptimizerConfig, cosine_schedule, make_optimizer
from jaxalign.training.step import (
    Metrics,
    Shardings,
    StepConfig,
    TrainState,
    init_state,
    local_rows,
    make_eval_loss,
    make_loss_sums,
    make_shardings,
    make_train_step,
    place_batch,
)


class NonFiniteStep(Exception):
    """A step, which counts from 1, with its loss and the norm of its gradient."""

    def __init__(self, step: int, loss: float, gradient_norm: float):
        super().__init__(f"step {step}: the loss is {loss} and the gradient's norm {gradient_norm}")
        self.step, self.loss, self.gradient_norm = step, loss, gradient_norm


def dump_bad_step(run: files.AnyPath, plan: BatchPlan, bad: NonFiniteStep) -> files.AnyPath:
    """Writes the step's global batch, to be replayed, and which pairs stand in its rows: `RUN/nonfinite/STEP.npz` and
    `.json`."""
    folder = run / "nonfinite"
    if jax.process_index() == 0:
        with files.whole_file(folder / f"{bad.step}.npz") as partial, partial.open("wb") as file:
            np.savez_compressed(file, **plan.rows_at(bad.step - 1)._asdict())
        numbers = {"step": bad.step, "loss": str(bad.loss), "gradient_norm": str(bad.gradient_norm)}
        files.write_json(folder / f"{bad.step}.json", {**numbers, "pairs_in_rows": plan.rows[bad.step - 1]})
    return folder


@contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Gives the question to ask before the first step and after every one: is this the step to save and stop at, since
    SIGTERM has said that the machine is about to be taken away?

    Of several processes one may be told first; all agree on a step that none has passed (jax's preemption sync point,
    which listens to SIGTERM itself). It counts from the step last asked about, so one thread asks, in order.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    # Python takes signals in its main thread only; a run inside another one goes without.
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    noticed = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: noticed.set())
    try:
        yield lambda step: noticed.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


Hook = Callable[[int, Any], Mapping[str, float]]
"""(updates done, collections to apply the decoder to) -> numbers for the metrics file. The next update consumes the
collections' buffers: a hook keeps none of them."""


@dataclass(frozen=True)
class LoopConfig:
    """How often the loop reports, evaluates and saves, in steps. Start and end are evaluated, the end is saved."""

    log_every: int
    heldout_every: int
    checkpoint_every: int
    watch_every: int
    """between calls of the hooks"""

    def __post_init__(self) -> None:
        for key, every in asdict(self).items():
            if every < 1:
                raise InputError(f"{key}={every}: set it to 1 or more")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run that depend on neither model nor data."""

    optimizer: OptimizerConfig
    step: StepConfig
    loop: LoopConfig
    retention: checkpoint.Retention
    seed: int
    """of a fresh adapter"""
    resume: files.AnyPath | None = None
    """another run, whose newest checkpoint is the start if this one has none yet"""
    curves: CurvesConfig | None = None
    """the services that get the rows of metrics.jsonl too"""


@dataclass(frozen=True)
class RunFolder:
    """Where run.json, metrics.jsonl and checkpoints/ are written, and what they say of the run."""

    path: files.AnyPath
    document: Mapping[str, Any]
    """of run.json, JSON; its config goes into the checkpoints too"""
    fingerprint: checkpoint.Fingerprint
    """what the result depends on beyond the arguments of `run_training` (the base model's name, say); flat JSON"""


def run_training(
    decoder: Decoder,
    params: Any,
    plan: BatchPlan,
    held_out: BatchPlan | None,
    config: TrainConfig,
    folder: RunFolder,
    mesh: Mesh,
    initial_adapter: Any = None,
    hooks: Sequence[Hook] = (),
) -> dict[str, Any]:
    """Runs the plan to its end and returns the trained collection, {"lora": ...} or {"params": ...}.

    The same call again continues after an interruption, with the same result, bit for bit on the same machine, as if
    there had been none; after the last step it changes nothing.

    Args:
      decoder: with `lora` set its adapters are tuned, without it all of `params`, the base model's parameters.
      held_out: batches whose loss is measured at step 0, every `heldout_every` steps and at the end.
      initial_adapter: tree to start from in place of a fresh adapter.
      hooks: called at step 0, every `watch_every` steps and at the end; their numbers go into a row of metrics.jsonl,
        that of the held-out loss where both are due.

    Raises:
      InputError: the run was started with another fingerprint, or the loss or gradient is no longer finite.
      Preempted: SIGTERM arrived, and the state was saved.
    """
    run = folder.path
    # What is trained, and the optimizer
    if decoder.lora is None:
        frozen, trainable = {}, {"params": params}
    else:
        frozen, trainable = {"params": params}, {"lora": initial_adapter}
        if initial_adapter is None:
            init = jax.jit(partial(init_lora, config=decoder.config, lora=decoder.lora))
            trainable = {"lora": init(jax.random.key(config.seed), params=params if decoder.lora.dora else None)}
        check_adapter(trainable["lora"], decoder.config, decoder.lora, "the initial adapter")
    schedule = cosine_schedule(config.optimizer, plan.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    shardings = make_shardings(trainable, frozen, optimizer, mesh)
    frozen = jax.device_put(frozen, shardings.frozen)
    initial = partial(init_state, trainable, optimizer, shardings)
    like = with_shardings(jax.eval_shape(initial), shardings.state)

    # The start: own run, named run, initial adapter, fresh adapter
    fingerprint = {
        **folder.fingerprint,
        **plan.fingerprint,
        **{f"optimizer.{key}": value for key, value in asdict(config.optimizer).items()},
        **{f"lora.{key}": value for key, value in (asdict(decoder.lora) if decoder.lora else {}).items()},
        "batch.accumulation": config.step.accumulation,
        "loss.reduction": config.step.reduction,
        "total_steps": plan.steps,
    }
    assert_same_on_hosts("what is trained, or how", fingerprint)
    record = checkpoint.Record(folder.document["config"], fingerprint, decoder.lora)
    with (
        files.full_disk_told(run),
        checkpoint.open_checkpoints(run, config.retention) as checkpoints,
        preemption_notice() as preempted,
    ):
        first, state, evaluated = checkpoint.beginning(checkpoints, config.resume, like, initial, fingerprint)
        own = checkpoints.latest_step()
        if config.step.nonfinite == "stop":
            # What an earlier call left out under "skip" is no reason to stop.
            state = none_skipped(state)
        if first == plan.steps:
            log_status(f"{run if own is not None else config.resume}: finished, all {plan.steps} steps are done")
            return state.trainable
        if jax.process_index() == 0:
            files.write_json(run / "run.json", folder.document)

        # Steps
        loss_sums = make_loss_sums(decoder, plan.targets_per_row, config.step.loss_chunk)
        train_step = make_train_step(loss_sums, optimizer, schedule, shardings, config.step)
        heldout_loss = None if held_out is None else make_heldout_loss(decoder, held_out, shardings, config.step)
        with (
            MetricsLog(run / "metrics.jsonl", -1 if own is None else first, config.curves, folder.document) as log,
            Progress(plan.steps, first) as progress,
        ):
            report = StepReport(log, progress, config, plan.steps, int(state.skipped))

            def due(step: int, every: int) -> bool:
                return step == plan.steps or step % every == 0 or (own is None and step == first)

            def evaluate(step: int, trainable: Any) -> float | None:
                numbers: dict[str, float] = {}
                if heldout_loss is not None and due(step, config.loop.heldout_every):
                    numbers["heldout_loss"] = heldout_loss(trainable, frozen)
                for hook in hooks if due(step, config.loop.watch_every) else ():
                    numbers |= hook(step, frozen | trainable)
                if numbers:
                    log.write(step, **numbers)
                return numbers.get("heldout_loss")

            preempted(first)  # a notice that arrives while the step compiles finds a count
            if not evaluated:
                evaluate(first, state.trainable)
            try:
                batches = prefetch(batches_of(plan, shardings.batch), first, plan.steps)
                for step, batch in enumerate(batches, start=first + 1):
                    started = time.perf_counter()
                    state, metrics = train_step(state, frozen, place_batch(batch, shardings.batch))
                    check_held()
                    report.settle()  # of the step before, while this one runs
                    report.held = step, metrics, started
                    last, stopping, loss = step == plan.steps, preempted(step), None
                    evaluation_due = due(step, config.loop.heldout_every) or due(step, config.loop.watch_every)
                    checkpoint_due = due(step, config.loop.checkpoint_every) or stopping
                    if evaluation_due or checkpoint_due:
                        # A checkpoint is saved after all rows of its step are written and its loss is known.
                        report.settle()
                    postponed = stopping and not last and evaluation_due  # little time is left: after the restart
                    if evaluation_due and not postponed:
                        loss = evaluate(step, state.trainable)
                    if checkpoint_due:
                        log.upload()
                        checkpoint.save(checkpoints, step, state, record, loss, evaluated=not postponed)
                    if stopping and not last:
                        raise Preempted(f"{run}: told to stop; step {step} is saved, the same command continues")
            except NonFiniteStep as bad:
                # Nothing was updated since: this is the state that the bad step began with, and will begin with again.
                if checkpoints.latest_step() != bad.step - 1:
                    log.upload()
                    checkpoint.save(checkpoints, bad.step - 1, none_skipped(state), record)
                place = dump_bad_step(run, plan, bad)
                raise InputError(
                    f"{bad}; its rows are in {place}, and the state before it is the newest checkpoint of {run}. Lower "
                    "optimizer.learning_rate, compute in float32, or set nonfinite=skip"
                ) from None
    return state.trainable


def none_skipped(state: TrainState) -> TrainState:
    return state._replace(skipped=jax.device_put(np.int32(0), state.skipped.sharding))


@dataclass
class StepReport:
    """Reads a step's metrics after the next step was dispatched, so that the devices do not wait for the host."""

    log: MetricsLog
    progress: Progress
    config: TrainConfig
    last: int
    skipped: int
    held: tuple[int, Metrics, float] | None = None
    """a step, its metrics and when it was dispatched (`time.perf_counter`)"""
    read_at: float = 0.0

    def settle(self) -> None:
        """Waits for the step held, if any, and reports it. NonFiniteStep where its update was not made for good."""
        if self.held is None:
            return
        (step, metrics, started), self.held = self.held, None
        numbers = {name: value.item() for name, value in jax.device_get(metrics)._asdict().items()}
        now = time.perf_counter()
        seconds, self.read_at = now - max(started, self.read_at), now
        if numbers["skipped"] > self.skipped:
            bad = NonFiniteStep(step, numbers["loss"], numbers["gradient_norm"])
            if self.config.step.nonfinite == "stop":
                raise bad
            self.skipped = numbers["skipped"]
            log_status(f"warning: {bad}; its update is left out ({self.skipped} so far)")
        numbers["tokens"] = int(numbers["tokens"])
        self.progress.advance(numbers["loss"], numbers["tokens"], seconds)
        if step % self.config.loop.log_every == 0 or step in (1, self.last):
            self.log.write(step, **numbers, seconds=round(seconds, 4))


def make_heldout_loss(
    decoder: Decoder, held_out: BatchPlan, shardings: Shardings, config: StepConfig
) -> Callable[[Any, Any], float]:
    """(trainable, frozen) -> the mean loss over all target tokens of the held-out batches, in nats."""
    eval_loss = make_eval_loss(make_loss_sums(decoder, held_out.targets_per_row, config.loss_chunk), shardings)

    def heldout_loss(trainable: Any, frozen: Any) -> float:
        batches = map(batches_of(held_out, shardings.batch), range(held_out.steps))
        sums = [eval_loss(trainable, frozen, place_batch(batch, shardings.batch)) for batch in batches]
        total, count = (math.fsum(column) for column in zip(*jax.device_get(sums), strict=True))
        return total / count

    return heldout_loss


def batches_of(plan: BatchPlan, sharding: NamedSharding) -> Callable[[int], Batch]:
    """step -> the rows of its batch that this process feeds to its devices."""
    rows = local_rows(sharding, plan.rows_per_step)
    return lambda step: plan.rows_at(step, rows)
