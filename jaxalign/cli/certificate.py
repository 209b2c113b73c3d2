"""The certificate of an exported folder: what it holds, and how far its logits are from those of other libraries.

An export is compared as it was written: our reader and the independent one (independent.py) both read the folder, and
what it was made from is compared with it beside that.
"""

import hashlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxalign.cli.independent import Independent, independent_run, is_installed
from jaxalign.cli.provenance import versions
from jaxalign.cli.settings import load_model
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.tasks import TASKS, read_task_rows
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.files import MINI, path_of, published, sha256_of
from jaxalign.load import Model, merged, model_path, with_adapter
from jaxalign.model.hub import model_name
from jaxalign.model.lora import LoraConfig
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import stored_types
from jaxalign.reporting.fields import read_object

NOT_CHECKED = "not checked"
ROWS, POSITIONS = 4, 64
BOUNDS = {"float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference allowed, as a share of the largest logit, by what the weights of one side were rounded to.

In float32 the two sides add the same numbers in another order, which makes 8e-6 of SmolLM2-135M's largest logit and
2e-5 of Gemma 3 270M's; rounding their weights to bfloat16 makes 1.3e-2 and 6e-3.
"""
REASON = (
    "a share of the largest logit: 2e-4 in float32, where both sides add the same numbers in another order (measured: "
    "8e-6 to 2e-5); of merged weights that are rounded to bfloat16 1e-1 (measured: 6e-3 to 1.3e-2), to float16 2e-2"
)


def certify(folder: Path, config: ConfigDict) -> dict[str, Any]:
    """The certificate of a PEFT folder, or of a model folder, as certificate.json holds it.

    `config.model` is the base of a PEFT folder (if unset, the model that the folder names). `config.adapter`, where
    set, is the run that the folder was made from, on `config.model`.

    Its `holds` is true, false (`faults` says why) or "not checked" (`reason` says why).
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    document = {"kind": "adapter" if is_adapter else "model", "files": hashes(folder), "versions": versions()}
    base = ""
    if is_adapter:
        base = config.model or named_base(folder)
        document |= {"base_model": published(base), "adapter": adapter_facts(folder)}
    if (reason := obstacle(document["kind"], base)) is not None:
        return document | {"holds": NOT_CHECKED, "reason": published(reason)}
    document |= compared_adapter(folder, base, config) if is_adapter else compared_model(folder, config)
    faults = faults_of(document)
    return document | {"holds": not faults, "faults": faults, "bound": REASON}


def obstacle(kind: str, base_model: str) -> str | None:
    """Why a folder cannot be compared on this machine; None if it can."""
    if not is_installed():
        return "torch and peft are needed: pip install 'jaxalign[verify]'"
    if kind == "model":
        return None
    if not base_model:
        return "the adapter names no base; name it with --config.model="
    try:
        base = model_path(base_model)
    except InputError as error:
        return str(error)
    if base.is_file():
        return f"{base}: adapters of a GGUF file are not compared; export with --config.format=merged to have it done"
    return None if base.is_dir() else f"{base}: no such folder; name the base with --config.model="


def compared_adapter(folder: Path, base_model: str, config: ConfigDict) -> dict[str, Any]:
    """The comparisons of a PEFT folder on its base."""
    base = load_model(in_float32(config, model=base_model, adapter=""))
    exported, tokens = with_adapter(base, folder), some_tokens(base.tokenizer)
    logits = logits_of(exported, tokens)
    assert exported.adapter is not None
    document = {
        "adapter": facts_of(exported.adapter.lora),
        "base_model": published(model_name(base.path)),
        "effect_of_the_adapter": difference(logits_of(base, tokens), logits),
        "merged_against_adapter": difference(logits_of(merged(exported, "float32"), tokens), logits, "float32"),
        **facts_of_tokenizer(base.tokenizer),
    }
    if config.adapter:
        source = logits_of(with_adapter(base, path_of(config.adapter)), tokens)
        document["against_the_run"] = difference(logits, source, "float32")
    return document | against(independent_run(base.path, folder, tokens), logits, base.config.tied_head)


def compared_model(folder: Path, config: ConfigDict) -> dict[str, Any]:
    """The comparisons of a model folder; with what it was merged from, where the config says."""
    exported = load_model(in_float32(config, model=str(folder), adapter=""))
    tokens, tied_head = some_tokens(exported.tokenizer), exported.config.tied_head
    logits = logits_of(exported, tokens)
    document = {"merged_against_adapter": NOT_CHECKED, **facts_of_tokenizer(exported.tokenizer)}
    del exported  # one model at a time
    if config.adapter:
        source = load_model(in_float32(config))
        document |= {
            "base_model": published(model_name(source.path)),
            "merged_against_adapter": difference(logits, logits_of(source, tokens), coarsest_type(folder)),
            "base_tokenizer": facts_of_tokenizer(source.tokenizer),
        }
        del source
    return document | against(independent_run(folder, None, tokens), logits, tied_head)


def against(independent: Independent, logits: np.ndarray, tied_head: bool) -> dict[str, Any]:
    """Our logits and facts beside those of the independent path."""
    return {
        "logits": difference(logits, independent.logits, "float32"),
        "tied_head": {"config": tied_head, "independent": independent.tied_head},
        "independent_scale": independent.scale,
        "independent": independent.versions,
    }


def faults_of(document: Mapping[str, Any]) -> list[str]:
    """Why a compared folder is not what it should be; empty if it is."""
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
    faults += [f"{name} is not that of the base" for name, value in base.items() if document[name] != value]
    return faults


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
    reviews = [read_task_rows(MINI, TASKS["emotion"], code, "test", slice(0, 1))[0] for code in LANGUAGES]
    ids = [token for review in reviews for token in tokenizer.prompt_ids(" ".join(review.fields))]
    return np.resize(np.array(ids, np.int32), (ROWS, POSITIONS))


def facts_of_tokenizer(tokenizer: Tokenizer) -> dict[str, str | None]:
    """Hashes by which two folders' tokenizers and chat templates can be told apart."""
    template = tokenizer.backend.chat_template
    return {
        "tokenizer_sha256": tokenizer.fingerprint,
        "chat_template_sha256": None if template is None else hashlib.sha256(str(template).encode()).hexdigest(),
    }


def adapter_facts(folder: Path) -> dict[str, Any]:
    """Rank, alpha and scale as the PEFT folder has them."""
    where = folder / "adapter_config.json"
    document = read_object(where)
    rslora, dora = (bool(document.get(key)) for key in ("use_rslora", "use_dora"))
    try:
        lora = LoraConfig(document["r"], document["lora_alpha"], (), rslora, dora)
        return facts_of(lora) | {"targets": document["target_modules"]}
    except (KeyError, TypeError):
        raise InputError(f"{where}: no LoRA adapter (r, lora_alpha, target_modules)") from None


def facts_of(lora: LoraConfig) -> dict[str, Any]:
    """Rank, alpha, scale and kind."""
    return {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "scale": lora.scale,
        "targets": list(lora.targets),
        "rslora": lora.rslora,
        "dora": lora.dora,
    }


def named_base(folder: Path) -> str:
    """The base that a PEFT folder names: its place seen from there or from here, or on the hub with its revision."""
    document = read_object(folder / "adapter_config.json")
    name, revision = document.get("base_model_name_or_path") or "", document.get("revision")
    if not isinstance(name, str) or not isinstance(revision, str | None):
        raise InputError(f"{folder / 'adapter_config.json'}: base_model_name_or_path {name!r} names no model")
    if name and (folder / name).exists():
        return str(folder / name)
    return f"{name}@{revision}" if revision else name


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder but the certificate and the card."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {file.name: sha256_of(file) for file in files if file.name not in ("certificate.json", "README.md")}


def coarsest_type(folder: Path) -> str:
    """Of the types that a folder that we wrote holds its weights in, the one that rounds most."""
    return max(stored_types(folder), key=lambda name: BOUNDS[name])


def in_float32(config: ConfigDict, **values: str) -> ConfigDict:
    """The config with other values, weights and arithmetic in float32."""
    copy = config.copy_and_resolve_references()
    copy.update(dtype="float32", param_dtype="float32", **values)
    return copy.lock()
