"""Result folders as typed records: what `evaluate` left behind, and the probes beside it, read back and checked.

Everything is checked on reading, so that tables and figures can be drawn without asking again; whatever does not fit
raises InputError with file and field.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.languages import language_of
from jaxalign.data.tasks import task_named
from jaxalign.errors import InputError
from jaxalign.files import read_json_lines
from jaxalign.reporting.fields import field, languages, read_object, share
from jaxalign.reporting.models import model_documents, model_of_all
from jaxalign.reporting.probe_files import Probes, read_probes

VARIANTS = {
    "english": "English answers",
    "in_language": "in-language answers",
    "irrelevant": "task-irrelevant answers",
}
"""Which words a cell is answered in, as titles say it."""


class Key(NamedTuple):
    """What names a cell."""

    task: str
    language: str
    variant: str


@dataclass(frozen=True)
class Prediction:
    """One example of `predictions.jsonl`; `masses` holds the label mass of every class."""

    row: int
    masses: Mapping[str, float]
    prediction: str
    gold: str
    correct: bool
    correct_reference: bool


@dataclass(frozen=True)
class Cell:
    """One task in one language and variant: its entry in `results.json` and its predictions by row number."""

    key: Key
    prompts: str
    accuracy_whole_word: float | None
    """by the log-probability of the whole label word; None where it was not scored"""
    shares_candidates: bool
    """whether two of the label words have candidate tokens in common"""
    predictions: Mapping[int, Prediction]

    @property
    def count(self) -> int:
        return len(self.predictions)

    @property
    def correct(self) -> int:
        return sum(prediction.correct for prediction in self.predictions.values())

    @property
    def correct_reference(self) -> int:
        return sum(prediction.correct_reference for prediction in self.predictions.values())

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def mean_gold_mass(self) -> float:
        return float(np.mean([prediction.masses[prediction.gold] for prediction in self.predictions.values()]))

    @property
    def mean_label_mass(self) -> float:
        """Mean over rows of the mass on all classes together; below 1 by what lies on other tokens."""
        return float(np.mean([sum(prediction.masses.values()) for prediction in self.predictions.values()]))

    @property
    def predicted(self) -> Counter[str]:
        return Counter(prediction.prediction for prediction in self.predictions.values())


@dataclass(frozen=True)
class Failure:
    """A cell that could not be evaluated."""

    key: Key
    error: str


@dataclass(frozen=True)
class Results:
    """One evaluation, with the probes that lie beside it."""

    folder: Path
    cells: Mapping[Key, Cell]
    """in the order of `results.json`"""
    failures: Sequence[Failure]
    task_versions: Mapping[str, int]
    document: Mapping[str, Any]
    """`results.json`"""
    timing: Mapping[str, Any]
    probes: Probes

    @property
    def model(self) -> str:
        return self.document["model"]

    @property
    def adapter(self) -> str | None:
        return self.document["adapter"] or None

    @property
    def tuned_on(self) -> list[str]:
        """Languages of the adapter's training data; empty where none are recorded."""
        return self.document.get("tuned_on") or []


def read_results(folder: Path) -> Results:
    """The evaluation in `folder`: `results.json` and `predictions.jsonl`, and what else there is.

    Raises:
      InputError: one of the two is missing, cut off or not as `evaluate` writes it, they contradict each other, or
        what was probed there is another model.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{folder}: no results.json there; give a folder that `jaxalign evaluate` wrote")
    document = read_object(path)
    for name in ("model", "command"):
        field(document, name, str, str(path))
    for name in ("config", "versions"):
        field(document, name, dict, str(path))
    if document.get("adapter") is not None:
        field(document, "adapter", str, str(path))
    if document.get("tuned_on") is not None:
        document["tuned_on"] = languages(document, "tuned_on", str(path))
    versions = field(document, "task_version", dict, str(path))
    predictions = read_predictions(folder / "predictions.jsonl")
    cells: dict[Key, Cell] = {}
    for index, entry in enumerate(field(document, "cells", list, str(path))):
        cell = read_cell(entry, predictions, f"{path}, cell {index}")
        if cell.key in cells:
            raise InputError(f"{path}, cell {index}: {', '.join(cell.key)} stands there twice")
        field(versions, cell.key.task, int, f"{path}, task_version")
        cells[cell.key] = cell
    if not cells:
        raise InputError(f"{path}: no cells; evaluate some task in some language first")
    probes = read_probes(folder)
    own = {"model": document["model"], "adapter": document.get("adapter") or ""}
    model_of_all(folder, {"results": own, **model_documents(folder)})
    timing = folder / "timing.json"
    return Results(
        folder=folder,
        cells=cells,
        failures=read_failures(document, str(path)),
        task_versions=versions,
        document={"adapter": None, **document},
        timing=read_object(timing) if timing.is_file() else {},
        probes=probes,
    )


def read_failures(document: Mapping[str, Any], where: str) -> list[Failure]:
    """The cells that failed; none in folders written before failures were recorded."""
    if "failures" not in document:
        return []
    failures = []
    for index, entry in enumerate(field(document, "failures", list, where)):
        place = f"{where}, failure {index}"
        failures.append(Failure(read_key(entry, place), field(entry, "error", str, place)))
    return failures


def read_key(entry: Any, where: str) -> Key:
    """The task, language and variant of an object, all three known ones."""
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a JSON object is needed")
    key = Key(*(field(entry, name, str, where) for name in Key._fields))
    task_named(key.task)
    key = key._replace(language=language_of(key.language, where).code)
    if key.variant not in VARIANTS:
        raise InputError(f"{where}, field 'variant': one of {', '.join(VARIANTS)} is needed, found {key.variant!r}")
    return key


def read_predictions(path: Path) -> dict[Key, dict[int, Prediction]]:
    """Cell -> row number -> prediction."""
    grid: dict[Key, dict[int, Prediction]] = {}
    for line, record in read_json_lines(path):
        where = f"{path}, row {line}"
        key = read_key(record, where)
        prediction = read_prediction(record, task_named(key.task).classes, where)
        cell = grid.setdefault(key, {})
        if prediction.row in cell:
            raise InputError(f"{where}: row {prediction.row} of {', '.join(key)} stands there twice")
        cell[prediction.row] = prediction
    return grid


def read_prediction(record: Mapping[str, Any], classes: Sequence[str], where: str) -> Prediction:
    masses = field(record, "prefix_mass", dict, where)
    if set(masses) != set(classes):
        raise InputError(f"{where}, field 'prefix_mass': the classes {', '.join(classes)} are needed")
    prediction, gold = field(record, "prediction", str, where), field(record, "gold_class", str, where)
    for name, value in (("prediction", prediction), ("gold_class", gold)):
        if value not in classes:
            raise InputError(f"{where}, field {name!r}: one of {', '.join(classes)} is needed, found {value!r}")
    masses = {name: share(masses[name], f"{where}, field 'prefix_mass'") for name in classes}
    if masses[prediction] < max(masses.values()):
        raise InputError(f"{where}, field 'prediction': {prediction!r} has not the largest prefix_mass; evaluate again")
    correct = field(record, "correct_corrected", bool, where)
    if correct != (prediction == gold):
        raise InputError(
            f"{where}, field 'correct_corrected': {json.dumps(correct)}, but predicted is {prediction!r} and right is "
            f"{gold!r}; evaluate again"
        )
    return Prediction(
        row=field(record, "row", int, where),
        masses=masses,
        prediction=prediction,
        gold=gold,
        correct=correct,
        correct_reference=field(record, "correct_reference", bool, where),
    )


def read_cell(entry: Any, grid: Mapping[Key, Mapping[int, Prediction]], where: str) -> Cell:
    """One entry of `results.json`, joined with its predictions, which must agree with it."""
    key = read_key(entry, where)
    whole_word = entry.get("accuracy_whole_word")
    cell = Cell(
        key=key,
        prompts=field(entry, "prompts", str, where),
        accuracy_whole_word=None if whole_word is None else share(whole_word, f"{where}, field 'accuracy_whole_word'"),
        shares_candidates=bool(entry.get("shared_candidates")),
        predictions=grid.get(key, {}),
    )
    if cell.count == 0 or cell.count != field(entry, "count", int, where):
        raise InputError(
            f"{where}: {entry['count']} rows of {', '.join(key)}, but predictions.jsonl beside it has {cell.count}; "
            "evaluate again"
        )
    for name, correct in (("accuracy_corrected", cell.correct), ("accuracy_reference", cell.correct_reference)):
        if not abs(field(entry, name, float, where) - correct / cell.count) <= 1e-9:
            raise InputError(
                f"{where}, field {name!r}: {entry[name]}, but predictions.jsonl has {correct}/{cell.count}"
            )
    return cell
