"""Strict numerics for every test: eight CPU devices, no silent dtype or rank promotion."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import torch

from tests.fake_storage import FakeStorage, served

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Threads of torch that wait for each other take most of the time at these sizes.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Tiny programs run for no time at all: where no real weights do, compiling them fast is what counts.

    LLVM need not optimise them. The older emitters of fused loops, which jax 0.10 still has, give it half the work.
    """
    if "not real_weights" in config.option.markexpr:
        older = " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0" + older)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs compiled by one test are kept for the next, in whichever of pytest's processes, and for commands."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The study's released data and the reference masses, where a checkout of them lies beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the released data in {folder}")
    return folder


@pytest.fixture(scope="session")
def storage() -> Iterator[FakeStorage]:
    """A stand-in for Google Cloud Storage, which gs:// means to this process and to those that a test starts."""
    with served() as storage, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", storage.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setenv("NO_GCE_CHECK", "true")
        # What kind of bucket it is, gcsfs asks by gRPC.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield storage
