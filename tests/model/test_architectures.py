"""Every known architecture at full size, as shapes alone: its parameter count, and its place on meshes of slices."""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxalign.errors import InputError
from jaxalign.model import architectures
from jaxalign.model.attention import init_cache
from jaxalign.model.lora import lora_shapes, projection_sizes
from jaxalign.model.quantised import quantise_params
from jaxalign.model.sharding import axis_size, cache_shardings, param_specs
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import MESH_AXES
from jaxalign.training.optimizer import cosine_schedule, make_optimizer
from jaxalign.training.step import new_state
from tests.defaults import base_lora, base_optimizer
from tests.model.test_hf_config import EXPECTED, NAMES
from tests.training.tiny_runs import mesh_of

# Of the released checkpoints: the total that their model pages state for the safetensors files.
PARAMETERS = {
    "gemma-3-1b": 999_885_952,
    "llama-2-13b": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen1.5-1.8b": 1_836_828_672,
    "qwen1.5-14b": 14_167_290_880,
    "qwen1.5-4b": 3_950_369_280,
    "qwen2.5-7b": 7_615_616_512,
}
EVERY_NAME = pytest.mark.parametrize("name", PARAMETERS)

# (data, fsdp, tensor), from one chip to 256.
MESHES = [(1, 1, 1), (1, 4, 1), (1, 8, 1), (1, 16, 1), (2, 4, 2), (1, 64, 1), (1, 64, 4), (1, 8, 8), (4, 64, 1)]


def mesh_without_devices(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@cache
def base_shapes(name: str) -> Any:
    """The parameters, bfloat16."""
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(Decoder(architectures.read(name)).init, jax.random.key(0), ids, ids, ids)["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)


def state_shapes(trainable: Any) -> Any:
    """The train state around a collection."""
    settings = base_optimizer()
    optimizer = make_optimizer(settings, cosine_schedule(settings, 100))
    return jax.eval_shape(partial(new_state, optimizer=optimizer), trainable)


@cache
def everything_on_devices(name: str) -> dict[str, Any]:
    """All trees that are laid out by the sharding table: storage of each kind, and what either tuning trains."""
    config, base = architectures.read(name), base_shapes(name)
    adapters = lora_shapes(config, base_lora(8, 16.0, tuple(projection_sizes(config)), dora=True))
    quantised = {
        scheme: jax.eval_shape(partial(quantise_params, mesh=mesh_of(), scheme=scheme), base)
        for scheme in ("int8", "nf4")
    }
    return {"base": base, **quantised, "adapters": state_shapes(adapters), "all": state_shapes(base)}


@EVERY_NAME
def test_the_parameters_are_as_many_as_published(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(base_shapes(name))) == PARAMETERS[name]


def test_every_file_has_its_published_count():
    assert architectures.names() == sorted(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "expected"), [pair for pair in zip(NAMES, EXPECTED.values(), strict=True) if pair[0] in PARAMETERS]
)
def test_a_name_means_what_the_released_config_says(name, expected):
    assert architectures.read(name) == expected


def test_an_unknown_name_lists_the_known():
    with pytest.raises(InputError, match=r"mistral-7b: no such architecture; known are gemma-3-1b, .*qwen2\.5-7b"):
        architectures.read("mistral-7b")


@EVERY_NAME
def test_every_leaf_has_its_place_on_every_mesh(name):
    config, trees = architectures.read(name), everything_on_devices(name)
    total = PARAMETERS[name]
    for sizes in MESHES:
        mesh = mesh_without_devices(*sizes)
        specs = param_specs(trees, mesh)
        held = sum(
            leaf.size / math.prod(axis_size(axes, mesh) for axes in spec)
            for leaf, spec in zip(jax.tree.leaves(trees["base"]), jax.tree.leaves(specs["base"]), strict=True)
        )
        # Norms and biases are whole on every device: with 256 devices they are 4 % of Gemma 3 1B's share.
        assert held < 1.05 * total / (mesh.shape["fsdp"] * mesh.shape["tensor"])
        kv = jax.eval_shape(partial(init_cache, config, 2 * mesh.size, 64, jnp.bfloat16))
        cache_shardings({"cache": kv}, mesh)


@pytest.mark.parametrize(
    ("name", "storage", "sizes", "message"),
    [
        # 1152 = 9 x 128, and NF4 keeps two of its inputs in a byte.
        ("gemma-3-1b", "base", (1, 256, 1), r"base/embed_tokens/embedding \(262144, 1152\): size 1152 .* fsdp \(256\)"),
        ("gemma-3-1b", "nf4", (2, 128, 1), r"nf4/layers/mlp/gate_proj/codes \(26, 576, 6912\): size 576 .* fsdp"),
        # 13696 = 107 x 128
        (
            "qwen1.5-14b",
            "base",
            (1, 1, 256),
            r"base/layers/mlp/down_proj/kernel \(40, 13696, 5120\): .* tensor \(256\)",
        ),
    ],
)
def test_what_does_not_divide_is_named(name, storage, sizes, message):
    trees = everything_on_devices(name)
    with pytest.raises(ValueError, match=message):
        param_specs({storage: trees[storage]}, mesh_without_devices(*sizes))
