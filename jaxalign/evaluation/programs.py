"""Compiled programs: one for each shape of arguments, counted, and its compilation timed apart from its runs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.model.sharding import spread
from jaxalign.runtime import compiler_options


class Program:
    """A pure function of (variables, *arrays) that is compiled when arguments of new shapes arrive."""

    def __init__(self, function: Callable[..., Any], mesh: Mesh, in_shardings: Any, out_shardings: Any):
        """The shardings as `jax.jit` takes them; variables and arrays lie so already, or are NumPy arrays, the same in
        every process."""
        self.jitted = jax.jit(
            function,
            in_shardings=in_shardings,
            out_shardings=out_shardings,
            compiler_options=compiler_options(mesh.devices.flat),
        )
        self.mesh, self.array_shardings = mesh, in_shardings[1:]
        self.compiled: dict[Any, Callable[..., Any]] = {}
        self.compile_seconds = 0.0

    def __call__(self, variables: Any, *arrays: Any) -> Any:
        arrays = tuple(
            spread(array, sharding) if isinstance(array, np.ndarray) else array
            for array, sharding in zip(arrays, self.array_shardings, strict=True)
        )
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays))
        if shapes not in self.compiled:
            start = time.perf_counter()
            with jax.set_mesh(self.mesh):
                self.compiled[shapes] = self.jitted.lower(variables, *arrays).compile()
            self.compile_seconds += time.perf_counter() - start
        return self.compiled[shapes](variables, *arrays)
