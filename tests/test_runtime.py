"""Where compiled programs are kept."""

from pathlib import Path

import jax
import pytest

from jaxalign import runtime


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
