"""Lens and attribution of real models on the study's prompts, against NumPy from transformers' hidden states."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxalign.data.prompts import read_exemplars
from jaxalign.data.tasks import TaskData
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.model.config import read_config
from jaxalign.model.ragged import Runner
from jaxalign.model.readout import head_gram, pad_label_sets
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import load_params
from jaxalign.probing.attribution import attribution_batch
from jaxalign.probing.logit_lens import lens_batch, word_sets
from jaxalign.probing.probe import TASK, probe_texts
from tests.probing.numpy_lens import lens_in_numpy
from tests.training.tiny_runs import mesh_of

pytestmark = pytest.mark.real_weights

LANGUAGES = ("en", "zh", "sw")


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_lens_and_attribution_are_numpys(shared: Path, models: Path, name: str):
    config, tokenizer = read_config(models / name), load_tokenizer(models / name)
    rows = [TaskData(shared / "data").rows(TASK, language, slice(0, 1)) for language in LANGUAGES]
    texts = probe_texts(rows, read_exemplars(shared / "data/exemplars.json"), tokenizer)
    prompts = [each.prompts[0] for each in texts.values()]
    labels = word_sets(tokenizer, "zh").all()
    groups = np.arange(config.vocab_size, dtype=np.int32)[None] % 5

    variables, decoder, mesh = {"params": load_params(models / name, config, jnp.float32)}, Decoder(config), mesh_of()
    runner, inputs = Runner(decoder, variables, mesh, 4), (None, pad_label_sets(labels), head_gram(decoder, variables))
    masses, entropy, energy, _ = runner(lens_batch, variables, prompts, *inputs)
    by_group = runner(attribution_batch, variables, prompts, None, groups, group_count=5)

    torch_model = transformers.AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32)
    for i, prompt in enumerate(prompts):
        expected = lens_in_numpy(torch_model.eval(), prompt, gemma=config.norm_offset)
        p = expected.probabilities[:, 0]
        expected_masses = np.stack([p[:, ids].sum(-1) for ids in labels], -1)
        expected_groups = np.stack([p[:, k::5].sum(-1) for k in range(5)], -1)
        # Float32 over up to 30 layers; NumPy's float64 begins from transformers' float32 states.
        np.testing.assert_allclose(masses[i, :, : len(labels)], expected_masses, atol=1e-4)
        np.testing.assert_allclose(by_group[i, :, 0], expected_groups, atol=1e-4)
        np.testing.assert_allclose(entropy[i], expected.entropy[:, 0], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(energy[i], expected.energy[:, 0], atol=1e-4, rtol=1e-4)
