"""What the compiling process keeps of a program."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxalign.planning import compile as compiling


@pytest.fixture
def compilations(tmp_path, monkeypatch) -> list[Any]:
    """The programs that `said_by_compiler` had compiled, with a cache of this test's own."""
    made = []
    real = compiling.compiled
    monkeypatch.setattr(compiling.runtime, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(compiling, "compiled", lambda lowered: made.append(lowered) or real(lowered))
    return made


def lowered(factor: float) -> jax.stages.Lowered:
    return jax.jit(lambda x: factor * x @ x).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))


def test_a_program_of_the_same_text_is_compiled_once(compilations):
    first, again = (compiling.said_by_compiler(lowered(2.0), "v5e:1x1") for _ in range(2))
    assert len(compilations) == 1
    assert first == again and "dot" in first["text"]


def test_another_program_or_slice_is_compiled(compilations):
    for factor, topology in ((2.0, "v5e:1x1"), (3.0, "v5e:1x1"), (3.0, "v5e:2x4")):
        compiling.said_by_compiler(lowered(factor), topology)
    assert len(compilations) == 3
