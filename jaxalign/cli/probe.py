"""`jaxalign probe`: what the layers hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxalign.cli.evaluate import check_settings, prompt_style, settings, unreadable
from jaxalign.cli.masked_accuracy import write_masked_accuracy
from jaxalign.cli.neurons import check_selected_of, neurons_to_mask
from jaxalign.cli.settings import chosen_languages, evaluation_data, load_model, out_folder, split_list
from jaxalign.configuration import changed, provenance
from jaxalign.data.batches import round_up
from jaxalign.data.tasks import parse_rows, read_task_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import GridData, cell_keys
from jaxalign.files import whole_file, write_text
from jaxalign.holding import check_held, held
from jaxalign.loading import Model, merged
from jaxalign.log import is_hidden, tell
from jaxalign.model.quantised import SCHEMES
from jaxalign.probing.attribution import write_attribution
from jaxalign.probing.capture import Capture, captured_layers, parse_capture
from jaxalign.probing.geometry import check_languages, write_geometry, write_representation
from jaxalign.probing.logit_lens import write_logit_lens
from jaxalign.probing.masking import mask_names, write_masking, write_transplant
from jaxalign.probing.neurons import check_fits, write_neuron_counts
from jaxalign.probing.probe import TASK, VARIANT, ProbeData, ProbeRun
from jaxalign.reporting import geometry_plots, language_pages, plots
from jaxalign.reporting.models import check_of_one_model
from jaxalign.reporting.neuron_effects import NEURON_EFFECTS
from jaxalign.reporting.neuron_plots import effect_heat_map
from jaxalign.reporting.probe_files import read_probes
from jaxalign.reporting.probe_sections import chosen_layers, token_map_text
from jaxalign.runtime import agree

PROBES = ("logit_lens", "attribution", "pca", "geometry", "neurons", "masking", "masked_accuracy", "transplant")
MASKING = {"masking", "masked_accuracy", "transplant"}
"""Those that read a selection of neurons."""
SURVIVING = {
    "rows whose English and in-language label words share no token": "surviving_rows",
    "rows whose label words keep a token each without the shared ones": "unshared_surviving_rows",
}
SCATTERED = ("en", "de", "fr", "hi")
"""The languages of the study's PCA figure; those of them that are probed are drawn, or else the first four."""


def probe(config: ConfigDict, paths: Sequence[str]) -> None:
    """Runs the probes of `config.probes` on emotion's in-language prompts and writes them to `config.out`."""
    check_probe_settings(config)
    with held(out_folder(config)):
        probe_model(config, load_model(config))


def check_probe_settings(config: ConfigDict) -> None:
    """Refuses what would only fail once the model is loaded."""
    if config.tasks not in (TASK.name, "all"):
        raise InputError(f"--config.tasks={config.tasks}: the probes read {TASK.name} only")
    check_settings(config)
    if errors := unreadable(config, cell_keys([TASK], chosen_languages(config), [VARIANT])):
        raise errors[0]
    folder, _ = evaluation_data(config)
    rows = read_task_rows(folder, TASK, chosen_languages(config)[0], "test", parse_rows(config.rows))
    if MASKING.intersection(probes_of(config)):
        neurons_to_mask(config)
    if as_numbers := {"masked_accuracy", "transplant"}.intersection(probes_of(config)):
        if config.param_dtype in SCHEMES:
            raise InputError(
                f"--config.param_dtype={config.param_dtype}: {min(as_numbers)} needs weights as numbers; take float32"
            )
        if "transplant" in as_numbers and not config.adapter:
            raise InputError("--config.adapter= is needed: transplant takes neurons of a tuned model")
    if compared := compared_by(probes_of(config)):
        check_enough_rows(f"--config.rows={config.rows}", compared, len(rows))
    capture_of(config)
    if "geometry" in compared:
        check_languages(chosen_languages(config))


def compared_by(probes: Sequence[str]) -> list[str]:
    """Those of the probes that compare representations of one row with those of another."""
    return [name for name in probes if name in ("pca", "geometry")]


def check_enough_rows(flag: str, compared: Sequence[str], rows: int) -> None:
    """Refuses to compare representations of fewer than three rows."""
    if rows < 3:
        raise InputError(f"{flag}: {' and '.join(sorted(compared))}: at least 3 rows are needed")


def probes_of(config: ConfigDict) -> list[str]:
    """The probes of `config.probes`."""
    probes = split_list(config.probes)
    if unknown := [name for name in probes if name not in PROBES]:
        raise InputError(f"--config.probes={config.probes}: no probe {unknown[0]!r}; choose from {', '.join(PROBES)}")
    return probes


def capture_of(config: ConfigDict) -> Capture:
    """`config.capture`; whether the model has its layers is not known here."""
    try:
        return parse_capture(config.capture.layers, config.capture.position)
    except InputError as error:
        raise InputError(f"--config.capture: {error}") from None


def probe_model(config: ConfigDict, model: Model) -> None:
    """`probe` with a model at hand."""
    with held(out_folder(config)):
        run_probes(config, model)


def run_probes(config: ConfigDict, model: Model) -> None:
    """`probe_model` in a folder that is held."""
    agree("the settings", config.to_dict())
    out, probes, languages = out_folder(config), probes_of(config), chosen_languages(config)
    folder, exemplars = evaluation_data(config)
    capture = capture_of(config)
    if "geometry" in probes:
        captured_layers(capture, model.config.layers)
    rows = parse_rows(config.rows)
    data = ProbeData(folder, exemplars, model.tokenizer, rows)
    named = settings(config, model)
    description = named | {"tuned_on": model.tuned_on, "bos": model.tokenizer.bos} | provenance(config)
    if jax.process_index() == 0:
        check_of_one_model(out, named, ["neuron_counts" if name == "neurons" else name for name in probes])
    batch_size = round_up(config.batch_size, model.mesh.shape["data"] * model.mesh.shape["fsdp"])
    ready = merged(model, config.param_dtype)
    read = [read_task_rows(folder, TASK, language, "test", rows) for language in languages]
    agree("the test rows or exemplars", [read, sorted(exemplars.cells.items())])
    times = dict.fromkeys(MASKING, len(mask_names(languages))) | {"transplant": len(mask_names(languages)) + 1}
    own = {}
    if MASKING.intersection(probes):
        own = neurons_to_mask(config)
        check_selected_of(Path(config.neurons.selection), named["model"])
    agree("the selected neurons", {code: neurons.tolist() for code, neurons in own.items()})
    check_fits(own, model.config.layers, model.config.mlp_dim)
    total = sum(map(len, read)) * sum(times.get(name, 1) for name in probes)
    with tqdm(total=total, unit="prompt", disable=is_hidden()) as progress:
        run = ProbeRun(
            out,
            ready.decoder,
            ready.variables,
            ready.mesh,
            data,
            languages,
            batch_size,
            description,
            on_rows=progress.update,
        )
        asked = GridData(folder, exemplars, model.tokenizer, rows, prompt_style(config), config.seed)
        scattered = [code for code in SCATTERED if code in languages] or languages[:4]
        actions: dict[str, Callable[[], object]] = {
            "logit_lens": lambda: say_of_lens(write_logit_lens(run)),
            "attribution": lambda: tell(token_map_text(write_attribution(run, config.attribution_positions))),
            "pca": lambda: write_representation(run, scattered),
            "geometry": lambda: write_geometry(run, capture),
            "neurons": lambda: write_neuron_counts(run),
            "masking": lambda: write_masking(run, own, config.seed),
            "masked_accuracy": lambda: write_masked_accuracy(run, own, asked, config.batch_tokens),
            "transplant": lambda: write_transplant(of_base(config, run), ready.params, own, config.seed),
        }
        for name in probes:
            check_held()
            progress.set_description(name.replace("_", " "))
            actions[name]()
    if jax.process_index() == 0:
        write_plots(out, Path(model.adapter_name).name or "base model")
    tell(f"probes: {out}")


def of_base(config: ConfigDict, run: ProbeRun) -> ProbeRun:
    """The run on the model as it was before its tuning, in the types that it has now."""
    base = load_model(changed(config, adapter=""))
    variables = jax.tree.map(lambda own, tuned: own.astype(tuned.dtype), base.variables, run.variables)
    return replace(run, variables=variables)


def say_of_lens(lens: Mapping[str, Any]) -> None:
    """Says how many rows survived."""
    for rows_named, key in SURVIVING.items():
        counts = ", ".join(f"{code} {count}" for code, count in lens[key].items())
        tell(f"{rows_named}: {counts}")


def write_plots(out: Path, label: str) -> None:
    """Draws what the probes left in `out`, each figure as SVG and as PDF."""
    figures = {}
    probes = read_probes(out)
    if probes.logit_lens:
        figures |= language_pages.lens_pages(probes.logit_lens, label)
    if probes.attribution:
        figures |= language_pages.attribution_pages(probes.attribution, label)
    if pca := probes.pca:
        layers = chosen_layers(len(pca.arrays["points"]) - 1)
        figures["pca"] = plots.pca_scatter({label: pca.arrays["points"]}, pca.document["scatter_language"], layers)
        if "en" in pca.languages and len(pca.languages) > 1:
            figures["pca_correlations"] = plots.correlation_heat_map({label: pca.arrays["correlations"]}, pca.languages)
    for name, effect in NEURON_EFFECTS.items():
        if probe := probes.found.get(name):
            change = effect.scale * probe.arrays[effect.array]
            figures[name] = effect_heat_map(change, probe.languages, effect.quantity, effect.done)
    if geometry := probes.geometry:
        figures["geometry"] = geometry_plots.geometry(
            {label: geometry.arrays}, geometry.languages, geometry.document["layer"]
        )
    for name, figure in figures.items():
        write_text(out / f"{name}.svg", plots.svg(figure, name))
        with whole_file(out / f"{name}.pdf") as partial:
            partial.write_bytes(plots.pdf(figure))
