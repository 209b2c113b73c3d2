"""Made-up result folders, as `evaluate`, `train` and `probe` write them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.tasks import TASKS
from jaxalign.files import read_json, write_json, write_json_lines
from jaxalign.probe_files import PROBE_ARRAYS, Probe, write_probe
from jaxalign.probing.attribution import SCRIPT_CLASSES, UNDECIDABLE
from jaxalign.probing.geometry import geometry_arrays, language_geometry, pca_arrays
from jaxalign.probing.logit_lens import LensRows, lens_probe
from jaxalign.probing.masking import EFFECTS
from jaxalign.probing.neurons import ActivationCounts, selection_probes
from jaxalign.reporting.folders import Key
from jaxalign.statistics import wilson_interval

VERSIONS = {"jax": "0.10.2", "flax": "0.12.8", "jaxalign": "0.1.0"}
PROBED = {
    "model": "models/smollm2-135m",
    "adapter": "",
    "config": {"rows": "0:20"},
    "command": "jaxalign probe --config.out=base",
    "versions": VERSIONS,
}
"""What every probe's JSON file says besides."""
LANGUAGES = ["en", "de", "zh", "sw"]
CELLS = {("emotion", language): 0.55 for language in LANGUAGES} | {("snli", "no"): 0.5}
"""Of `write_both_sides`."""


def cell_records(
    task_name: str, language: str, variant: str, rows: range, gold_mass: float, seed: int
) -> list[dict[str, Any]]:
    """Records of one cell; the gold class gets `gold_mass` of all label mass on average."""
    task = TASKS[task_name]
    generator = np.random.default_rng(seed)
    golds = [task.classes[row % len(task.classes)] for row in rows]
    weights = np.array([[gold_mass if name == gold else 1 - gold_mass for name in task.classes] for gold in golds])
    masses = weights * generator.uniform(0.2, 1.0, weights.shape) / weights.sum(axis=1, keepdims=True)
    return [
        record(Key(task_name, language, variant), row, gold, dict(zip(task.classes, mass, strict=True)))
        for row, gold, mass in zip(rows, golds, masses.tolist(), strict=True)
    ]


def record(key: Key, row: int, gold: str, masses: Mapping[str, float]) -> dict[str, Any]:
    """One line of `predictions.jsonl`."""
    task = TASKS[key.task]
    script_words = task.label_words[key.language]
    file_words = {**script_words, **task.file_words.get(key.language, {})}
    prediction = max(masses, key=lambda name: masses[name])
    return {
        "task": key.task,
        "language": key.language,
        "row": row,
        "prompts": "study",
        "variant": key.variant,
        "prefix_mass": dict(masses),
        "whole_word": {name: math.log(mass) for name, mass in masses.items()},
        "prediction": prediction,
        "gold_class": gold,
        "correct_reference": script_words[prediction] == file_words[gold],
        "correct_corrected": prediction == gold,
        "prompt_tokens": 3,
    }


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One cell of `results.json`."""
    count = len(records)
    correct = sum(each["correct_corrected"] for each in records)
    return {
        **{key: records[0][key] for key in ("task", "language", "variant", "prompts")},
        "count": count,
        "accuracy_corrected": correct / count,
        "accuracy_reference": sum(each["correct_reference"] for each in records) / count,
        "accuracy_whole_word": correct / count,
        "interval_corrected": list(wilson_interval(correct, count)),
        "shared_candidates": [],
    }


def write_evaluation(
    folder: Path,
    cells: Mapping[Any, float],
    *,
    rows: range = range(60),
    seed: int = 0,
    **description: Any,
) -> Path:
    """An evaluation; `cells` gives the mean gold mass of each (task, language) or (task, language, variant)."""
    keys = [Key(*(*key, "english")[:3]) for key in cells]
    masses = enumerate(zip(keys, cells.values(), strict=True))
    return write_records(
        folder, [cell_records(*key, rows, mass, seed + index) for index, (key, mass) in masses], **description
    )


def write_answers(folder: Path, answers: Mapping[tuple[str, str], Sequence[bool]], **description: Any) -> Path:
    """An evaluation in which every row was answered right or wrong as given; (task, language) -> rows from 0 on."""
    cells = []
    for (task, language), is_right in answers.items():
        gold, other = TASKS[task].classes[:2]
        masses = {True: {gold: 0.6, other: 0.4}, False: {gold: 0.4, other: 0.6}}
        rest = dict.fromkeys(TASKS[task].classes, 0.1)
        key = Key(task, language, "english")
        cells.append([record(key, row, gold, rest | masses[right]) for row, right in enumerate(is_right)])
    return write_records(folder, cells, **description)


def write_records(folder: Path, cells: Sequence[Sequence[Mapping[str, Any]]], **description: Any) -> Path:
    """The three files of an evaluation; `description` replaces fields of `results.json`."""
    write_json_lines(folder / "predictions.jsonl", (each for cell in cells for each in cell))
    counts = {"prompts": 60, "prompt_tokens": 7000, "computed_positions": 9000, "compilations": 2, "seconds": 3.25}
    write_json(folder / "timing.json", {"examples": {"scored": 60, "reused": 0}, **counts})
    results = {
        "cells": [summary(cell) for cell in cells],
        "failures": [],
        "task_version": {cell[0]["task"]: 1 for cell in cells},
        "model": "models/smollm2-135m",
        "adapter": None,
        "dtype": "float32",
        "param_dtype": "float32",
        "tuned_on": [],
        "config": {"tasks": "emotion", "languages": "all", "mesh": {"data": 1, "fsdp": -1, "tensor": 1}},
        "command": f"jaxalign evaluate --config.out={folder.name}",
        "versions": VERSIONS,
        **description,
    }
    write_json(folder / "results.json", results)
    return folder


def write_run(folder: Path, sources: Sequence[str] = ("zh", "de"), targets: Sequence[str] = ("en",)) -> Path:
    """A training run as `train` writes it."""
    document = {
        "model": "models/smollm2-135m",
        "files": ["mini/zh-en.jsonl", "mini/de-en.jsonl"],
        "records": 0,
        "pairs": 1200,
        "heldout_pairs": 60,
        "dropped": 3,
        "cut": 0,
        "languages": {"sources": list(sources), "targets": list(targets)},
        "steps": 200,
        "command": "jaxalign train --config.out=run",
        "versions": VERSIONS,
        "template": "none",
        "trainable_parameters": 460_800,
        "config": {"optimizer": {"learning_rate": 5e-5}, "epochs": 3},
    }
    write_json(folder / "run.json", document)
    steps = range(1, 201)
    noise = np.random.default_rng(3).normal(0, 0.05, len(steps))
    rows: list[dict[str, Any]] = [{"step": 0, "heldout_loss": 3.5}]
    for step in steps:
        rows.append({"step": step, "loss": 1.2 + 2.3 * 0.98**step + noise[step - 1], "tokens": 512, "seconds": 0.4})
        if step % 50 == 0:
            rows.append({"step": step, "heldout_loss": 1.3 + 2.2 * 0.98**step})
    write_json_lines(folder / "metrics.jsonl", rows)
    return folder


def write_described(
    folder: Path, name: str, arrays: Mapping[str, np.ndarray], languages: Sequence[str], **labels: Any
) -> None:
    """A probe's two files; `labels` are those of its other axes, and what else its document says."""
    document = {"axes": PROBE_ARRAYS[name], "language": list(languages), **labels, **PROBED}
    write_probe(folder, name, Probe(arrays, document))


def write_lens(folder: Path, languages: Sequence[str], layers: int = 12, rows: int = 20, peak: float = 0.5) -> None:
    """A logit lens as `probe` writes it; no row of German survives the study's filter."""
    generator = np.random.default_rng(1)
    rise = peak / (1 + np.exp(-(np.arange(layers) - 0.6 * layers)))

    def lens_rows(survives: bool) -> LensRows:
        return LensRows(
            latent=rise + generator.uniform(0, 0.1, (rows, layers)),
            out=rise[::-1] * 0.3 + generator.uniform(0, 0.05, (rows, layers)),
            all_possible_latent=rise * 1.3 + generator.uniform(0, 0.1, (rows, layers)),
            all_possible_out=rise[::-1] * 0.4 + generator.uniform(0, 0.1, (rows, layers)),
            entropy=13 - 10 * rise + generator.uniform(0, 0.5, (rows, layers)),
            energy=np.full((rows, layers), 1.1),
            survives=np.full(rows, survives),
        )

    ways = {language: (lens_rows(language != "de"), lens_rows(True)) for language in languages}
    lens = {language: LensRows(*map(np.stack, zip(*both, strict=True))) for language, both in ways.items()}
    found = lens_probe(lens)
    write_probe(folder, "logit_lens", Probe(found.arrays, {**found.document, **PROBED}))


def write_pca(
    folder: Path, languages: Sequence[str], scatter: Sequence[str], layers: int = 12, apart: float = 2.0
) -> None:
    """A representation probe as `probe` writes it; languages lie about `apart` from each other."""
    generator = np.random.default_rng(2)
    rows, shape = 20, (len(languages), 20, layers + 1, 8)
    items, offsets = generator.normal(size=(1, *shape[1:])), generator.normal(size=(len(languages), 1, 1, 1))
    states = items + apart * offsets + 0.5 * generator.normal(size=shape)
    arrays = pca_arrays(states, [languages.index(code) for code in scatter])
    labels = {"layer": list(range(layers + 1)), "scatter_language": list(scatter), "row": list(range(rows))}
    write_described(folder, "pca", arrays, languages, bound=["low", "high"], **labels)


def write_geometry(folder: Path, languages: Sequence[str], layers: int = 4, shared: float = 1.0) -> None:
    """A geometry probe as `probe` writes it; `shared` says how much languages share of an item."""
    generator = np.random.default_rng(4)
    others, rows, width = [code for code in languages if code != "en"], 20, 8
    items = generator.normal(size=(rows, layers + 1, width))
    english, *states = shared * items + generator.normal(size=(1 + len(others), rows, layers + 1, width))
    arrays = geometry_arrays([language_geometry(each, english) for each in states])
    labels = {"layer": list(range(layers + 1)), "row": list(range(rows)), "bound": ["low", "high"]}
    write_described(folder, "geometry", arrays, others, position="query_mean", **labels)


def write_attribution(folder: Path, languages: Sequence[str], layers: int = 4) -> None:
    """An attribution of the lens as `probe` writes it."""
    generator = np.random.default_rng(5)
    labels = {"token_language": [*languages, UNDECIDABLE], "token_script": list(SCRIPT_CLASSES)}
    arrays = {}
    for kind in ("language", "script"):
        mass = generator.dirichlet(np.ones(len(labels[f"token_{kind}"])), (len(languages), layers, 1))
        arrays |= {f"{kind}_mass_mean": mass.astype(np.float32), f"{kind}_mass_half_width": mass / 10}
    token_map = {"held_out": {"all": {"tokens": 100, "decided": 0.8, "accuracy": 0.95}}}
    layer = list(range(1, layers + 1))
    write_described(folder, "attribution", arrays, languages, layer=layer, position=[-1], token_map=token_map, **labels)


def write_effect(folder: Path, name: str, languages: Sequence[str]) -> None:
    """`masking`, `masked_accuracy` or `transplant` as `probe` writes it, of what the report reads."""
    random = np.random.default_rng(6)
    array, axes = next(iter(PROBE_ARRAYS[name].items()))
    arrays = {array: random.normal(size=(3, len(languages), len(languages), 3))}
    weights = ["base", "tuned", *languages, *(f"random, as {code}" for code in languages)]
    if name == "transplant":
        arrays["perplexity"] = random.uniform(5, 20, (len(weights), len(languages)))
    labels = {axes[1]: list(languages), "effect": list(EFFECTS), "estimate": ["change", "low", "high"]}
    write_described(folder, name, arrays, languages, weights=weights, **labels)


def write_selection(folder: Path, english: Sequence[tuple[int, int]], rate: float = 0.1) -> Path:
    """The selection of a model of two layers of ten, whose neurons are English at these places, Swahili at (1, 0)."""
    codes = ["en", "sw"]
    active = np.ones((2, 2, 10), np.int64)
    for layer, index in english:
        active[:, layer, index] = 9, 0
    active[:, 1, 0] = 0, 9
    found = selection_probes(ActivationCounts(codes, active, np.full(2, 10)), "lape", rate)["selection"]
    document = {**found.document, **PROBED, "command": "jaxalign neurons counts.npz"}
    write_probe(folder, "selection", Probe(found.arrays, document))
    return folder


def write_both_sides(root: Path) -> tuple[Path, Path]:
    """Everything a report can hold: two tasks, all probes before and after, and the run behind the adapter."""
    write_run(root / "run")
    before = write_evaluation(root / "before", CELLS)
    after = write_evaluation(root / "after", CELLS, seed=9, adapter="run", tuned_on=["de", "zh", "en"])
    for folder, shared in ((before, 0.5), (after, 1.5)):
        write_lens(folder, LANGUAGES, layers=6)
        write_pca(folder, LANGUAGES, ["en", "de"], layers=6)
        write_geometry(folder, LANGUAGES, shared=shared)
        write_attribution(folder, LANGUAGES)
        write_effect(folder, "masking", LANGUAGES)
    name_model(after, adapter="run")
    return before, after


def name_model(folder: Path, **names: str) -> None:
    """Gives the probes of a folder another `model` or `adapter`; what stands in results.json is not touched."""
    for path in folder.glob("*.json"):
        if path.stem not in ("results", "timing"):
            # A lone surrogate is written as an escape, as json.dumps does by default.
            path.write_text(json.dumps(read_json(path) | names))
