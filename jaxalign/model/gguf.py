"""GGUF models (llama.cpp): architecture and weights, dequantised into the same parameter tree as a model folder.

llama.cpp's converter renames the weights, permutes the rows of Llama's queries and keys, and stores Gemma's norms with
their offset of 1 added (convert_hf_to_gguf.py); each is undone here.

The GGUF container: metadata and a table of tensors, read from a memory map; values through the gguf package.

Layout (github.com/ggml-org/ggml, docs/gguf.md), little-endian: magic, version, number of tensors, number of metadata
entries; the entries; the tensor table; then, aligned, the tensors. The gguf package's own reader makes several NumPy
arrays for each of a vocabulary's 260 000 strings, ten seconds where this takes well under one.

The tokenizer inside a GGUF file, rebuilt with the tokenizers library: the same ids as the model folder's own.

llama.cpp stores a vocabulary, token types and either merges or scores; the normaliser and the pre-tokenizer it only
names (`tokenizer.ggml.model`, `tokenizer.ggml.pre`; src/llama-vocab.cpp lists what the names mean). Where transformers'
own GGUF import drops a step of the released tokenizer (SmolLM2's digits apart, Qwen's composed Unicode, Llama 3's
whole tokens first), it is kept here.
"""

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from jax.typing import DTypeLike
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from jaxalign.errors import InputError, listed
from jaxalign.model.config import (
    MOST_LAYERS,
    Family,
    Keys,
    ModelConfig,
    RopeScaling,
    extended_positions,
    yarn_attention,
)
from jaxalign.model.quantised import widest
from jaxalign.model.weights import Index, Place, Weight, assemble, place_whole, weight_table
from jaxalign.sentence_piece import CONTROL, NORMAL, SPACE, is_marker, mark_tokens, sentence_piece

_VERSIONS = (2, 3)
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


_TYPES = {GGMLQuantizationType.F16: jnp.float16, GGMLQuantizationType.BF16: jnp.bfloat16}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""What llama.cpp calls the parts of a split file (gguf-split)."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file and how it is stored."""

    shape: tuple[int, ...]
    """Slowest axis first, as NumPy and Hugging Face count: [out, in] for a projection."""
    kind: GGMLQuantizationType
    start: int
    size: int
    """In bytes."""
    blob: np.ndarray
    """The bytes of its file."""

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers; float32 of those that are quantised."""
        return jnp.dtype(_TYPES.get(self.kind, jnp.float32))


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, or all parts of a split one: its metadata in memory, its tensors on disk."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def array(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32."""
        tensor = self.tensors[name]
        elements, size = GGML_QUANT_SIZES[tensor.kind]
        raw = tensor.blob[tensor.start : tensor.start + tensor.size]
        rows = raw.reshape(*tensor.shape[:-1], tensor.shape[-1] // elements * size)
        try:
            return np.asarray(dequantize(rows, tensor.kind)).reshape(tensor.shape)
        except NotImplementedError:
            raise InputError(f"{self.path}: {name} is stored as {tensor.kind.name}, which is not supported") from None


def open_gguf(path: Path) -> GgufFile:
    """Reads metadata and tensor table; of a split file, any of whose parts `path` may be, those of all parts.

    InputError: no such file, not GGUF, of another version, cut off, or not all parts of one model.
    """
    file = _open_part(path)
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return file
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise InputError(f"{path}: one of {count} parts of a model; name the parts ...-00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in paths if not part.is_file()]:
        raise InputError(f"{path}: one of {count} parts of a model, and {', '.join(missing[:5])} is not beside it")
    parts = [_open_part(part) for part in paths]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    numbers = [part.metadata.get("split.no") for part in parts]
    expected, held = parts[0].metadata.get("split.tensors.count"), sum(len(part.tensors) for part in parts)
    if numbers != list(range(count)) or not expected == held == len(tensors):
        raise InputError(
            f"{paths[0]}: its {count} parts are numbered {numbers} and hold {held} tensors, where {expected} belong to "
            "the model; are they parts of one model?"
        )
    return replace(parts[0], path=path, tensors=tensors)


def _open_part(path: Path) -> GgufFile:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path}: not a GGUF file (it does not start with the letters GGUF)")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    blob = np.frombuffer(mapped, np.uint8)
    try:
        metadata, tensors = _read_tables(_Cursor(memoryview(mapped)), path, blob)
    except (struct.error, EOFError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{path}: the GGUF file is cut off or broken") from None
    for name, tensor in tensors.items():
        if tensor.start + tensor.size > blob.size:
            raise InputError(f"{path}: the GGUF file is cut off: {name} ends beyond its {blob.size} bytes")
    return GgufFile(path, metadata, tensors)


class _Cursor:
    """A position in the file, moved on by each read."""

    def __init__(self, blob: memoryview):
        self.blob, self.position = blob, 0

    def unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.blob, self.position)
        self.position += struct.calcsize("<" + form)
        return values

    def text(self) -> str:
        (length,) = self.unpack("Q")
        raw = self.blob[self.position : self.position + length]
        if len(raw) < length:
            raise EOFError
        self.position += length
        return str(raw, "utf-8")

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind == GGUFValueType.ARRAY:
            item_kind, count = self.unpack("IQ")
            if count > len(self.blob):
                raise EOFError
            if item_kind in _SCALARS:
                return list(self.unpack(f"{count}{_SCALARS[item_kind]}"))
            return [self.value(item_kind) for _ in range(count)]
        if kind not in _SCALARS:
            raise EOFError
        return self.unpack(_SCALARS[GGUFValueType(kind)])[0]


def _read_tables(cursor: _Cursor, path: Path, blob: np.ndarray) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    _, version, tensor_count, entry_count = cursor.unpack("4sIQQ")
    if version not in _VERSIONS:
        raise InputError(f"{path}: GGUF version {version} (or big-endian) is not supported, only versions 2 and 3")
    metadata = {}
    for _ in range(entry_count):
        key = cursor.text()
        metadata[key] = cursor.value(*cursor.unpack("I"))

    tensors = {}
    for _ in range(tensor_count):
        name = cursor.text()
        (axes,) = cursor.unpack("I")
        shape = cursor.unpack(f"{axes}Q")[::-1]
        kind, offset = cursor.unpack("IQ")
        if kind not in GGML_QUANT_SIZES:
            raise InputError(f"{path}: {name} is of GGML type {kind}, which this gguf package does not know")
        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or 0 in shape or shape[-1] % elements:
            raise InputError(f"{path}: {name} has shape {list(shape)}, which does not go with blocks of {elements}")
        size = math.prod(shape) // elements * size
        tensors[name] = StoredTensor(shape, GGMLQuantizationType(kind), offset, size, blob)

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path}: general.alignment {alignment} is no number of bytes")
    data = -(-cursor.position // alignment) * alignment
    return metadata, {name: replace(tensor, start=data + tensor.start) for name, tensor in tensors.items()}


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class _ByteLevelRules:
    """How a byte-level BPE cuts text before merging."""

    split: str | None
    """Regular expression of one piece; None: GPT-2's, which the byte-level pre-tokenizer brings itself."""
    digits_apart: bool = False
    compose: bool = False
    """Text is first brought into Unicode's composed form (NFC)."""
    whole_tokens_first: bool = False
    """A piece that is a token stays one, whatever the merges say."""
    add_bos: bool = False
    """Where the file does not say."""


_GPT2 = _ByteLevelRules(None)
_DIGITS = _ByteLevelRules(None, digits_apart=True)
_LLAMA3 = _ByteLevelRules(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_tokens_first=True,
    add_bos=True,
)
_QWEN2 = _ByteLevelRules(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    compose=True,
)
_BYTE_LEVEL = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
}


def read_gguf_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a GGUF file: special tokens, begin-of-text rule and chat template included.

    InputError: not a GGUF file, without a tokenizer, or with one that is broken or of a kind that is not known here.
    """
    metadata = open_gguf(path).metadata
    try:
        return _tokenizer_of(metadata, path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # which is what tokenizers raises, nothing narrower, of wrong values in the file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: the tokenizer in it does not load ({reason})") from None


def _tokenizer_of(metadata: dict[str, Any], path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that a file's metadata describes."""
    settings = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens = settings.get("tokens")
    if not isinstance(tokens, list):
        raise InputError(f"{path}: holds no tokenizer (tokenizer.ggml.tokens)")
    kinds = _kinds(tokens, settings)
    unknown = tokens[settings.get("unknown_token_id", 0)]
    match settings.get("model"), metadata.get("general.architecture"):
        case "gpt2", _:
            rules = _BYTE_LEVEL.get(settings.get("pre", ""))
            if "merges" not in settings:
                raise InputError(f"{path}: a byte-level tokenizer without tokenizer.ggml.merges")
            if rules is None:
                known = ", ".join(_BYTE_LEVEL)
                raise InputError(f"{path}: tokenizer.ggml.pre {settings.get('pre')} is not supported, only {known}")
            tokenizer, add_bos = _byte_level(tokens, settings["merges"], rules), rules.add_bos
            mark_tokens(tokenizer, tokens, kinds)
        case "llama", "gemma3":
            tokens = [_respelled(token) for token in tokens]
            # Gemma's scores do not follow the order of its merges; the order of its vocabulary does.
            scores = [-float(index) for index in range(len(tokens))]
            tokenizer, add_bos = sentence_piece(tokens, scores, kinds, unknown, prefix_space=False), True
        case "llama", _:
            if len(settings.get("scores", [])) != len(tokens):
                raise InputError(f"{path}: tokenizer.ggml.scores does not give every token its score")
            prefix_space = settings.get("add_space_prefix", True)
            tokenizer, add_bos = sentence_piece(tokens, settings["scores"], kinds, unknown, prefix_space), True
        case model, _:
            raise InputError(f"{path}: tokenizer.ggml.model {model} is not supported, only gpt2 and llama")
    return _wrapped(tokenizer, tokens, settings, add_bos, metadata.get("tokenizer.chat_template"))


def _kinds(tokens: Sequence[str], settings: dict[str, Any]) -> list[int]:
    """The kind of each token: as the file types it, but what ends or begins a text or a turn is a control token."""
    ends = {settings.get(f"{role}_token_id") for role in ("bos", "eos", "eot", "eom")}
    kinds = settings.get("token_type") or [NORMAL] * len(tokens)
    return [
        CONTROL if index in ends or is_marker(token) else kind
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
    ]


def _byte_level(tokens: Sequence[str], merges: Sequence[str], rules: _ByteLevelRules) -> Tokenizer:
    """Byte-level BPE: every byte has a letter, so there is no unknown token."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, pairs, ignore_merges=rules.whole_tokens_first))
    steps: list[Any] = []
    if rules.digits_apart:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.split is not None:
        steps.append(pre_tokenizers.Split(Regex(rules.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rules.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _respelled(token: str) -> str:
    """llama.cpp's converter writes Gemma's tokens of spaces alone with real spaces."""
    return SPACE * len(token) if token and not token.strip(" ") else token


def _wrapped(
    tokenizer: Tokenizer, tokens: Sequence[str], settings: dict[str, Any], add_bos: bool, chat_template: str | None
) -> "PreTrainedTokenizerFast":
    """The tokenizer as transformers knows it, with the roles of its tokens."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: settings[f"{key}_token_id"] for role, key in keys.items() if f"{key}_token_id" in settings}
    roles = {role: tokens[index] for role, index in ids.items()}
    template = ["$A"]
    if settings.get("add_bos_token", add_bos) and "bos_token" in roles:
        template = [roles["bos_token"], *template]
    if settings.get("add_eos_token", False) and "eos_token" in roles:
        template = [*template, roles["eos_token"]]
    ends = [(roles[role], ids[role]) for role in ("bos_token", "eos_token") if roles.get(role) in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    # Slow to import, and only this needs it.
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **roles)


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
