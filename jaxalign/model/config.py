"""The architecture of a decoder, one frozen record, and the config.json that it is read from and written to.

Every key of a checkpoint's config.json is used, known to change nothing, or refused by name; the same reader of keys
serves adapter_config.json and the metadata of GGUF files.
"""

import json
import math
import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import InputError
from jaxalign.files import AnyPath, read_json

Family = Literal["llama", "mistral", "qwen2", "gemma3_text"]
MOST_LAYERS = 1000
"""Many times more than any decoder has; lists of so many are made before a file is asked whether it holds them."""
MOST_OF_A_SIZE = 2**31 - 1
"""Sizes, positions and token ids are int32 on the devices."""


@dataclass(frozen=True)
class RopeScaling:
    """Change of rotary frequencies for longer contexts (`linear`: position interpolation; `llama3`: by wavelength;
    `yarn`: by the number of turns within the original context, Peng et al. 2023, arXiv 2309.00071)."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    """Of YaRN: frequencies of more turns stay; those of fewer than `beta_slow` are slowed by `factor`."""
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Of YaRN: cosines and sines are multiplied by it, so logits of attention by its square."""
    truncate: bool = True  # Of YaRN: whether the bounds of its ramp are rounded to whole frequencies.


@dataclass(frozen=True)
class ModelConfig:
    """What distinguishes one decoder from another. Families differ only in these fields."""

    family: Family
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_eps: float
    query_scale: float  # The factor on q·k: head_dim**-0.5, or query_pre_attn_scalar**-0.5 in Gemma.
    rope_base: float
    tied_head: bool
    activation: Literal["silu", "gelu_tanh"] = "silu"
    rope_scaling: RopeScaling | None = None
    local_rope_base: float | None = None
    """Base on local layers; None: the same as `rope_base`. Scaling never applies to it."""
    window: int | None = None  # A local layer sees this many positions, its own included.
    local_layers: tuple[bool, ...] = ()  # Per layer, whether `window` applies; empty where no layer is local.
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: bool = False  # Norms multiply by 1 + scale (Gemma) instead of scale.
    post_norms: bool = False  # A further norm after attention and after the MLP, before the residual sum (Gemma 3).
    embedding_scale: float | None = None  # Embeddings are multiplied by it (Gemma: sqrt(width)).
    max_positions: int = 0


class Keys:
    """The keys of one object; the rest of them, those that nothing asked for, can be refused."""

    def __init__(self, document: Mapping[str, Any], defaults: Mapping[str, Any], where: str):
        self.document, self.defaults, self.where = document, defaults, where
        self.taken: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        self.taken.add(key)
        return self.document.get(key, self.defaults.get(key, default))

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = MOST_OF_A_SIZE) -> int:
        value = self.take(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.unfit(key, f"a whole number from {least} to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        # A whole number of JSON may be larger than any float.
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.unfit(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.take(key, default)
        if type(value) is not bool:
            raise self.unfit(key, "true or false")
        return value

    def section(self, key: str) -> dict[str, Any]:
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            raise self.unfit(key, "an object or null")
        return value or {}

    def unfit(self, key: str, what: str) -> InputError:
        return InputError(f"{self.where}: {key} must be {what}, not {json.dumps(self.take(key))[:80]}")

    def refuse_the_rest(
        self, harmless: Container[str] = (), fixed: Mapping[str, tuple[Any, ...]] | None = None
    ) -> None:
        """InputError for a key neither taken nor in `harmless`, unless it has one of its values in `fixed`."""
        fixed = fixed or {}
        for key, value in self.document.items():
            # null says nothing: every configuration class writes it for what a model does not have.
            if key in self.taken or key in harmless or value is None:
                continue
            shown = json.dumps(value)[:80]
            if key not in fixed:
                raise InputError(f"{self.where}: unknown key {key} ({shown}); remove it if it changes nothing")
            # 0 equals False, and means something else: layers_to_transform=0 is the first layer.
            if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in fixed[key]):
                raise InputError(f"{self.where}: {key} {shown} is not supported, only {json.dumps(fixed[key][0])}")


def json_object(path: AnyPath) -> dict[str, Any]:
    """The document of a file, which must be one JSON object."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: must be one JSON object")
    return document


def read_config(folder: Path) -> ModelConfig:
    """The architecture of a Hugging Face model folder."""
    path = folder / "config.json"
    return config_from_hf(json_object(path), str(path))


def declared_type(path: Path) -> str:
    """The type that a config.json says the weights have; float32, transformers' own default, where it does not."""
    document = json_object(path)
    declared = document.get("dtype") or document.get("torch_dtype")
    return declared if declared in ("float32", "bfloat16", "float16") else "float32"


def decoder_name(model: Path) -> str:
    """What the class that AutoModelForCausalLM makes of a folder or GGUF file calls its decoder."""
    path = model / "config.json"
    with_vision = path.is_file() and json_object(path).get("model_type") == "gemma3"
    return "model.language_model" if with_vision else "model"


def read_end_ids(folder: Path) -> list[int]:
    """The ids at which transformers' `generate` ends a text, beside its tokenizer's end; none for a GGUF file."""
    for path in (folder / "generation_config.json", folder / "config.json"):
        if path.is_file():
            found = json_object(path).get("eos_token_id")
            ids = found if isinstance(found, list) else [] if found is None else [found]
            if any(type(number) is not int or not 0 <= number <= MOST_OF_A_SIZE for number in ids):
                raise InputError(f"{path}: eos_token_id = {json.dumps(found)}: a token id or a list of them is needed")
            return ids
    return []


# Keys that change nothing in the forward pass of a decoder. What is neither here, nor in _FIXED, nor read by
# config_from_hf is refused.
# fmt: off
_HARMLESS = frozenset({
    # Of the checkpoint: where it comes from, how it was trained, which code and kernels run it.
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_flash_attn_2_enabled", "_model_name_or_path", "_name_or_path", "architectures", "attention_dropout",
    "attn_implementation", "attn_pdrop", "auto_map", "cache_implementation", "classifier_dropout", "dtype",
    "embd_pdrop", "finetuning_task", "gradient_checkpointing", "hidden_dropout", "initializer_range", "is_decoder",
    "is_llama_config", "max_sequence_length", "max_window_layers", "model_max_length", "model_name", "model_type",
    "name_or_path", "neftune_noise_alpha", "pretraining_tp", "resid_pdrop", "seq_length", "tokenizer_class",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache", "use_flash_attention_2", "use_flash_attn",
    # What older versions of transformers wrote into every config: tokens, outputs, classes, tasks, generation.
    "begin_suppress_tokens", "bad_words_ids", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "id2label", "label2id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores",
    "pad_token_id", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "top_k", "top_p", "typical_p", "unk_token_id", "use_return_dict",
})
# fmt: on

# Keys that change the forward pass, with the values under which this decoder is the right one.
_FIXED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("add_cross_attention", "attention_bias", "is_encoder_decoder", "mlp_bias"), (False,)),
    **dict.fromkeys(("rope_interleaved", "tie_encoder_decoder", "use_bidirectional_attention"), (False,)),
    **dict.fromkeys(("use_mrope", "use_sliding_window"), (False,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (None,)),
    "hidden_act": ("gelu_pytorch_tanh",),  # of a Gemma, whose own key is hidden_activation
    "partial_rotary_factor": (1.0,),
    "pruned_heads": ({},),
}

# What transformers' configuration classes assume where a config.json is silent.
# fmt: off
_DEFAULTS: dict[Family, dict[str, Any]] = {
    "llama": dict(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=2048,
    ),
    "mistral": dict(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096,
    ),
    "qwen2": dict(
        vocab_size=151936, hidden_size=4096, intermediate_size=22016, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=32768, num_key_value_heads=32, sliding_window=4096, max_window_layers=28,
    ),
    "gemma3_text": dict(
        vocab_size=262208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
        max_position_embeddings=131072, num_key_value_heads=4, sliding_window=4096, head_dim=256,
        query_pre_attn_scalar=256, tie_word_embeddings=True,
    ),
}
# fmt: on


# What config.json calls the fields that stand in it as they are.
_SIZES = {
    "vocab_size": "vocab_size",
    "mlp_dim": "intermediate_size",
    "heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}
"""Whether layers of a type are local."""
_ORIGINAL = "original_max_position_embeddings"


def config_from_hf(document: dict[str, Any], where: str) -> ModelConfig:
    """The architecture that a config.json describes, in the spelling of released checkpoints (`rope_theta`,
    `rope_scaling`) or of transformers 5 (`rope_parameters`); `where` names it in errors."""
    document = text_document(document, where)
    kind = document.get("model_type")
    family: Family | None = next((name for name in _DEFAULTS if name == kind), None)
    if family is None:
        raise InputError(f"{where}: model_type {json.dumps(kind)} is not supported, only {', '.join(_DEFAULTS)}")
    keys = Keys(document, _DEFAULTS[family], where)
    gemma = family == "gemma3_text"
    sizes = {field: keys.whole(key) for field, key in _SIZES.items()}
    layers, width, heads = keys.whole("num_hidden_layers", most=MOST_LAYERS), keys.whole("hidden_size"), sizes["heads"]
    if keys.take("head_dim") is None and width % heads:
        raise InputError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}; set head_dim")
    rope_base, rope_scaling, local_rope_base = _read_rope(keys, gemma, sizes["max_positions"])
    window, local_layers = _read_window(keys, family, layers)
    if rope_scaling is not None and rope_scaling.kind == "yarn":
        # Where YaRN is switched on (as Qwen 2.5 explains), the file still says what the context was before.
        extended = int(min(rope_scaling.factor * rope_scaling.original_max_positions, MOST_OF_A_SIZE))
        sizes["max_positions"] = max(sizes["max_positions"], extended)
    head_dim = width // heads if keys.take("head_dim") is None else keys.whole("head_dim")
    if head_dim % 2:
        raise InputError(f"{where}: head_dim {head_dim} is odd; rotary positions need an even one")
    kv_heads = heads if keys.take("num_key_value_heads") is None else keys.whole("num_key_value_heads")
    if heads % kv_heads:
        raise InputError(f"{where}: {heads} heads over {kv_heads} (num_key_value_heads) are no whole groups")
    attention_bias = keys.flag("attention_bias") if family in ("llama", "gemma3_text") else False
    activation = keys.take("hidden_activation" if gemma else "hidden_act", "gelu_pytorch_tanh" if gemma else "silu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise InputError(f"{where}: hidden_act {json.dumps(activation)} is not supported, only {list(_ACTIVATIONS)}")
    config = ModelConfig(
        family,
        **sizes,
        width=width,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=keys.real("rms_norm_eps", 1e-6),
        query_scale=(keys.real("query_pre_attn_scalar") if gemma else head_dim) ** -0.5,
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        local_rope_base=local_rope_base if local_layers else None,
        tied_head=keys.flag("tie_word_embeddings"),
        activation=_ACTIVATIONS[activation],
        window=window,
        local_layers=local_layers,
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias,
        mlp_bias=keys.flag("mlp_bias") if family == "llama" else False,
        qk_norm=gemma,
        norm_offset=gemma,
        post_norms=gemma,
        embedding_scale=width**0.5 if gemma else None,
    )
    keys.refuse_the_rest(_HARMLESS, _FIXED)
    return config


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of an architecture, in the spelling that transformers 4 and 5 both understand."""
    gemma = config.family == "gemma3_text"
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "gemma3_text": "Gemma3"}[config.family]
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    document: dict[str, Any] = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": config.family,
        **{key: getattr(config, field) for field, key in _SIZES.items()},
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied_head,
        "hidden_activation" if gemma else "hidden_act": activations[config.activation],
    }
    if (scaling := config.rope_scaling) is not None:
        names = {"linear": (), "llama3": ("low_freq_factor", "high_freq_factor")}
        names |= {"yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate")}
        # `type` is what transformers before 4.43 reads.
        section = {"rope_type": scaling.kind, "type": scaling.kind, "factor": scaling.factor}
        section |= {name: getattr(scaling, name) for name in names[scaling.kind]}
        section |= {} if scaling.kind == "linear" else {_ORIGINAL: scaling.original_max_positions}
        document["rope_scaling"] = section
    kinds = {local: kind for kind, local in _LAYER_TYPES.items()}
    layer_types = [kinds[local] for local in config.local_layers or (False,) * config.layers]
    match config.family:
        case "llama":
            document |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
        case "mistral":
            document["sliding_window"] = config.window
        case "qwen2" if config.window is not None:
            first = config.local_layers.index(True)
            document |= {"use_sliding_window": True, "sliding_window": config.window, "max_window_layers": first}
            document["layer_types"] = layer_types
        case "gemma3_text":
            document |= {"attention_bias": config.qkv_bias, "query_pre_attn_scalar": round(config.query_scale**-2)}
            document["layer_types"] = layer_types
            if config.window is not None:
                document |= {"sliding_window": config.window, "rope_local_base_freq": config.local_rope_base}
    return document


def text_document(document: dict[str, Any], where: str) -> dict[str, Any]:
    """The part of a config.json that describes the decoder: all of it, or `text_config` of a Gemma 3 with vision."""
    # Of transformers, of vLLM's compressed-tensors, of MLX.
    for key in ("quantization_config", "compression_config", "quantization"):
        if (how := document.get(key)) is not None:
            raise InputError(
                f"{where}: {key} {json.dumps(how)[:80]}: quantised weights are not supported; take the unquantised "
                "model, of which int8 and nf4 are made"
            )
    if document.get("model_type") != "gemma3":
        return document
    text = document.get("text_config")
    if not isinstance(text, dict):
        raise InputError(f"{where}: model_type gemma3 without a text_config object")
    # The head is of the whole model, so the flag beside text_config is the one that transformers goes by.
    of_all = {"model_type": "gemma3_text", "tie_word_embeddings": document.get("tie_word_embeddings", True)}
    return text_document(text | of_all, where)


def _read_rope(keys: Keys, gemma: bool, max_positions: int) -> tuple[float, RopeScaling | None, float | None]:
    """The rotary base, its scaling, and the base on local layers (Gemma 3 only)."""
    old, new = keys.section("rope_scaling"), keys.section("rope_parameters")
    base = keys.real("rope_theta", 1e6 if gemma else 1e4)
    if not gemma:
        return *_read_rope_section(old or new, base, max_positions, keys.where), None
    local_base = keys.real("rope_local_base_freq", 1e4)
    by_type = Keys(new, {}, f"{keys.where}: rope_parameters")
    full, local = by_type.section("full_attention") | old, by_type.section("sliding_attention")
    by_type.refuse_the_rest()
    base, scaling = _read_rope_section(full, base, max_positions, keys.where)
    local_base, local_scaling = _read_rope_section(local, local_base, max_positions, keys.where)
    if local_scaling is not None:
        raise InputError(f"{keys.where}: rope_parameters scale sliding_attention layers, which is not supported")
    return base, scaling, local_base


def _read_rope_section(
    section: dict[str, Any], base: float, max_positions: int, where: str
) -> tuple[float, RopeScaling | None]:
    """The base and the scaling of one section; null is as good as nothing there."""
    keys = Keys({key: value for key, value in section.items() if value is not None}, {}, f"{where}: rope scaling")
    kind, older_kind = keys.take("rope_type"), keys.take("type", "default")
    base = keys.real("rope_theta", base)
    match kind or older_kind:
        case "default":
            scaling = None
        case "linear":
            scaling = RopeScaling("linear", keys.real("factor"))
        case "llama3":
            factor, low, high = (keys.real(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
            scaling = RopeScaling("llama3", factor, low, high, keys.whole(_ORIGINAL, max_positions))
        case "yarn":
            if base <= 1:
                raise InputError(f"{where}: rope scaling yarn needs a rope_theta above 1, not {base}")
            original = keys.whole(_ORIGINAL, max_positions)
            factor = keys.real("factor", max_positions / original)
            attention = yarn_attention(factor)
            scales = [keys.real(key) for key in ("mscale", "mscale_all_dim") if keys.take(key) is not None]
            if len(scales) == 2:
                attention = yarn_attention(factor, scales[0]) / yarn_attention(factor, scales[1])
            scaling = RopeScaling(
                "yarn",
                factor,
                original_max_positions=original,
                beta_fast=keys.real("beta_fast", 32.0),
                beta_slow=keys.real("beta_slow", 1.0),
                attention_factor=keys.real("attention_factor", attention),
                truncate=keys.flag("truncate", True),
            )
        case other:
            kinds = "default, linear, llama3, yarn"
            raise InputError(f"{where}: rope scaling {json.dumps(other)} is not supported, only {kinds}")
    keys.refuse_the_rest(fixed=_FIXED)
    return base, scaling


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines by (its `mscale`)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _read_window(keys: Keys, family: str, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """The attention window and the layers it applies to; (None, ()) where no layer is local."""
    if family == "llama":
        if keys.document.get("use_sliding_window") is False:  # of a Qwen that was converted
            keys.take("sliding_window")
        return None, ()
    window = None if keys.take("sliding_window") is None else keys.whole("sliding_window")
    if family == "mistral":
        return (None, ()) if window is None else (window, (True,) * layers)
    if family == "qwen2":
        window = window if keys.flag("use_sliding_window") else None
        first = keys.whole("max_window_layers", least=0)
        local = tuple(window is not None and layer >= first for layer in range(layers))
    else:
        period = keys.whole("sliding_window_pattern", keys.whole("_sliding_window_pattern", 6))
        local = tuple((layer + 1) % period != 0 for layer in range(layers))
    kinds = keys.take("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in list(_LAYER_TYPES) for kind in kinds):
            raise keys.unfit("layer_types", f"a list of {' or '.join(_LAYER_TYPES)} for each of {layers} layers")
        local = tuple(_LAYER_TYPES[kind] for kind in kinds)
    if not any(local):
        return None, ()
    if window is None:
        raise InputError(f"{keys.where}: layer_types names sliding_attention layers, but there is no sliding_window")
    return window, local
