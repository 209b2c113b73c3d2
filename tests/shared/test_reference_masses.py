"""Every row of the reference masses, through the prefix cache, from the Hugging Face folder and from the GGUF file."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.prompts import few_shot_prompt, label_queries, read_exemplars, scored_candidates
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.evaluation.score import Scorer
from jaxalign.files import read_json
from jaxalign.model.config import ModelConfig, read_config
from jaxalign.model.gguf import load_gguf_params, read_gguf_config, read_gguf_tokenizer
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import load_params
from tests.training.tiny_runs import mesh_of

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
    scorer = Scorer(Decoder(model.config), variables, mesh_of())
    cells = defaultdict(list)
    for expected in reference["rows"]:
        cells[expected["task"], expected["language"]].append(expected)
    for (task_name, language), wanted in cells.items():
        task = TASKS[task_name]
        candidates = scored_candidates(task, language, model.tokenizer, "english", "study")
        assert candidates == reference["label_token_ids"][task_name]
        every = TaskData(shared / "data").rows(task, language)
        rows = [every[expected["row"]] for expected in wanted]
        texts = [few_shot_prompt(row, exemplars, "english").encode() for row in rows]
        assert [hashlib.sha256(text).hexdigest() for text in texts] == [row["prompt_sha256"] for row in wanted]
        queries = label_queries(rows, exemplars, model.tokenizer, "english", "study")
        assert [len(query.prompt) for query in queries] == [expected["prompt_tokens"] for expected in wanted]
        masses = scorer.score(variables, queries, list(candidates.values())).prefix_mass
        scores = np.array([[expected["scores"][label] for label in candidates] for expected in wanted])
        np.testing.assert_allclose(masses, scores, atol=ATOL, rtol=0, err_msg=f"{name} {task_name} {language}")
    # Most of the prompts' tokens are the cells' shared prefixes.
    assert scorer.counts["prompt_tokens_computed"] < 0.6 * scorer.counts["prompt_tokens_asked"]


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_scores_do_not_depend_on_order_or_batches(shared: Path, models: Path, name: str):
    model, task = load(models / name), TASKS["snli"]
    variables = {"params": model.params}
    rows = TaskData(shared / "data").rows(task, "de", slice(0, 20))
    exemplars = read_exemplars(shared / "data/exemplars.json")
    queries = label_queries(rows, exemplars, model.tokenizer, "english", "study")
    label_sets = list(scored_candidates(task, "de", model.tokenizer, "english", "study").values())
    scores = Scorer(Decoder(model.config), variables, mesh_of()).score(variables, queries, label_sets)
    order = np.random.default_rng(0).permutation(len(rows))
    # Seven of the rows apart from the others: less in common, so another prefix, and other rows and batches.
    for some, batch_tokens in ((order, 256), (order[:7], 4096)):
        scorer = Scorer(Decoder(model.config), variables, mesh_of(), batch_tokens)
        again = scorer.score(variables, [queries[i] for i in some], label_sets)
        np.testing.assert_allclose(again.prefix_mass, scores.prefix_mass[some], atol=1e-5, rtol=1e-4)
        # Log-probabilities of up to five tokens, each as exact as a mass is relative to itself.
        np.testing.assert_allclose(again.whole_word, scores.whole_word[some], atol=5e-4)
