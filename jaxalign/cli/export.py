"""`jaxalign export`: what a run has tuned, for other libraries."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxalign.cli.loading import Model, load_model, merged, out_folder, with_adapter
from jaxalign.errors import InputError
from jaxalign.files import AnyPath, path_of, read_json, whole_folder
from jaxalign.model.hf_weights import save_params
from jaxalign.model.hub import TOKENIZER_FILES
from jaxalign.model.peft_adapters import save_adapter
from jaxalign.model.quantised import SCHEMES
from jaxalign.training.checkpoint import read_adapter

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the newest state of a run to `config.out`, in `config.format`."""
    if len(paths) != 1:
        raise InputError("export takes one argument: the run that train wrote")
    run, out = path_of(paths[0]), out_folder(config)
    match config.format:
        case "peft":
            export_adapter(run, out)
        case "merged":
            export_model(config, run, out)
        case other:
            raise InputError(f"--config.format={other}: choose peft or merged")


def export_adapter(run: AnyPath, out: Path) -> None:
    """The adapter as a PEFT folder."""
    lora, tree = read_adapter(run)
    save_adapter(out, tree, lora, read_json(run / "run.json")["model"])
    print(f"adapter: {out}")


def export_model(config: ConfigDict, run: AnyPath, out: Path) -> None:
    """The model of `config.model` with the run's adapter merged into it, or the run's own parameters, as a Hugging Face
    folder; weights in `config.param_dtype`."""
    if config.param_dtype in SCHEMES:
        raise InputError(
            f"--config.param_dtype={config.param_dtype} with --config.format=merged: merged weights are written as "
            "float32, bfloat16 or float16"
        )
    with whole_folder(out) as folder:
        model = merged(with_adapter(load_model(config), run), config.param_dtype)
        save_tokenizer(model, folder)
        save_params(folder, model.params, model.config, token_ids(model))
    print(f"model: {out}")


def save_tokenizer(model: Model, folder: Path) -> None:
    """The tokenizer's files as they are; of a GGUF file, those that transformers makes of its tokenizer."""
    if not model.path.is_dir():
        model.tokenizer.backend.save_pretrained(folder)
        return
    for pattern in TOKENIZER_FILES:
        for file in model.path.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def token_ids(model: Model) -> dict[str, Any]:
    """The ids that a config.json holds: as the base model's own has them, or the tokenizer of its GGUF file."""
    if model.path.is_dir():
        document = read_json(model.path / "config.json")
        known = document | document.get("text_config", {})
    else:
        known = {name: getattr(model.tokenizer.backend, name) for name in TOKEN_IDS}
    return {name: known[name] for name in TOKEN_IDS if known.get(name) is not None}
