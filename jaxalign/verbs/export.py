"""`jaxalign export` and `verify`: what a run has tuned, for other libraries, and how far they read it as we do.

An export is compared as it was written: our reader and the independent path (transformers and peft, run by torch) both
read the folder, and what it was made from is compared with it beside that. `certificate.json` says what was found.
"""

import hashlib
import math
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import metadata_load
from ml_collections import ConfigDict

from jaxalign import files, loading
from jaxalign.configuration import changed, command, installed_versions
from jaxalign.data.fields import read_object
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.loading import Model
from jaxalign.log import log_status
from jaxalign.model.config import decoder_name
from jaxalign.model.gguf import open_gguf
from jaxalign.model.hub import TOKENIZER_FILES, HubId, hub_id, model_name
from jaxalign.model.lora import LoraConfig
from jaxalign.model.peft import save_adapter
from jaxalign.model.quantised import SCHEMES
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import save_params, stored_types, weights_sha256
from jaxalign.reporting.card import check_recorded, model_card
from jaxalign.reporting.folders import TrainingRun, read_results, read_run
from jaxalign.training.checkpoint import read_adapter, read_trained
from jaxalign.verbs.settings import load_model, out_folder

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
NOT_CHECKED = "not checked"
NOT_CERTIFIED = ("certificate.json", "README.md")
ROWS, POSITIONS = 4, 64
BOUNDS = {"float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference allowed, as a share of the largest logit, by what the weights of one side were rounded to."""
REASON = (
    "a share of the largest logit: 2e-4 in float32, where both sides add the same numbers in another order (measured: "
    "8e-6 to 2e-5); of merged weights that are rounded to bfloat16 1e-1 (measured: 6e-3 to 1.3e-2), to float16 2e-2"
)


def export(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the newest state of a run to `config.out`, with a certificate, and a card that shows the evaluations among
    the paths. An export that does not hold against the independent path leaves nothing behind."""
    run, results = files.path_of(paths[0]), [read_results(Path(path)) for path in paths[1:]]
    if not (run / "checkpoints").is_dir():
        raise InputError(f"{run}: not a run folder (no checkpoints/ in it); name a folder that train wrote")
    record = read_run(run)
    check_recorded(record)
    out = out_folder(config)
    is_adapter = loading.chosen("format", config.format, {"peft": True, "merged": False})
    base = base_model(config, record)
    named = name_from(out, base)
    with files.whole_folder(out) as folder:
        if is_adapter:
            config = changed(config, model=config.model or base)
        place = place_here(config.model)
        if is_adapter:
            lora, tree = read_adapter(run)
            decoder = decoder_name(place) if place else record.document.get("decoder", "model")
            save_adapter(folder, tree, lora, named, decoder)
        else:
            export_model(config, run, folder)
        certificate = certify(folder, changed(config, adapter=paths[0]))
        refuse_faults(certificate, out, "nothing was written")
        files.write_json(folder / "certificate.json", certificate)
        hub = hub_id(named) or HubId(named, None)
        card = model_card(
            out.name,
            record,
            results,
            hub.repo,
            hub.revision,
            is_adapter=is_adapter,
            licence=stated_licence(place) if place else None,
            check=outcome(certificate),
            command=command(),
        )
        files.write_text(folder / "README.md", card)
    print(f"{'adapter' if is_adapter else 'model'}: {out}\n{outcome(certificate)}")
    if is_adapter and not on_hub(named):
        log_status(
            f"the adapter names its base {named}, a place that others do not have; --config.model=ORG/NAME names it on "
            "the hub, once its weights are known to be the same"
        )


def base_model(config: ConfigDict, record: TrainingRun) -> str:
    """The model that a run has tuned, as the run names it or, where it is that model, `config.model`."""
    recorded = record.document["model"]
    if not config.model or (name := model_name(loading.model_path(config.model))) == recorded:
        return recorded
    tuned, settings = read_trained(record.folder).record, record.document["config"]
    if tuned.lora is None:
        return name  # all weights are the run's own
    stored, device = settings["param_dtype"], record.document["versions"].get("device")
    if stored in SCHEMES and device != installed_versions()["device"]:
        log_status(
            f"model={name}: not compared with {recorded}, whose {stored} weights were made on another device ({device})"
        )
        return name
    # A base that is stored in several types is recorded as, say, bfloat16+float32: auto reads it so again.
    types = {"dtype": settings["dtype"], "param_dtype": stored if stored in loading.PARAM_DTYPES else "auto"}
    model = loading.with_stored_base(load_model(changed(config, adapter="", **types), quantised=True), stored)
    if weights_sha256(model.params) != tuned.fingerprint.get("model"):
        raise InputError(
            f"model={name}: not the weights that {record.folder} tuned, those of {recorded}; name a copy of that model"
        )
    return name


def on_hub(model: str) -> bool:
    """Whether a record names a model on the hub: with its commit."""
    found = hub_id(model)
    return found is not None and found.revision is not None


def name_from(out: Path, model: str) -> str:
    """What the folder `out` calls a model: ORG/NAME@COMMIT, or its place seen from there, but no folders above home."""
    if on_hub(model):
        return model
    path, home = Path(model).expanduser().absolute(), Path.home()
    common = Path(os.path.commonpath([path, out.absolute()]))
    return path.name if common in home.parents else os.path.relpath(path, out.absolute())


def place_here(model: str) -> Path | None:
    """Where a model lies; None where it is not here."""
    try:
        path = loading.model_path(model)
    except InputError:
        return None
    return path if path.exists() else None


def stated_licence(model: Path) -> str | None:
    """The licence in a folder's card or file of that name, or in a GGUF file's metadata; None if none is stated."""
    if model.is_file():
        stated = open_gguf(model).metadata.get("general.license")
        return stated if isinstance(stated, str) else None
    if (model / "README.md").is_file():
        try:
            facts = metadata_load(model / "README.md") or {}
        except Exception:  # whatever YAML makes of a card that others wrote
            facts = {}
        if isinstance(stated := facts.get("license"), str):
            return stated
    own = sorted(file.name for file in model.glob("LICEN[SC]E*") if file.is_file())
    return f"other ({own[0]})" if own else None


def export_model(config: ConfigDict, run: files.AnyPath, folder: Path) -> None:
    """Writes what the run has tuned as a whole Hugging Face model, its weights of the types that the base has."""
    if config.param_dtype in SCHEMES:
        raise InputError(
            f"param_dtype={config.param_dtype} with format=merged: merged weights are written as float32, bfloat16 or "
            "float16"
        )
    model = load_model(changed(config, adapter=""))
    types = jax.tree.map(lambda leaf: leaf.dtype, model.params)
    model = loading.merged(loading.with_adapter(model, run), config.param_dtype)
    save_tokenizer(model, folder)
    params = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), model.params, types)
    save_params(folder, params, model.config, token_ids(model))


def save_tokenizer(model: Model, folder: Path) -> None:
    """The tokenizer's files as they are, and tokenizer.json: what others make of the rest alone may give other ids."""
    if model.path.is_dir():
        for pattern in TOKENIZER_FILES:
            for file in model.path.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
    if not (folder / "tokenizer.json").is_file():
        model.tokenizer.backend.save_pretrained(folder)


def token_ids(model: Model) -> dict[str, Any]:
    """The ids that config.json holds, as in the base's own or its GGUF file."""
    if model.path.is_dir():
        document = files.read_json(model.path / "config.json")
        known = document | document.get("text_config", {})
    else:
        known = {name: getattr(model.tokenizer.backend, name) for name in TOKEN_IDS}
    return {name: known[name] for name in TOKEN_IDS if known.get(name) is not None}


def verify(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes certificate.json of a PEFT or model folder into it, or to `config.out`; faults are an error, and so are
    files that changed since the certificate that lies there, which stays where nothing can be compared."""
    folder = Path(paths[0])
    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise InputError(f"{folder}: no adapter_config.json and no config.json; name a PEFT folder or a model folder")
    loading.refuse_changed(folder)
    written = (files.local_path(config.out) if config.out else folder) / "certificate.json"
    files.check_writable(written.parent)
    certificate = certify(folder, config)
    if certificate["holds"] == NOT_CHECKED and written.is_file():
        print(f"{outcome(certificate)}; {written} stays as it is")
        return
    files.write_json(written, certificate)
    refuse_faults(certificate, folder, f"see {written}")
    print(f"{outcome(certificate)}\ncertificate: {written}")


def refuse_faults(certificate: Mapping[str, Any], folder: Path, advice: str) -> None:
    if certificate["holds"] is False:
        raise InputError(f"{folder}: does not hold: {'; '.join(certificate['faults'])}; {advice}")


def outcome(certificate: Mapping[str, Any]) -> str:
    if certificate["holds"] == NOT_CHECKED:
        return f"{NOT_CHECKED}: {certificate['reason']}"
    found = certificate["logits"]
    libraries = ", ".join(f"{name} {version}" for name, version in certificate["independent"].items())
    return (
        f"logits differ from those of {libraries} by {found['largest_difference']:.2g} at most "
        f"({found['mean_difference']:.2g} on average; {found['bound']:.2g} is allowed)"
    )


def certify(folder: Path, config: ConfigDict) -> dict[str, Any]:
    """The certificate of a PEFT folder, or of a model folder, as certificate.json holds it.

    `config.model` is a PEFT folder's base (if unset, the one that it names), `config.adapter` the run that the folder
    was made from. `holds` is true, false (`faults` says why) or "not checked" (`reason` says why).
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    certified = sorted(file for file in folder.iterdir() if file.is_file() and file.name not in NOT_CERTIFIED)
    document: dict[str, Any] = {
        "kind": "adapter" if is_adapter else "model",
        "files": {file.name: files.sha256_of(file) for file in certified},
        "versions": installed_versions(),
    }
    if is_adapter:
        lora, base = recorded_adapter(folder)
        config = changed(config, model=config.model or base)
        document |= {"base_model": files.published(config.model), "adapter": lora}
    if (reason := why_not_checked(config.model if is_adapter else None)) is not None:
        return document | {"holds": NOT_CHECKED, "reason": files.published(reason)}
    config = changed(config, dtype="float32", param_dtype="float32")
    document |= compared(folder, config, is_adapter)
    faults = faults_of(document)
    return document | {"holds": not faults, "faults": faults, "bound": REASON}


def recorded_adapter(folder: Path) -> tuple[dict[str, Any], str]:
    """What adapter_config.json says: the facts of the adapter, and its base (a place, ORG/NAME@REVISION, or "")."""
    where = folder / "adapter_config.json"
    document = read_object(where)
    try:
        rslora, dora = (bool(document.get(key)) for key in ("use_rslora", "use_dora"))
        lora = LoraConfig(document["r"], document["lora_alpha"], document["target_modules"], rslora, dora)
        facts = adapter_facts(lora)
    except (KeyError, TypeError):
        raise InputError(f"{where}: no LoRA adapter (r, lora_alpha, target_modules)") from None
    name, revision = document.get("base_model_name_or_path") or "", document.get("revision")
    if not isinstance(name, str) or not isinstance(revision, str | None):
        raise InputError(f"{where}: base_model_name_or_path {name!r} names no model")
    if name and (folder / name).exists():
        return facts, str(folder / name)
    return facts, f"{name}@{revision}" if revision else name


def adapter_facts(lora: LoraConfig) -> dict[str, Any]:
    return asdict(lora) | {"scale": lora.scale}


def why_not_checked(base_model: str | None) -> str | None:
    """Why a folder cannot be compared on this machine; None if it can. A model folder has no `base_model`."""
    if not all(find_spec(name) for name in ("torch", "peft")):
        return "torch and peft are needed: pip install 'jaxalign[verify]'"
    if base_model is None:
        return None
    if not base_model:
        return "the adapter names no base; name it with --config.model="
    try:
        base = loading.model_path(base_model)
    except InputError as error:
        return str(error)
    if base.is_file():
        return f"{base}: adapters of a GGUF file are not compared; export with --config.format=merged to have it done"
    return None if base.is_dir() else f"{base}: no such folder; name the base with --config.model="


def compared(folder: Path, config: ConfigDict, is_adapter: bool) -> dict[str, Any]:
    """The comparisons of a PEFT folder on its base, or of a model folder: with the independent path and, where
    `config.adapter` says so, with what the folder was made from."""
    base = load_model(changed(config, adapter="")) if is_adapter else None
    if base is None:
        exported = load_model(changed(config, model=str(folder), adapter=""))
    else:
        exported = loading.with_adapter(base, folder)
    tokens, tied_head = some_tokens(exported.tokenizer), exported.config.tied_head
    logits = logits_of(exported, tokens)
    document = {"merged_against_adapter": NOT_CHECKED, **facts_of_tokenizer(exported.tokenizer)}
    if base is not None:
        assert exported.adapter is not None
        with_merged = logits_of(loading.merged(exported, "float32"), tokens)
        document |= {
            "adapter": adapter_facts(exported.adapter.lora),
            "base_model": files.published(model_name(base.path)),
            "effect_of_the_adapter": difference(logits_of(base, tokens), logits),
            "merged_against_adapter": difference(with_merged, logits, "float32"),
        }
    del exported  # one model at a time
    if config.adapter and base is not None:
        source = loading.with_adapter(base, files.path_of(config.adapter))
        document["against_the_run"] = difference(logits, logits_of(source, tokens), "float32")
    elif config.adapter:
        source = load_model(config)
        coarsest = max(stored_types(folder), key=lambda name: BOUNDS[name])
        document |= {
            "base_model": files.published(model_name(source.path)),
            "merged_against_adapter": difference(logits, logits_of(source, tokens), coarsest),
            "base_tokenizer": facts_of_tokenizer(source.tokenizer),
        }
        del source
    theirs, facts = independent_run(base.path if base else folder, folder if base else None, tokens)
    facts["tied_head"] = {"config": tied_head, "independent": facts["tied_head"]}
    return document | {"logits": difference(logits, theirs, "float32"), **facts}


def independent_run(model: Path, adapter: Path | None, tokens: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """What other libraries make of a model folder, with a PEFT folder on it: logits float32 [B, T, V] of tokens int
    [B, T], and whether its head is tied, by what peft multiplies A B (None without an adapter), and their versions.

    The one place of the package that imports torch and peft (the extra `verify`), and it does so only when asked.
    """
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    tied = head.weight.data_ptr() == embedding.weight.data_ptr()
    scale, names = None, ["transformers", "torch"]
    if adapter is not None:
        import peft
        from peft.tuners.lora import LoraLayer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers, not the folder
            network = peft.PeftModel.from_pretrained(network, str(adapter), local_files_only=True)
        # Several would be patterns, which our reader refuses.
        (scale,) = {layer.scaling["default"] for layer in network.modules() if isinstance(layer, LoraLayer)}
        names.append("peft")
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    versions = {name: metadata.version(name) for name in names}
    return logits, {"tied_head": tied, "independent_scale": scale, "independent": versions}


def faults_of(document: Mapping[str, Any]) -> list[str]:
    faults = []
    for name in ("logits", "merged_against_adapter", "against_the_run"):
        found = document.get(name, NOT_CHECKED)
        # Written so that a difference that is no number is a fault.
        if found != NOT_CHECKED and not found["largest_difference"] <= found["bound"]:
            what = f"{found['largest_difference']:.3g}, where {found['bound']:.3g} is allowed"
            faults.append(f"{name.replace('_', ' ')} differ by {what}")
    tied = document["tied_head"]
    if tied["config"] != tied["independent"]:
        faults.append(f"the head is {'' if tied['config'] else 'not '}tied here, and not so in transformers")
    scale = document["independent_scale"]
    if scale is not None and not math.isclose(scale, document["adapter"]["scale"], rel_tol=1e-6):
        faults.append(f"the update is scaled by {document['adapter']['scale']} here, and by {scale} in peft")
    base = document.get("base_tokenizer", {})
    return faults + [f"{name} is not that of the base" for name, value in base.items() if document[name] != value]


def difference(ours: np.ndarray, theirs: np.ndarray, rounded_to: str | None = None) -> dict[str, float]:
    """Largest and mean absolute difference of logits [B, T, V], and what is allowed where something is."""
    if ours.shape != theirs.shape:
        raise InputError(f"logits are {list(ours.shape)} here and {list(theirs.shape)} there: another vocabulary")
    apart, largest = np.abs(ours - theirs), float(np.abs(theirs).max())
    found = {
        "largest_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
        "largest_logit": largest,
    }
    return found if rounded_to is None else found | {"bound": BOUNDS[rounded_to] * largest}


def logits_of(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Float32 logits [B, T, V] of tokens [B, T]."""
    return np.asarray(_logits(model.decoder, model.variables, jnp.asarray(tokens)))


@partial(jax.jit, static_argnums=0)
def _logits(decoder: Decoder, variables: Any, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=tokens.dtype), tokens.shape)
    output = decoder.apply(variables, tokens, positions, jnp.ones_like(tokens))
    return decoder.apply(variables, output.hidden, method="logits")  # pyright: ignore[reportAttributeAccessIssue]


def some_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """int32 [ROWS, POSITIONS]: a review of the mini set in every language, one after the other."""
    reviews = [TaskData(files.MINI).rows(TASKS["emotion"], code, slice(0, 1))[0] for code in LANGUAGES]
    ids = [token for review in reviews for token in tokenizer.prompt_ids(" ".join(review.fields))]
    return np.resize(np.array(ids, np.int32), (ROWS, POSITIONS))


def facts_of_tokenizer(tokenizer: Tokenizer) -> dict[str, str | None]:
    """Hashes by which two folders' tokenizers and chat templates can be told apart."""
    template = tokenizer.backend.chat_template
    return {
        "tokenizer_sha256": tokenizer.fingerprint,
        "chat_template_sha256": None if template is None else hashlib.sha256(str(template).encode()).hexdigest(),
    }
