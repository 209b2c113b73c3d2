"""One table: parameter path -> PartitionSpec, for parameters, adapters, their optimizer state, and the KV cache.

Mesh axes: `data` (batch only), `fsdp` (batch, and parameters gathered layer by layer), `tensor` (heads, feed-forward
units, vocabulary). A projection whose output is sharded by `tensor` (column-parallel) feeds one whose input is
(row-parallel), so that a block adds up over `tensor` twice. There is no catch-all row: a new parameter gets its own.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

COLUMN = r"(self_attn/[qkv]_proj|mlp/(gate|up)_proj)"
ROW = r"(self_attn/o_proj|mlp/down_proj)"
BATCH = ("data", "fsdp")

RESIDUAL = P(BATCH, None, None)
"""The residual stream [B,T,D]: rows over the devices, each row whole."""
EMBEDDED = P("data", None, "fsdp")
"""Rows just looked up [B,T,D]: the table's width is over `fsdp`; one exchange takes them from here to RESIDUAL."""

TABLE: tuple[tuple[str, P], ...] = (
    (r"embed_tokens/embedding", P("tensor", "fsdp")),  # [V,D]
    (r"lm_head/kernel", P("fsdp", "tensor")),  # [D,V]
    (r"norm/scale", P(None)),  # [D]
    (r"layers/(input|post_attention|(pre|post)_feedforward)_layernorm/scale", P(None, None)),  # [L,D]
    (r"layers/self_attn/[qk]_norm/scale", P(None, None)),  # [L,H]
    (rf"layers/{COLUMN}/kernel", P(None, "fsdp", "tensor")),  # [L,in,out]
    (rf"layers/{COLUMN}/codes", P(None, "fsdp", "tensor")),  # [L,in or in/2,out]
    (rf"layers/{COLUMN}/absmax", P(None, None, "tensor")),  # [L,blocks,out], too few blocks to cut
    (rf"layers/{COLUMN}/bias", P(None, "tensor")),  # [L,out]
    (rf"layers/{COLUMN}/lora_a", P(None, "fsdp", None)),  # [L,in,r]
    (rf"layers/{COLUMN}/lora_b", P(None, None, "tensor")),  # [L,r,out]
    (rf"layers/{COLUMN}/magnitude", P(None, "tensor")),  # [L,out]
    (rf"layers/{ROW}/kernel", P(None, "tensor", "fsdp")),
    (rf"layers/{ROW}/codes", P(None, "tensor", "fsdp")),
    (rf"layers/{ROW}/absmax", P(None, None, "fsdp")),
    (rf"layers/{ROW}/bias", P(None, None)),
    (rf"layers/{ROW}/lora_a", P(None, "tensor", None)),
    (rf"layers/{ROW}/lora_b", P(None, None, "fsdp")),
    (rf"layers/{ROW}/magnitude", P(None, None)),
    (r"cache/[kv]", P(None, BATCH, None, "tensor", None)),  # [L,B,S,K,H]
    (r"cache/(positions|segment_ids)", P(BATCH, None)),  # [B,S]
    (r"prefix/[kv]", P(None, None, "tensor", None)),  # [L,P,K,H]
)
"""(regular expression over the end of the "/"-joined path, spec). Optimizer state mirrors paths: `0/mu/layers/...`."""


def param_specs(tree: Any, mesh: Mesh | AbstractMesh, uneven_axes: tuple[str, ...] = ()) -> Any:
    """The PartitionSpec of every leaf of a tree of arrays or shapes (parameters, adapters, optax or train state around
    them, {"cache": Cache}); scalars are replicated, and `uneven_axes` cut only what they divide.

    ValueError: an unmatched path, another rank than the row's, or a dimension that its mesh axes do not divide.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        return leaf_spec(path_name(path), leaf.shape, mesh, uneven_axes)

    return jax.tree_util.tree_map_with_path(spec, tree)


def param_shardings(tree: Any, mesh: Mesh | AbstractMesh, uneven_axes: tuple[str, ...] = ()) -> Any:
    """`param_specs` as NamedShardings on `mesh`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), param_specs(tree, mesh, uneven_axes))


def cache_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """`param_shardings` of {"cache": Cache} or {"prefix": Prefix}; heads that `tensor` does not divide stay whole: many
    models have fewer than a slice has devices along it."""
    return param_shardings(tree, mesh, uneven_axes=("tensor",))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda shape, sharding: shape.update(sharding=sharding), shapes, shardings)


def batch_spec() -> P:
    """The spec of a batch's [B,T] arrays: rows over `data` and `fsdp`, positions whole."""
    return P(BATCH, None)


def gathered_spec(path: str, shape: tuple[int, ...]) -> P:
    """The spec of one layer's leaf of that path while it is used: the table's, gathered over `fsdp`."""
    return P(*(None if axes == "fsdp" else axes for axes in row_of(path, shape)[1:]))


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array of which every process has the whole, as the mesh holds it: each device takes its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """`x` laid out by `spec` under `jax.set_mesh(mesh)`; left as it is without a mesh, or where a size does not divide.

    Without a word on the residual stream the partitioner follows the parameters: it gathers every row on every
    device and splits the width.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(size % axis_size(axes, mesh) for size, axes in zip(x.shape, spec, strict=True)):
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def axis_size(axes: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts an entry of a spec cuts its dimension."""
    names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
    return math.prod(mesh.shape[name] for name in names)


def leaf_spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, uneven_axes: tuple[str, ...] = ()) -> P:
    """`param_specs` of one leaf."""
    if not shape:
        return P()
    spec = row_of(name, shape)
    if len(spec) != len(shape):
        raise ValueError(f"{name} {shape}: its row of the sharding table, {spec}, is for {len(spec)} dimensions")
    fitting: list[Any] = []
    for size, axes in zip(shape, spec, strict=True):
        parts = axis_size(axes, mesh)
        if size % parts and axes not in uneven_axes:
            raise ValueError(f"{name} {shape}: size {size} does not divide by mesh axis {axes} ({parts})")
        fitting.append(None if size % parts else axes)
    return P(*fitting)


def row_of(name: str, shape: tuple[int, ...]) -> P:
    """The spec of the table's row that matches a path; ValueError, which names the shape too, where none does."""
    spec = next((spec for pattern, spec in TABLE if re.search(rf"(^|/){pattern}$", name)), None)
    if spec is None:
        raise ValueError(f"{name} {shape}: no row of the sharding table matches this path; add one")
    return spec


def path_name(path: tuple[Any, ...]) -> str:
    """The "/"-joined path of a leaf: dictionary keys, field names and indices."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
