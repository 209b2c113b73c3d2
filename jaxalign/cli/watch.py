"""What is watched while a model is tuned: label accuracy and probes on a few test rows, as numbers beside the loss."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxalign.cli.evaluate import chosen_cells, prompt_style, unreadable
from jaxalign.cli.loading import Model, chosen_languages, evaluation_data, split_list
from jaxalign.data.batches import round_up
from jaxalign.data.tasks import TASKS, parse_rows, read_task_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import GridData, cell_keys, render_cell
from jaxalign.evaluation.records import best_class
from jaxalign.evaluation.score_labels import Scorer
from jaxalign.model.prompt_batches import PromptRunner
from jaxalign.model.transformer import Decoder
from jaxalign.probing.logit_lens import lens_function, lens_of_language
from jaxalign.probing.prompts import TASK, VARIANT, ProbeData
from jaxalign.probing.representation import language_correlations, language_states, mean_states_function
from jaxalign.training.loop import Hook

Measure = Callable[[Any], Mapping[str, float]]
"""Collections to apply the decoder to -> numbers by name, `quantity/cell` or `quantity/language`."""


def watch_hooks(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> list[Hook]:
    """The hooks of a training run: none, or one that takes all measures of `config.watch`.

    Args:
      decoder: as it is tuned, adapters among it.
      shapes: of the collections that a hook is given.
    """
    watched = watch_config(config)
    measures = [MEASURES[name](watched, model, decoder, shapes) for name in watch_names(config)]
    if not measures:
        return []

    def hook(step: int, variables: Any) -> dict[str, float]:
        started, numbers = time.perf_counter(), {}
        for measure in measures:
            numbers |= measure(variables)
        return numbers | {"watch_seconds": round(time.perf_counter() - started, 3)}

    return [hook]


def watch_names(config: ConfigDict) -> list[str]:
    """The measures of `config.watch`."""
    names = split_list(config.watch) if config.watch else []
    if unknown := [name for name in names if name not in MEASURES]:
        raise InputError(f"--config.watch={config.watch}: cannot watch {unknown[0]!r}; choose {', '.join(MEASURES)}")
    return names


def watch_config(config: ConfigDict) -> ConfigDict:
    """The config as an evaluation of the watched rows would have it."""
    watched = config.copy_and_resolve_references()
    watched.update(rows=config.watch_rows, languages=config.watch_languages)
    return watched


def check_watch_settings(config: ConfigDict) -> None:
    """Refuses what would only fail once the model is loaded."""
    names, watched = watch_names(config), watch_config(config)
    keys = chosen_cells(watched) if "accuracy" in names else []
    if {"logit_lens", "pca"} & set(names):
        keys += cell_keys([TASK], chosen_languages(watched), [VARIANT])
    if errors := unreadable(watched, keys):
        raise errors[0]
    if "pca" in names and "en" not in chosen_languages(watched):
        raise InputError(f"--config.watch_languages={config.watch_languages}: pca compares with en; add it")


def accuracy(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`accuracy/{task}_{language}_{variant}`: the share of rows whose label of most mass is the aligned English one."""
    folder, exemplars = evaluation_data(config)
    data = GridData(folder, exemplars, model.tokenizer, parse_rows(config.rows), prompt_style(config), config.seed)
    scorer = Scorer(decoder, shapes, model.mesh, config.batch_tokens)
    cells = [
        render_cell(data, key, read_task_rows(folder, TASKS[key.task], key.language, "test", data.rows))
        for key in chosen_cells(config)
    ]
    queries = [[replace(query, words=()) for query in cell.queries] for cell in cells]  # masses alone are asked for

    def measure(variables: Any) -> dict[str, float]:
        numbers = {}
        for cell, asked in zip(cells, queries, strict=True):
            masses = scorer.score(variables, asked, list(cell.candidates.values())).prefix_mass.tolist()
            correct = [
                best_class(dict(zip(cell.candidates, mass, strict=True)), data.seed, row) == row.gold_class
                for row, mass in zip(cell.rows, masses, strict=True)
            ]
            numbers[f"accuracy/{cell.key.name}"] = sum(correct) / len(correct)
        return numbers

    return measure


def logit_lens(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`lens_latent/{language}` and `lens_out/{language}`: the largest of the layers' mean masses, over surviving rows.

    A language of which no row survives the study's filter is left out.
    """
    data, languages = probe_data(config, model), chosen_languages(config)
    runner = prompt_runner(lens_function(decoder), config, model, shapes)

    def measure(variables: Any) -> dict[str, float]:
        numbers = {}
        for language in languages:
            lens = lens_of_language(runner, variables, data, language)
            if lens.survives.any():
                numbers[f"lens_latent/{language}"] = float(lens.latent[lens.survives].mean(axis=0).max())
                numbers[f"lens_out/{language}"] = float(lens.out[lens.survives].mean(axis=0).max())
        return numbers

    return measure


def pca(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`pca_correlation/{language}`: Pearson's r with English along the first joint component, mean over layers."""
    data, languages = probe_data(config, model), chosen_languages(config)
    runner = prompt_runner(mean_states_function(decoder), config, model, shapes)

    def measure(variables: Any) -> dict[str, float]:
        states = np.stack([language_states(runner, variables, data, language)[1] for language in languages])
        correlations = [language_correlations(states[:, :, layer]) for layer in range(states.shape[2])]
        with_english = np.mean(correlations, axis=0)[languages.index("en")]
        return {
            f"pca_correlation/{language}": float(r)
            for language, r in zip(languages, with_english, strict=True)
            if language != "en"
        }

    return measure


def probe_data(config: ConfigDict, model: Model) -> ProbeData:
    """The prompts that the probes watch."""
    folder, exemplars = evaluation_data(config)
    return ProbeData(folder, exemplars, model.tokenizer, parse_rows(config.rows))


def prompt_runner(function: Any, config: ConfigDict, model: Model, shapes: Any) -> PromptRunner:
    """A probe's function on batches of `config.batch_size` prompts."""
    batch_size = round_up(config.batch_size, model.mesh.shape["data"] * model.mesh.shape["fsdp"])
    return PromptRunner(function, shapes, model.mesh, batch_size, model.config.max_positions)


MEASURES: dict[str, Callable[[ConfigDict, Model, Decoder, Any], Measure]] = {
    "accuracy": accuracy,
    "logit_lens": logit_lens,
    "pca": pca,
}
