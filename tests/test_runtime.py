"""Where compiled programs are kept, and how a mesh lies on a slice."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxalign import runtime
from jaxalign.planning.compile import ENVIRONMENT


@pytest.mark.parametrize("named", [True, False])
def test_the_compilation_cache_is_the_named_folder_or_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: bool
):
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named") if named else "")
    try:
        runtime.start()
        # jax reads the variable itself, when it is imported: what it then has is left as it is.
        expected = before if named else str(tmp_path / "jaxalign" / "compiled")
        assert jax.config.values["jax_compilation_cache_dir"] == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_mesh_may_cut_the_axes_of_a_slice():
    """Sizes that jax.make_mesh refuses on this chip; libtpu is loaded in a process of its own."""
    code = """
from jaxalign.planning.compile import topology_devices
from jaxalign.runtime import make_mesh
mesh = make_mesh(1, -1, 2, topology_devices("v6e:4x4"))
print(dict(mesh.shape), len({device.id for device in mesh.devices.flat}))
"""
    said = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[-1] == "{'data': 1, 'fsdp': 8, 'tensor': 2} 16"
