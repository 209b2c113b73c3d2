"""Hugging Face checkpoints: safetensors read into the parameter tree and written back, and config.json with them.

Hugging Face keeps a projection as [out, in] and each layer's tensors apart; here kernels are [in, out] and the layers
lie stacked in one array [L, ...].
"""

import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from jaxalign import files
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.weights import Index, Place, Weight, assemble, place_whole, weight_table

PIECE_BYTES = 2**26
"""How much of a tensor is read at a time: what is read stays in memory until its file is closed."""


def load_params(
    folder: Path, config: ModelConfig, param_dtype: DTypeLike, place: Place = place_whole
) -> dict[str, Any]:
    """The parameters of a Hugging Face model folder, read piece by piece.

    Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names. `place` as `assemble` has it.
    InputError where the folder has no safetensors, or its tensors are not exactly those of `config`.
    """
    file_of, names = _checked_tensors(folder, config)

    def read(weight: Weight, layer: int, index: Index, out: np.ndarray) -> None:
        name = names[weight.path, layer]
        (rows, *columns), out = (index[::-1], out.T) if weight.transposed else (index, out)
        first, stop, _ = rows.indices(weight.stored_shape[0])
        step = max(1, PIECE_BYTES // (4 * math.prod(weight.stored_shape[1:])))
        for start in range(first, stop, step):
            end = min(start + step, stop)
            # Opened anew for each piece: an open file keeps all that was read of it in memory.
            with safe_open(file_of[name], framework="numpy") as file:
                out[start - first : end - first] = file.get_slice(name)[(slice(start, end), *columns)]

    return assemble(config, param_dtype, read, place)


def save_params(
    folder: Path, params: Mapping[str, Any], config: ModelConfig, token_ids: Mapping[str, Any] | None = None
) -> None:
    """Writes `model.safetensors` and `config.json`, which transformers loads; leaves keep their dtype.

    `token_ids` (bos_token_id, eos_token_id, pad_token_id) go into config.json as they are: they are the tokenizer's,
    not the architecture's. Every leaf must be addressable from this process.
    """
    leaves = flatten_dict(params, sep="/")
    table = weight_table(config)
    if set(leaves) != {weight.path for weight in table}:
        differing = sorted(set(leaves) ^ {weight.path for weight in table})
        raise ValueError(f"the parameter tree is not that of the config: {listed(differing)}")
    tensors = {}
    for weight in table:
        leaf = np.asarray(leaves[weight.path])
        for layer in range(config.layers if weight.stacked else 1):
            tensor = leaf[layer] if weight.stacked else leaf
            prefix = "" if weight.path.startswith("lm_head") else "model."
            tensors[prefix + weight.name(layer)] = np.ascontiguousarray(tensor.T if weight.transposed else tensor)
    dtype = str(tensors["model.embed_tokens.weight"].dtype)
    files.write_json(folder / "config.json", config_to_hf(config) | {"torch_dtype": dtype} | dict(token_ids or {}))
    files.write_tensors(folder / "model.safetensors", tensors)


def listed(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of an architecture: `config_from_hf` read backwards.

    In the spelling of released checkpoints (`rope_theta`), which transformers 4 and 5 both understand.
    """
    gemma = config.family == "gemma3_text"
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "gemma3_text": "Gemma3"}[config.family]
    activation = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}[config.activation]
    document: dict[str, Any] = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": _rope_scaling_to_hf(config),
        "tie_word_embeddings": config.tied_head,
        "hidden_activation" if gemma else "hidden_act": activation,
    }
    layer_types = ["sliding_attention" if local else "full_attention" for local in config.local_layers]
    match config.family:
        case "llama":
            document |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
        case "mistral":
            document |= {"sliding_window": config.window}
        case "qwen2" if config.window is not None:
            first = config.local_layers.index(True)
            document |= {"use_sliding_window": True, "sliding_window": config.window, "max_window_layers": first}
            document |= {"layer_types": layer_types}
        case "gemma3_text":
            document |= {"attention_bias": config.qkv_bias, "query_pre_attn_scalar": round(config.query_scale**-2)}
            document |= {"layer_types": layer_types or ["full_attention"] * config.layers}
            document |= {"sliding_window": config.window} if config.window is not None else {}
            document |= {"rope_local_base_freq": config.local_rope_base} if config.window is not None else {}
    return document


def _rope_scaling_to_hf(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    # `type` is what transformers before 4.43 reads.
    document: dict[str, Any] = {"rope_type": scaling.kind, "type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        document |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return document


def _checked_tensors(folder: Path, config: ModelConfig) -> tuple[dict[str, Path], dict[tuple[str, int], str]]:
    """The file of every tensor, and the tensor of every (path, layer) of the parameter tree."""
    with ExitStack() as stack:
        tensors, file_of = {}, {}
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
            except SafetensorError as error:
                raise InputError(f"{path}: not a whole safetensors file ({error}); is it cut off?") from None
            tensors |= dict.fromkeys(file.keys(), file)
            file_of |= dict.fromkeys(file.keys(), path)
        return file_of, _checked_names(tensors, config, folder)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; all of them are there."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        document = files.read_json(index)
        weight_map = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(weight_map, dict) or not weight_map or not all(map(is_file_name, weight_map.values())):
            raise InputError(f"{index}: has no weight_map from tensor names to files of its folder")
        paths = [folder / name for name in sorted(set(weight_map.values()))]
        there = {path.name for path in folder.iterdir() if path.is_file()}
        if missing := [path for path in paths if path.name not in there]:
            raise InputError(f"{missing[0]}: no such file, though {index.name} names it; the download is incomplete")
        return paths
    if pickled := sorted(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{pickled[0]}: pickled weights can run code when they are read, so they are not; save the model again as "
            "safetensors (transformers: save_pretrained)"
        )
    raise InputError(f"{folder}: no model.safetensors and no model.safetensors.index.json")


def is_file_name(value: Any) -> bool:
    """Whether a JSON value names a file that lies in the folder itself."""
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value


# Where a checkpoint may keep the decoder, and its head: a decoder alone, or inside a Gemma 3 with vision (as released,
# and as transformers 5 saves it).
_PREFIXES = {
    "model.": "lm_head.weight",
    "language_model.model.": "language_model.lm_head.weight",
    "model.language_model.": "lm_head.weight",
}
_NOT_OURS = re.compile(r".*rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*")


def _checked_names(tensors: Mapping[str, Any], config: ModelConfig, folder: Path) -> dict[tuple[str, int], str]:
    """The checkpoint's name of every (path, layer), after checking that it holds these and nothing else."""
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}embed_tokens.weight" in tensors), "model.")
    head = _PREFIXES[prefix]
    names, wrong = {}, []
    for weight in weight_table(config):
        for layer in range(config.layers if weight.stacked else 1):
            name = head if weight.path == "lm_head/kernel" else prefix + weight.name(layer)
            names[weight.path, layer] = name
            if name in tensors:
                tensor = tensors[name].get_slice(name)
                if tuple(tensor.get_shape()) != weight.stored_shape:
                    wrong.append(f"{name} is {tensor.get_shape()}, not {list(weight.stored_shape)}")
                elif tensor.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    wrong.append(f"{name} is stored as {tensor.get_dtype()}, which is not supported")
    missing = [name for name in names.values() if name not in tensors]
    # A checkpoint may hold the tied head a second time; transformers, too, takes the embedding.
    extra = set(tensors) - set(names.values()) - ({head} if config.tied_head else set())
    extra = sorted(name for name in extra if not _NOT_OURS.fullmatch(name))
    for found, what in ((missing, "missing tensors"), (extra, "unexpected tensors"), (wrong, "wrong tensors")):
        if found:
            raise InputError(f"{folder}: {what} for the model of its config.json: {listed(found)}")
    return names
