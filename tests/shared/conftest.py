"""The real models that tests marked `real_weights` read."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder that holds smollm2/, smollm2.gguf, gemma3/ and gemma3.gguf."""
    folder = os.environ.get("JAXALIGN_MODELS")
    if not folder:
        pytest.skip("needs JAXALIGN_MODELS, a folder filled by: python shared/tools/real_models.py FOLDER")
    return Path(folder)
