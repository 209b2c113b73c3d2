"""PEFT folders written and read, against the peft library on the same tiny models."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxalign.errors import InputError
from jaxalign.model.lora import LoraConfig, lora_shapes, projection_sizes
from jaxalign.model.peft_adapters import load_adapter, save_adapter
from jaxalign.model.transformer import Decoder
from tests.model.tiny_models import FAMILIES, VOCABULARY, tiny_case

QWEN = tiny_case("qwen2").config
EVERYWHERE = LoraConfig(3, 12.0, tuple(projection_sizes(QWEN)))
TOKENS = np.arange(2, 2 + 2 * 9).reshape(2, 9) % VOCABULARY


def random_adapter(config, lora):
    """An adapter whose B is not zero, so that it changes every logit."""
    rng = np.random.default_rng(1)
    tree = jax.tree.map(
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(leaf.dtype), lora_shapes(config, lora)
    )
    for targets in tree["layers"].values():
        for factors in targets.values():
            if "magnitude" in factors:
                factors["magnitude"] = 1 + factors["magnitude"]
    return tree


@partial(jax.jit, static_argnums=(0, 1))
def our_logits(config, lora, params, tree):
    decoder = Decoder(config, lora=lora)
    variables = {"params": params, "lora": tree}
    tokens = jnp.asarray(TOKENS, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    output = decoder.apply(variables, tokens, positions, jnp.ones_like(tokens))
    return decoder.apply(variables, output.hidden, method="logits")


def torch_logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize(
    ("case", "lora"),
    [
        *((case, LoraConfig(4, 8.0)) for case in FAMILIES),
        ("qwen2", EVERYWHERE),
        ("llama_biases", dataclasses.replace(EVERYWHERE, dora=True)),
        ("gemma3_text", dataclasses.replace(EVERYWHERE, rslora=True, dora=True)),
    ],
)
def test_peft_loads_our_adapter(case, lora, tmp_path):
    tiny = tiny_case(case)
    unadapted = torch_logits(tiny.torch_model)
    tree = random_adapter(tiny.config, lora)
    save_adapter(tmp_path, tree, lora, "models/tiny")
    adapted = peft.PeftModel.from_pretrained(tiny.torch_model, str(tmp_path))
    assert adapted.peft_config["default"].base_model_name_or_path == "models/tiny"
    theirs, ours = torch_logits(adapted), our_logits(tiny.config, lora, tiny.params, tree)
    # Float32 through 3 to 7 layers; logits are of order 1 to 10.
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    assert np.abs(theirs - unadapted).max() > 0.1, "the adapter must matter"


@pytest.mark.parametrize(
    ("case", "rslora", "dora"),
    [
        ("llama_biases", False, False),
        ("gemma3_text", False, False),
        ("gemma3_text", True, False),
        ("qwen2", True, True),
    ],
)
def test_we_load_an_adapter_that_peft_saved(case, rslora, dora, tmp_path):
    tiny = tiny_case(case)
    settings = peft.LoraConfig(
        r=5,
        lora_alpha=7,
        target_modules=["down_proj", "q_proj", "o_proj"],
        task_type="CAUSAL_LM",
        use_rslora=rslora,
        use_dora=dora,
    )
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny.torch_model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        if "magnitude" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    adapted.save_pretrained(str(tmp_path))
    lora, tree = load_adapter(tmp_path, tiny.config)
    assert lora == LoraConfig(5, 7.0, ("q_proj", "o_proj", "down_proj"), rslora, dora)
    ours = our_logits(tiny.config, lora, tiny.params, tree)
    np.testing.assert_allclose(ours, torch_logits(adapted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rslora", "dora"), [(False, False), (True, True)])
def test_round_trip_is_exact_and_whole(rslora, dora, tmp_path):
    config = tiny_case("gemma3_text").config
    wanted = dataclasses.replace(EVERYWHERE, rslora=rslora, dora=dora)
    tree = random_adapter(config, wanted)
    save_adapter(tmp_path, tree, wanted, "tiny")
    lora, again = load_adapter(tmp_path, config)
    assert lora == wanted
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(tree)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def saved(folder, **changes):
    """A saved adapter with keys of its adapter_config.json changed; returns the model's config."""
    config = QWEN
    lora = LoraConfig(2, 4.0)
    save_adapter(folder, random_adapter(config, lora), lora, "tiny")
    document = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(document | changes))
    return config


def test_all_linear_means_every_projection(tmp_path):
    save_adapter(tmp_path, random_adapter(QWEN, EVERYWHERE), EVERYWHERE, "tiny")
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(document | {"target_modules": "all-linear"}))
    assert load_adapter(tmp_path, QWEN)[0] == EVERYWHERE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("use_qalora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]),
        ("exclude_modules", ["v_proj"]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("target_modules", ".*q_proj"),
        ("target_modules", ["q_proj", "embed_tokens"]),
        ("target_modules", []),
        ("r", 0),
        ("a_key_of_next_year", "on"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(key, value, tmp_path):
    config = saved(tmp_path, **{key: value})
    with pytest.raises(InputError, match=rf"adapter_config\.json.*{key}"):
        load_adapter(tmp_path, config)


def test_an_adapter_of_another_model_is_refused_with_names(tmp_path):
    config = saved(tmp_path)
    name = r"base_model\.model\.model\.layers\.0\.self_attn\.v_proj\.lora_B\.weight"
    with pytest.raises(InputError, match=rf"{name} is \[16, 2\], not \[32, 2\]"):
        load_adapter(tmp_path, dataclasses.replace(config, kv_heads=4))
    with pytest.raises(InputError, match=r"missing.*layers\.3\."):
        load_adapter(tmp_path, dataclasses.replace(config, layers=4))
    with pytest.raises(InputError, match=r"unexpected.*layers\.2\."):
        load_adapter(tmp_path, dataclasses.replace(config, layers=2))
    with pytest.raises(InputError, match=r"wrong shapes"):
        load_adapter(tmp_path, saved(tmp_path, r=3))
    with pytest.raises(InputError, match=r"missing.*k_proj"):
        load_adapter(tmp_path, saved(tmp_path, target_modules=["q_proj", "k_proj"]))
    with pytest.raises(InputError, match=r"missing.*q_proj\.lora_magnitude_vector"):
        load_adapter(tmp_path, saved(tmp_path, use_dora=True))


def test_folders_without_a_whole_adapter_are_refused(tmp_path):
    config = saved(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cut off"):
        load_adapter(tmp_path, config)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled"):
        load_adapter(tmp_path, config)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        load_adapter(tmp_path, config)


def test_bfloat16_factors_are_widened(tmp_path):
    config = saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    exact = load_adapter(tmp_path, config)[1]
    save_file({name: leaf.astype(jnp.bfloat16) for name, leaf in load_file(path).items()}, path)
    for leaf, wanted in zip(jax.tree.leaves(load_adapter(tmp_path, config)[1]), jax.tree.leaves(exact), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.asarray(wanted).astype(jnp.bfloat16).astype(np.float32))


def test_an_adapter_of_a_model_on_the_hub_names_it_and_its_commit(tmp_path):
    lora = LoraConfig(2, 4.0)
    save_adapter(tmp_path, random_adapter(QWEN, lora), lora, "org/model@c0ffee")
    named = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert (named.base_model_name_or_path, named.revision) == ("org/model", "c0ffee")
