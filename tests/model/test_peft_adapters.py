"""PEFT folders written and read, against the peft library on the same tiny models."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxalign.model.config import decoder_name, read_config
from jaxalign.model.lora import LoraConfig, lora_shapes, projection_sizes
from jaxalign.model.peft import load_adapter, save_adapter
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import load_params
from tests.model.tiny_inputs import logits_of, plain, refused, torch_logits
from tests.model.tiny_models import FAMILIES, tiny_case
from tests.model.vision import in_transformers, save_vision_model

QWEN = tiny_case("qwen2").config
EVERYWHERE = LoraConfig(3, 12.0, tuple(projection_sizes(QWEN)))
TOKENS = np.arange(2, 2 + 2 * 9, dtype=np.int32).reshape(2, 9)


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


def moved(adapted):
    """The same adapter of peft's, B drawn at random and magnitudes away from norms, so that it changes every logit."""
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        if "magnitude" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return adapted


def peft_twin(model, lora):
    """The torch model with the adapter of the same `lora` that PEFT puts on it."""
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    return moved(peft.get_peft_model(model.torch_model, settings)).eval()


def our_logits(config, lora, params, tree):
    return logits_of(Decoder(config, lora=lora), {"params": params, "lora": tree}, *plain(TOKENS))


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
    unadapted = torch_logits(tiny.torch_model, TOKENS)
    tree = random_adapter(tiny.config, lora)
    save_adapter(tmp_path, tree, lora, "models/tiny")
    adapted = peft.PeftModel.from_pretrained(tiny.torch_model, str(tmp_path))
    assert adapted.peft_config["default"].base_model_name_or_path == "models/tiny"
    theirs, ours = torch_logits(adapted, TOKENS), our_logits(tiny.config, lora, tiny.params, tree)
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
    adapted = peft_twin(tiny, LoraConfig(5, 7.0, ("down_proj", "q_proj", "o_proj"), rslora, dora))
    adapted.save_pretrained(str(tmp_path))
    lora, tree = load_adapter(tmp_path, tiny.config)
    assert lora == LoraConfig(5, 7.0, ("q_proj", "o_proj", "down_proj"), rslora, dora)
    ours = our_logits(tiny.config, lora, tiny.params, tree)
    np.testing.assert_allclose(ours, torch_logits(adapted, TOKENS), atol=1e-4, rtol=1e-4)


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


def saved(folder, lora=LoraConfig(2, 4.0), **changes):  # noqa: B008 - frozen
    """A saved adapter with keys of its adapter_config.json changed; returns the model's config."""
    save_adapter(folder, random_adapter(QWEN, lora), lora, "tiny")
    document = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(document | changes))
    return QWEN


def test_all_linear_means_every_projection(tmp_path):
    saved(tmp_path, EVERYWHERE, target_modules="all-linear")
    assert load_adapter(tmp_path, QWEN)[0] == EVERYWHERE


UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))"
)
"""An expression as unsloth writes it."""


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": UNSLOTH},
        {"target_modules": ["self_attn.q_proj", "self_attn.v_proj"]},
        {"target_modules": [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qv"]},
        {"target_modules": ["q_proj", "v_proj", "c_attn"]},  # there is none
        {"target_modules": None},  # peft's for the family
        {"layers_to_transform": [2, 1, 0]},
        {"layers_to_transform": [0, 1, 2, 3], "layers_pattern": "layers"},
        {"layers_pattern": ""},
        {"layers_to_transform": [], "layers_pattern": []},
        {"exclude_modules": ["lm_head", "k_proj"]},
        {"exclude_modules": r".*vision_tower.*"},
        {"rank_pattern": {"k_proj": 16}},
        {"rank_pattern": {"model.layers.1.mlp.up_proj": 1}},
        {"rank_pattern": {"q.proj": 2, r"self_attn\..*": 2}},  # what it is anyway
        {"alpha_pattern": {"v_proj": 4}},
        {"r": 7, "rank_pattern": {r"layers\..*": 2}},  # the same for all
        {"init_lora_weights": "eva", "eva_config": {"rho": 1.0, "tau": 0.99}},
        {"loftq_config": {"loftq_bits": 4}, "corda_config": {"verbose": False}},
        {"fan_in_fan_out": True},
        {"unsloth_version": "2025.9.1", "lorap_emb_lr": 1e-6, "lorap_lr_ratio": 16.0, "runtime_config": {"a": 1}},
        {"auto_mapping": {"base_model_class": "Qwen2ForCausalLM", "unsloth_fixed": True}},
    ],
)
def test_keys_that_change_nothing_are_read(keys, tmp_path, recwarn):
    """peft, too, makes the same of the folder as of a plain one."""
    saved(tmp_path)
    plain = load_adapter(tmp_path, QWEN)
    before = torch_logits(peft.PeftModel.from_pretrained(tiny_case("qwen2").torch_model, str(tmp_path)), TOKENS)
    saved(tmp_path, **keys)
    lora, tree = load_adapter(tmp_path, QWEN)
    assert lora == plain[0]
    jax.tree.map(np.testing.assert_array_equal, tree, plain[1])
    if "layers_pattern" not in keys or keys.get("layers_to_transform"):
        network = tiny_case("qwen2").torch_model
        np.testing.assert_array_equal(
            torch_logits(peft.PeftModel.from_pretrained(network, str(tmp_path)), TOKENS), before
        )


def add_tensors(folder, **tensors):
    """Adds to the file of an adapter, names without the prefix that all have."""
    path = folder / "adapter_model.safetensors"
    added = {f"base_model.model.{name}": np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(load_file(path) | added, path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"model.embed_tokens.weight": (64, 32), "lm_head.weight": (64, 32)}, r"\[64, 32\]; the .* vocabulary is 61"),
        ({"lm_head.weight": (61, 32)}, "embedding or head come"),
        ({"model.embed_tokens.lora_embedding_A": (2, 61)}, "embedding or head come"),
        ({"model.embed_tokens.token_adapter.trainable_tokens_delta": (3, 32)}, "embedding or head come"),
        ({"model.layers.0.self_attn.q_proj.bias": (32,)}, r"unexpected tensors: .*q_proj\.bias"),
    ],
)
def test_more_than_factors_is_refused_by_what_it_is(tensors, said, tmp_path):
    """LLaMA-Factory's resize_vocab, axolotl's and trl's added tokens, unsloth's embed_tokens."""
    saved(tmp_path, modules_to_save=["embed_tokens", "lm_head"] if len(tensors) == 2 else None)
    add_tensors(tmp_path, **tensors)
    refused(rf"adapter_model\.safetensors.*{said}", load_adapter, tmp_path, QWEN)


def test_an_adapter_of_a_decoder_without_its_head(tmp_path):
    """From AutoModel, as LLM2Vec tunes it."""
    saved(tmp_path)
    plain = load_adapter(tmp_path, QWEN)[1]
    path = tmp_path / "adapter_model.safetensors"
    save_file(
        {name.replace("model.model.model.", "model.model."): leaf for name, leaf in load_file(path).items()}, path
    )
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path, QWEN)[1], plain)


def test_a_folder_of_adapters_says_where_they_are(tmp_path):
    for step in (100, 300):
        (tmp_path / f"checkpoint-{step}").mkdir()
        saved(tmp_path / f"checkpoint-{step}")
    refused(r"checkpoint-100, checkpoint-300.*name .*checkpoint-300", load_adapter, tmp_path, QWEN)
    assert load_adapter(tmp_path / "checkpoint-300", QWEN)[0].rank == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("rank_pattern", {"q_proj": 4}),
        ("rank_pattern", {"layers.1.mlp": 4, "layers.1.*": 1}),
        ("rank_pattern", {"(q_proj": 4}),
        ("rank_pattern", [4]),
        ("alpha_pattern", {"q_proj": 8}),
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("use_qalora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("layers_to_transform", 0),
        ("layer_replication", [[0, 2]]),
        ("exclude_modules", ["v_proj"]),
        ("exclude_modules", r".*\.1\..*"),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["mlp.gate_proj.weight"]),
        ("init_lora_weights", "pissa"),
        ("target_modules", ".*q_proj"),
        ("target_modules", r"model\.layers\.[02]\..*\.(q|v)_proj"),
        ("target_modules", "(q_proj"),
        ("target_modules", r"(([a-z.]+[_.\d]*)+)+!"),  # would not end
        ("layers_pattern", 5),
        ("target_modules", [["q_proj"]]),
        ("target_modules", ["q_proj", "embed_tokens"]),
        ("target_modules", []),
        ("r", 0),
        ("a_key_of_next_year", "on"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(key, value, tmp_path):
    config = saved(tmp_path, **({"layers_to_transform": [0, 1, 2]} if key == "layers_pattern" else {}), **{key: value})
    refused(rf"adapter_config\.json.*{key}", load_adapter, tmp_path, config)


def test_a_kind_is_told_before_its_modules(tmp_path):
    """What target_parameters makes has factors that target_modules does not name."""
    config = saved(tmp_path, target_modules=["q_proj"], target_parameters=["self_attn.v_proj.weight"])
    refused(r"target_parameters .* is not supported", load_adapter, tmp_path, config)


def test_an_adapter_of_another_model_is_refused_with_names(tmp_path):
    config = saved(tmp_path)
    name = r"base_model\.model\.model\.layers\.0\.self_attn\.v_proj\.lora_B\.weight"
    refused(rf"{name} is \[16, 2\], not \[32, 2\]", load_adapter, tmp_path, dataclasses.replace(config, kv_heads=4))
    refused(r"missing.*layers\.3\.", load_adapter, tmp_path, dataclasses.replace(config, layers=4))
    refused(r"unexpected.*layers\.2\.", load_adapter, tmp_path, dataclasses.replace(config, layers=2))
    refused(r"wrong tensors.*lora_A\.weight is \[2, 32\], not \[3, 32\]", load_adapter, tmp_path, saved(tmp_path, r=3))
    refused(r"missing.*k_proj", load_adapter, tmp_path, saved(tmp_path, target_modules=["q_proj", "k_proj"]))
    refused(r"missing.*q_proj\.lora_magnitude_vector", load_adapter, tmp_path, saved(tmp_path, use_dora=True))


def test_folders_without_a_whole_adapter_are_refused(tmp_path):
    config = saved(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused("cut off", load_adapter, tmp_path, config)
    weights.rename(tmp_path / "adapter_model.bin")
    refused("pickled", load_adapter, tmp_path, config)
    (tmp_path / "adapter_config.json").unlink()
    refused("no such file", load_adapter, tmp_path, config)


def test_bfloat16_factors_are_widened(tmp_path):
    config = saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    exact = load_adapter(tmp_path, config)[1]
    save_file({name: leaf.astype(jnp.bfloat16) for name, leaf in load_file(path).items()}, path)
    for leaf, wanted in zip(jax.tree.leaves(load_adapter(tmp_path, config)[1]), jax.tree.leaves(exact), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.asarray(wanted).astype(jnp.bfloat16).astype(np.float32))


def test_an_adapter_of_a_model_on_the_hub_names_it_and_its_commit(tmp_path):
    save_adapter(tmp_path, random_adapter(QWEN, EVERYWHERE), EVERYWHERE, "org/model@c0ffee")
    named = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert (named.base_model_name_or_path, named.revision) == ("org/model", "c0ffee")


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A Gemma 3 with vision: its folder, our config and our parameters."""
    folder = save_vision_model(tmp_path_factory.mktemp("vision"))
    config = read_config(folder)
    return folder, config, load_params(folder, config, jnp.float32)


def test_a_gemma_with_vision_takes_our_adapter(vision, tmp_path):
    """vLLM 34186: under the text model's names it loads as zeros, with a warning."""
    folder, config, params = vision
    tree = random_adapter(config, EVERYWHERE)
    save_adapter(tmp_path, tree, EVERYWHERE, "tiny", decoder_name(folder))
    network = in_transformers(folder)
    plain = torch_logits(network, TOKENS)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*|.*unexpected.*|.*[Ff]ound.*keys.*")
        adapted = peft.PeftModel.from_pretrained(network, str(tmp_path))
    adapters = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert len(adapters) == 2 * 7 * config.layers and not any("vision" in name for name in adapters)
    theirs = torch_logits(adapted, TOKENS)
    np.testing.assert_allclose(our_logits(config, EVERYWHERE, params, tree), theirs, atol=1e-4, rtol=1e-4)
    assert np.abs(theirs - plain).max() > 0.1
    assert load_adapter(tmp_path, config)[0] == EVERYWHERE


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["q_proj", "v_proj"], ("q_proj", "v_proj")),  # of the vision tower, too
        ("all-linear", tuple(projection_sizes(QWEN))),
        (r".*language_model.*\.(o_proj|up_proj)", ("o_proj", "up_proj")),
    ],
)
def test_we_take_an_adapter_of_a_gemma_with_vision(vision, targets, found, tmp_path, capsys):
    folder, config, params = vision
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM")
    adapted = moved(peft.get_peft_model(in_transformers(folder), settings))
    adapted.save_pretrained(str(tmp_path))
    lora, tree = load_adapter(tmp_path, config)
    assert lora == LoraConfig(3, 5.0, found)
    assert ("vision tower" in capsys.readouterr().err) == (targets in (["q_proj", "v_proj"], "all-linear"))
    ours = our_logits(config, lora, params, tree)
    np.testing.assert_allclose(ours, torch_logits(adapted, TOKENS), atol=1e-4, rtol=1e-4)
    # As classes before transformers 4.52 called it.
    path = tmp_path / "adapter_model.safetensors"
    old = {
        name.replace("model.language_model.", "language_model.model."): leaf for name, leaf in load_file(path).items()
    }
    save_file(old, path)
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path, config)[1], tree)
