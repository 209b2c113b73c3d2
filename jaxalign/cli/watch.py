"""What is watched while a model is tuned: scores and probes on a few test rows, as numbers beside the loss."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxalign.cli.evaluate import chosen_cells, prompt_style, unreadable
from jaxalign.cli.neurons import check_selection_settings, selected_of
from jaxalign.cli.open_answers import OPEN_TASKS, cells_of, check_open_answers, open_tasks
from jaxalign.cli.probe import capture_of, check_enough_rows, compared_by
from jaxalign.cli.settings import chosen_languages, evaluation_data, split_list
from jaxalign.data.batches import round_up
from jaxalign.data.tasks import TASKS, parse_rows, read_task_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import GridData, cell_keys, render_cell, right_by_mass
from jaxalign.evaluation.generate import Generator
from jaxalign.evaluation.open_answers import texts_of
from jaxalign.evaluation.open_cells import TRANSLATION
from jaxalign.evaluation.score import Scorer
from jaxalign.loading import Model
from jaxalign.model.transformer import Decoder
from jaxalign.probing.attribution import AttributionProgram
from jaxalign.probing.capture import prepared_capture
from jaxalign.probing.geometry import ENGLISH, WHOLE_PROMPTS, geometry_arrays, language_correlations, language_geometry
from jaxalign.probing.logit_lens import LensProgram, check_survivors
from jaxalign.probing.neurons import CLASSES, CountProgram, class_of, language_neurons
from jaxalign.probing.probe import TASK, VARIANT, ProbeData, ProbeRun
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
    if "accuracy" in names and not keys:
        raise InputError(f"--config.tasks={config.tasks}: none is scored by labels; watch open_answers in place of it")
    if PROBES & set(names):
        keys += cell_keys([TASK], chosen_languages(watched), [VARIANT])
    if errors := unreadable(watched, keys):
        raise errors[0]
    if "open_answers" in names:
        if not open_tasks(watched):
            raise InputError(f"--config.tasks={config.tasks}: open_answers watches {', '.join(OPEN_TASKS)}; name one")
        check_open_answers(watched)
    if compared := compared_by(names):
        if ENGLISH not in chosen_languages(watched):
            raise InputError(
                f"--config.watch_languages={config.watch_languages}: {compared[0]} compares with en; add it"
            )
        rows = read_task_rows(evaluation_data(watched)[0], TASK, ENGLISH, "test", parse_rows(watched.rows))
        check_enough_rows(f"--config.watch_rows={config.watch_rows}", compared, len(rows))
    if "neurons" in names:
        check_selection_settings(config)
        if len(languages := chosen_languages(watched)) < 2:
            raise InputError(
                f"--config.watch_languages={config.watch_languages}: neurons compares languages, and {languages[0]} is "
                "one; add another"
            )
    capture_of(config)


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
            scores = scorer.score(variables, asked, list(cell.candidates.values()))
            numbers[f"accuracy/{cell.key.name}"] = float(np.mean(right_by_mass(cell, scores, data.seed)))
        return numbers

    return measure


def open_answers(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`accuracy/{task}_{language}` of math problems, and `chrf/translation_{languages}` of translations, 0 to 100."""
    cells = [cell for task in open_tasks(config) for cell in cells_of(config, task, model)]
    rows = round_up(config.generate.batch_size, model.mesh.shape["data"] * model.mesh.shape["fsdp"])
    generator = Generator(decoder, shapes, model.mesh, rows)

    def measure(variables: Any) -> dict[str, float]:
        numbers = {}
        for cell in cells:
            answers = generator(variables, cell.prompts, cell.stops, cell.max_tokens)
            summary = cell.summary(cell.judge(answers, texts_of(answers, model.tokenizer)))
            if cell.task == TRANSLATION:
                numbers[f"chrf/{cell.name}"] = summary["chrf"]
            else:
                numbers[f"accuracy/{cell.name}"] = summary["accuracy_corrected"]
        return numbers

    return measure


def logit_lens(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`lens_latent/{language}` and `lens_out/{language}`: the largest of the layers' mean masses, over surviving rows.

    Read without the tokens that two languages' words share. A language of which no row survives is left out.
    """
    lens_of = LensProgram(probe_run(config, model, decoder, shapes))

    def measure(variables: Any) -> dict[str, float]:
        numbers, lens = {}, lens_of(variables)
        check_survivors(lens)
        for language, both in lens.items():
            rows = both.unshared
            if rows.survives.any():
                numbers[f"lens_latent/{language}"] = float(rows.latent[rows.survives].mean(axis=0).max())
                numbers[f"lens_out/{language}"] = float(rows.out[rows.survives].mean(axis=0).max())
        return numbers

    return measure


def attribution(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`english_mass/{language}` and `own_mass/{language}`: the largest of the layers' mean masses on tokens of English
    and of the prompt's own language, at its last position."""
    masses_of = AttributionProgram(probe_run(config, model, decoder, shapes))
    groups = masses_of.tokens.languages

    def measure(variables: Any) -> dict[str, float]:
        numbers = {}
        for language, masses in masses_of(variables).items():
            by_layer = masses[:, :, -1].mean(axis=0)
            for name, code in (("english_mass", ENGLISH), ("own_mass", language)):
                if code in groups:
                    numbers[f"{name}/{language}"] = float(by_layer[:, groups.index(code)].max())
        return numbers

    return measure


def pca(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`pca_correlation/{language}`: Pearson's r with English along the first joint component, mean over layers."""
    run = probe_run(config, model, decoder, shapes)
    capture = prepared_capture(run, WHOLE_PROMPTS, run.languages)

    def measure(variables: Any) -> dict[str, float]:
        states = np.stack([each.states for each in capture(variables)])
        correlations = [language_correlations(states[:, :, layer]) for layer in range(states.shape[2])]
        with_english = np.mean(correlations, axis=0)[run.languages.index(ENGLISH)]
        found = zip(run.languages, with_english, strict=True)
        return {f"pca_correlation/{language}": float(r) for language, r in found if language != ENGLISH}

    return measure


def geometry(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`cka/{language}` and `retrieval_centred/{language}`: with English, mean over the layers of `config.capture`."""
    run = probe_run(config, model, decoder, shapes)
    english_first = [ENGLISH, *(language for language in run.languages if language != ENGLISH)]
    capture = prepared_capture(run, capture_of(config), english_first)

    def measure(variables: Any) -> dict[str, float]:
        english, *others = capture(variables)
        numbers = {}
        for each in others:
            found = geometry_arrays([language_geometry(each.states, english.states)])
            for name in ("cka", "retrieval_centred"):
                numbers[f"{name}/{each.language}"] = float(found[name].mean())
        return numbers

    return measure


def neurons(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`neurons/{language}`: how many of the neurons that `config.neurons` selects are a language's own; and of them all
    `neurons_language_specific`, `neurons_language_related`, `neurons_general`, `neurons_unassigned`."""
    counts_of = CountProgram(probe_run(config, model, decoder, shapes))

    def measure(variables: Any) -> dict[str, float]:
        counts = counts_of(variables)
        selection, languages = selected_of(counts, config), counts.languages
        classes = class_of(selection.languages_active[selection.selected], len(languages))
        own = {code: float(len(language_neurons(selection, index))) for index, code in enumerate(languages)}
        return {f"neurons/{code}": number for code, number in own.items()} | {
            f"neurons_{name}": float((classes == index).sum()) for index, name in enumerate(CLASSES)
        }

    return measure


def probe_run(config: ConfigDict, model: Model, decoder: Decoder, shapes: Any) -> ProbeRun:
    """What the probes watch; nothing is written."""
    folder, exemplars = evaluation_data(config)
    data = ProbeData(folder, exemplars, model.tokenizer, parse_rows(config.rows))
    batch_size = round_up(config.batch_size, model.mesh.shape["data"] * model.mesh.shape["fsdp"])
    return ProbeRun(Path(), decoder, shapes, model.mesh, data, chosen_languages(config), batch_size, {})


MEASURES: dict[str, Callable[[ConfigDict, Model, Decoder, Any], Measure]] = {
    "accuracy": accuracy,
    "open_answers": open_answers,
    "logit_lens": logit_lens,
    "attribution": attribution,
    "pca": pca,
    "geometry": geometry,
    "neurons": neurons,
}
PROBES = set(MEASURES) - {"accuracy", "open_answers"}
