"""Every weight of a model, by its names in the parameter tree and in checkpoints: read onto devices, and written.

Hugging Face keeps a projection as [out, in] and each layer's tensors apart; here kernels are [in, out] and the layers
lie stacked in one array [L, ...]. `Weight` is the only place that translates: for safetensors read and written, for
PEFT's adapters (peft.py) and, with llama.cpp's names of modules, for GGUF (gguf.py). Planning counts weights unread.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from jaxalign.model.config import ModelConfig, config_to_hf, json_object
from jaxalign.model.lora import has_bias, projection_sizes
from jaxalign.model.quantised import widest
from jaxalign.model.sharding import leaf_spec

Index = tuple[slice, ...]
PIECE_BYTES = 2**26
"""How much of a tensor is read at a time: what is read stays in memory until its file is closed."""
SHARD_BYTES = 50 * 10**9
"""A larger model is written as several files: the default of save_pretrained since transformers 5."""
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TYPES = {"F64": jnp.float32, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
"""What safetensors may be stored as, and the type of the arrays that hold them."""
CHECKPOINT_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
"""The leaves of the parameter and adapter trees, as Hugging Face and PEFT call them."""


@jax.jit
def hash_sum(leaf: jax.Array) -> jax.Array:
    """The sum, modulo 2**32, of a hash of each element's bits (MurmurHash3's finaliser): a uint32 scalar, the same in
    any order, so on any mesh. The bits' own sum would miss sign flips: an even number of top bits cancels."""
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    x = jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return (x ^ (x >> jnp.uint32(16))).sum(dtype=jnp.uint32)


def weights_sha256(tree: Any) -> str:
    """sha256 over path, shape, type and `hash_sum` of every array of a tree: it tells other weights apart, but not an
    adversary's, nor rows of one array that changed places."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    facts = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), int(hash_sum(leaf))) for path, leaf in leaves]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Weight(NamedTuple):
    """One leaf of the parameter tree by its path (`layers/self_attn/q_proj/kernel`) and its shape there, without the
    leading L of a stacked leaf; and what a checkpoint calls it."""

    path: str
    shape: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers/")

    @property
    def transposed(self) -> bool:
        """Whether the checkpoint keeps it as [out, in]."""
        return self.path.endswith(("/kernel", "/lora_a", "/lora_b"))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape

    def name(self, layer: int) -> str:
        """Its name in a checkpoint, without the prefix of the decoder: `layers.3.self_attn.q_proj.weight`."""
        module, leaf = self.path.replace("layers/", f"layers/{layer}/").replace("/", ".").rsplit(".", 1)
        return f"{module}.{CHECKPOINT_LEAVES[leaf]}"

    def stored(self, array: np.ndarray, layer: int) -> np.ndarray:
        tensor = array[layer] if self.stacked else array
        return np.ascontiguousarray(tensor.T if self.transposed else tensor)


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
        if has_bias(config, projection):
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

    def size_of(part: Iterable[tuple[int, int]]) -> int:
        return math.prod(stop - start for start, stop in part)

    def place(leaf: Leaf) -> jax.Array:
        sharding = NamedSharding(mesh, leaf_spec(leaf.path, leaf.shape, mesh))

        def bounds(index: Any) -> tuple[tuple[int, int], ...]:
            """A part of the leaf as (start, stop) along each axis."""
            return tuple(axis.indices(size)[:2] for axis, size in zip(index, leaf.shape, strict=True))

        indices = sharding.addressable_devices_indices_map(leaf.shape).values()
        held = {bounds(index) for index in indices if index is not None}
        box = tuple(
            (min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in zip(*held, strict=True)
        )
        # One read serves all; but in a ring through a slice, what lies between the parts of a host is another's.
        one_read = sum(map(size_of, held)) == size_of(box)
        parts = {part: leaf.read(tuple(slice(*axis) for axis in part)) for part in ([box] if one_read else held)}

        def of_device(index: Any) -> np.ndarray:
            around, part = box if one_read else bounds(index), bounds(index)
            inner = (slice(a - start, b - start) for (a, b), (start, _) in zip(part, around, strict=True))
            return parts[around][tuple(inner)]

        return jax.make_array_from_callback(leaf.shape, sharding, of_device)

    return place


def assemble(
    table: Iterable[Weight], layers: int, read: Callable[[Weight, Index], np.ndarray], place: Place = place_whole
) -> dict[str, Any]:
    """The tree of these weights, leaf by leaf: beyond what is placed, the host holds one leaf and what `read` takes."""
    leaves: dict[str, jax.Array] = {}
    for weight in table:
        shape = (layers, *weight.shape) if weight.stacked else weight.shape
        placed = place(Leaf(weight.path, shape, partial(read, weight)))
        module, _, name = weight.path.rpartition("/")
        by_name = placed if isinstance(placed, Mapping) else {name: placed}
        leaves |= {f"{module}/{name}": array for name, array in by_name.items()}
    return unflatten_dict(leaves, sep="/")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, unread."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str  # Its type, as the file calls it.
    dtype: np.dtype | None
    """Of the arrays that hold its numbers, float32 where they are quantised; None: of no type that is read."""
    read: Callable[[Index], Iterator[np.ndarray]]
    """The part that an index without open ends names, a run of its rows at a time."""


def type_counts(tensors: Mapping[str, StoredTensor]) -> Counter[str]:
    """How many numbers are stored in which type ({"bfloat16": 134515008}); what is in none that is read: float32."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[jnp.dtype(tensor.dtype or jnp.float32).name] += math.prod(tensor.shape)
    return counts


def stored_types(folder: Path) -> Counter[str]:
    """`type_counts` of a model folder."""
    return type_counts(stored_tensors(folder))


def names_of(table: Sequence[Weight], layers: int, name: Callable[[Weight, int], str]) -> dict[tuple[Weight, int], str]:
    """Every weight in every layer, with its name; layer is 0 for what is not stacked."""
    return {
        (weight, layer): name(weight, layer)
        for weight in table
        for layer in range(layers if weight.stacked else 1)
    }  # fmt: skip


def find_tensors(
    tensors: Mapping[str, StoredTensor],
    names: Mapping[tuple[Weight, int], str],
    where: str,
    besides: Collection[str] = (),
) -> dict[tuple[Weight, int], StoredTensor]:
    """The tensor of every weight; InputError unless all are there in their shapes, and none but they and `besides`."""
    missing, wrong = [name for name in names.values() if name not in tensors], []
    for (weight, _), name in names.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape != weight.stored_shape:
            wrong.append(f"{name} is {list(tensor.shape)}, not {list(weight.stored_shape)}")
        elif tensor is not None and tensor.dtype is None:
            wrong.append(f"{name} is stored as {tensor.kind}, which is not supported")
    extra = sorted(tensors.keys() - set(names.values()) - set(besides))
    for found, what in ((missing, "missing tensors"), (extra, "unexpected tensors"), (wrong, "wrong tensors")):
        if found:
            raise InputError(f"{where}: {what}: {listed(found)}")
    return {place: tensors[name] for place, name in names.items()}


def read_tensors(
    found: Mapping[tuple[Weight, int], StoredTensor], layers: int, dtype: DTypeLike | None, place: Place = place_whole
) -> dict[str, Any]:
    """The tree of these tensors, in `dtype` or, if that is None, each weight in the widest type of its layers'."""

    def read(weight: Weight, index: Index) -> np.ndarray:
        """A part of one leaf, in its layout."""
        shape = (layers, *weight.shape) if weight.stacked else (1, *weight.shape)
        index = index if weight.stacked else (slice(1), *index)
        ranges = [range(size)[part] for size, part in zip(shape, index, strict=True)]
        types = {found[weight, layer].dtype or jnp.float32 for layer in range(shape[0])}
        out = np.empty([len(numbers) for numbers in ranges], widest(types) if dtype is None else jnp.dtype(dtype))
        parts = tuple(slice(numbers.start, numbers.stop) for numbers in ranges[1:])
        for layer, whole in zip(ranges[0], out, strict=True):
            stored, whole = (parts[::-1], whole.T) if weight.transposed else (parts, whole)
            row = 0
            for piece in found[weight, layer].read(stored):
                whole[row : row + len(piece)] = piece
                row += len(piece)
        return out if weight.stacked else out[0]

    return assemble(dict.fromkeys(weight for weight, _ in found), layers, read, place)


def load_params(
    folder: Path, config: ModelConfig, param_dtype: DTypeLike | None, place: Place = place_whole
) -> dict[str, Any]:
    """The parameters of a Hugging Face model folder, piece by piece from `model.safetensors` or shards.

    `param_dtype` None: each weight in the type that it is stored in (the widest of its layers'). Where `config` ties
    the head and the files hold another one, the parameters have an `lm_head`, as in transformers, with a warning.
    InputError where the folder has no safetensors, or its tensors are not exactly those of `config`.
    """
    tensors = {name: tensor for name, tensor in stored_tensors(folder).items() if not _NOT_OURS.fullmatch(name)}
    # `model.`, nothing (saved from AutoModel), or one of three ways of a Gemma 3 with vision.
    anchor = re.compile(r"((?:\w+\.)*?)layers\.0\.input_layernorm\.weight")
    prefix = next((match[1] for name in tensors if (match := anchor.fullmatch(name))), "model.")
    head = next((name for name in tensors if f".{name}".endswith(".lm_head.weight")), "lm_head.weight")
    embedding = prefix + "embed_tokens.weight"
    if config.tied_head and {embedding, head} <= tensors.keys() and not _equal(tensors[embedding], tensors[head]):
        warn(
            f"{folder}: config.json ties the head to the embedding, and {head} is another; the model is "
            "read untied, as transformers does; set tie_word_embeddings to false there"
        )
        config = replace(config, tied_head=False)
    if not config.tied_head and tensors and head not in tensors:
        raise InputError(
            f"{folder}: missing tensors: {head}, and config.json says tie_word_embeddings false; set it to true if the "
            "model's head is its embedding, or save the model with its head (transformers: AutoModelForCausalLM)"
        )

    def name_of(weight: Weight, layer: int) -> str:
        if weight.path == "lm_head/kernel" or (weight.path == "embed_tokens/embedding" and embedding not in tensors):
            return head if head in tensors else embedding
        return prefix + weight.name(layer)

    names = names_of(weight_table(config), config.layers, name_of)
    besides = {head} if config.tied_head else set()
    found = find_tensors(tensors, names, f"{folder}: for the model of its config.json", besides)
    return read_tensors(found, config.layers, param_dtype, place)


_NOT_OURS = re.compile(r".*rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*")


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers."""
    if one.shape != other.shape or not one.shape or one.dtype is None or other.dtype is None:
        return False
    everything = tuple(map(slice, (0,) * len(one.shape), one.shape))
    return all(np.array_equal(a, b) for a, b in zip(one.read(everything), other.read(everything), strict=True))


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by its name, unread: of shards, those that the index names, where it says.

    Shards without an index are read where all are there. InputError: no weights, not all of them, or two models.
    """
    index = folder / INDEX
    weight_map = (json_object(index).get("weight_map") or None) if index.is_file() else {}
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and name not in ("", "..") and Path(name).name == name for name in weight_map.values()
    ):
        raise InputError(f"{index}: has no weight_map from tensor names to files of its folder")
    shards = sorted({folder / name for name in weight_map.values()})
    if not shards:
        totals = {int(match[1]) for path in folder.glob("model-*") if (match := _SHARD.fullmatch(path.name))}
        shards = [
            folder / f"model-{number:05}-of-{total:05}.safetensors"
            for total in sorted(totals)
            for number in range(1, total + 1)
        ]
    missing = [path for path in shards if not path.is_file()]
    whole = folder / WHOLE
    if whole.is_file() and (missing or whole not in shards):
        # A folder that was saved to twice. Where shards are missing, the whole file was the later.
        tensors, others = read_headers([whole]), {} if missing else read_headers(shards, weight_map)
        if others and not (
            others.keys() == tensors.keys() and all(_equal(tensor, others[name]) for name, tensor in tensors.items())
        ):
            raise InputError(
                f"{folder}: holds two models, one in {WHOLE} and one in the shards {shards[0].name} to "
                f"{shards[-1].name}; remove the one that is not meant"
            )
        return tensors
    if missing:
        raise InputError(f"{missing[0]}: no such file, and others of its shards are there; the download is incomplete")
    if not shards:
        others = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        there = f"; it holds {listed(sorted(path.name for path in others))}" if others else ""
        raise InputError(
            f"{folder}: no {WHOLE} and no {INDEX}{there}. Pickled weights can run code when they are read, so they are "
            "not: save the model as safetensors (transformers: save_pretrained)"
        )
    tensors = read_headers(shards, weight_map)
    lost = [name for name in weight_map if name not in tensors and not _NOT_OURS.fullmatch(name)]
    if lost:
        raise InputError(f"{index}: {lost[0]} is not in {weight_map[lost[0]]}, where the index says; save it again")
    return tensors


_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")


def read_headers(paths: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> dict[str, StoredTensor]:
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
                    shape, kind = tuple(part.get_shape()), part.get_dtype()
                    dtype = jnp.dtype(TYPES[kind]) if kind in TYPES else None
                    tensors[name] = StoredTensor(path, name, shape, kind, dtype, partial(_read_rows, path, name, shape))
        except SafetensorError as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); is it cut off?") from None
    return tensors


def _read_rows(path: Path, name: str, shape: tuple[int, ...], index: Index) -> Iterator[np.ndarray]:
    rows, *columns = index
    step = max(1, PIECE_BYTES // (4 * math.prod(shape[1:])))
    for start in range(rows.start, rows.stop, step):
        # Opened anew for each piece: an open file keeps all that was read of it in memory.
        with safe_open(path, framework="numpy") as file:
            yield file.get_slice(name)[(slice(start, min(start + step, rows.stop)), *columns)]


def save_params(
    folder: Path, params: Mapping[str, Any], config: ModelConfig, token_ids: Mapping[str, Any] | None = None
) -> None:
    """Writes safetensors and `config.json`, which transformers loads; leaves keep their dtype.

    More than SHARD_BYTES become shards and an index, as in save_pretrained. config.json says the widest type of all:
    transformers loads all weights in that one. `token_ids` (bos_token_id, ...) go into it as they are. Every leaf must
    be addressable from this process.
    """
    # Only this needs it.
    from huggingface_hub import split_state_dict_into_shards_factory

    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    table = weight_table(config)
    if differing := sorted(leaves.keys() ^ {weight.path for weight in table}):
        raise ValueError(f"the parameter tree is not that of the config: {listed(differing)}")
    dtype = widest({leaf.dtype for leaf in leaves.values()}).name
    files.write_json(folder / "config.json", config_to_hf(config) | {"torch_dtype": dtype} | dict(token_ids or {}))

    def name_of(weight: Weight, layer: int) -> str:
        return ("" if weight.path.startswith("lm_head") else "model.") + weight.name(layer)

    places = {name: place for place, name in names_of(table, config.layers, name_of).items()}
    split = split_state_dict_into_shards_factory(
        places,
        get_storage_size=lambda place: math.prod(place[0].shape) * leaves[place[0].path].dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        whole = {path: np.asarray(leaves[path]) for path in {places[name][0].path for name in names}}
        tensors = {name: places[name][0].stored(whole[places[name][0].path], places[name][1]) for name in names}
        files.write_tensors(folder / file, tensors)
    if len(split.filename_to_tensors) > 1:
        metadata = {"total_parameters": sum(leaf.size for leaf in leaves.values()), **split.metadata}
        files.write_json(folder / INDEX, {"metadata": metadata, "weight_map": split.tensor_to_filename})
