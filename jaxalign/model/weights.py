"""Every weight of a model, and how its arrays get onto devices whatever file they come from.

`weight_table` is the only place that knows which weights a model has; hf_weights.py and gguf.py read them, and
planning counts them unread.

A digest of weights, by which results are known to come from the same ones.

Hugging Face checkpoints: safetensors read into the parameter tree and written back, and config.json with them.

Hugging Face keeps a projection as [out, in] and each layer's tensors apart; here kernels are [in, out] and the layers
lie stacked in one array [L, ...].
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from jaxalign import files
from jaxalign.errors import InputError, listed
from jaxalign.log import warn
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import projection_sizes
from jaxalign.model.quantised import widest
from jaxalign.model.sharding import leaf_spec

BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def hash_sum(leaf: jax.Array) -> jax.Array:
    """The sum, modulo 2**32, of a hash of each element's bits (MurmurHash3's finaliser): a uint32 scalar.

    Integer sums are the same in any order, so on any mesh. Summing the bits themselves would miss sign flips: an even
    number of top bits cancels.
    """
    x = jax.lax.bitcast_convert_type(leaf, BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return (x ^ (x >> jnp.uint32(16))).sum(dtype=jnp.uint32)


def weights_sha256(tree: Any) -> str:
    """sha256 over path, shape, type and `hash_sum` of every array of a tree; one pass over the weights.

    It tells other weights apart, not an adversary's, and not rows of one array that changed places.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    facts = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), int(hash_sum(leaf))) for path, leaf in leaves]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


Index = tuple[slice, ...]
Bounds = tuple[tuple[int, int], ...]
"""Start and stop of a part along each axis."""
ReadTensor = Callable[["Weight", int, Index, np.ndarray], None]
"""(weight, layer, index, out): writes that part of one tensor into `out`, in the layout of the tree and the type of
`out`; layer is 0 for what is not stacked."""


@dataclass(frozen=True)
class Weight:
    """One leaf of the parameter tree, and what a checkpoint calls it."""

    path: str
    """In the tree, as `layers/self_attn/q_proj/kernel`."""
    shape: tuple[int, ...]
    """As it lies in the tree, without the leading L of a stacked leaf."""

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers/")

    @property
    def transposed(self) -> bool:
        """Whether the checkpoint keeps it as [out, in]."""
        return self.path.endswith("/kernel")

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """As it lies in the checkpoint."""
        return self.shape[::-1] if self.transposed else self.shape

    def name(self, layer: int) -> str:
        """Its name in a checkpoint, without the prefix of the decoder: `layers.3.self_attn.q_proj.weight`."""
        module, leaf = self.path.replace("layers/", f"layers/{layer}/").replace("/", ".").rsplit(".", 1)
        return f"{module}.{'bias' if leaf == 'bias' else 'weight'}"


def weight_table(config: ModelConfig) -> list[Weight]:
    """Every weight of the model, the embedding first and the head last."""
    D, V, H = config.width, config.vocab_size, config.head_dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    table = [Weight("embed_tokens/embedding", (V, D))]
    table += [Weight(f"layers/{norm}/scale", (D,)) for norm in norms]
    if config.qk_norm:
        table += [Weight(f"layers/self_attn/{norm}/scale", (H,)) for norm in ("q_norm", "k_norm")]
    for projection, (module, sizes) in projection_sizes(config).items():
        table.append(Weight(f"layers/{module}/{projection}/kernel", sizes))
        biased = config.mlp_bias if module == "mlp" else config.qkv_bias
        if config.output_bias if projection == "o_proj" else biased:
            table.append(Weight(f"layers/{module}/{projection}/bias", sizes[1:]))
    table.append(Weight("norm/scale", (D,)))
    if not config.tied_head:
        table.append(Weight("lm_head/kernel", (D, V)))
    return table


@dataclass(frozen=True)
class Leaf:
    """An array of the parameter tree that is still on disk."""

    path: str
    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]
    """The part of the array that an index names, in the type that it is to be stored in."""


Place = Callable[[Leaf], jax.Array | Mapping[str, jax.Array]]
"""Reads a leaf onto its devices: the array, or several by name that stand in its module in the leaf's place."""


def place_whole(leaf: Leaf) -> jax.Array:
    """The leaf on the first device."""
    return jnp.asarray(leaf.read((slice(None),) * len(leaf.shape)))


def place_on(mesh: Mesh) -> Callable[[Leaf], jax.Array]:
    """Leaves laid out by the sharding table. A process reads only what its own devices hold, once."""

    def place(leaf: Leaf) -> jax.Array:
        sharding = NamedSharding(mesh, leaf_spec(leaf.path, leaf.shape, mesh))
        indices = sharding.addressable_devices_indices_map(leaf.shape).values()
        held = {bounds(index, leaf.shape) for index in indices if index is not None}
        box = bounding_box(held)
        if sum(map(size_of, held)) == size_of(box):  # one read serves all
            parts = {box: leaf.read(as_index(box))}
        else:  # in a ring through a slice, what lies between the parts of a host is another's
            parts = {part: leaf.read(as_index(part)) for part in held}

        def of_device(index: Any) -> np.ndarray:
            part = bounds(index, leaf.shape)
            around = part if part in parts else box
            starts = [start for start, _ in around]
            return parts[around][tuple(slice(a - start, b - start) for (a, b), start in zip(part, starts, strict=True))]

        return jax.make_array_from_callback(leaf.shape, sharding, of_device)

    return place


def bounds(index: Index, shape: tuple[int, ...]) -> Bounds:
    """Where a part of an array begins and ends."""
    return tuple(axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))


def as_index(part: Bounds) -> Index:
    return tuple(slice(start, stop) for start, stop in part)


def size_of(part: Bounds) -> int:
    """How many numbers the part holds."""
    return math.prod(stop - start for start, stop in part)


def bounding_box(parts: Collection[Bounds]) -> Bounds:
    """The smallest part that holds all of these."""
    return tuple((min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in zip(*parts, strict=True))


def assemble(
    config: ModelConfig, type_of: Callable[[Weight], DTypeLike], read: ReadTensor, place: Place = place_whole
) -> dict[str, Any]:
    """The parameter tree, leaf by leaf: beyond what is placed, the host holds one leaf, and what `read` takes."""
    leaves: dict[str, jax.Array] = {}
    for weight in weight_table(config):
        placed = place(unread_leaf(weight, config.layers, jnp.dtype(type_of(weight)), read))
        module, _, name = weight.path.rpartition("/")
        by_name = placed if isinstance(placed, Mapping) else {name: placed}
        leaves |= {f"{module}/{name}": array for name, array in by_name.items()}
    return unflatten_dict(leaves, sep="/")


def unread_leaf(weight: Weight, layers: int, dtype: np.dtype, read: ReadTensor) -> Leaf:
    """The leaf that a weight's tensors make, stacked where the layers are."""
    shape = (layers, *weight.shape) if weight.stacked else weight.shape

    def read_part(index: Index) -> np.ndarray:
        ranges = [range(size)[part] for size, part in zip(shape, index, strict=True)]
        out = np.empty([len(numbers) for numbers in ranges], dtype)
        if not weight.stacked:
            read(weight, 0, index, out)
            return out
        for position, layer in enumerate(ranges[0]):
            read(weight, layer, index[1:], out[position])
        return out

    return Leaf(weight.path, shape, read_part)


PIECE_BYTES = 2**26
"""How much of a tensor is read at a time: what is read stays in memory until its file is closed."""
SHARD_BYTES = 50 * 10**9
"""A larger model is written as several files: the default of save_pretrained since transformers 5."""
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TYPES = {"F64": jnp.float32, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
"""What tensors may be stored as, and the type of the arrays that hold them."""


class StoredTensor(NamedTuple):
    """A tensor in a file of its model folder."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    """A key of TYPES, or a type that is not read."""


def load_params(
    folder: Path, config: ModelConfig, param_dtype: DTypeLike | None, place: Place = place_whole
) -> dict[str, Any]:
    """The parameters of a Hugging Face model folder, read piece by piece.

    Reads `model.safetensors`, or shards. `param_dtype` None: each weight in the type that it is stored in (the widest
    of its layers'). `place` as `assemble` has it. Where `config` ties the head and the files hold another one, that one
    is read as well, with a warning, as transformers does: the parameters then have an `lm_head`.
    InputError where the folder has no safetensors, or its tensors are not exactly those of `config`.
    """
    tensors = stored_tensors(folder)
    embedding, head = tensors.get(_prefix(tensors) + "embed_tokens.weight"), tensors.get(_head(tensors))
    if config.tied_head and embedding and head and not _equal(embedding, head):
        warn(
            f"{folder}: config.json ties the head to the embedding, and {head.name} is another; the model is "
            "read untied, as transformers does; set tie_word_embeddings to false there"
        )
        config = replace(config, tied_head=False)
    names = _checked_names(tensors, config, folder)

    def stored_type(weight: Weight) -> DTypeLike:
        return widest({TYPES[tensor.kind] for (path, _), tensor in names.items() if path == weight.path})

    def read(weight: Weight, layer: int, index: Index, out: np.ndarray) -> None:
        (rows, *columns), out = (index[::-1], out.T) if weight.transposed else (index, out)
        first, stop, _ = rows.indices(weight.stored_shape[0])
        for start, piece in _pieces(names[weight.path, layer], first, stop, *columns):
            out[start - first : start - first + len(piece)] = piece

    return assemble(config, stored_type if param_dtype is None else lambda weight: param_dtype, read, place)


def _pieces(tensor: StoredTensor, first: int, stop: int, *columns: slice) -> Iterator[tuple[int, np.ndarray]]:
    """Rows `first` to `stop` of a tensor, so many at a time: (the first of them, the piece)."""
    step = max(1, PIECE_BYTES // (4 * math.prod(tensor.shape[1:])))
    for start in range(first, stop, step):
        # Opened anew for each piece: an open file keeps all that was read of it in memory.
        with safe_open(tensor.file, framework="numpy") as file:
            yield start, file.get_slice(tensor.name)[(slice(start, min(start + step, stop)), *columns)]


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers."""
    if one.shape != other.shape or not one.shape or not {one.kind, other.kind} <= TYPES.keys():
        return False
    both = zip(_pieces(one, 0, one.shape[0]), _pieces(other, 0, one.shape[0]), strict=True)
    return all(np.array_equal(a, b) for (_, a), (_, b) in both)


def stored_types(folder: Path) -> Counter[str]:
    """How many numbers a model folder stores in which type: {"bfloat16": 134515008}."""
    counts: Counter[str] = Counter()
    for tensor in stored_tensors(folder).values():
        counts[jnp.dtype(TYPES.get(tensor.kind, jnp.float32)).name] += math.prod(tensor.shape)
    return counts


def save_params(
    folder: Path, params: Mapping[str, Any], config: ModelConfig, token_ids: Mapping[str, Any] | None = None
) -> None:
    """Writes safetensors and `config.json`, which transformers loads; leaves keep their dtype.

    More than SHARD_BYTES become shards and an index, named as save_pretrained names them. config.json says the widest
    type of all: transformers loads all weights in the one that stands there. `token_ids` (bos_token_id, eos_token_id,
    pad_token_id) go into it as they are: they are the tokenizer's, not the architecture's. Every leaf must be
    addressable from this process.
    """
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    table = weight_table(config)
    if set(leaves) != {weight.path for weight in table}:
        differing = sorted(set(leaves) ^ {weight.path for weight in table})
        raise ValueError(f"the parameter tree is not that of the config: {listed(differing)}")
    dtype = widest({leaf.dtype for leaf in leaves.values()}).name
    files.write_json(folder / "config.json", config_to_hf(config) | {"torch_dtype": dtype} | dict(token_ids or {}))
    shards: list[list[tuple[Weight, int]]] = [[]]
    filled = 0
    for weight in table:
        layers = config.layers if weight.stacked else 1
        size = leaves[weight.path].size // layers * leaves[weight.path].dtype.itemsize
        for layer in range(layers):
            if shards[-1] and filled + size > SHARD_BYTES:
                shards.append([])
                filled = 0
            shards[-1].append((weight, layer))
            filled += size
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {}
    for shard, name in zip(shards, names if len(shards) > 1 else [WHOLE], strict=True):
        whole = {weight.path: np.asarray(leaves[weight.path]) for weight, _ in shard}
        tensors = {}
        for weight, layer in shard:
            tensor = whole[weight.path][layer] if weight.stacked else whole[weight.path]
            prefix = "" if weight.path.startswith("lm_head") else "model."
            tensors[prefix + weight.name(layer)] = np.ascontiguousarray(tensor.T if weight.transposed else tensor)
        files.write_tensors(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        parameters = sum(leaf.size for leaf in leaves.values())
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
        metadata = {"total_parameters": parameters, "total_size": total}
        files.write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})


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
    if scaling.kind == "yarn":
        document |= {
            "original_max_position_embeddings": scaling.original_max_positions,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor,
            "truncate": scaling.truncate,
        }
    return document


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by its name, unread: of shards, those that the index names, where it says.

    Shards without an index are read where all are there. InputError: no weights, not all of them, or two models.
    """
    whole, index = folder / WHOLE, folder / INDEX
    weight_map = _weight_map(index) if index.is_file() else {}
    shards = sorted({folder / name for name in weight_map.values()} or _shards_without_index(folder))
    missing = [path for path in shards if not path.is_file()]
    if whole.is_file() and (missing or whole not in shards):
        # A folder that was saved to twice. Where shards are missing, the whole file was the later.
        tensors = _headers([whole])
        if shards and not missing and not _same_tensors(tensors, _headers(shards, weight_map)):
            raise InputError(
                f"{folder}: holds two models, one in {WHOLE} and one in the shards {shards[0].name} to "
                f"{shards[-1].name}; libraries differ in which they read; remove the one that is not meant"
            )
        return tensors
    if missing and weight_map:
        raise InputError(f"{missing[0]}: no such file, though {index.name} names it; the download is incomplete")
    if missing:
        raise InputError(f"{missing[0]} is missing, and its other shards are there; the download is incomplete")
    if not shards:
        raise InputError(_instead_of_weights(folder))
    tensors = _headers(shards, weight_map)
    lost = [name for name in weight_map if name not in tensors and not _NOT_OURS.fullmatch(name)]
    if lost:
        raise InputError(f"{index}: {lost[0]} is not in {weight_map[lost[0]]}, where the index says; save it again")
    return tensors


def _headers(paths: list[Path], weight_map: Mapping[str, str] | None = None) -> dict[str, StoredTensor]:
    """The tensors of safetensors files; with a map from names to files those that it names, each from its file."""
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if weight_map and weight_map.get(name) != path.name:
                        continue
                    if name in tensors:
                        raise InputError(
                            f"{path}: {name} is in {tensors[name].file.name} too, and no {INDEX} says which is meant; "
                            "save the model again (transformers: save_pretrained)"
                        )
                    part = file.get_slice(name)
                    tensors[name] = StoredTensor(path, name, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); is it cut off?") from None
    return tensors


def _same_tensors(one: Mapping[str, StoredTensor], other: Mapping[str, StoredTensor]) -> bool:
    return one.keys() == other.keys() and all(_equal(tensor, other[name]) for name, tensor in one.items())


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index names it."""
    document = files.read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(map(is_file_name, weight_map.values())):
        raise InputError(f"{index}: has no weight_map from tensor names to files of its folder")
    return weight_map


_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")


def _shards_without_index(folder: Path) -> set[Path]:
    """The shards of which some lie in a folder, whether the others are there or not."""
    totals = {match[1] for path in folder.glob("model-*") if (match := _SHARD.fullmatch(path.name))}
    return {
        folder / f"model-{number:05}-of-{total}.safetensors" for total in totals for number in range(1, int(total) + 1)
    }


def _instead_of_weights(folder: Path) -> str:
    """What a model folder holds instead of safetensors, and what to do."""
    if pickled := sorted(folder.glob("pytorch_model*.bin")):
        return (
            f"{pickled[0]}: pickled weights can run code when they are read, so they are not; save the model again as "
            "safetensors (transformers: save_pretrained)"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    there = f"; it holds {listed(others)}: rename what is the model" if others else ""
    return f"{folder}: no {WHOLE} and no {INDEX}{there}"


def is_file_name(value: Any) -> bool:
    """Whether a JSON value names a file that lies in the folder itself."""
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value


_NOT_OURS = re.compile(r".*rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*")


def _prefix(tensors: Mapping[str, StoredTensor]) -> str:
    """What stands before the decoder's names: `model.`, nothing (saved from AutoModel), or, inside a Gemma 3 with
    vision, `language_model.model.`, `model.language_model.` or `language_model.`"""
    anchor = re.compile(r"((?:\w+\.)*?)layers\.0\.input_layernorm\.weight")
    return next((match[1] for name in tensors if (match := anchor.fullmatch(name))), "model.")


def _head(tensors: Mapping[str, StoredTensor]) -> str:
    """What the head is called, wherever it stands."""
    return next((name for name in tensors if f".{name}".endswith(".lm_head.weight")), "lm_head.weight")


def _checked_names(
    tensors: Mapping[str, StoredTensor], config: ModelConfig, folder: Path
) -> dict[tuple[str, int], StoredTensor]:
    """The tensor of every (path, layer), after checking that the folder holds these and nothing else.

    Of a tied model either the embedding may be there, or the head, or both; the caller has seen that they are equal.
    """
    prefix, head = _prefix(tensors), _head(tensors)
    found, wrong, missing = {}, [], []
    for weight in weight_table(config):
        for layer in range(config.layers if weight.stacked else 1):
            name = head if weight.path == "lm_head/kernel" else prefix + weight.name(layer)
            is_tied = config.tied_head and weight.path == "embed_tokens/embedding"
            tensor = tensors.get(name) or (tensors.get(head) if is_tied else None)
            if tensor is None:
                missing.append(name)
                continue
            found[weight.path, layer] = tensor
            if tensor.shape != weight.stored_shape:
                wrong.append(f"{tensor.name} is {list(tensor.shape)}, not {list(weight.stored_shape)}")
            elif tensor.kind not in TYPES:
                wrong.append(f"{tensor.name} is stored as {tensor.kind}, which is not supported")
    if missing == [head]:
        raise InputError(
            f"{folder}: missing tensors: {head}, and config.json says tie_word_embeddings false; set it to true if the "
            "model's head is its embedding, or save the model with its head (transformers: AutoModelForCausalLM)"
        )
    extra = set(tensors) - {tensor.name for tensor in found.values()} - ({head} if config.tied_head else set())
    extra = sorted(name for name in extra if not _NOT_OURS.fullmatch(name))
    for names, what in ((missing, "missing tensors"), (extra, "unexpected tensors"), (wrong, "wrong tensors")):
        if names:
            raise InputError(f"{folder}: {what} for the model of its config.json: {listed(names)}")
    return found
