"""Training runs as typed records: the run behind an adapter, its facts and its curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.files import AnyPath
from jaxalign.log import whole_rows
from jaxalign.reporting.fields import field, languages, read_object

RUN_FILES = ("run.json", "metrics.jsonl")


@dataclass(frozen=True)
class TrainingRun:
    """A run of `train`: its facts, its config and its curves, (step, loss in nats per target token)."""

    folder: AnyPath
    document: Mapping[str, Any]
    """`run.json`"""
    training: Sequence[tuple[int, float]]
    held_out: Sequence[tuple[int, float]]

    @property
    def sources(self) -> list[str]:
        """Languages translated from, as `run.json` says; empty where it does not."""
        return self.document.get("languages", {}).get("sources", [])

    @property
    def targets(self) -> list[str]:
        """Languages translated into."""
        return self.document.get("languages", {}).get("targets", [])

    @property
    def languages(self) -> tuple[str, ...]:
        """All that the adapter has seen, in this run or one before it; empty where not all of them are recorded."""
        languages = self.document.get("languages", {})
        if "seen" in languages:
            return tuple(languages["seen"] or ())
        return tuple(dict.fromkeys([*self.sources, *self.targets]))


def find_run(adapter: str, beside: Path) -> Path | None:
    """The folder of a training run that a result names.

    A relative path is looked for from the current folder and then from those above `beside`, so that a tree of results
    can be moved as a whole. None where there is no such folder, or it holds no run (a PEFT folder, say).
    """
    for base in (Path(), *beside.resolve().parents):
        folder = base / Path(adapter).expanduser()
        if any((folder / name).is_file() for name in RUN_FILES):
            return folder
    return None


def read_run(folder: AnyPath) -> TrainingRun:
    """The training run in `folder`; both of its files must be there."""
    document = read_run_document(folder)
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run in {folder} is not complete")
    rows = whole_rows(path)
    training, held_out = (list(curve(rows, name, path)) for name in ("loss", "heldout_loss"))
    check_reaches_end(folder, document, training, held_out)
    return TrainingRun(folder, document, training, held_out)


def check_reaches_end(
    folder: AnyPath, document: Mapping[str, Any], training: Sequence[tuple[int, float]], held_out: Sequence[Any]
) -> None:
    """Refuses the curves of a finished run that lack its end: a run saves its last step after it has written its rows.

    An earlier loss would pass for that of what was saved.
    """
    steps = document.get("steps")
    saved = folder / "checkpoints" / str(steps)
    if type(steps) is not int or not saved.is_dir():
        return
    for name, rows in (("loss", training), ("heldout_loss", held_out)):
        if (name == "loss" or document.get("heldout_pairs")) and (not rows or rows[-1][0] != steps):
            reached = f"ends at step {rows[-1][0]}" if rows else "has none"
            raise InputError(
                f"{folder / 'metrics.jsonl'}: {name} {reached}, and the run is finished at step {steps}: the file is "
                f"cut off; put the whole one back, or remove {saved} and start the run again"
            )


def read_run_document(folder: AnyPath) -> dict[str, Any]:
    """`run.json` of a run, its languages checked."""
    path = folder / "run.json"
    document = read_object(path)
    if "languages" in document:
        spoken = field(document, "languages", dict, str(path))
        for side in ("sources", "targets", *(["seen"] if spoken.get("seen") is not None else [])):
            spoken[side] = languages(spoken, side, f"{path}, languages")
    return document


def curve(rows: Sequence[Mapping[str, Any]], name: str, path: AnyPath) -> Iterator[tuple[int, float]]:
    """(step, value) of every row that has the field."""
    for index, row in enumerate(rows):
        if name in row:
            yield row["step"], field(row, name, float, f"{path}, row {index}")
