"""lm-eval kept to this machine, and tiny models as it meets them: its own `hf` model and ours, of the same folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from jaxalign.lm_eval import JaxalignLM
from tests.data.tiny_tokenizers import byte_level, sentencepiece_style
from tests.model.tiny_models import tiny_model
from tests.training.tiny_runs import mesh_of

FAMILIES = {"qwen2": byte_level, "gemma3_text": sentencepiece_style}
"""A family with a tokenizer that adds no BOS, and one with a tokenizer that does."""


class Both(NamedTuple):
    hf: HFLM
    ours: JaxalignLM


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No connection, and caches of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def save_model(family: str, folder: Path) -> Path:
    """A tiny random model with a tokenizer whose end of text it knows."""
    tokenizer = FAMILIES[family]()
    model = tiny_model(family, vocabulary=len(tokenizer), kv_heads=1, tied=family == "gemma3_text").torch_model
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_model(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def both(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Both:
    folder = str(folders[request.param])
    with pytest.MonkeyPatch.context() as patch:
        # On one device programs are compiled in a third of the time; the command line's test has all eight.
        patch.setattr("jaxalign.runtime.make_mesh", lambda *sizes: mesh_of())
        ours = JaxalignLM(path=folder, batch_size=8)
    return Both(HFLM(pretrained=folder, dtype="float32", device="cpu"), ours)


def requests_of(kind: str, *arguments: tuple) -> list[Instance]:
    """Requests as a task makes them."""
    return [Instance(kind, {}, given, 0, metadata=("task", 0, 1)) for given in arguments]  # pyright: ignore[reportArgumentType]
