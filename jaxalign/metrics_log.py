"""What a run reports while it goes on: `metrics.jsonl`, one object per line, curves for other services, and a progress
bar. Process 0 only."""

import io
import json
import sys
import time
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm

from jaxalign import files
from jaxalign.curves import CurvesConfig, open_curves
from jaxalign.errors import InputError
from jaxalign.hosts import processes

UPLOAD_SECONDS = 10.0
"""A bucket takes about one write of the same file per second, and each is a wait for the loop."""


class MetricsLog:
    """Appends rows to a JSON-lines file, each whole on disk before the next.

    `keep_through`: rows of later steps, which an interrupted run wrote after its last checkpoint, are dropped on
    opening; -1 starts the file anew.

    Nothing is appended to what lies in a bucket: there the file is uploaded whole, every so many seconds and by
    `upload`.

    `curves`: the services that get the same rows, and `document` what they show of the run.
    """

    def __init__(
        self,
        path: files.AnyPath,
        keep_through: int,
        curves: CurvesConfig = CurvesConfig(),  # noqa: B008 - frozen
        document: Mapping[str, Any] | None = None,
    ):
        self._path, self._file, self._uploaded_at = path, None, time.monotonic()
        self._curves = []
        if jax.process_index() == 0:
            kept = [row for row in whole_rows(path) if row["step"] <= keep_through]
            files.write_json_lines(path, kept)
            self._curves = open_curves(curves, path.parent, kept, keep_through, document or {})
            if files.is_remote(path):
                self._file = io.StringIO(files.read_text(path))
                self._file.seek(0, io.SEEK_END)
            else:
                self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **numbers: Any) -> None:
        """One row: the step and what is known of it."""
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._file is not None:
            self.upload()
            self._file.close()
            for curves in self._curves:
                curves.close(failed=error is not None)


def whole_rows(path: files.AnyPath) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that was cut off (its writer was killed) is left out.

    InputError where another line is no JSON object with a whole number `step`.
    """
    if not path.exists():
        return []
    *lines, _ = files.read_text(path).split("\n")
    rows = [files.json_line(line, f"{path}, row {index}") for index, line in enumerate(lines)]
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise InputError(f"{path}, row {index}: a JSON object with its step is needed; remove the line")
    return rows


def say(message: str) -> None:
    """One line to the user on stderr, from process 0 only; a progress bar below it stays whole."""
    if processes() == 1 or jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


@cache
def warn(message: str) -> None:
    """A warning to the user; the same one only once in a process."""
    say(f"warning: {message}")


def tell(result: str) -> None:
    """One line of what the user asked for, on stdout, from process 0 only."""
    if jax.process_index() == 0:
        tqdm.write(result)


def is_hidden() -> bool | None:
    """Whether a progress bar is: tqdm's `disable`. None, in process 0: shown where stderr is a terminal."""
    return None if jax.process_index() == 0 else True


class Progress:
    """A bar over the steps of a run with loss, tokens/s and time left; silent where stderr is no terminal."""

    def __init__(self, total: int, done: int):
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            disable=is_hidden(),
            bar_format="{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}, {remaining} left{postfix}",
        )

    def advance(self, loss: float, tokens: float, seconds: float) -> None:
        """One step further: its loss, its target tokens and the seconds it took."""
        self._bar.set_postfix_str(f"loss {loss:.4f}, {tokens / seconds:,.0f} target tokens/s", refresh=False)
        self._bar.update()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.close()
