"""Adapters against PEFT on tiny random models."""

from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.model.lora import LoraConfig, init_lora, merge_lora, projection_sizes
from jaxalign.model.transformer import Decoder
from tests.model.tiny_models import VOCABULARY, TinyModel, numpy_of, put, tiny_case

EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 9), dtype=np.int32)
INPUTS = (TOKENS, np.broadcast_to(np.arange(9, dtype=np.int32), TOKENS.shape), np.ones_like(TOKENS))

# Float32 rounding through a few layers, summed in another order: 2e-6 is seen.
ROUNDING = 1e-5


def logits_of(model: TinyModel, lora: LoraConfig | None, variables: dict[str, Any]) -> np.ndarray:
    decoder = Decoder(model.config, lora)

    @jax.jit
    def run(variables):
        hidden = decoder.apply(variables, *INPUTS).hidden
        return decoder.apply(variables, hidden, method="logits")

    return np.asarray(run(variables))


def relative(ours: Any, reference: Any) -> float:
    reference = np.asarray(reference)
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def random_lora(model: TinyModel, lora: LoraConfig) -> Any:
    """An adapter with B drawn at random as well, so that it changes the logits."""
    tree = init_lora(jax.random.key(0), model.config, lora)
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), EVERYWHERE])
@pytest.mark.parametrize("name", ["llama_gqa_llama3_rope", "qwen2", "gemma3_text"])
def test_logits_equal_those_of_peft(name: str, targets: tuple[str, ...]):
    model = tiny_case(name)
    lora = LoraConfig(rank=4, alpha=10.0, targets=targets)
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=list(targets), init_lora_weights=False)
    wrapped = peft.get_peft_model(model.torch_model, config).eval()

    tree: dict[str, Any] = {}
    state = wrapped.state_dict()
    for target in targets:
        module, _ = projection_sizes(model.config)[target]
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            prefix = "base_model.model.model.layers"
            layers = [
                numpy_of(state[f"{prefix}.{layer}.{module}.{target}.{theirs}.default.weight"]).T
                for layer in range(model.config.layers)
            ]
            put(tree, f"layers/{module}/{target}/{ours}", jnp.asarray(np.stack(layers)))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, init_lora(jax.random.key(0), model.config, lora))

    with torch.no_grad():
        theirs = wrapped(torch.tensor(TOKENS)).logits
    ours = logits_of(model, lora, {"params": model.params, "lora": tree})
    assert relative(ours, theirs) < ROUNDING
    assert relative(logits_of(model, None, {"params": model.params}), theirs) > 0.1


def test_a_fresh_adapter_changes_nothing():
    model = tiny_case("llama_mha")
    lora = LoraConfig(rank=4, alpha=8.0, targets=EVERYWHERE)
    tree = init_lora(jax.random.key(0), model.config, lora)
    adapted = logits_of(model, lora, {"params": model.params, "lora": tree})
    # Adding exact zeros; the two programs may be fused differently.
    assert relative(adapted, logits_of(model, None, {"params": model.params})) < 1e-6


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


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text"])
def test_merged_equals_unmerged(name: str):
    model = tiny_case(name)
    lora = LoraConfig(rank=4, alpha=10.0, targets=EVERYWHERE)
    tree = random_lora(model, lora)
    merged = merge_lora(model.params, tree, lora)
    unmerged_logits = logits_of(model, lora, {"params": model.params, "lora": tree})
    assert relative(logits_of(model, None, {"params": merged}), unmerged_logits) < ROUNDING
    assert merged["layers"]["mlp"] is not model.params["layers"]["mlp"]
    assert merged["embed_tokens"] is model.params["embed_tokens"]


def test_merging_keeps_the_type_of_storage():
    model = tiny_case("llama_mha")
    lora = LoraConfig(rank=4, alpha=10.0)
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    merged = merge_lora(stored, random_lora(model, lora), lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_init_of_the_decoder_makes_the_same_tree():
    model = tiny_case("gemma3_text")
    lora = LoraConfig(rank=4, alpha=10.0, targets=EVERYWHERE)
    made = jax.eval_shape(Decoder(model.config, lora).init, jax.random.key(0), *INPUTS)["lora"]
    fresh = jax.eval_shape(lambda key: init_lora(key, model.config, lora), jax.random.key(0))
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
        logits_of(model, LoraConfig(4, 8.0), {"params": model.params})
