"""Two real models, each as a Hugging Face folder and as the GGUF file it was made of: both doors lead to the same.

The folders hold the files' weights dequantised by transformers and rounded to bfloat16.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from transformers import AutoTokenizer

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.prompts import few_shot_prompt, read_exemplars
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.model.config import read_config
from jaxalign.model.gguf import load_gguf_params, read_gguf_config, read_gguf_tokenizer
from jaxalign.model.weights import load_params, save_params

pytestmark = pytest.mark.real_weights

MODELS = pytest.mark.parametrize("name", ["smollm2", "gemma3"])


@pytest.fixture(scope="module")
def texts(shared: Path) -> list[str]:
    """Every field of 50 rows of each task and language, and the whole few-shot prompts of 5."""
    exemplars = read_exemplars(shared / "data/exemplars.json")
    texts = []
    for task in TASKS.values():
        for language in LANGUAGES:
            rows = TaskData(shared / "data").rows(task, language, slice(0, 50))
            texts += [field for row in rows for field in row.fields]
            texts += [few_shot_prompt(row, exemplars, "english") for row in rows[:5]]
    return texts


@MODELS
def test_configs_are_equal(models, name):
    assert read_gguf_config(models / f"{name}.gguf") == read_config(models / name)


@MODELS
def test_tensors_are_equal_in_bfloat16(models, name):
    config = read_config(models / name)
    folder = flatten_dict(load_params(models / name, config, jnp.bfloat16), sep="/")
    file = flatten_dict(load_gguf_params(models / f"{name}.gguf", config, jnp.bfloat16), sep="/")
    assert folder.keys() == file.keys()
    for path, leaf in folder.items():
        np.testing.assert_array_equal(np.asarray(file[path]), np.asarray(leaf), err_msg=path)


@MODELS
def test_token_ids_are_equal(models, texts, name):
    ours, theirs = read_gguf_tokenizer(models / f"{name}.gguf"), AutoTokenizer.from_pretrained(models / name)
    assert len(texts) > 5000
    for text, got, expected in zip(texts, ours(texts)["input_ids"], theirs(texts)["input_ids"], strict=True):
        assert got == expected, text
    assert ours.get_vocab() == theirs.get_vocab()
    for token in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template"):
        assert getattr(ours, token) == getattr(theirs, token), token


@MODELS
def test_export_is_bit_equal(models, name, tmp_path):
    config = read_config(models / name)
    params = load_params(models / name, config, jnp.bfloat16)
    save_params(tmp_path, params, config)
    assert read_config(tmp_path) == config
    again = load_params(tmp_path, config, jnp.bfloat16)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), again, params)))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
