"""Every row of the reference masses, from the Hugging Face folder and from the GGUF file of two real models."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxalign.data.label_sets import label_candidates
from jaxalign.data.prompts import few_shot_prompt, label_words, read_exemplars
from jaxalign.data.tasks import TASKS, read_task_rows
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.evaluation.score_labels import Scorer
from jaxalign.files import read_json
from jaxalign.model.config import ModelConfig
from jaxalign.model.gguf import load_gguf_params, read_gguf_config
from jaxalign.model.gguf_tokenizer import read_gguf_tokenizer
from jaxalign.model.hf_config import read_config
from jaxalign.model.hf_weights import load_params
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import MESH_AXES

pytestmark = pytest.mark.real_weights

# Float32 twice over 26 to 30 layers of the same bfloat16 weights; the frameworks add in another order.
ATOL = 2e-4


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    params: Any
    tokenizer: Tokenizer


def load(path: Path) -> Model:
    if path.is_dir():
        config = read_config(path)
        return Model(config, load_params(path, config, jnp.bfloat16), load_tokenizer(path))
    config = read_gguf_config(path)
    return Model(config, load_gguf_params(path, config, jnp.bfloat16), Tokenizer(read_gguf_tokenizer(path)))


@pytest.mark.parametrize("suffix", ["", ".gguf"], ids=["folder", "gguf"])
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_masses_are_the_references(shared: Path, models: Path, name: str, suffix: str):
    reference = read_json(shared / "reference" / f"{name}.json")
    exemplars = read_exemplars(shared / "data/exemplars.json")
    model = load(models / f"{name}{suffix}")
    variables = {"params": model.params}
    # One device: eight copies of the weights would not fit a small machine.
    mesh = jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    scorer = Scorer(Decoder(model.config), variables, mesh, batch_size=4)
    by_task = defaultdict(list)
    for expected in reference["rows"]:
        by_task[expected["task"]].append(expected)
    for task_name, rows in by_task.items():
        task = TASKS[task_name]
        candidates = label_candidates(label_words(task, "en", "english"), model.tokenizer)
        assert candidates == reference["label_token_ids"][task_name]
        prompts = []
        for expected in rows:
            at = slice(expected["row"], expected["row"] + 1)
            [row] = read_task_rows(shared / "data", task, expected["language"], "test", at)
            text = few_shot_prompt(row, exemplars, "english")
            assert hashlib.sha256(text.encode()).hexdigest() == expected["prompt_sha256"]
            prompts.append(model.tokenizer.prompt_ids(text))
        assert [len(prompt) for prompt in prompts] == [expected["prompt_tokens"] for expected in rows]
        masses = scorer.masses(variables, prompts, list(candidates.values()))
        wanted = np.array([[expected["scores"][label] for label in candidates] for expected in rows])
        np.testing.assert_allclose(masses, wanted, atol=ATOL, rtol=0, err_msg=f"{name} {task_name}")
