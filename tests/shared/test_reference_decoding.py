"""Greedy decoding of real models on MGSM prompts, against transformers' `generate`."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jaxalign.data.math_problems import MATH_TASKS, alpaca_prompt, read_problems
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.evaluation.generate import NEAR_TIE, Generator
from jaxalign.model.config import read_config
from jaxalign.model.ragged import in_order
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import load_params
from tests.training.tiny_runs import mesh_of

pytestmark = pytest.mark.real_weights

MOST = 40


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_answers_are_those_of_transformers(shared: Path, models: Path, name: str):
    config, tokenizer = read_config(models / name), load_tokenizer(models / name)
    variables = {"params": load_params(models / name, config, jnp.bfloat16)}
    prompts = [
        tokenizer.prompt_ids(alpaca_prompt(problem.question))
        for language in ("en", "de", "th")
        for problem in read_problems(shared / "data", MATH_TASKS["mgsm"], language, slice(0, 3))
    ]
    generator = Generator(Decoder(config), variables, mesh_of(), batch_size=len(prompts))
    chosen = in_order(generator.batches(variables, prompts, [tokenizer.eos_id], MOST))

    model: Any = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32).eval()
    compared, near_ties, different = 0, 0, 0
    for prompt, tokens, margins, count in zip(prompts, chosen.tokens, chosen.margins, chosen.counts, strict=True):
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([prompt]),
                do_sample=False,
                max_new_tokens=MOST,
                eos_token_id=tokenizer.eos_id,
                pad_token_id=tokenizer.eos_id,
            )
        expected = ids[0, len(prompt) :].tolist()
        ties = np.flatnonzero(margins[:count] < NEAR_TIE)
        near_ties += len(ties)
        end = int(ties[0]) if len(ties) else max(len(expected), int(count))
        assert tokens[:count][:end].tolist() == expected[:end]
        compared += min(end, int(count))
        different += tokens[:count].tolist() != expected
    print(f"{name}: {compared} of {chosen.counts.sum()} tokens compared, {near_ties} near ties, {different} differ")
    assert compared > 0.8 * chosen.counts.sum()
