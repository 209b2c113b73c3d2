"""Label masses of real models in 4 bits, against transformers with bitsandbytes' rounding of the same weights."""

from pathlib import Path
from typing import Any

import bitsandbytes.functional
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jaxalign.data.prompts import label_queries, read_exemplars, scored_candidates
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.evaluation.score import Scorer
from jaxalign.model.config import read_config
from jaxalign.model.quantised import quantise_params
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import load_params
from tests.training.tiny_runs import mesh_of

pytestmark = pytest.mark.real_weights


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_masses_in_four_bits(shared: Path, models: Path, name: str):
    folder, mesh = models / name, mesh_of()
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    exemplars, task = read_exemplars(shared / "data/exemplars.json"), TASKS["emotion"]
    rows = TaskData(shared / "data").rows(task, "de", slice(0, 4))
    queries = label_queries(rows, exemplars, tokenizer, "english", "study")
    label_sets = list(scored_candidates(task, "de", tokenizer, "english", "study").values())
    params = load_params(folder, config, jnp.float32)
    masses = {}
    for kind, tree in {"exact": params, "nf4": quantise_params(params, mesh, "nf4")}.items():
        variables = {"params": tree}
        masses[kind] = Scorer(Decoder(config), variables, mesh).score(variables, queries, label_sets).prefix_mass

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if weight_name.endswith("_proj.weight"):
                packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
                weight.copy_(bitsandbytes.functional.dequantize_4bit(packed, state))
        for query in queries:
            probabilities = model(torch.tensor([query.prompt])).logits[0, -1].softmax(-1)
            expected.append([float(probabilities[ids].sum()) for ids in label_sets])
    # As the reference masses: float32 twice over 18 to 30 layers, added in another order.
    np.testing.assert_allclose(masses["nf4"], expected, atol=2e-4)
    assert np.abs(masses["nf4"] - masses["exact"]).max() > 5e-3
