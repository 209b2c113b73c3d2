"""The machine: the device mesh, strict numerics and the compilation cache."""

import os
from pathlib import Path

import jax
from jax.sharding import AxisType, Mesh

from jaxalign.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1) -> Mesh:
    """A mesh of all devices with the axes `data`, `fsdp`, `tensor`; at most one size may be -1, which fills in.

    The axes are Auto: under jax's default, Explicit, a row-parallel `nn.Dense` raises.
    """
    sizes = [data, fsdp, tensor]
    devices = jax.device_count()
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(f"mesh {tuple(sizes)}: each size is a positive number, or -1 for one of them")
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    elif known != devices:
        raise InputError(f"mesh {tuple(sizes)} does not divide into the {devices} devices here; change config.mesh")
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def cache_folder() -> Path:
    """The user's cache folder for joined model files and compiled programs (`XDG_CACHE_HOME` is honoured)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxalign"


def start() -> None:
    """What every command does first.

    No silent dtype or rank promotion; float32 products in float32, also on TPU; compiled programs kept between runs;
    and no word from transformers about torch, which is not needed.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
