"""LoRA, rsLoRA and DoRA adapters in the format of the PEFT library: read from it, and written so that it loads them.

A PEFT folder holds `adapter_config.json` and `adapter_model.safetensors`, in which every layer's A is [r, in], B is
[out, r] and DoRA's magnitude [out]; here they are the stacked leaves of lora.py, A and B transposed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxalign import files
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.hf_config import Keys
from jaxalign.model.hf_weights import listed
from jaxalign.model.hub import HubId, hub_id
from jaxalign.model.lora import LoraConfig, lora_shapes, projection_sizes

_FACTORS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}

# Keys of adapter_config.json that leave the update as it is. All others must be unset: there are more ways to vary
# LoRA every year (rank_pattern, use_qalora, layers_to_transform, ...), and each of them changes the model.
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
_UNSET = (None, False, [], {})
# Initialisations that leave the base weights alone; PiSSA, OLoRA, CorDA, LoftQ change them.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def save_adapter(folder: Path, lora_tree: Mapping[str, Any], lora: LoraConfig, base_model_name: str) -> None:
    """Writes a PEFT folder, float32.

    `base_model_name` is the model that the adapter belongs to: its folder, or ORG/NAME@COMMIT on the hub.
    """
    base = hub_id(base_model_name) or HubId(base_model_name, None)
    tensors = {}
    for (*module, factor), leaf in flatten_dict(lora_tree["layers"]).items():
        for layer, matrix in enumerate(np.asarray(leaf, np.float32)):
            tensors[_name(layer, module, factor)] = np.ascontiguousarray(matrix.T)
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.repo,
        "revision": base.revision,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "target_modules": sorted(lora.targets),
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
    """The adapter of a PEFT folder: its config, and its tree in float32.

    InputError names the field, where the adapter is of another kind or not on all layers, or the tensors, where it does
    not belong to a model of this `config`.
    """
    lora = _read_lora_config(folder / "adapter_config.json", config)
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        reason = "pickled adapters are not read" if (folder / "adapter_model.bin").is_file() else "no such file"
        raise InputError(f"{path}: {reason}; save the adapter as safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); is it cut off?") from None
    shapes = flatten_dict(lora_shapes(config, lora)["layers"])
    _check_tensors(tensors, shapes, path)

    tree = {}
    for *module, factor in shapes:
        layers = [tensors[_name(layer, module, factor)].T for layer in range(config.layers)]
        tree["layers", *module, factor] = jnp.asarray(np.stack(layers).astype(np.float32))
    return lora, unflatten_dict(tree)


def _name(layer: int, module: Sequence[str], factor: str) -> str:
    """PEFT's name of one factor: `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`."""
    return f"base_model.model.model.layers.{layer}.{'.'.join(module)}.{_FACTORS[factor]}"


def _read_lora_config(path: Path, config: ModelConfig) -> LoraConfig:
    document = files.read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: must be one JSON object")
    keys = Keys(document, {}, str(path))
    if keys.take("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {document.get('peft_type')} is not supported, only LORA")
    if keys.take("bias", "none") != "none":
        raise InputError(f"{path}: bias {document['bias']} is not supported, only none")
    if keys.take("init_lora_weights", True) not in _PLAIN_INITIALISATIONS:
        raise InputError(
            f"{path}: init_lora_weights {document['init_lora_weights']} changes the base weights; convert the adapter "
            "to plain LoRA (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    targets = keys.take("target_modules")
    known = projection_sizes(config)
    if targets == "all-linear":
        targets = list(known)
    if not isinstance(targets, list) or not targets or any(target not in list(known) for target in targets):
        raise InputError(f"{path}: target_modules {targets} is not supported, only a list of {', '.join(known)}")
    lora = LoraConfig(
        keys.whole("r"),
        keys.real("lora_alpha"),
        tuple(name for name in known if name in targets),
        rslora=keys.flag("use_rslora"),
        dora=keys.flag("use_dora"),
    )
    keys.refuse_the_rest(_HARMLESS, fixed={key: _UNSET for key in document})
    return lora


def _check_tensors(tensors: Mapping[str, np.ndarray], shapes: Mapping[tuple[str, ...], Any], path: Path) -> None:
    """InputError unless the file holds exactly the factors of every target in every layer, in their shapes.

    `shapes`: (module, target, factor) -> the stacked leaf [L, ...].
    """
    expected = {
        _name(layer, module, factor): leaf.shape[:0:-1]
        for (*module, factor), leaf in shapes.items()
        for layer in range(leaf.shape[0])
    }
    not_numbers = [name for name, tensor in tensors.items() if not jnp.issubdtype(tensor.dtype, jnp.floating)]
    missing = [name for name in expected if name not in tensors]
    extra = sorted(set(tensors) - set(expected))
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    kinds = ((missing, "missing"), (extra, "unexpected"), (wrong, "wrong shapes"), (not_numbers, "no floating point"))
    for found, what in kinds:
        if found:
            raise InputError(f"{path}: not an adapter of this model; {what}: {listed(found)}")
