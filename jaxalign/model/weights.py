"""Every weight of a model, and how its arrays get onto devices whatever file they come from.

`weight_table` is the only place that knows which weights a model has; hf_weights.py and gguf.py read them, and
planning counts them unread.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import projection_sizes
from jaxalign.model.sharding import leaf_spec

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
