"""What `evaluate`, `train` and `probe` left behind, read back and checked: no jax, and nothing to ask again later.

Whatever does not fit raises InputError with file and field.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.fields import array, field, read_object, value_of
from jaxalign.data.languages import code_of, language_of
from jaxalign.data.tasks import task_named
from jaxalign.errors import InputError
from jaxalign.files import AnyPath, read_json_lines, read_npz
from jaxalign.log import whole_rows
from jaxalign.probe_files import PROBE_ARRAYS, Probe
from jaxalign.reporting.words import VARIANTS

RUN_FILES = ("run.json", "metrics.jsonl")
DOCUMENTS = (*PROBE_ARRAYS, "neuron_counts", "selection")
"""JSON files of probes that say what model they are of."""


class Key(NamedTuple):
    """What names a cell."""

    task: str
    language: str
    variant: str


@dataclass(frozen=True)
class Prediction:
    """One example of `predictions.jsonl`; `masses` holds the label mass of every class."""

    masses: Mapping[str, float]
    prediction: str
    gold: str
    correct: bool
    correct_reference: bool


@dataclass(frozen=True)
class ScoredCell:
    """One task in one language and variant: its entry in `results.json` and its predictions by row number."""

    key: Key
    prompts: str
    accuracy_whole_word: float | None  # by the log-probability of the whole label word; None where it was not scored
    shares_candidates: bool  # whether two of the label words have candidate tokens in common
    predictions: Mapping[int, Prediction]

    @property
    def count(self) -> int:
        return len(self.predictions)

    @property
    def correct(self) -> int:
        return sum(prediction.correct for prediction in self.predictions.values())

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


class Failure(NamedTuple):
    """A cell that could not be evaluated."""

    key: Key
    error: str


@dataclass(frozen=True)
class Results:
    """One evaluation, with the probes that lie beside it."""

    folder: Path
    cells: Mapping[Key, ScoredCell]  # in the order of `results.json`
    failures: Sequence[Failure]
    task_versions: Mapping[str, int]
    document: Mapping[str, Any]  # `results.json`
    timing: Mapping[str, Any]
    probes: Mapping[str, Probe]

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


@dataclass(frozen=True)
class TrainingRun:
    """A run of `train`: its facts, its config and its curves, (step, loss in nats per target token)."""

    folder: AnyPath
    document: Mapping[str, Any]  # `run.json`
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


def read_results(folder: Path) -> Results:
    """The evaluation in `folder`: `results.json` and `predictions.jsonl`, and what else there is.

    Raises:
      InputError: one of the two is missing, cut off or not as `evaluate` writes it, they contradict each other, or
        what was probed there is another model.
    """
    path, where = folder / "results.json", str(folder / "results.json")
    if not path.is_file():
        raise InputError(f"{folder}: no results.json there; give a folder that `jaxalign evaluate` wrote")
    document = {"adapter": None, "tuned_on": None, "failures": [], **read_object(path)}
    kinds = {"model": str, "command": str, "config": dict, "versions": dict, "task_version": dict, "failures": list}
    for name, kind in kinds.items():
        field(document, name, kind, where)
    if document["adapter"] is not None:
        field(document, "adapter", str, where)
    if document["tuned_on"] is not None:
        document["tuned_on"] = codes_of(document, "tuned_on", where)
    predictions = read_predictions(folder / "predictions.jsonl")
    cells: dict[Key, ScoredCell] = {}
    for index, entry in enumerate(field(document, "cells", list, where)):
        cell = read_cell(entry, predictions, f"{path}, cell {index}")
        if cell.key in cells:
            raise InputError(f"{path}, cell {index}: {', '.join(cell.key)} stands there twice")
        field(document["task_version"], cell.key.task, int, f"{path}, task_version")
        cells[cell.key] = cell
    if not cells:
        raise InputError(f"{path}: no cells; evaluate some task in some language first")
    failures = []
    for index, entry in enumerate(document["failures"]):
        place = f"{path}, failure {index}"
        failures.append(Failure(read_key(entry, place), field(entry, "error", str, place)))
    probes, timing = read_probes(folder), folder / "timing.json"
    model_of_all(folder, {"results": document, **model_documents(folder)})
    work = read_object(timing) if timing.is_file() else {}
    return Results(folder, cells, failures, document["task_version"], document, work, probes)


def check_alike(first: Path, one: Mapping[str, Any], second: Path, two: Mapping[str, Any], advice: str) -> None:
    """Refuses two folders of which these facts differ."""
    for name in one:
        if one[name] != two[name]:
            raise InputError(
                f"{first} and {second}: {name} is {one[name]!r} in one and {two[name]!r} in the other; {advice}"
            )


def codes_of(document: Mapping[str, Any], name: str, where: str) -> list[str]:
    """Codes of the languages in document[name], an array."""
    return [language_of(language, f"{where}, {name}").code for language in array(document, name, str, where)]


def share(value: Any, where: str) -> float:
    """A number between 0 and 1, a rounding error above 1 allowed."""
    if not 0 <= value_of(value, float, where) <= 1 + 1e-4:
        raise InputError(f"{where}: a number between 0 and 1 is needed, found {value}")
    return float(value)


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
        classes, masses = task_named(key.task).classes, field(record, "prefix_mass", dict, where)
        if set(masses) != set(classes):
            raise InputError(f"{where}, field 'prefix_mass': the classes {', '.join(classes)} are needed")
        masses = {name: share(masses[name], f"{where}, field 'prefix_mass'") for name in classes}
        predicted, gold = (field(record, name, str, where) for name in ("prediction", "gold_class"))
        if gold not in classes:
            raise InputError(f"{where}, field 'gold_class': one of {', '.join(classes)} is needed, found {gold!r}")
        if masses.get(predicted, -1.0) < max(masses.values()):
            raise InputError(
                f"{where}, field 'prediction': {predicted!r} has not the largest prefix_mass; evaluate again"
            )
        correct, by_reference = (field(record, f"correct_{rule}", bool, where) for rule in ("corrected", "reference"))
        if correct != (predicted == gold):
            raise InputError(
                f"{where}, field 'correct_corrected': {json.dumps(correct)}, but predicted is {predicted!r} and right "
                f"is {gold!r}; evaluate again"
            )
        row, cell = field(record, "row", int, where), grid.setdefault(key, {})
        if row in cell:
            raise InputError(f"{where}: row {row} of {', '.join(key)} stands there twice")
        cell[row] = Prediction(masses, predicted, gold, correct, by_reference)
    return grid


def read_cell(entry: Any, grid: Mapping[Key, Mapping[int, Prediction]], where: str) -> ScoredCell:
    """One entry of `results.json`, joined with its predictions, which must agree with it."""
    key = read_key(entry, where)
    whole_word = entry.get("accuracy_whole_word")
    cell = ScoredCell(
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
    by_reference = sum(prediction.correct_reference for prediction in cell.predictions.values())
    for name, correct in (("accuracy_corrected", cell.correct), ("accuracy_reference", by_reference)):
        if not abs(field(entry, name, float, where) - correct / cell.count) <= 1e-9:
            raise InputError(
                f"{where}, field {name!r}: {entry[name]}, but predictions.jsonl has {correct}/{cell.count}"
            )
    return cell


def find_run(adapter: str, beside: Path) -> Path | None:
    """The folder of a training run that a result names; None where there is none, or it is no run (but PEFT's, say).

    A relative path is looked for from the current folder and then from those above `beside`, so that a tree of results
    can be moved as a whole.
    """
    for base in (Path(), *beside.resolve().parents):
        folder = base / Path(adapter).expanduser()
        if any((folder / name).is_file() for name in RUN_FILES):
            return folder
    return None


def read_run(folder: AnyPath) -> TrainingRun:
    """The training run in `folder`; both of its files must be there.

    The curves of a finished run must reach its end, as an earlier loss would pass for that of what was saved.
    """
    document, path = read_run_document(folder), folder / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run in {folder} is not complete")
    curves: dict[str, list[tuple[int, float]]] = {"loss": [], "heldout_loss": []}
    for index, row in enumerate(whole_rows(path)):
        for name in curves.keys() & row.keys():
            curves[name].append((row["step"], field(row, name, float, f"{path}, row {index}")))
    steps = document.get("steps")
    saved = folder / "checkpoints" / str(steps)
    if type(steps) is int and saved.is_dir():
        for name, curve in curves.items():
            if (name == "loss" or document.get("heldout_pairs")) and (not curve or curve[-1][0] != steps):
                reached = f"ends at step {curve[-1][0]}" if curve else "has none"
                raise InputError(
                    f"{path}: {name} {reached}, and the run is finished at step {steps}: the file is cut off; put the "
                    f"whole one back, or remove {saved} and start the run again"
                )
    return TrainingRun(folder, document, curves["loss"], curves["heldout_loss"])


def read_run_document(folder: AnyPath) -> dict[str, Any]:
    """`run.json` of a run, its languages checked."""
    path = folder / "run.json"
    document = dict(read_object(path))
    if "languages" in document:
        spoken = field(document, "languages", dict, str(path))
        for side in ("sources", "targets", *(["seen"] if spoken.get("seen") is not None else [])):
            spoken[side] = codes_of(spoken, side, f"{path}, languages")
    return document


def read_probes(folder: Path) -> dict[str, Probe]:
    """Name -> what `probe` left in a folder, of those in PROBE_ARRAYS; a damaged file raises InputError."""
    probes = {name: checked_probe(folder, name) for name in PROBE_ARRAYS}
    return {name: probe for name, probe in probes.items() if probe is not None}


def checked_probe(folder: Path, name: str) -> Probe | None:
    """`name`.npz and `name`.json, or None where neither is; the document names the axes of all in PROBE_ARRAYS."""
    described, stored = folder / f"{name}.json", folder / f"{name}.npz"
    if not described.is_file() and not stored.is_file():
        return None
    document, where = dict(read_object(described)), str(described)
    lengths = {"component": 2}
    for axis in sorted({axis for axes in PROBE_ARRAYS[name].values() for axis in axes} - {"component"}):
        if axis in ("layer", "row"):
            array(document, axis, int, where)
        elif axis.endswith("language") and axis != "token_language":
            document[axis] = codes_of(document, axis, where)
        lengths[axis] = len(field(document, axis, list, where))
    read_facts(name, document, where)
    axes, arrays = field(document, "axes", dict, where), read_npz(stored)
    for part, expected in PROBE_ARRAYS[name].items():
        if part not in arrays:
            raise InputError(f"{stored}: no array {part!r}; probe again")
        values, shape = arrays[part], tuple(lengths[axis] for axis in expected)
        if axes.get(part) != expected or values.shape != shape:
            raise InputError(f"{stored}: {part} is {values.shape}, {described.name} says {shape}; probe again")
        if values.dtype.kind not in "fiu":
            raise InputError(f"{stored}: {part} is {values.dtype}; numbers are needed: probe again")
        if name == "logit_lens":  # a language without surviving rows has no means
            counts = document["unshared_surviving_rows" if part.startswith("unshared_") else "surviving_rows"]
            values = values[[index for index, code in enumerate(document["language"]) if counts[code]]]
        if wrong := int((~np.isfinite(values)).sum()):
            raise InputError(f"{stored}: {wrong} of {values.size} values of {part} are not finite; probe again")
    return Probe({part: arrays[part] for part in PROBE_ARRAYS[name]}, document)


def read_facts(name: str, document: dict[str, Any], where: str) -> None:
    """Checks what the document of a probe says besides its axes, and reports show."""
    if name == "logit_lens":
        for kind in ("rows", "surviving_rows", "unshared_surviving_rows"):
            counts = {code_of(language): count for language, count in field(document, kind, dict, where).items()}
            for language in document["language"]:
                field(counts, language, int, f"{where}, {kind}")
            document[kind] = counts
    elif name == "attribution":
        token_map = field(document, "token_map", dict, where)
        held_out = field(field(token_map, "held_out", dict, f"{where}, token_map"), "all", dict, f"{where}, held_out")
        for fact in ("decided", "accuracy"):
            if held_out.get(fact) is not None:
                share(held_out[fact], f"{where}, token_map, held_out, all, {fact}")
    elif name == "geometry":
        field(document, "position", str, where)
    elif name == "transplant" and document["weights"][:2] != ["base", "tuned"]:
        raise InputError(f"{where}: weights do not begin with base, tuned; probe again")


def model_documents(folder: Path, names: Sequence[str] = DOCUMENTS) -> dict[str, Mapping[str, Any]]:
    """The JSON files in a folder that name a model, by name: a selection of another program's counts names none."""
    files = {name: folder / f"{name}.json" for name in names}
    documents = {name: read_object(file) for name, file in files.items() if file.is_file()}
    return {name: document for name, document in documents.items() if "model" in document}


def model_of_all(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The model and the adapter ("": none), the same of all documents; several raise InputError."""
    models: dict[tuple[str, ...], tuple[str, str, str]] = {}
    for name, document in documents.items():
        where = f"{folder}, {name}"
        model, adapter = field(document, "model", str, where), document.get("adapter") or ""
        adapter = field({"adapter": adapter}, "adapter", str, where)
        # The same for all spellings of one path.
        places = [
            each if not each or "://" in each or "@" in each else os.path.abspath(os.path.expanduser(each))
            for each in (model, adapter)
        ]
        models.setdefault(tuple(places), (name, model, adapter))
    (first, *one), *others = models.values()
    if others:
        second, *other = others[0]
        one, other = (" with ".join(filter(None, each)) for each in (one, other))
        raise InputError(f"{folder}: {first} is of {one}, {second} of {other}; use a folder for each")
    return one[0], one[1]


def check_of_one_model(folder: Path, made: Mapping[str, Any], rewritten: Collection[str]) -> None:
    """Refuses a folder with files of another model or adapter than those of `made`, which is to be written there.

    rewritten: documents that are written anew, whatever they are of.
    """
    kept = model_documents(folder, [name for name in (*DOCUMENTS, "results") if name not in rewritten])
    model_of_all(folder, kept | {"what is asked for": made})
