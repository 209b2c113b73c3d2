"""What a run reports while it goes on: `metrics.jsonl`, one object per line, the same numbers for TensorBoard and
Weights & Biases (W&B), lines for the user and a progress bar. Process 0 only; no TensorFlow.

A run that is continued continues its curves: same steps, no point twice.
"""

import io
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from jaxalign import files
from jaxalign.errors import InputError

Row = Mapping[str, Any]
"""The step and what is known of it, as in metrics.jsonl."""


def is_first_process() -> bool:
    """Whether this process is the one that speaks and writes for all; jax is asked only where something uses it."""
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


@dataclass(frozen=True)
class CurvesConfig:
    """tensorboard: whether event files are written. wandb: the W&B project that rows go to; none if empty."""

    tensorboard: bool
    wandb: str

    def __post_init__(self) -> None:
        for package, wanted in (("tensorboard", self.tensorboard), ("wandb", self.wandb)):
            if wanted and find_spec(package) is None:
                raise InputError(
                    f"log.{package}={wanted}: the package {package} is missing; pip install 'jaxalign[{package}]'"
                )


class TensorBoard:
    """Event files in a folder; a continued run adds one. For a folder in a bucket they are uploaded by `flush`."""

    def __init__(self, folder: files.AnyPath, keep_through: int):
        # Slow to import, and only this service needs it.
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        # TensorBoard appends to its files, which nothing in a bucket takes.
        self._folder, self._temporary = folder, TemporaryDirectory() if files.is_remote(folder) else None
        place = Path(self._temporary.name if self._temporary else folder)
        place.mkdir(parents=True, exist_ok=True)
        # Readers order a folder's files by name. TensorBoard's own writer puts the name of the host into it.
        self._file = (place / f"events.out.tfevents.{time.time():010.0f}.{time.time_ns() % 10**9:09d}").open("xb")
        self._writer = RecordWriter(self._file)
        self._add(0, file_version="brain.Event:2")
        # At this mark readers forget what earlier files hold of this step and later ones.
        self._add(keep_through + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def write(self, row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._add(row["step"], summary=Summary(value=values))

    def flush(self) -> None:
        self._file.flush()
        if self._temporary:
            for file in Path(self._temporary.name).iterdir():
                (self._folder / file.name).write_bytes(file.read_bytes())

    def close(self, failed: bool) -> None:
        self.flush()
        self._file.close()
        if self._temporary:
            self._temporary.cleanup()


class WandB:
    """A W&B run of the folder's name, which RUN/wandb.json makes the same one again; WANDB_MODE=offline is respected.

    A killed process loses what W&B had not yet sent or written, so rows that it lacks are told again at the start: to
    a server those after its last step, offline all of them, in files that replace those of the calls before.
    """

    def __init__(
        self, project: str, run: files.AnyPath, kept: Sequence[Row], keep_through: int, document: Mapping[str, Any]
    ):
        import wandb

        identity = run / "wandb.json"
        if keep_through < 0 or not identity.exists():
            files.write_json(identity, {"id": secrets.token_hex(4)})
        name = files.read_json(identity)["id"]
        # W&B writes on this machine only.
        folder = run if isinstance(run, Path) else Path(os.environ.get("WANDB_DIR", "."))
        for replaced in folder.glob(f"wandb/offline-run-*-{name}"):
            shutil.rmtree(replaced)
        try:
            self._run = wandb.init(
                project=project,
                name=run.name,
                id=name,
                resume="allow",
                dir=folder,
                config=dict(document),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            said = str(error).partition("\n")[0]  # below it stands advice in W&B's own calls
            way_out = "WANDB_MODE=offline keeps the curves on this machine"
            if "deleted" in said:  # on the site; W&B takes its id for no other run
                way_out = f"remove {identity}, and a new run on W&B gets all rows of this one"
            raise InputError(f"log.wandb={project}: {said}; {way_out}") from None
        self._first = self._run.starting_step
        for row in kept:
            self.write(row)

    def write(self, row: Row) -> None:
        # Rows of one step are one point of W&B's axis; one that the server has is the same number.
        if row["step"] >= self._first:
            self._run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def flush(self) -> None:
        """W&B has no such call: what of the rows outlasts this process is its own affair."""

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


UPLOAD_SECONDS = 10.0
"""A bucket takes about one write of the same file per second, and each is a wait for the loop."""


class MetricsLog:
    """Appends rows to a JSON-lines file, each whole on disk before the next.

    `keep_through`: rows of later steps, which an interrupted run wrote after its last checkpoint, are dropped on
    opening; -1 starts the file anew. In a bucket the file is uploaded whole, every so many seconds and by `upload`.
    `curves`: the services that get the same rows, and `document` what they show of the run.
    """

    def __init__(
        self,
        path: files.AnyPath,
        keep_through: int,
        curves: CurvesConfig | None = None,
        document: Mapping[str, Any] | None = None,
    ):
        self._path, self._file, self._uploaded_at = path, None, time.monotonic()
        self._curves: list[TensorBoard | WandB] = []
        if is_first_process():
            kept = [row for row in whole_rows(path) if row["step"] <= keep_through]
            files.write_json_lines(path, kept)
            if curves and curves.tensorboard:
                self._curves.append(TensorBoard(path.parent / "tensorboard", keep_through))
            if curves and curves.wandb:
                self._curves.append(WandB(curves.wandb, path.parent, kept, keep_through, document or {}))
            if files.is_remote(path):
                self._file = io.StringIO(files.read_text(path))
                self._file.seek(0, io.SEEK_END)
            else:
                self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **numbers: Any) -> None:
        if self._file is not None:
            row = {"step": step, **numbers}
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            for curves in self._curves:
                curves.write(row)
            if time.monotonic() - self._uploaded_at > UPLOAD_SECONDS:
                self.upload()

    def upload(self) -> None:
        """From here on the rows so far outlast this process; on disk every row does so when it is written."""
        if isinstance(self._file, io.StringIO):
            files.write_text(self._path, self._file.getvalue())
        for curves in self._curves:
            curves.flush()
        self._uploaded_at = time.monotonic()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._file is not None:
            self.upload()
            self._file.close()
            for curves in self._curves:
                curves.close(failed=error is not None)


def whole_rows(path: files.AnyPath) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that was cut off (its writer was killed) is left out."""
    if not path.exists():
        return []
    *lines, _ = files.read_text(path).split("\n")
    rows = [files.json_line(line, f"{path}, row {index}") for index, line in enumerate(lines)]
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise InputError(f"{path}, row {index}: a JSON object with its step is needed; remove the line")
    return rows


def log_status(message: str) -> None:
    """One line to the user on stderr, from process 0 only; a progress bar below it stays whole."""
    if is_first_process():
        tqdm.write(message, file=sys.stderr)


@cache
def warn(message: str) -> None:
    """A warning to the user; the same one only once in a process."""
    log_status(f"warning: {message}")


def print_result(result: str) -> None:
    """One line of what the user asked for, on stdout, from process 0 only."""
    if is_first_process():
        tqdm.write(result)


def is_hidden() -> bool | None:
    """Whether a progress bar is: tqdm's `disable`. None, in process 0: shown where stderr is a terminal."""
    return None if is_first_process() else True


class Progress:
    """A bar over the steps of a run; silent where stderr is no terminal."""

    def __init__(self, total: int, done: int):
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            disable=is_hidden(),
            bar_format="{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}, {remaining} left{postfix}",
        )

    def advance(self, loss: float, tokens: float, seconds: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.4f}, {tokens / seconds:,.0f} target tokens/s", refresh=False)
        self._bar.update()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
