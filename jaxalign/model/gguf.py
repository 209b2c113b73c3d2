"""GGUF models (llama.cpp): architecture, weights and tokenizer of one file, or of all parts of a split one.

llama.cpp's converter renames the weights, permutes the rows of Llama's queries and keys, and stores Gemma's norms with
their offset of 1 added (convert_hf_to_gguf.py); each is undone here, so that the parameter tree is a model folder's.

Layout (github.com/ggml-org/ggml, docs/gguf.md), little-endian: magic, version, number of tensors, number of metadata
entries; the entries; the tensor table; then, aligned, the tensors. The gguf package's own reader takes ten seconds for
a vocabulary of 260 000, this well under one.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from gguf.tensor_mapping import get_tensor_name_map
from jax.typing import DTypeLike
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from jaxalign.errors import InputError
from jaxalign.model.attention import rotary_frequencies
from jaxalign.model.config import MOST_LAYERS, Family, Keys, ModelConfig, config_from_hf
from jaxalign.model.weights import (
    Index,
    Place,
    StoredTensor,
    Weight,
    find_tensors,
    names_of,
    place_whole,
    read_tensors,
    type_counts,
    weight_table,
)
from jaxalign.sentence_piece import CONTROL, NORMAL, SPACE, is_marker, mark_tokens, sentence_piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""The numbers of GGUFValueType that hold one value, and what `struct` calls them."""
_STORED_TYPES = {GGMLQuantizationType.F16: jnp.float16, GGMLQuantizationType.BF16: jnp.bfloat16}
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""What llama.cpp calls the parts of a split file (gguf-split)."""


class GgufFile(NamedTuple):
    """A GGUF file, or all parts of a split one: its metadata in memory, its tensors on disk."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def array(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32."""
        (array,) = self.tensors[name].read((slice(None),) * len(self.tensors[name].shape))
        return array


def open_gguf(path: Path) -> GgufFile:
    """Reads metadata and tensor table; of a split file, any of whose parts `path` may be, those of all parts."""
    file = _open_part(path)
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return file
    match = _SPLIT_NAME.fullmatch(path.name)
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
        raise InputError(f"{paths[0]}: its {count} parts are numbered {numbers} and hold {held} of {expected} tensors")
    return GgufFile(path, parts[0].metadata, tensors)


def _open_part(path: Path) -> GgufFile:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path}: not a GGUF file (it does not start with the letters GGUF)")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _read_tables(_Cursor(memoryview(mapped)), path)
    except (struct.error, EOFError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{path}: the GGUF file is cut off or broken") from None


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
        return self.unpack(_SCALARS[kind])[0]


def _read_tables(cursor: _Cursor, path: Path) -> GgufFile:
    _, version, tensor_count, entry_count = cursor.unpack("4sIQQ")
    if version not in (2, 3):
        raise InputError(f"{path}: GGUF version {version} (or big-endian) is not supported, only versions 2 and 3")
    metadata = {}
    for _ in range(entry_count):
        key = cursor.text()
        metadata[key] = cursor.value(*cursor.unpack("I"))

    table = {}
    for _ in range(tensor_count):
        name = cursor.text()
        (axes,) = cursor.unpack("I")
        shape = cursor.unpack(f"{axes}Q")[::-1]
        kind, offset = cursor.unpack("IQ")
        if kind not in GGML_QUANT_SIZES:
            raise InputError(f"{path}: {name} is of GGML type {kind}, which this gguf package does not know")
        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or 0 in shape or shape[-1] % elements:
            raise EOFError
        table[name] = (shape, GGMLQuantizationType(kind), offset, math.prod(shape) // elements * size)

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path}: general.alignment {alignment} is no number of bytes")
    data = -(-cursor.position // alignment) * alignment
    blob = np.frombuffer(cursor.blob, np.uint8)
    tensors = {}
    for name, (shape, kind, offset, size) in table.items():
        start = data + offset
        if start + size > blob.size:
            raise EOFError
        dtype = jnp.dtype(_STORED_TYPES.get(kind, jnp.float32))
        read = partial(_dequantised, blob[start : start + size], shape, kind, f"{path}: {name}")
        tensors[name] = StoredTensor(path, name, shape, kind.name, dtype, read)
    return GgufFile(path, metadata, tensors)


def _dequantised(
    raw: np.ndarray, shape: tuple[int, ...], kind: GGMLQuantizationType, where: str, index: Index
) -> Iterator[np.ndarray]:
    elements, size = GGML_QUANT_SIZES[kind]
    rows = raw.reshape(*shape[:-1], shape[-1] // elements * size)
    try:
        yield np.asarray(dequantize(rows, kind)).reshape(shape)[index]
    except NotImplementedError:
        raise InputError(f"{where} is stored as {kind.name}, which is not supported") from None


_FAMILIES: dict[str, Family] = {"llama": "llama", "qwen2": "qwen2", "gemma3": "gemma3_text"}
_ROPE_FACTORS = "rope_freqs.weight"


def read_gguf_config(path: Path) -> ModelConfig:
    """The architecture that a GGUF file's metadata describes.

    Numbers are the file's: a norm epsilon kept as float32 is 9.99e-06 where a config.json says 1e-05.
    """
    file = open_gguf(path)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise InputError(f"{path}: architecture {architecture} is not supported, only {', '.join(_FAMILIES)}")
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{path}: has no token_embd.weight; is it a language model?")
    prefix = f"{architecture}."
    document = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    keys = Keys(document, {}, f"{path}: {architecture} metadata")
    gemma = architecture == "gemma3"
    layers, heads = keys.whole("block_count", most=MOST_LAYERS), keys.whole("attention.head_count")
    width = keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", width // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if keys.whole(key, head_dim) != head_dim:
            raise InputError(f"{keys.where}: {key} differs from the head width {head_dim}, which is not supported")
    as_hf: dict[str, Any] = dict(
        model_type=_FAMILIES[architecture],
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=keys.whole("feed_forward_length"),
        max_position_embeddings=keys.whole("context_length"),
        rms_norm_eps=keys.real("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.real("rope.freq_base", 1e6 if gemma else 1e4),
        rope_scaling=_rope_scaling(keys, file),
        tie_word_embeddings="output.weight" not in file.tensors,
    )
    if gemma:
        # Five local layers, one global, unless the file says otherwise.
        local = keys.take("attention.sliding_window_pattern")
        if not isinstance(local, list):
            period = keys.whole("attention.sliding_window_pattern", 6)
            local = [(layer + 1) % period for layer in range(layers)]
        # The 27B model alone divides by width / heads: it is the one with 62 layers (llama.cpp's src/llama-model.cpp,
        # LLM_ARCH_GEMMA3, where the base on local layers stands, too, that a file need not say).
        as_hf |= dict(
            query_pre_attn_scalar=width / heads if layers == 62 else head_dim,
            rope_local_base_freq=keys.real("rope.freq_base_swa", 1e4),
            sliding_window=keys.whole("attention.sliding_window"),
            layer_types=["sliding_attention" if each else "full_attention" for each in local],
        )
    config = replace(
        config_from_hf(as_hf, keys.where),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
    )
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        # The file's divisors are float32; those of another scaling differ by far more than a thousandth.
        divisors = file.array(_ROPE_FACTORS)
        with np.errstate(all="ignore"):
            expected = rotary_frequencies(replace(config, rope_scaling=None), False) / rotary_frequencies(config, False)
        if divisors.shape != expected.shape or not np.allclose(divisors, expected, 1e-3):
            raise InputError(f"{path}: {_ROPE_FACTORS} is not Llama 3's rope scaling, which is the only one supported")
    keys.refuse_the_rest(harmless=("vocab_size", "rope.scaling.finetuned"), fixed={"expert_count": (0,)})
    return config


def _rope_scaling(keys: Keys, file: GgufFile) -> dict[str, Any] | None:
    """What stands in a config.json's rope_scaling."""
    kind = keys.take("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise InputError(f"{keys.where}: rope.scaling.type {kind} is not supported, only none, linear and yarn")
    before = keys.whole("context_length") if kind == "yarn" else 8192
    original = {"original_max_position_embeddings": keys.whole("rope.scaling.original_context_length", before)}
    if kind != "none":
        section = {"rope_type": kind, "factor": keys.real("rope.scaling.factor")}
        return section if kind == "linear" else section | original
    if _ROPE_FACTORS not in file.tensors:
        return None
    # Llama 3's scaling reaches the file as what each frequency is divided by; low and high are those of every release.
    factor = float(file.array(_ROPE_FACTORS).max())
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **original}


def gguf_types(path: Path) -> Counter[str]:
    """How many numbers a GGUF file stores in which type; what is quantised counts as float32."""
    return type_counts(open_gguf(path).tensors)


def load_gguf_params(
    path: Path, config: ModelConfig, param_dtype: DTypeLike | None, place: Place = place_whole
) -> dict[str, Any]:
    """The parameters of a GGUF file, dequantised tensor by tensor; `param_dtype` as in `weights.load_params`, float32
    being the type of what is quantised."""
    architecture = {family: MODEL_ARCH[name.upper()] for name, family in _FAMILIES.items()}[config.family]
    llama_cpp = get_tensor_name_map(architecture, config.layers)

    def name(weight: Weight, layer: int) -> str:
        """What llama.cpp calls it: `blk.3.attn_q.weight`."""
        module, _, leaf = weight.name(layer).rpartition(".")
        return f"{llama_cpp.get_name(module if module == 'lm_head' else f'model.{module}')}.{leaf}"

    def as_released(weight: Weight, tensor: StoredTensor, index: Index) -> Iterator[np.ndarray]:
        """The part of a tensor that an index names, once what llama.cpp's converter did to it is undone."""
        (array,) = tensor.read((slice(None),) * len(tensor.shape))
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(weight.path.split("/")[-2])
        if config.family == "llama" and heads is not None:
            # Each head's two halves, not pairs of rows, are rotated.
            pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        if config.norm_offset and weight.path.endswith("/scale"):
            array = array - np.float32(1.0)
        yield array[index]

    names = names_of(weight_table(config), config.layers, name)
    found = find_tensors(open_gguf(path).tensors, names, f"{path}: for this {config.family} model", {_ROPE_FACTORS})
    released = {
        (weight, layer): replace(tensor, read=partial(as_released, weight, tensor))
        for (weight, layer), tensor in found.items()
    }
    return read_tensors(released, config.layers, param_dtype, place)


@dataclass(frozen=True)
class _ByteLevelRules:
    """How a byte-level BPE cuts text before merging."""

    split: str | None
    """Regular expression of one piece; None: GPT-2's, which the byte-level pre-tokenizer brings itself."""
    digits_apart: bool = False
    compose: bool = False  # Text is first brought into Unicode's composed form (NFC).
    whole_tokens_first: bool = False  # A piece that is a token stays one, whatever the merges say.
    add_bos: bool = False  # Where the file does not say.


_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _ByteLevelRules(_SPLIT.replace("DIGITS", r"\p{N}{1,3}"), whole_tokens_first=True, add_bos=True)
_QWEN2 = _ByteLevelRules(_SPLIT.replace("DIGITS", r"\p{N}"), compose=True)
_BYTE_LEVEL = {
    "gpt-2": _ByteLevelRules(None),
    "smollm": _ByteLevelRules(None, digits_apart=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
}


def read_gguf_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a GGUF file: special tokens, begin-of-text rule and chat template included."""
    metadata = open_gguf(path).metadata
    try:
        return _tokenizer_of(metadata, path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # which is what tokenizers raises, nothing narrower, of wrong values in the file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: the tokenizer in it does not load ({reason})") from None


def _tokenizer_of(metadata: dict[str, Any], path: Path) -> "PreTrainedTokenizerFast":
    settings = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens = settings.get("tokens")
    if not isinstance(tokens, list):
        raise InputError(f"{path}: holds no tokenizer (tokenizer.ggml.tokens)")
    # As the file types them, but what ends or begins a text or a turn is a control token.
    ends = {settings.get(f"{role}_token_id") for role in ("bos", "eos", "eot", "eom")}
    types = settings.get("token_type") or [NORMAL] * len(tokens)
    kinds = [
        CONTROL if index in ends or is_marker(token) else kind
        for index, (token, kind) in enumerate(zip(tokens, types, strict=False))
    ]
    unknown = tokens[settings.get("unknown_token_id", 0)]
    match settings.get("model"), metadata.get("general.architecture"):
        case "gpt2", _:
            rules = _BYTE_LEVEL.get(settings.get("pre", ""))
            if rules is None:
                known = ", ".join(_BYTE_LEVEL)
                raise InputError(f"{path}: tokenizer.ggml.pre {settings.get('pre')} is not supported, only {known}")
            tokenizer, add_bos = _byte_level(tokens, settings["merges"], rules), rules.add_bos
            mark_tokens(tokenizer, tokens, kinds)
        case "llama", "gemma3":
            # llama.cpp's converter writes tokens of spaces alone with real spaces.
            tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
            # Gemma's scores do not follow the order of its merges; the order of its vocabulary does.
            scores = [-float(index) for index in range(len(tokens))]
            tokenizer, add_bos = sentence_piece(tokens, scores, kinds, unknown, prefix_space=False), True
        case "llama", _:
            scores = settings.get("scores", [])
            if len(scores) != len(tokens):
                raise InputError(f"{path}: tokenizer.ggml.scores does not give every token its score")
            prefix_space = settings.get("add_space_prefix", True)
            tokenizer, add_bos = sentence_piece(tokens, scores, kinds, unknown, prefix_space), True
        case model, _:
            raise InputError(f"{path}: tokenizer.ggml.model {model} is not supported, only gpt2 and llama")
    return _with_roles(tokenizer, tokens, settings, add_bos, metadata.get("tokenizer.chat_template"))


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


def _with_roles(
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
