"""A model, a tokenizer and a data folder small enough to run every stage in seconds."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data.prompts import Exemplars, read_exemplars
from jaxalign.data.tasks import TASKS
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.model.config import ModelConfig
from jaxalign.model.transformer import Decoder
from tests.data.tiny_tokenizers import byte_level

LANGUAGES = ("en", "de", "zh")
ROWS = 6

CONFIG = ModelConfig(
    family="llama",
    vocab_size=264,
    width=16,
    layers=3,
    heads=2,
    kv_heads=2,
    head_dim=8,
    mlp_dim=24,
    norm_eps=1e-6,
    query_scale=8**-0.5,
    rope_base=10_000.0,
    tied_head=False,
)
DECODER = Decoder(CONFIG)


@cache
def variables() -> dict[str, Any]:
    """Random parameters of `DECODER`."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.device_get(DECODER.init(jax.random.key(0), tokens, tokens, tokens + 1))


@cache
def byte_tokenizer() -> Tokenizer:
    """One token per byte, and an end of text."""
    return Tokenizer(byte_level())


def write_data(folder: Path) -> Exemplars:
    """Test files of emotion and snli in three languages, and exemplars.json; each row's text tells its number."""
    exemplars: dict[str, Any] = {}
    for name in ("emotion", "snli"):
        task = TASKS[name]
        (folder / task.folder).mkdir(parents=True)
        for language in LANGUAGES:
            words = [task.label_words[language][task.classes[i % len(task.classes)]] for i in range(ROWS)]
            rows = [
                {**{field: f"{language} {field} {i}" for field in task.fields}, "answer": word}
                for i, word in enumerate(words)
            ]
            (folder / task.folder / f"{name}_{language}{ROWS}_test.json").write_text(json.dumps(rows))
            shown = [
                {**{field: f"{label}." for field in task.exemplar_fields}, "label": label} for label in task.classes
            ]
            exemplars.setdefault(name, {})[language] = {"exemplars": shown}
    (folder / "exemplars.json").write_text(json.dumps(exemplars))
    return read_exemplars(folder / "exemplars.json")
