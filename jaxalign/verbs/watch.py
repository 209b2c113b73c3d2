"""What is watched while a model is tuned: scores and probes on a few test rows, as numbers beside the loss.

A probe that is watched is the one that `jaxalign probe` runs, and its numbers are those that the files would hold.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxalign.errors import InputError
from jaxalign.evaluation.cells import Records, label_cell
from jaxalign.evaluation.generate import Generator
from jaxalign.evaluation.open_cells import TRANSLATION
from jaxalign.evaluation.score import Scorer
from jaxalign.loading import Model
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import Probe
from jaxalign.probing.geometry import ENGLISH
from jaxalign.probing.neurons import ActivationCounts, selection_probes
from jaxalign.training.loop import Hook
from jaxalign.verbs import evaluate as evaluation
from jaxalign.verbs.probe import ProbeSettings, probe_settings, selection_rule
from jaxalign.verbs.settings import EvaluationData, chosen_languages, split_list

Numbers = dict[str, float]
"""By name: `quantity/cell`, `quantity/language`, or `quantity`."""
WATCHED_SCORES = ("accuracy", "open_answers")


@dataclass(frozen=True)
class Watch:
    """What a run watches, its files read before the model is loaded."""

    config: ConfigDict
    """as an evaluation of the watched rows would have it"""
    names: list[str]
    """of WATCHED_SCORES and PROBES"""
    data: EvaluationData
    probes: ProbeSettings | None

    def hooks(self, model: Model, decoder: Decoder, shapes: Any) -> list[Hook]:
        """The hooks of a training run: none, or one that takes all measures.

        Args:
          decoder: as it is tuned, adapters among it.
          shapes: of the collections that a hook is given.
        """
        if not self.names:
            return []
        asked, probes = list(self.asked(model, decoder, shapes)), self.probes
        functions = probes.functions(model) if probes else {}
        run: Any = probes and probes.run(replace(model, decoder=decoder), shapes)

        def hook(step: int, variables: Any) -> Numbers:
            started, numbers = time.perf_counter(), {}
            for asker, cell, queries in asked:
                numbers |= score(cell, cell.ask(asker, variables, queries))
            for name in probes.names if probes else ():
                numbers |= PROBES[name](functions[name](replace(run, variables=variables)), self.config)
            return numbers | {"watch_seconds": round(time.perf_counter() - started, 3)}

        return [hook]

    def asked(self, model: Model, decoder: Decoder, shapes: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Who is asked, which cell, and what: of all cells of WATCHED_SCORES."""
        config = self.config
        if "accuracy" in self.names:
            data = evaluation.grid_data(config, self.data, model)
            scorer = Scorer(decoder, shapes, model.mesh, config.batch_tokens)
            for cell in (label_cell(data, key) for key in evaluation.chosen_cells(config)):
                # Masses alone are asked for.
                yield scorer, cell, [replace(query, words=()) for query in cell.queries()]
        if "open_answers" in self.names:
            generator = Generator(decoder, shapes, model.mesh, config.generate.batch_size)
            for cell in evaluation.open_cells(config, model):
                yield generator, cell, cell.queries()


def score(cell: Any, records: Records) -> Numbers:
    """`chrf/translation_{languages}`, 0 to 100; or `accuracy/{task}_{language}`, behind it `_{variant}` of a label
    cell: the share of answers that are right, where a label's is the aligned English one."""
    if cell.labels["task"] == TRANSLATION:
        return {f"chrf/{cell.name}": cell.summary(records)["chrf"]}
    return {f"accuracy/{cell.name}": float(np.mean([record["correct_corrected"] for record in records]))}


def watch_settings(config: ConfigDict) -> Watch:
    """What `config.watch` names; InputError for what would only fail once the model is loaded."""
    names, watched = split_list(config.watch) if config.watch else [], config.copy_and_resolve_references()
    watched.update(rows=config.watch_rows, languages=config.watch_languages)
    known, data = [*WATCHED_SCORES, *PROBES], EvaluationData(watched)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--config.watch={config.watch}: cannot watch {unknown[0]!r}; choose {', '.join(known)}")
    if "accuracy" in names:
        keys = evaluation.chosen_cells(watched)
        if not keys:
            raise InputError(
                f"--config.tasks={config.tasks}: none is scored by labels; watch open_answers in place of it"
            )
        if errors := evaluation.unreadable(watched, data, keys):
            raise errors[0]
    if "open_answers" in names:
        if not evaluation.open_tasks(watched):
            raise InputError(
                f"--config.tasks={config.tasks}: open_answers watches {', '.join(evaluation.OPEN_TASKS)}; name one"
            )
        evaluation.check_open_answers(watched)
    if "neurons" in names:
        selection_rule(config)
        if len(languages := chosen_languages(watched)) < 2:
            raise InputError(
                f"--config.watch_languages={config.watch_languages}: neurons compares languages, and {languages[0]} is "
                "one; add another"
            )
    probes = [name for name in names if name in PROBES]
    return Watch(watched, names, data, probe_settings(watched, data, probes, "watch_") if probes else None)


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


PROBES: dict[str, Callable[[Probe, ConfigDict], Numbers]] = {
    "logit_lens": of_lens,
    "attribution": of_attribution,
    "pca": of_pca,
    "geometry": of_geometry,
    "neurons": of_neurons,
}
