"""Adapters against PEFT on tiny random models."""

from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.model.lora import LoraConfig, init_lora, lora_shapes, merge_lora, updated_norms
from jaxalign.model.peft import load_adapter
from jaxalign.model.transformer import Decoder
from tests.model.test_peft_adapters import peft_twin, random_adapter
from tests.model.tiny_inputs import ROUNDING, logits_of, plain, relative, some_tokens
from tests.model.tiny_models import TinyModel, tiny_case

EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INPUTS = plain(some_tokens(length=9))
TOKENS = INPUTS[0]
LABELS = np.roll(TOKENS, -1, axis=1)


def model_logits(model: TinyModel, lora: LoraConfig | None, variables: dict[str, Any]) -> np.ndarray:
    return np.asarray(logits_of(Decoder(model.config, lora), variables, *INPUTS))


def kind(lora: LoraConfig) -> str:
    """rsLoRA, DoRA, both or neither, for the name of a test."""
    return ("-rslora" if lora.rslora else "") + ("-dora" if lora.dora else "")


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("llama_gqa_llama3_rope", LoraConfig(4, 10.0)),
        ("gemma3_text", LoraConfig(4, 10.0)),
        ("qwen2", LoraConfig(4, 10.0, EVERYWHERE)),
        ("llama_gqa_llama3_rope", LoraConfig(4, 10.0, rslora=True)),
        ("gemma3_text", LoraConfig(4, 10.0, EVERYWHERE, rslora=True)),
        # Biases stay outside what DoRA scales.
        ("llama_biases", LoraConfig(4, 10.0, EVERYWHERE, dora=True)),
        ("gemma3_text", LoraConfig(4, 10.0, EVERYWHERE, dora=True)),
        ("llama_gqa_llama3_rope", LoraConfig(4, 10.0, EVERYWHERE, rslora=True, dora=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value.targets)}{kind(value)}",
)
def test_logits_and_gradients_are_those_of_peft(name: str, lora: LoraConfig, tmp_path):
    model = tiny_case(name)
    unadapted = model_logits(model, None, {"params": model.params})
    twin = peft_twin(model, lora)
    logits = twin(torch.tensor(TOKENS)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(LABELS, dtype=torch.long).flatten()).backward()

    def loss(adapter: Any) -> tuple[jax.Array, jax.Array]:
        decoder, variables = Decoder(model.config, lora), {"params": model.params, "lora": adapter}
        logits = decoder.apply(variables, decoder.apply(variables, *INPUTS).hidden, method="logits")
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(LABELS)[:, :, None], axis=-1).mean(), logits

    twin.save_pretrained(str(tmp_path))
    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(load_adapter(tmp_path, model.config)[1])
    assert relative(ours, logits.detach()) < ROUNDING
    assert relative(unadapted, logits.detach()) > 0.1
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.copy_(parameter.grad)
    twin.save_pretrained(str(tmp_path))
    expected = load_adapter(tmp_path, model.config)[1]
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    for gradient, reference in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        assert relative(gradient, reference) < 1e-4


@pytest.mark.parametrize(("targets", "dora"), [(EVERYWHERE, False), *(((target,), True) for target in EVERYWHERE)])
def test_a_fresh_adapter_changes_nothing(targets: tuple[str, ...], dora: bool):
    model = tiny_case("llama_mha")
    lora = LoraConfig(rank=4, alpha=8.0, targets=targets, dora=dora)
    tree = init_lora(jax.random.key(0), model.config, lora, model.params)
    adapted = model_logits(model, lora, {"params": model.params, "lora": tree})
    # Adding exact zeros, or dividing norms by themselves (a rounding for each product, so one target at a time); the
    # two programs may be fused differently.
    assert relative(adapted, model_logits(model, None, {"params": model.params})) < 1e-6


def test_a_fresh_adapter_is_drawn_as_peft_draws_it():
    model = tiny_case("llama_mha")
    tree = init_lora(jax.random.key(0), model.config, LoraConfig(rank=4, alpha=8.0))
    assert sorted(tree["layers"]["self_attn"]) == ["q_proj", "v_proj"]
    a = np.asarray(tree["layers"]["self_attn"]["q_proj"]["lora_a"])
    bound = model.config.width**-0.5
    assert a.shape == (3, 32, 4)
    assert a.dtype == np.float32
    # 384 uniform draws: the largest lies within 5 % of the bound but for one time in 10**8; no two layers are equal.
    assert 0.95 * bound < np.abs(a).max() <= bound
    assert not np.array_equal(a[0], a[1])
    assert not np.array_equal(a, tree["layers"]["self_attn"]["v_proj"]["lora_a"])
    assert not np.any(tree["layers"]["self_attn"]["q_proj"]["lora_b"])


@pytest.mark.parametrize(("name", "dora"), [("qwen2", False), ("gemma3_text", False), ("llama_biases", True)])
def test_merged_equals_unmerged(name: str, dora: bool):
    model = tiny_case(name)
    lora = LoraConfig(rank=4, alpha=10.0, targets=EVERYWHERE, dora=dora)
    tree = random_adapter(model.config, lora)
    merged = merge_lora(model.params, tree, lora)
    unmerged_logits = model_logits(model, lora, {"params": model.params, "lora": tree})
    assert relative(model_logits(model, None, {"params": merged}), unmerged_logits) < ROUNDING
    assert merged["layers"]["mlp"] is not model.params["layers"]["mlp"]
    assert merged["embed_tokens"] is model.params["embed_tokens"]


def test_merging_keeps_the_type_of_storage():
    model = tiny_case("llama_mha")
    lora = LoraConfig(rank=4, alpha=10.0)
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    merged = merge_lora(stored, random_adapter(model.config, lora), lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_norms_of_the_updated_weights():
    """Computed without their sum, against NumPy, where the update is as large as the weights."""
    random = np.random.default_rng(0)
    kernel, a, b = (random.normal(size=shape).astype(np.float32) for shape in ((96, 40), (96, 4), (4, 40)))
    lora = LoraConfig(4, 2.0, dora=True)
    norms = updated_norms(jnp.asarray(kernel), {"lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}, lora)
    whole = kernel.astype(np.float64) + 0.5 * a.astype(np.float64) @ b
    # Sums of a hundred float32 terms.
    np.testing.assert_allclose(norms, np.linalg.norm(whole, axis=0), rtol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_init_of_the_decoder_makes_the_same_tree(dora: bool):
    model = tiny_case("gemma3_text")
    lora = LoraConfig(rank=4, alpha=10.0, targets=EVERYWHERE, dora=dora)
    made = jax.eval_shape(Decoder(model.config, lora).init, jax.random.key(0), *INPUTS)["lora"]
    fresh = lora_shapes(model.config, lora)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), fresh
    )


@pytest.mark.parametrize("targets", [("q_proj", "c_attn"), ()])
def test_targets_that_match_nothing_are_refused(targets: tuple[str, ...]):
    with pytest.raises(InputError, match=r"named c_attn; choose|none are given"):
        init_lora(jax.random.key(0), tiny_case("llama_mha").config, LoraConfig(4, 8.0, targets))


def test_forgotten_adapters_are_an_error():
    model = tiny_case("llama_mha")
    with pytest.raises(flax.errors.FlaxError):
        model_logits(model, LoraConfig(4, 8.0), {"params": model.params})
