"""`jaxalign probe`: what the layers hold; and `jaxalign neurons FILE`: the language neurons of counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxalign.configuration import provenance
from jaxalign.data.check import warn_of_exemplars
from jaxalign.data.fields import field, read_object
from jaxalign.data.tasks import TaskRow, parse_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import CellKey, GridData, label_cell
from jaxalign.evaluation.score import Scorer
from jaxalign.files import recorded
from jaxalign.holding import check_held, held
from jaxalign.loading import Model, merged
from jaxalign.log import is_hidden, print_result
from jaxalign.model.quantised import SCHEMES
from jaxalign.model.ragged import Runner
from jaxalign.probe_files import Probe, write_probe
from jaxalign.probing import masking
from jaxalign.probing import neurons as selecting
from jaxalign.probing.attribution import attribution, token_languages
from jaxalign.probing.capture import Capture, captured_layers, parse_capture
from jaxalign.probing.geometry import ENGLISH, LEAST_ROWS, geometry, pca
from jaxalign.probing.logit_lens import logit_lens
from jaxalign.probing.probe import TASK, ProbeRun, probe_texts
from jaxalign.reporting.figures import write_plots
from jaxalign.reporting.folders import check_of_one_model
from jaxalign.reporting.page import token_map_text
from jaxalign.runtime import assert_same_on_hosts
from jaxalign.verbs.evaluate import grid_data, prompt_style, settings
from jaxalign.verbs.settings import EvaluationData, chosen_languages, load_model, out_folder, split_list

OF_NEURONS = ("masking", "masked_accuracy", "transplant")
"""The probes that read a selection of neurons."""
COMPARED = ("pca", "geometry")
"""Those that compare representations of one row with those of another."""
FILE_OF = {name: name for name in ("logit_lens", "attribution", *COMPARED)}
FILE_OF |= {"neurons": "neuron_counts"} | {name: name for name in OF_NEURONS}
"""The probes, and how the files of each are called."""
SCATTERED = ("en", "de", "fr", "hi")
"""The languages of the study's PCA figure; those of them that are probed are drawn, or else the first four."""
MASKED = ("specific", "related", "general")
"""What may be switched off of a language: `config.neurons.masked`."""
SURVIVING = {
    "rows whose English and in-language label words share no token": "surviving_rows",
    "rows whose label words keep a token each without the shared ones": "unshared_surviving_rows",
}
"""What is told when the lens is done."""


@dataclass(frozen=True)
class ProbeSettings:
    """What a config says of probes, its files read."""

    config: ConfigDict
    names: list[str]
    """of FILE_OF"""
    data: EvaluationData
    rows: list[list[TaskRow]]
    """of each language"""
    capture: Capture
    own: Mapping[str, np.ndarray]
    """(layer, index) of the neurons of each language that are to be changed, int [n, 2]"""

    @property
    def languages(self) -> list[str]:
        return [rows[0].language for rows in self.rows]

    def run(self, model: Model, variables: Any, **more: Any) -> ProbeRun:
        """The probes' run on a model, whose decoder is applied to these collections or, so far, has their shapes."""
        runner = Runner(model.decoder, variables, model.mesh, self.config.batch_size)
        return ProbeRun(runner, variables, probe_texts(self.rows, self.data.exemplars, model.tokenizer), **more)

    def functions(self, model: Model) -> dict[str, Callable[[ProbeRun], Probe]]:
        """The probes of FILE_OF by name, with their settings."""
        config, languages, change = self.config, self.languages, {"own": self.own, "seed": self.config.seed}
        token_map = cache(partial(token_languages, model.tokenizer, model.config.vocab_size, self.data.tasks))
        grid = grid_data(config, self.data, model)
        return {
            "logit_lens": logit_lens,
            "attribution": partial(attribution, token_map=token_map, positions=config.attribution_positions),
            "pca": partial(pca, scattered=[code for code in SCATTERED if code in languages] or languages[:4]),
            "geometry": partial(geometry, capture=self.capture),
            "neurons": selecting.neuron_counts,
            "masking": partial(masking.masking, **change),
            "masked_accuracy": partial(masked_accuracy, grid=grid, batch_tokens=config.batch_tokens, **change),
            "transplant": partial(masking.transplant, load_base=partial(base_params, config), **change),
        }


def probe_settings(
    config: ConfigDict, data: EvaluationData, names: Sequence[str] | None = None, prefix: str = ""
) -> ProbeSettings:
    """The settings of the probes of `config.probes`, or of those named; `prefix` stands before the names of the keys
    that rows and languages come from."""
    if names is None:
        names = split_list(config.probes)
        if config.tasks not in (TASK.name, "all"):
            raise InputError(f"--config.tasks={config.tasks}: the probes read {TASK.name} only")
    if unknown := [name for name in names if name not in FILE_OF]:
        raise InputError(f"--config.probes={config.probes}: no probe {unknown[0]!r}; choose from {', '.join(FILE_OF)}")
    prompt_style(config)
    try:
        capture = parse_capture(config.capture.layers, config.capture.position)
    except InputError as error:
        raise InputError(f"--config.capture: {error}") from None
    languages = chosen_languages(config)
    rows = [data.tasks.rows(TASK, language, parse_rows(config.rows)) for language in languages]
    for language in languages:
        data.exemplars.of(TASK.name, language)
    warn_of_exemplars(data.exemplars, rows)
    if compared := [name for name in COMPARED if name in names]:
        if len(rows[0]) < LEAST_ROWS:
            raise InputError(
                f"--config.{prefix}rows={config.rows}: {' and '.join(compared)}: at least {LEAST_ROWS} rows are needed"
            )
        if (prefix or "geometry" in compared) and (ENGLISH not in languages or len(languages) < 2):
            raise InputError(
                f"--config.{prefix}languages={config.languages}: {compared[-1]} compares with {ENGLISH}; name it, and "
                "one more"
            )
    own = {}
    if changes := [name for name in OF_NEURONS if name in names]:
        own = neurons_to_change(config, languages)
        if changes != ["masking"] and config.param_dtype in SCHEMES:
            raise InputError(
                f"--config.param_dtype={config.param_dtype}: {changes[-1]} needs weights as numbers; take float32"
            )
        if "transplant" in changes and not config.adapter:
            raise InputError("--config.adapter= is needed: transplant takes neurons of a tuned model")
    return ProbeSettings(config, list(names), data, rows, capture, own)


def probe(config: ConfigDict, paths: Sequence[str]) -> None:
    """Runs the probes of `config.probes` on emotion's in-language prompts and writes them to `config.out`."""
    out, chosen = out_folder(config), probe_settings(config, EvaluationData(config))
    with held(out):
        probe_model(chosen, load_model(config))


def probe_model(chosen: ProbeSettings, model: Model) -> None:
    """`probe` with a model at hand."""
    config, names, languages = chosen.config, chosen.names, chosen.languages
    out = out_folder(config)
    with held(out):
        assert_same_on_hosts("the settings", config.to_dict())
        named = settings(config, model)
        if jax.process_index() == 0:
            check_of_one_model(out, named, [FILE_OF[name] for name in names])
        if chosen.own:
            selecting.check_fits(chosen.own, model.config.layers, model.config.mlp_dim)
            check_selected_of(Path(config.neurons.selection), named["model"])
        if "geometry" in names:
            captured_layers(chosen.capture, model.config.layers)
        assert_same_on_hosts("the test rows or exemplars", [chosen.rows, sorted(chosen.data.exemplars.cells.items())])
        assert_same_on_hosts("the selected neurons", {code: neurons.tolist() for code, neurons in chosen.own.items()})
        times = dict.fromkeys(OF_NEURONS, 1 + 2 * len(languages)) | {"transplant": 2 + 2 * len(languages)}
        total = sum(map(len, chosen.rows)) * sum(times.get(name, 1) for name in names)
        progress = tqdm(total=total, unit="prompt", disable=is_hidden())
        ready = merged(model, config.param_dtype)
        functions = chosen.functions(model)
        run = chosen.run(ready, ready.variables, on_rows=progress.update)
        description = named | {"tuned_on": model.tuned_on, "bos": model.tokenizer.bos} | provenance(config)
        with progress:
            for name in names:
                check_held()
                progress.set_description(name.replace("_", " "))
                found = functions[name](run)
                found = replace(found, document={**found.document, **description})
                if jax.process_index() == 0:
                    write_probe(out, FILE_OF[name], found)
                if name == "logit_lens":
                    for told, key in SURVIVING.items():
                        print_result(
                            f"{told}: {', '.join(f'{code} {count}' for code, count in found.document[key].items())}"
                        )
                if name == "attribution":
                    print_result(token_map_text(found.document))
        if jax.process_index() == 0:
            write_plots(out, Path(model.adapter_name).name or "base model")
    print_result(f"probes: {out}")


def base_params(config: ConfigDict, tuned: Any) -> Any:
    """The parameters of the model as it was before its tuning, in the types of the tuned ones."""
    base = config.copy_and_resolve_references()
    base.adapter = ""
    return jax.tree.map(lambda own, other: own.astype(other.dtype), load_model(base).params, tuned)


def masked_accuracy(
    run: ProbeRun, own: Mapping[str, np.ndarray], seed: int, grid: GridData, batch_tokens: int
) -> Probe:
    """The accuracy of every language with the neurons of each switched off; own, seed: as `masking` takes them."""
    cells = [label_cell(grid, CellKey(TASK.name, language, "english")) for language in run.languages]
    asked = [(cell, cell.queries()) for cell in cells]
    scorer = Scorer(run.runner.decoder, run.variables, run.runner.mesh, batch_tokens)
    params, answered = run.placed["params"], []

    def silent(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        """What neurons write is their rows of the down projection: the other weights need no copy."""
        return jnp.zeros((), leaf.dtype) if path[-2].key == "down_proj" else leaf

    silenced = jax.tree_util.tree_map_with_path(silent, params)
    for mask in masking.language_masks(own, run.languages, run.config, seed):
        masked = {**run.placed, "params": masking.with_neurons(params, silenced, jnp.asarray(mask))}
        variables = scorer.runner.place(masked)
        answered.append([cell.ask(scorer, variables, queries, run.on_rows) for cell, queries in asked])
    right = np.array([[[record["correct_corrected"] for record in cell] for cell in cells] for cells in answered])
    change = masking.effects(right.astype(np.float64), np.ones(right.shape[1:], np.int64), seed)
    arrays = {
        "right": (right, "mask language row"),
        "accuracy": (right.mean(axis=2), "mask language"),
        "accuracy_change": (change, "effect masked_language language estimate"),
    }
    return masking.effect_probe(
        run, own, "masked_language", arrays, mask=masking.change_names(run.languages, "none"), variant="english"
    )


def neurons(config: ConfigDict, paths: Sequence[str]) -> None:
    """Selects the neurons into `config.out`: selection.npz and selection.json, and those of all languages beside."""
    if len(paths) != 1:
        raise InputError("neurons takes one argument: the .npz file of counts")
    out, counts = out_folder(config), Path(paths[0])
    probes = selecting.selection_probes(selecting.read_counts(counts), *selection_rule(config))
    counted, where = sidecar(counts)
    made_from = {"counts": recorded(paths[0])}
    if "model" in counted:
        made_from |= {name: field({"adapter": ""} | counted, name, str, where) for name in ("model", "adapter")}
    for name, found in probes.items():
        write_probe(out, name, replace(found, document={**found.document, **made_from, **provenance(config)}))
    document = probes["selection"].document
    print(f"lambda {document['lambda_star']}, tau {document['tau']:.7f}; {document['selected']} neurons selected")
    print(f"active in 0, 1, ... languages: {' '.join(map(str, document['histogram']))}")
    print(f"of a language: {', '.join(f'{code} {number}' for code, number in document['neurons'].items())}")
    print(f"selection: {out}")


def selection_rule(config: ConfigDict) -> tuple[str, float]:
    """Score and rate of `config.neurons`."""
    score, rate = config.neurons.score, config.neurons.top_rate
    if score not in selecting.SCORES:
        raise InputError(f"--config.neurons.score={score}: choose {', '.join(selecting.SCORES)}")
    if not 0 < rate <= 1:
        raise InputError(f"--config.neurons.top_rate={rate}: set it above 0, and to 1 at most")
    return score, rate


def sidecar(arrays: Path) -> tuple[dict[str, Any], str]:
    """The JSON file beside an .npz file, {} where there is none; and what errors call it."""
    described = arrays.with_suffix(".json")
    return dict(read_object(described)) if described.is_file() else {}, f"{arrays}'s JSON file"


def check_selected_of(selection: Path, model: str) -> None:
    """Refuses a selection whose JSON file names another model, by name, wherever that lies; adapters may differ."""
    document, where = sidecar(selection)
    if "model" in document and Path(other := field(document, "model", str, where)).name != Path(model).name:
        raise InputError(
            f"{selection}: neurons of {other}, the model is {model}; take a selection of this model's counts"
        )


def neurons_to_change(config: ConfigDict, languages: Sequence[str]) -> dict[str, np.ndarray]:
    """(layer, index) of the neurons of each language that are masked or transplanted: `related` are the specific ones
    too, `general` both of these and those of every language."""
    chosen, path = config.neurons, Path(config.neurons.selection)
    if chosen.masked not in MASKED:
        raise InputError(f"--config.neurons.masked={chosen.masked}: choose {', '.join(MASKED[:-1])} or {MASKED[-1]}")
    if not chosen.selection:
        raise InputError("--config.neurons.selection= is needed: the selection.npz that `jaxalign neurons` wrote")
    own = selecting.read_selection(path, languages)
    if chosen.masked == "specific":
        return selecting.specific_neurons(own)
    if chosen.masked == "general":
        (general,) = selecting.read_selection(path.with_name("general_neurons.npz"), [selecting.GENERAL]).values()
        return {code: np.unique(np.concatenate([pairs, general]), axis=0) for code, pairs in own.items()}
    return own
