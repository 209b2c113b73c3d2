"""`jaxalign export`: what a run has tuned, for other libraries."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxalign.cli.certificate import certify
from jaxalign.cli.provenance import command, versions
from jaxalign.cli.settings import load_model, out_folder
from jaxalign.cli.verify import refuse_faults, verdict
from jaxalign.errors import InputError
from jaxalign.files import AnyPath, path_of, read_json, whole_folder, write_json, write_text
from jaxalign.load import PARAM_DTYPES, Model, merged, model_path, with_adapter, with_stored_base
from jaxalign.log import say
from jaxalign.model.config import decoder_name
from jaxalign.model.hub import TOKENIZER_FILES, hub_id, model_name
from jaxalign.model.peft import save_adapter
from jaxalign.model.quantised import SCHEMES
from jaxalign.model.weights import save_params, weights_sha256
from jaxalign.reporting.model_card import base_licence, check_recorded, model_card
from jaxalign.reporting.results import read_results
from jaxalign.reporting.runs import TrainingRun, read_run
from jaxalign.training.checkpoint import read_adapter, read_trained

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the newest state of a run to `config.out`, in `config.format`, with its certificate and model card.

    Further paths are evaluations (of the run, of its base) whose scores the card shows. An export that does not hold
    against the independent path leaves nothing behind.
    """
    if not paths:
        raise InputError("export takes the run that train wrote, and folders of results for its model card")
    run, results = path_of(paths[0]), [read_results(Path(path)) for path in paths[1:]]
    if not (run / "checkpoints").is_dir():
        raise InputError(f"{run}: not a run folder (no checkpoints/ in it); name a folder that train wrote")
    record = read_run(run)
    check_recorded(record)
    out = out_folder(config)
    config = config.copy_and_resolve_references()
    base = base_model(config, record)
    named = name_from(out, base)
    config.adapter = paths[0]
    with whole_folder(out) as folder:
        match config.format:
            case "peft":
                export_adapter(config, run, base, named, folder)
            case "merged":
                export_model(config, run, folder)
            case other:
                raise InputError(f"--config.format={other}: choose peft or merged")
        certificate = certify(folder, config)
        refuse_faults(certificate, out, "nothing was written")
        write_json(folder / "certificate.json", certificate)
        card = model_card(
            out.name,
            record,
            results,
            base=named,
            is_adapter=config.format == "peft",
            licence=stated_licence(config.model),
            check=verdict(certificate),
            command=command(),
        )
        write_text(folder / "README.md", card)
    print(f"{'adapter' if config.format == 'peft' else 'model'}: {out}\n{verdict(certificate)}")
    if config.format == "peft" and not on_hub(named):
        say(
            f"the adapter names its base {named}, a place that others do not have; --config.model=ORG/NAME names it on "
            "the hub, once its weights are known to be the same"
        )


def base_model(config: ConfigDict, record: TrainingRun) -> str:
    """The model that a run's result belongs to: `config.model`, which must be the one that was tuned, or as the run
    names it."""
    recorded = record.document["model"]
    if not config.model or (name := model_name(model_path(config.model))) == recorded:
        return recorded
    tuned, settings = read_trained(record.folder).record, record.document["config"]
    if tuned.lora is None:
        return name  # all weights are the run's own
    stored, device = settings["param_dtype"], record.document["versions"].get("device")
    if stored in SCHEMES and device != versions()["device"]:
        say(
            f"model={name}: not compared with {recorded}, whose {stored} weights were made on another device ({device})"
        )
        return name
    copy = config.copy_and_resolve_references()
    # A base that is stored in several types is recorded as, say, bfloat16+float32: auto reads it so again.
    copy.update(adapter="", dtype=settings["dtype"], param_dtype=stored if stored in PARAM_DTYPES else "auto")
    model = with_stored_base(load_model(copy.lock(), quantised=True), stored)
    if weights_sha256(model.params) != tuned.fingerprint.get("model"):
        raise InputError(
            f"model={name}: not the weights that {record.folder} tuned, those of {recorded}; name a copy of that model"
        )
    return name


def on_hub(model: str) -> bool:
    """Whether a record names a model on the hub: with its commit, which a relative path has not."""
    found = hub_id(model)
    return found is not None and found.revision is not None


def name_from(out: Path, model: str) -> str:
    """What an exported folder calls a model: ORG/NAME@COMMIT on the hub, or its place seen from there; by its name
    alone where the way leads through the folders above home."""
    if on_hub(model):
        return model
    path, home = Path(model).expanduser().absolute(), Path.home()
    common = Path(os.path.commonpath([path, out.absolute()]))
    return path.name if common in home.parents else os.path.relpath(path, out.absolute())


def export_adapter(config: ConfigDict, run: AnyPath, base: str, named: str, folder: Path) -> None:
    """The adapter as a PEFT folder of its base; `config.model` is that base, where it is not set."""
    lora, tree = read_adapter(run)
    config.model = config.model or base
    save_adapter(folder, tree, lora, named, decoder_of(config.model, run))


def decoder_of(model: str, run: AnyPath) -> str:
    """What other libraries call the decoder of a model; as the run has it, where the model is not here."""
    try:
        path = model_path(model)
    except InputError:
        path = None
    if path is not None and path.exists():
        return decoder_name(path)
    return read_run(run).document.get("decoder", "model")


def export_model(config: ConfigDict, run: AnyPath, folder: Path) -> None:
    """The model of `config.model` with the run's adapter merged into it, or the run's own parameters, as a Hugging Face
    folder; weights in `config.param_dtype` or, for auto, each in the type that the base stores it in."""
    if config.param_dtype in SCHEMES:
        raise InputError(
            f"--config.param_dtype={config.param_dtype} with --config.format=merged: merged weights are written as "
            "float32, bfloat16 or float16"
        )
    base = config.copy_and_resolve_references()
    base.adapter = ""
    model = load_model(base)
    types = jax.tree.map(lambda leaf: leaf.dtype, model.params)
    model = merged(with_adapter(model, run), config.param_dtype)
    save_tokenizer(model, folder)
    params = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), model.params, types)
    save_params(folder, params, model.config, token_ids(model))


def stated_licence(model: str) -> str | None:
    """What the base model's folder says; None where it is not here, which an adapter can do without."""
    try:
        return base_licence(model_path(model))
    except InputError:
        return None


def save_tokenizer(model: Model, folder: Path) -> None:
    """The tokenizer's files as they are; where tokenizer.json is none of them, it too: what others make of the rest
    (a GGUF file's, a tokenizer.model) may give other ids."""
    if model.path.is_dir():
        for pattern in TOKENIZER_FILES:
            for file in model.path.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
    if not (folder / "tokenizer.json").is_file():
        model.tokenizer.backend.save_pretrained(folder)


def token_ids(model: Model) -> dict[str, Any]:
    """The ids that a config.json holds: as the base model's own has them, or the tokenizer of its GGUF file."""
    if model.path.is_dir():
        document = read_json(model.path / "config.json")
        known = document | document.get("text_config", {})
    else:
        known = {name: getattr(model.tokenizer.backend, name) for name in TOKEN_IDS}
    return {name: known[name] for name in TOKEN_IDS if known.get(name) is not None}
