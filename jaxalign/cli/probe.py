"""`jaxalign probe`: what the layers hold."""

from collections.abc import Sequence

from ml_collections import ConfigDict
from tqdm import tqdm

from jaxalign.cli.evaluate import batch_size, check_settings, settings, tuned_on
from jaxalign.cli.loading import Model, languages_of, load_model, out_folder, refuse_paths, test_data
from jaxalign.cli.provenance import provenance
from jaxalign.data.tasks import parse_rows
from jaxalign.errors import InputError
from jaxalign.probing.logit_lens import write_logit_lens
from jaxalign.probing.prompts import ProbeData
from jaxalign.probing.representation import write_representation

PROBES = ("logit_lens", "pca")
SCATTERED = ("en", "de", "fr", "hi")
"""The languages of the study's PCA figure; those of them that are probed are drawn, or else the first four."""


def probe(config: ConfigDict, paths: Sequence[str]) -> None:
    """Runs the probes of `config.probes` on emotion's in-language prompts and writes them to `config.out`."""
    refuse_paths("probe", paths)
    check_settings(config)
    probes_of(config)
    probe_model(config, load_model(config))


def probes_of(config: ConfigDict) -> list[str]:
    """The probes of `config.probes`."""
    probes = config.probes.split(",")
    if unknown := [name for name in probes if name not in PROBES]:
        raise InputError(f"--config.probes={config.probes}: no probe {unknown[0]!r}; choose from {', '.join(PROBES)}")
    return probes


def probe_model(config: ConfigDict, model: Model) -> None:
    """`probe` with a model at hand."""
    out, probes, languages = out_folder(config), probes_of(config), languages_of(config)
    folder, exemplars = test_data(config)
    data = ProbeData(folder, exemplars, model.tokenizer, parse_rows(config.rows))
    description = settings(config, model) | {"tuned_on": tuned_on(model)} | provenance(config)
    common = (out, model.decoder, model.variables, model.mesh, data, languages)
    with tqdm(unit="prompt", disable=None) as progress:
        if "logit_lens" in probes:
            progress.set_description("logit lens")
            lens = write_logit_lens(*common, batch_size(config, model), description, progress.update)
        if "pca" in probes:
            progress.set_description("pca")
            scattered = [code for code in SCATTERED if code in languages] or languages[:4]
            write_representation(*common, scattered, batch_size(config, model), description, progress.update)
    if "logit_lens" in probes:
        surviving = ", ".join(f"{code} {count}" for code, count in lens["surviving_rows"].items())
        print(f"rows whose English and in-language label words share no token: {surviving}")
    print(f"probes: {out}")
