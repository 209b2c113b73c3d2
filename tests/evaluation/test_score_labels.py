import jax
import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.evaluation.score_labels import Scorer
from jaxalign.model.lora import LoraConfig, init_lora, merge_lora
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import make_mesh
from tests.model.tiny_models import FAMILIES, VOCABULARY, tiny_case

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 70, 1, 64, 65, 20, 100, 8, 33)]
LABELS = [[5, 9, 30], [7], [11, 12]]
# Float32 on both sides through a few tiny layers, then a softmax: masses differ in the sixth digit.
ATOL = 1e-5


def expected_masses(torch_model: torch.nn.Module) -> np.ndarray:
    """One prompt at a time, the whole softmax, in transformers."""
    rows = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = torch_model(torch.tensor([prompt])).logits[0, -1]
        probabilities = torch.softmax(logits.double(), -1).numpy()
        rows.append([probabilities[ids].sum() for ids in LABELS])
    return np.array(rows)


@pytest.mark.parametrize("case", FAMILIES)
def test_masses_are_those_of_transformers(case: str):
    tiny = tiny_case(case)
    variables = {"params": tiny.params}
    scorer = Scorer(Decoder(tiny.config), variables, make_mesh(8, 1, 1), batch_size=16)
    masses = scorer.masses(variables, PROMPTS, LABELS)
    assert masses.dtype == np.float32
    np.testing.assert_allclose(masses, expected_masses(tiny.torch_model), atol=ATOL)


def test_masses_do_not_depend_on_batch_order_or_company():
    tiny = tiny_case("gemma3_text")
    variables = {"params": tiny.params}

    def masses(batch_size: int, order: np.ndarray) -> np.ndarray:
        scorer = Scorer(Decoder(tiny.config), variables, make_mesh(8, 1, 1), batch_size)
        return scorer.masses(variables, [PROMPTS[i] for i in order], LABELS)

    everyone = np.arange(len(PROMPTS))
    together = masses(16, everyone)
    shuffled = np.random.default_rng(1).permutation(everyone)
    np.testing.assert_allclose(masses(8, shuffled), together[shuffled], atol=ATOL)
    # Alone, a prompt of 3 tokens stands in a bucket of 32; in company, in one of 128.
    np.testing.assert_allclose(masses(8, everyone[:1]), together[:1], atol=ATOL)


def test_adapters_score_like_the_merged_model():
    tiny, lora = tiny_case("qwen2"), LoraConfig(rank=4, alpha=8.0)
    zeros = init_lora(jax.random.key(0), tiny.config, lora)
    keys = iter(jax.random.split(jax.random.key(1), 8))
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), zeros)
    adapted = {"params": tiny.params, "lora": adapters}
    merged = {"params": merge_lora(tiny.params, adapters, lora)}
    mesh = make_mesh(2, 4, 1)
    scorer = Scorer(Decoder(tiny.config, lora), adapted, mesh)
    with_adapters = scorer.masses(adapted, PROMPTS[:8], LABELS)
    base = Scorer(Decoder(tiny.config), merged, mesh)
    np.testing.assert_allclose(with_adapters, base.masses(merged, PROMPTS[:8], LABELS), atol=ATOL)
    assert np.abs(with_adapters - base.masses({"params": tiny.params}, PROMPTS[:8], LABELS)).max() > 0.01


def test_one_program_a_shape_however_often_the_weights_change():
    tiny = tiny_case("qwen2")
    scorer = Scorer(Decoder(tiny.config), {"params": tiny.params}, make_mesh(2, 4, 1))
    for params in (tiny.params, jax.tree.map(np.zeros_like, tiny.params)):
        scorer.masses({"params": params}, PROMPTS, LABELS)
        scorer.masses({"params": params}, PROMPTS[:1], LABELS[:2])
    # 8 rows of 128 positions and 8 rows of 32.
    assert scorer.counts.compilations == 2


def test_logits_that_are_not_finite_are_an_error():
    tiny = tiny_case("qwen2")
    broken = np.full_like(tiny.params["norm"]["scale"], np.nan)
    variables = {"params": {**tiny.params, "norm": {"scale": broken}}}
    with pytest.raises(InputError, match=r"prompt 0: .* not finite"):
        Scorer(Decoder(tiny.config), variables, make_mesh(2, 4, 1)).masses(variables, PROMPTS, LABELS)
