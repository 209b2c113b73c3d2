"""What is watched while a model is tuned: scores and probes on a few test rows, as numbers beside the loss.

A probe that is watched is the one that `jaxalign probe` runs, and its numbers are those that the files would hold.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxalign.errors import InputError
from jaxalign.evaluation.cells import label_cell
from jaxalign.evaluation.generate import Generator
from jaxalign.evaluation.open_cells import TRANSLATION
from jaxalign.evaluation.score import Scorer
from jaxalign.loading import Model
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import Probe
from jaxalign.probing.geometry import ENGLISH
from jaxalign.probing.neurons import ActivationCounts, selection_probes
from jaxalign.training.loop import Hook
from jaxalign.verbs.evaluate import chosen_cells, grid_data, unreadable
from jaxalign.verbs.open_answers import OPEN_TASKS, cells_of, check_open_answers, open_tasks
from jaxalign.verbs.probe import ProbeSettings, probe_settings, selection_rule
from jaxalign.verbs.settings import EvaluationData, chosen_languages, split_list

Numbers = dict[str, float]
"""By name: `quantity/cell`, `quantity/language`, or `quantity`."""
Measure = Callable[[Any], Numbers]
"""Of the collections that the decoder is applied to."""


@dataclass(frozen=True)
class Watch:
    """What a run watches, its files read before the model is loaded."""

    config: ConfigDict
    """as an evaluation of the watched rows would have it"""
    names: list[str]
    """of SCORES and PROBES"""
    data: EvaluationData
    probes: ProbeSettings | None

    def hooks(self, model: Model, decoder: Decoder, shapes: Any) -> list[Hook]:
        """The hooks of a training run: none, or one that takes all measures.

        Args:
          decoder: as it is tuned, adapters among it.
          shapes: of the collections that a hook is given.
        """
        measures = [
            SCORES[name](self.config, self.data, model, decoder, shapes) for name in self.names if name in SCORES
        ]
        if self.probes:
            functions, run = self.probes.functions(model), self.probes.run(replace(model, decoder=decoder), shapes)

            def probe(name: str, variables: Any) -> Numbers:
                return PROBES[name](functions[name](replace(run, variables=variables)), self.config)

            measures += [partial(probe, name) for name in self.probes.names]
        if not measures:
            return []

        def hook(step: int, variables: Any) -> Numbers:
            started, numbers = time.perf_counter(), {}
            for measure in measures:
                numbers |= measure(variables)
            return numbers | {"watch_seconds": round(time.perf_counter() - started, 3)}

        return [hook]


def watch_settings(config: ConfigDict) -> Watch:
    """What `config.watch` names; InputError for what would only fail once the model is loaded."""
    names, watched = split_list(config.watch) if config.watch else [], watch_config(config)
    known, data = [*SCORES, *PROBES], EvaluationData(watched)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--config.watch={config.watch}: cannot watch {unknown[0]!r}; choose {', '.join(known)}")
    if "accuracy" in names:
        keys = chosen_cells(watched)
        if not keys:
            raise InputError(
                f"--config.tasks={config.tasks}: none is scored by labels; watch open_answers in place of it"
            )
        if errors := unreadable(watched, data, keys):
            raise errors[0]
    if "open_answers" in names:
        if not open_tasks(watched):
            raise InputError(f"--config.tasks={config.tasks}: open_answers watches {', '.join(OPEN_TASKS)}; name one")
        check_open_answers(watched)
    if "neurons" in names:
        selection_rule(config)
        if len(languages := chosen_languages(watched)) < 2:
            raise InputError(
                f"--config.watch_languages={config.watch_languages}: neurons compares languages, and {languages[0]} is "
                "one; add another"
            )
    probes = [name for name in names if name in PROBES]
    return Watch(watched, names, data, probe_settings(watched, data, probes, "watch_") if probes else None)


def watch_config(config: ConfigDict) -> ConfigDict:
    """The config as an evaluation of the watched rows would have it."""
    watched = config.copy_and_resolve_references()
    watched.update(rows=config.watch_rows, languages=config.watch_languages)
    return watched


def accuracy(config: ConfigDict, read: EvaluationData, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`accuracy/{task}_{language}_{variant}`: the share of rows whose label of most mass is the aligned English one."""
    data = grid_data(config, read, model)
    scorer = Scorer(decoder, shapes, model.mesh, config.batch_tokens)
    cells = [label_cell(data, key) for key in chosen_cells(config)]
    # Masses alone are asked for.
    asked = [(cell, [replace(query, words=()) for query in cell.queries()]) for cell in cells]

    def measure(variables: Any) -> Numbers:
        numbers = {}
        for cell, queries in asked:
            records = cell.ask(scorer, variables, queries)
            numbers[f"accuracy/{cell.name}"] = float(np.mean([record["correct_corrected"] for record in records]))
        return numbers

    return measure


def open_answers(config: ConfigDict, read: EvaluationData, model: Model, decoder: Decoder, shapes: Any) -> Measure:
    """`accuracy/{task}_{language}` of math problems, and `chrf/translation_{languages}` of translations, 0 to 100."""
    cells = [cell for task in open_tasks(config) for cell in cells_of(config, task, model)]
    generator = Generator(decoder, shapes, model.mesh, config.generate.batch_size)

    def measure(variables: Any) -> Numbers:
        numbers = {}
        for cell in cells:
            summary = cell.summary(cell.ask(generator, variables, cell.queries()))
            if cell.task == TRANSLATION:
                numbers[f"chrf/{cell.name}"] = summary["chrf"]
            else:
                numbers[f"accuracy/{cell.name}"] = summary["accuracy_corrected"]
        return numbers

    return measure


def of_lens(found: Probe, config: ConfigDict) -> Numbers:
    """`lens_latent/{language}` and `lens_out/{language}`: the largest of the layers' mean masses, over surviving rows.

    Read without the tokens that two languages' words share. A language of which no row survives is left out.
    """
    numbers = {}
    for index, language in enumerate(found.languages):
        if found.document["unshared_surviving_rows"][language]:
            numbers[f"lens_latent/{language}"] = float(found.arrays["unshared_latent_mean"][index].max())
            numbers[f"lens_out/{language}"] = float(found.arrays["unshared_out_mean"][index].max())
    return numbers


def of_attribution(found: Probe, config: ConfigDict) -> Numbers:
    """`english_mass/{language}` and `own_mass/{language}`: the largest of the layers' mean masses on tokens of English
    and of the prompt's own language, at its last position."""
    groups, numbers = found.document["token_language"], {}
    for language, masses in zip(found.languages, found.arrays["language_mass_mean"][:, :, -1], strict=True):
        for name, code in (("english_mass", ENGLISH), ("own_mass", language)):
            if code in groups:
                numbers[f"{name}/{language}"] = float(masses[:, groups.index(code)].max())
    return numbers


def of_pca(found: Probe, config: ConfigDict) -> Numbers:
    """`pca_correlation/{language}`: Pearson's r with English along the first joint component, mean over layers."""
    with_english = found.arrays["correlations"].mean(axis=0, dtype=np.float64)[found.languages.index(ENGLISH)]
    by_language = zip(found.languages, with_english, strict=True)
    return {f"pca_correlation/{language}": float(r) for language, r in by_language if language != ENGLISH}


def of_geometry(found: Probe, config: ConfigDict) -> Numbers:
    """`cka/{language}` and `retrieval_centred/{language}`: with English, mean over the layers of `config.capture`."""
    return {
        f"{name}/{language}": float(found.arrays[name][index].mean())
        for index, language in enumerate(found.languages)
        for name in ("cka", "retrieval_centred")
    }


def of_neurons(found: Probe, config: ConfigDict) -> Numbers:
    """`neurons/{language}`: how many of the neurons that `config.neurons` selects are a language's own; and of them all
    `neurons_language_specific`, `neurons_language_related`, `neurons_general`, `neurons_unassigned`."""
    counts = ActivationCounts(found.languages, found.arrays["active"], found.arrays["tokens"])
    document = selection_probes(counts, *selection_rule(config))["selection"].document
    return {f"neurons/{code}": float(number) for code, number in document["neurons"].items()} | {
        f"neurons_{name}": float(number) for name, number in document["classes"].items()
    }


SCORES: dict[str, Callable[[ConfigDict, EvaluationData, Model, Decoder, Any], Measure]] = {
    "accuracy": accuracy,
    "open_answers": open_answers,
}
PROBES: dict[str, Callable[[Probe, ConfigDict], Numbers]] = {
    "logit_lens": of_lens,
    "attribution": of_attribution,
    "pca": of_pca,
    "geometry": of_geometry,
    "neurons": of_neurons,
}
