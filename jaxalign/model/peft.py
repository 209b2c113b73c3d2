"""LoRA, rsLoRA and DoRA adapters in the format of the PEFT library: read from it, and written so that it loads them.

A PEFT folder holds `adapter_config.json` and `adapter_model.safetensors`, in which every layer's A is [r, in], B is
[out, r] and DoRA's magnitude [out]; here they are the stacked leaves of lora.py, A and B transposed.

Which modules carry an adapter is read from the names of the tensors; the config must say the same, by peft's own rules
of matching, so that peft would do to the model what is done here.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import regex
from flax.traverse_util import flatten_dict

from jaxalign import files
from jaxalign.errors import InputError, listed
from jaxalign.log import log_status
from jaxalign.model.config import Keys, ModelConfig, json_object
from jaxalign.model.hub import HubId, hub_id
from jaxalign.model.lora import LoraConfig, lora_shapes, projection_sizes
from jaxalign.model.weights import Weight, find_tensors, names_of, read_headers, read_tensors

# What stands before `layers.` in the classes of these decoders: with a head, in a Gemma 3 with vision (now, and before
# transformers 4.52), and both without a head.
_DECODERS = ("model.", "model.language_model.", "language_model.model.", "language_model.", "")
_VISION = re.compile(r"base_model\.model\.(model\.)?(vision_tower|multi_modal_projector)\..*\.lora_\w+(\.weight)?")
_VOCABULARY = re.compile(r".*\.(embed_tokens|lm_head)\..*")

# Keys of adapter_config.json that leave the update as it is: of training (ms-swift's learning rates, too), of
# initialisation (init_lora_weights says which), of peft's choice of classes (fan_in_fan_out, which it sets back for
# these models). All others must be unset: there are more ways to vary LoRA every year (use_qalora, layer_replication,
# ...), and each of them changes the model.
# fmt: off
_HARMLESS_OF_ADAPTERS = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out",
    "inference_mode", "loftq_config", "lora_dropout", "lora_dtype", "lora_ga_config", "lorap_emb_lr",
    "lorap_lr_ratio", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
    "unsloth_version",
})
# fmt: on
_UNSET = (None, False, [], {}, "")
# Initialisations that leave the base weights alone; PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA change them.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_WHERE_IT_IS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Keys that say which modules carry an adapter."""
_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
"""Keys by which single modules differ, and in what."""


def factor_names(tree: Mapping[str, Any], layers: int, decoder: str) -> dict[tuple[Weight, int], str]:
    """PEFT's name of every factor: `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`."""
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")
    table = [Weight(path, leaf.shape[1:]) for path, leaf in leaves.items()]
    return names_of(table, layers, lambda weight, layer: f"base_model.model.{decoder}{weight.name(layer)}")


def save_adapter(
    folder: Path, lora_tree: Mapping[str, Any], lora: LoraConfig, base_model_name: str, decoder: str = "model"
) -> None:
    """Writes a PEFT folder, float32.

    `base_model_name` is the model that the adapter belongs to: its folder, or ORG/NAME@COMMIT on the hub. `decoder` is
    what its class calls the decoder (`config.decoder_name`).
    """
    base = hub_id(base_model_name) or HubId(base_model_name, None)
    leaves: dict[str, Any] = {
        path: np.asarray(leaf, np.float32) for path, leaf in flatten_dict(lora_tree, sep="/").items()
    }
    names = factor_names(lora_tree, len(next(iter(leaves.values()))), f"{decoder}.")
    tensors = {name: weight.stored(leaves[weight.path], layer) for (weight, layer), name in names.items()}
    targets = sorted(lora.targets)
    # A vision tower has projections of the same names. One group at the end is what vLLM looks for in an expression.
    beside_vision = rf"{re.escape(decoder)}\.layers\..*\.({'|'.join(targets)})"
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.repo,
        "revision": base.revision,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "target_modules": targets if decoder == "model" else beside_vision,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    }
    files.write_json(folder / "adapter_config.json", document)
    files.write_tensors(folder / "adapter_model.safetensors", tensors)


def load_adapter(folder: Path, config: ModelConfig) -> tuple[LoraConfig, dict[str, Any]]:
    """The adapter of a PEFT folder: its config, and its tree in float32. InputError: of another kind, not on all
    layers, or of another model."""
    path = folder / "adapter_config.json"
    if not path.is_file() and (within := sorted(file.parent.name for file in folder.glob(f"*/{path.name}"))):
        raise InputError(f"{path}: no such file; adapters lie in {listed(within)}: name {folder / within[-1]}, say")
    document = json_object(path)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        reason = "pickled adapters are not read" if (folder / "adapter_model.bin").is_file() else "no such file"
        raise InputError(f"{weights}: {reason}; save the adapter as safetensors")
    stored = read_headers([weights])
    tensors = {name: tensor for name, tensor in stored.items() if not _VISION.fullmatch(name)}
    if passed_over := len(stored) - len(tensors):
        log_status(
            f"{weights}: {passed_over} tensors adapt the vision tower, which texts do not pass: they are not used"
        )
    if own := [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items() if _VOCABULARY.fullmatch(name)]:
        raise InputError(
            f"{weights}: embedding or head come with the adapter ({listed(own)}; the model's vocabulary is "
            f"{config.vocab_size}); merge it into its base (peft: merge_and_unload, then save_pretrained) and name "
            "that folder as the model"
        )
    heads = {name: f"base_model.model.{name}layers." for name in _DECODERS}
    decoder = next((name for name in _DECODERS if any(each.startswith(heads[name]) for each in tensors)), "model.")
    lora = _lora_config(document, path, config, decoder, tensors)
    names = factor_names(lora_shapes(config, lora), config.layers, decoder)
    found = find_tensors(tensors, names, f"{weights}: not an adapter of this model")
    return lora, read_tensors(found, config.layers, jnp.float32)


def _lora_config(
    document: Mapping[str, Any], path: Path, config: ModelConfig, decoder: str, tensors: Collection[str]
) -> LoraConfig:
    """The adapter's config, after checking that it says what the tensors say."""
    keys = Keys(document, {}, str(path))
    keys.taken.update(_WHERE_IT_IS, _PATTERNS, _PATTERNS.values())
    if keys.take("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {document.get('peft_type')} is not supported, only LORA")
    if keys.take("init_lora_weights", True) not in _PLAIN_INITIALISATIONS:
        raise InputError(
            f"{path}: init_lora_weights {document['init_lora_weights']} changes the base weights; convert the adapter "
            "to plain LoRA (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    rslora, dora = keys.flag("use_rslora"), keys.flag("use_dora")
    keys.refuse_the_rest(_HARMLESS_OF_ADAPTERS, fixed={**dict.fromkeys(document, _UNSET), "bias": ("none",)})
    targets = _targets(document, path, config, decoder, tensors)
    # What patterns leave the same for all is the rank or alpha of all.
    names = [name for of_target in targets.values() for name in of_target]
    of_all = {key: _value_of_all(document, pattern, key, names, path) for pattern, key in _PATTERNS.items()}
    keys = Keys(of_all, {}, str(path))
    return LoraConfig(keys.whole("r"), keys.real("lora_alpha"), tuple(targets), rslora=rslora, dora=dora)


def _targets(
    document: Mapping[str, Any], path: Path, config: ModelConfig, decoder: str, tensors: Collection[str]
) -> dict[str, list[str]]:
    """The projections that carry an adapter in every layer, and their modules' names; InputError where the config puts
    it on some layers only, or spares one that has factors. Those that are missing are `find_tensors`'s to name."""
    said = ", ".join(
        f"{key} {json.dumps(document[key])[:80]}" for key in _WHERE_IT_IS if document.get(key) not in (None, [], "")
    )
    targets, spared, bare = {}, [], []
    for target, (module, _) in projection_sizes(config).items():
        names = [f"{decoder}layers.{layer}.{module}.{target}" for layer in range(config.layers)]
        layers = [layer for layer, name in enumerate(names) if _carries(document, path, layer, name)]
        if 0 < len(layers) < config.layers:
            raise InputError(
                f"{path}: {said}: {target} has an adapter in {len(layers)} of {config.layers} layers "
                f"({listed(list(map(str, layers)))}); only adapters on all layers are supported"
            )
        has_factors = any(f".{module}.{target}." in name for name in tensors)
        if layers:
            targets[target] = names
            bare += [] if has_factors else [target]
        elif has_factors:
            spared.append(target)
    if not targets or (spared and not bare):
        what = (
            f"no match for {', '.join(spared)}, which has factors" if spared else "no projection of the model matches"
        )
        raise InputError(f"{path}: {said or 'target_modules is empty'}: {what}; is the file whole, and its own?")
    return targets


def _carries(document: Mapping[str, Any], path: Path, layer: int, name: str) -> bool:
    """Whether peft puts the adapter on a projection: an expression matches the whole name, a listed one its end."""
    wanted, spared, layers, above = (document.get(key) for key in _WHERE_IT_IS)
    if wanted is None:
        wanted = ["q_proj", "v_proj"]  # peft's for each of the families
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        wanted = [name]

    def matches(rule: Any, key: str) -> bool:
        if isinstance(rule, str):
            return rule != "" and _fits(rule, name, path, key)
        if rule is not None and not (isinstance(rule, list) and all(isinstance(each, str) for each in rule)):
            raise InputError(f"{path}: {key} must be names or an expression, not {json.dumps(rule)[:80]}")
        return any(f".{name}".endswith(f".{each}") for each in rule or ())

    if not matches(wanted, "target_modules") or matches(spared, "exclude_modules"):
        return False
    if isinstance(wanted, str) or layers in (None, []):
        return True
    is_below = above in (None, [], "") or "layers" in (above if isinstance(above, list) else [above])
    return is_below and layer in (layers if isinstance(layers, list) else [layers])


def _fits(expression: str, name: str, path: Path, key: str) -> bool:
    """Whether an expression, which is another's, matches the whole name; one without end is refused."""
    try:
        return regex.fullmatch(expression, name, timeout=1.0) is not None
    except (regex.error, RecursionError, TimeoutError) as error:
        why = "takes more than a second" if isinstance(error, TimeoutError) else f"is no regular expression ({error})"
        raise InputError(f"{path}: {key} {json.dumps(expression)[:80]} {why}") from None


def _value_of_all(document: Mapping[str, Any], pattern: str, key: str, names: Sequence[str], path: Path) -> Any:
    """What `key` is for all modules once peft has looked into a pattern; InputError where that makes them differ."""
    rules = document.get(pattern) or {}
    if not isinstance(rules, dict):
        raise InputError(f"{path}: {pattern} must be an object or null, not {json.dumps(rules)[:80]}")
    values = [
        next((rules[rule] for rule in rules if _fits(rf"(.*\.)?({rule})", name, path, pattern)), document.get(key))
        for name in names
    ]
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise InputError(
                f"{path}: {pattern} gives {names[0]} {key} {values[0]} and {name} {value}; only adapters of one "
                f"{key} for all modules are supported"
            )
    return values[0]
