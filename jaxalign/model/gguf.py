"""GGUF models (llama.cpp): architecture and weights, dequantised into the same parameter tree as a model folder.

llama.cpp's converter renames the weights, permutes the rows of Llama's queries and keys, and stores Gemma's norms with
their offset of 1 added (convert_hf_to_gguf.py); each is undone here.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from jaxalign.errors import InputError, listed
from jaxalign.model.config import Family, ModelConfig, RopeScaling
from jaxalign.model.gguf_file import GgufFile, open_gguf
from jaxalign.model.gguf_tokenizer import read_gguf_tokenizer
from jaxalign.model.hf_config import MOST_LAYERS, Keys, extended_positions, yarn_attention
from jaxalign.model.product import widest
from jaxalign.model.weights import Index, Place, Weight, assemble, place_whole, weight_table

__all__ = ["load_gguf_params", "read_gguf_config", "read_gguf_tokenizer"]

_FAMILIES: dict[str, Family] = {"llama": "llama", "qwen2": "qwen2", "gemma3": "gemma3_text"}
_MODULES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn/q_proj": "attn_q",
    "self_attn/k_proj": "attn_k",
    "self_attn/v_proj": "attn_v",
    "self_attn/o_proj": "attn_output",
    "self_attn/q_norm": "attn_q_norm",
    "self_attn/k_norm": "attn_k_norm",
    "mlp/gate_proj": "ffn_gate",
    "mlp/up_proj": "ffn_up",
    "mlp/down_proj": "ffn_down",
}
# In Gemma 3 a norm follows attention before the sum; elsewhere the norm of that name precedes the MLP.
_PRE_NORM_MODULES = {"post_attention_layernorm": "ffn_norm"}
_POST_NORM_MODULES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1 and 3.2: the factor is read from the file, these are the same in every release.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS = 1.0, 4.0, 8192


def read_gguf_config(path: Path) -> ModelConfig:
    """The architecture that a GGUF file's metadata describes.

    Numbers are the file's: a norm epsilon kept as float32 is 9.99e-06 where a config.json says 1e-05.
    InputError: not a GGUF file, or one whose architecture is not one of ours in every particular.
    """
    return _read_config(open_gguf(path))


def gguf_types(path: Path) -> Counter[str]:
    """How many numbers a GGUF file stores in which type; what is quantised counts as float32."""
    counts: Counter[str] = Counter()
    for tensor in open_gguf(path).tensors.values():
        counts[tensor.dtype.name] += math.prod(tensor.shape)
    return counts


def load_gguf_params(
    path: Path, config: ModelConfig, param_dtype: DTypeLike | None, place: Place = place_whole
) -> dict[str, Any]:
    """The parameters of a GGUF file, dequantised tensor by tensor; `place` as in `weights.assemble`.

    `param_dtype` None: each weight in the type that it is stored in (the widest of its layers'), float32 where it is
    quantised.
    """
    file = open_gguf(path)
    _check_tensors(file, config)

    def stored_type(weight: Weight) -> DTypeLike:
        names = {_name(weight, layer, config) for layer in range(config.layers if weight.stacked else 1)}
        return widest({file.tensors[name].dtype for name in names})

    def read(weight: Weight, layer: int, index: Index, out: np.ndarray) -> None:
        array = file.array(_name(weight, layer, config))
        if config.family == "llama" and "q_proj" in weight.path:
            array = _unpermuted(array, config.heads)
        if config.family == "llama" and "k_proj" in weight.path:
            array = _unpermuted(array, config.kv_heads)
        if config.norm_offset and weight.path.endswith("/scale"):
            array = array - np.float32(1.0)
        out[...] = (array.T if weight.transposed else array)[index]

    return assemble(config, stored_type if param_dtype is None else lambda weight: param_dtype, read, place)


def _read_config(file: GgufFile) -> ModelConfig:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise InputError(f"{file.path}: architecture {architecture} is not supported, only {', '.join(_FAMILIES)}")
    for name in ("token_embd.weight", "output_norm.weight"):
        if name not in file.tensors:
            raise InputError(f"{file.path}: has no {name}; is it a language model?")
    prefix = f"{architecture}."
    document = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    keys = Keys(document, {}, f"{file.path}: {architecture} metadata")
    gemma = architecture == "gemma3"

    layers = keys.whole("block_count", most=MOST_LAYERS)
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    kv_heads = keys.whole("attention.head_count_kv", heads)
    head_dim = keys.whole("attention.key_length", width // heads)
    if heads % kv_heads or head_dim % 2:
        raise InputError(f"{keys.where}: {heads} heads over {kv_heads}, {head_dim} wide: no multiple, or an odd width")
    for key in ("rope.dimension_count", "attention.value_length"):
        if keys.whole(key, head_dim) != head_dim:
            raise InputError(f"{keys.where}: {key} differs from the head width {head_dim}, which is not supported")
    window, local_layers = _read_window(keys, layers) if gemma else (None, ())
    rope_base = keys.real("rope.freq_base", 1e6 if gemma else 1e4)
    # llama.cpp's base on local layers, where the file does not say (src/llama-model.cpp, LLM_ARCH_GEMMA3).
    local_rope_base = keys.real("rope.freq_base_swa", 1e4) if gemma else None
    # The 27B model alone divides by width / heads (same place): it is the one with 62 layers.
    query_width = width / heads if gemma and layers == 62 else head_dim

    rope_scaling = _read_rope_scaling(keys, file, rope_base, head_dim)
    config = ModelConfig(
        family=_FAMILIES[architecture],
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=keys.whole("feed_forward_length"),
        norm_eps=keys.real("attention.layer_norm_rms_epsilon"),
        query_scale=query_width**-0.5,
        rope_base=rope_base,
        tied_head="output.weight" not in file.tensors,
        activation="gelu_tanh" if gemma else "silu",
        rope_scaling=rope_scaling,
        local_rope_base=local_rope_base if local_layers else None,
        window=window,
        local_layers=local_layers,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        qk_norm=gemma,
        norm_offset=gemma,
        post_norms=gemma,
        embedding_scale=width**0.5 if gemma else None,
        max_positions=extended_positions(keys.whole("context_length"), rope_scaling),
    )
    keys.refuse_the_rest(harmless=("vocab_size", "rope.scaling.finetuned"), fixed={"expert_count": (0,)})
    return config


def _read_window(keys: Keys, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """Gemma 3's window and local layers: five local, one global, unless the file says otherwise."""
    window = keys.whole("attention.sliding_window")
    pattern = keys.take("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise InputError(f"{keys.where}: attention.sliding_window_pattern has {len(pattern)} of {layers} layers")
        local = tuple(map(bool, pattern))
    else:
        period = keys.whole("attention.sliding_window_pattern", 6)
        local = tuple((layer + 1) % period != 0 for layer in range(layers))
    return (window, local) if any(local) else (None, ())


def _read_rope_scaling(keys: Keys, file: GgufFile, base: float, head_dim: int) -> RopeScaling | None:
    kind = keys.take("rope.scaling.type", "none")
    original = keys.whole("rope.scaling.original_context_length", _LLAMA3_POSITIONS)
    if kind == "linear":
        return RopeScaling("linear", keys.real("rope.scaling.factor"))
    if kind == "yarn":
        if base <= 1:
            raise InputError(f"{keys.where}: yarn needs a rope.freq_base above 1, not {base}")
        factor = keys.real("rope.scaling.factor")
        original = keys.whole("rope.scaling.original_context_length", keys.whole("context_length"))
        return RopeScaling("yarn", factor, original_max_positions=original, attention_factor=yarn_attention(factor))
    if kind != "none":
        raise InputError(f"{keys.where}: rope.scaling.type {kind} is not supported, only none, linear and yarn")
    if _ROPE_FACTORS not in file.tensors:
        return None
    # Llama 3's scaling reaches the file as what each frequency is divided by.
    divisors = file.array(_ROPE_FACTORS)
    scaling = RopeScaling("llama3", float(divisors.max()), _LLAMA3_LOW, _LLAMA3_HIGH, original)
    usable = divisors.shape == (head_dim // 2,) and np.isfinite(divisors).all() and divisors.min() > 0
    # The file's divisors are float32; those of another scaling differ by far more than a thousandth.
    if not usable or not np.allclose(divisors, _llama3_divisors(scaling, base, head_dim), 1e-3):
        raise InputError(f"{file.path}: {_ROPE_FACTORS} is not Llama 3's rope scaling, which is the only one supported")
    return scaling


def _llama3_divisors(scaling: RopeScaling, base: float, head_dim: int) -> np.ndarray:
    """What Llama 3 divides each of the head_dim/2 rotary frequencies by (as in transformers' modeling_rope_utils)."""
    wavelengths = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_max_positions / wavelengths - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)
    return 1.0 / ((1 - smooth) / scaling.factor + smooth)


def _name(weight: Weight, layer: int, config: ModelConfig) -> str:
    """What llama.cpp calls a weight: `blk.3.attn_q.weight`."""
    module, leaf = weight.path.removeprefix("layers/").rsplit("/", 1)
    modules = _MODULES | (_POST_NORM_MODULES if config.post_norms else _PRE_NORM_MODULES)
    prefix = f"blk.{layer}." if weight.stacked else ""
    return f"{prefix}{modules[module]}.{'bias' if leaf == 'bias' else 'weight'}"


def _check_tensors(file: GgufFile, config: ModelConfig) -> None:
    """InputError unless the file holds exactly the model's tensors, in their shapes."""
    expected = {
        _name(weight, layer, config): weight.stored_shape
        for weight in weight_table(config)
        for layer in range(config.layers if weight.stacked else 1)
    }
    missing = [name for name in expected if name not in file.tensors]
    extra = sorted(set(file.tensors) - set(expected) - {_ROPE_FACTORS})
    wrong = [
        f"{name} is {list(file.tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in file.tensors and file.tensors[name].shape != shape
    ]
    for found, what in ((missing, "missing tensors"), (extra, "unexpected tensors"), (wrong, "wrong shapes")):
        if found:
            raise InputError(f"{file.path}: {what} for this {config.family} model: {listed(found)}")


def _unpermuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows [out, ...] of queries or keys in Hugging Face's order: each head's two halves, not pairs, are rotated."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
