"""Safetensors read and written, against what transformers writes and reads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from jaxalign.model import weights
from jaxalign.model.config import config_from_hf, config_to_hf, read_config
from jaxalign.model.weights import load_params, place_whole, save_params, stored_types
from tests.model.tiny_inputs import arrays, refused
from tests.model.tiny_models import CASES, FAMILIES, tiny_case


def assert_same_tree(got, expected):
    """Bit-equal leaves of equal dtype under equal paths."""
    got, expected = arrays(got), arrays(expected)
    assert got.keys() == expected.keys()
    for path, leaf in expected.items():
        assert got[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)


@pytest.mark.parametrize("case", CASES)
def test_folder_saved_by_transformers(case, tmp_path):
    tiny = tiny_case(case)
    tiny.torch_model.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    # Gemma's scale goes through its inverse square, 24**-0.5, once more: equal all the same.
    assert config == tiny.config
    assert_same_tree(load_params(tmp_path, config, jnp.float32), tiny.params)


@pytest.mark.parametrize("case", FAMILIES)
def test_shards_and_bfloat16(case, tmp_path):
    tiny = tiny_case(case)
    tiny.torch_model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    # torch and ml_dtypes both round to the nearest even bfloat16.
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tiny.params)
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.bfloat16), rounded)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), widened)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_export_is_read_by_transformers_and_by_us(case, dtype, tmp_path):
    tiny = tiny_case(case)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tiny.params)
    save_params(tmp_path, params, tiny.config, {"eos_token_id": [7, 8]})
    assert read_config(tmp_path) == tiny.config
    assert_same_tree(load_params(tmp_path, tiny.config, dtype), params)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.dtype == {jnp.float32: torch.float32, jnp.bfloat16: torch.bfloat16}[dtype]
    assert loaded.config.eos_token_id == [7, 8]
    state, expected = loaded.state_dict(), tiny.torch_model.to(loaded.dtype).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    if dtype == jnp.float32:  # the configs mean the same, too; (casting the torch model rounds its rotary frequencies)
        tokens = torch.arange(2, 22)[None]
        with torch.no_grad():
            assert torch.equal(loaded(tokens).logits, tiny.torch_model(tokens).logits)


@pytest.mark.parametrize("case", CASES)
def test_config_written_backwards(case):
    config = tiny_case(case).config
    assert config_from_hf(config_to_hf(config), "config.json") == config


def test_config_written_backwards_for_rarer_shapes():
    gemma = dataclasses.replace(tiny_case("gemma3_text").config, window=None, local_layers=(), local_rope_base=None)
    assert config_from_hf(config_to_hf(gemma), "config.json") == gemma
    qwen = dataclasses.replace(tiny_case("qwen2").config, window=4, local_layers=(False, True, True))
    assert config_from_hf(config_to_hf(qwen), "config.json") == qwen


def saved_tensors(folder, case="qwen2_tied"):
    """A saved tiny model, its tensors open to change."""
    tiny = tiny_case(case)
    tiny.torch_model.save_pretrained(folder)
    return tiny, load_file(folder / "model.safetensors")


def test_tensors_that_change_nothing_are_passed_over(tmp_path):
    tiny, tensors = saved_tensors(tmp_path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model.", "language_model.", ""])
def test_decoder_inside_a_model_with_vision(layout, tmp_path):
    tiny, tensors = saved_tensors(tmp_path, "gemma3_text")
    tensors = {layout + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    vision = "model.vision_tower.a" if layout.startswith("model.") else "vision_tower.a"
    save_file(tensors | {vision: np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)


def test_a_head_of_its_own_unties_a_tied_config(tmp_path, capsys):
    """As transformers 5.24 does, with a warning (LLaMA-Factory 10560)."""
    tiny, tensors = saved_tensors(tmp_path)
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1.0  # the smallest difference that a head can have
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    params = load_params(tmp_path, tiny.config, jnp.float32)
    assert_same_tree(params, {**tiny.params, "lm_head": {"kernel": head.T}})
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "tie_word_embeddings" in said and str(tmp_path) in said
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    np.testing.assert_array_equal(loaded.state_dict()["lm_head.weight"].numpy(), head)


def test_an_equal_head_says_nothing_and_one_head_alone_is_the_embedding(tmp_path, capsys):
    tiny, tensors = saved_tensors(tmp_path)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.copy()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)
    assert "warning" not in capsys.readouterr().err
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    np.testing.assert_array_equal(loaded.state_dict()["model.embed_tokens.weight"].numpy(), embedding)


@pytest.mark.parametrize("case", ["llama_linear_rope_tied", "gemma3_text"])
def test_saved_without_a_head(case, tmp_path):
    """What AutoModel saves: names without `model.` (SpecForge PR 666)."""
    tiny = tiny_case(case)
    tiny.torch_model.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert_same_tree(load_params(tmp_path, read_config(tmp_path), jnp.float32), tiny.params)


def in_shards(folder, tiny):
    """The model saved in shards; their index."""
    tiny.torch_model.save_pretrained(folder, max_shard_size="20KB")
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_the_index_says_which_copy_of_a_tensor_is_meant(tmp_path):
    """Shards of an older model left in the folder hold tensors of the same names (vLLM PR 54230)."""
    tiny = tiny_case("qwen2_tied")
    weight_map = in_shards(tmp_path, tiny)
    name = "model.layers.1.mlp.up_proj.weight"
    for other in sorted(set(weight_map.values()) - {weight_map[name]}):
        tensors = load_file(tmp_path / other) | {name: np.zeros((48, 32), np.float32)}
        save_file(tensors, tmp_path / other, metadata={"format": "pt"})
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": weight_map | {"model.layers.0.self_attn.rotary_emb.inv_freq": weight_map[name]}})
    )
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)  # a name that nobody needs
    elsewhere = next(file for file in weight_map.values() if "norm" not in json.dumps(list(load_file(tmp_path / file))))
    index.write_text(json.dumps({"weight_map": weight_map | {"model.norm.weight": elsewhere}}))
    refused(rf"model\.norm\.weight is not in {elsewhere}", load_params, tmp_path, tiny.config, jnp.float32)


def test_a_whole_model_beside_shards(tmp_path):
    """save_pretrained leaves an older model.safetensors beside new shards, and from_pretrained then reads the older."""
    tiny = tiny_case("qwen2_tied")
    tiny.torch_model.save_pretrained(tmp_path)
    weight_map = in_shards(tmp_path, tiny)
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)  # the same model twice
    whole = load_file(tmp_path / "model.safetensors")
    whole["model.norm.weight"] += 1.0
    save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(
        r"two models, one in model\.safetensors and one in the shards", load_params, tmp_path, tiny.config, jnp.float32
    )
    (tmp_path / "model.safetensors.index.json").unlink()  # libraries that take all files read both still
    refused(
        r"two models, one in model\.safetensors and one in the shards model-00001",
        load_params,
        tmp_path,
        tiny.config,
        jnp.float32,
    )
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / weight_map["model.norm.weight"]).unlink()  # as save_pretrained removes shards, and not their index
    params = load_params(tmp_path, tiny.config, jnp.float32)
    np.testing.assert_array_equal(params["norm"]["scale"], whole["model.norm.weight"])


def test_shards_without_an_index(tmp_path):
    tiny = tiny_case("qwen2_tied")
    weight_map = in_shards(tmp_path, tiny)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_same_tree(load_params(tmp_path, tiny.config, jnp.float32), tiny.params)
    first, *_, last = sorted(set(weight_map.values()))
    twice = load_file(tmp_path / first) | load_file(tmp_path / last)
    save_file(twice, tmp_path / last)
    refused(rf"{last}: .* is in {first} too", load_params, tmp_path, tiny.config, jnp.float32)
    (tmp_path / last).unlink()
    refused(f"{last}: no such file", load_params, tmp_path, tiny.config, jnp.float32)


def test_weights_of_another_name_are_named(tmp_path):
    tiny, _ = saved_tensors(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    refused(r"holds consolidated\.safetensors", load_params, tmp_path, tiny.config, jnp.float32)


def test_each_weight_in_the_type_that_it_is_stored_in(tmp_path):
    """Nothing is rounded: of layers that differ, the widest type."""
    tiny, tensors = saved_tensors(tmp_path)
    types = {"embed_tokens": np.float32, "layers.0.self_attn.q_proj.weight": np.float32, "norm": np.float64}
    for name, tensor in tensors.items():
        kind = next((types[part] for part in types if part in name), jnp.bfloat16)
        tensors[name] = tensor.astype(kind)
    save_file(tensors, tmp_path / "model.safetensors")
    params = load_params(tmp_path, tiny.config, None)
    found = {path: leaf.dtype.name for path, leaf in arrays(params).items()}
    wide = {path for path in found if "embedding" in path or "norm" in path or path.endswith("q_proj/kernel")}
    assert found == {path: "float32" if path in wide else "bfloat16" for path in found}
    as_float32 = load_params(tmp_path, tiny.config, jnp.float32)
    assert_same_tree(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), as_float32)
    assert stored_types(tmp_path)["bfloat16"] > stored_types(tmp_path)["float32"] > 0


@pytest.mark.parametrize("case", ["qwen2", "gemma3_text"])
def test_shards_as_save_pretrained_writes_them(case, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 20_000)
    tiny = tiny_case(case)
    save_params(tmp_path / "ours", tiny.params, tiny.config)
    theirs = in_shards(tmp_path / "theirs", tiny)
    ours = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert ours["weight_map"].keys() == theirs.keys()
    files = sorted(file.name for file in (tmp_path / "ours").glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2 and set(ours["weight_map"].values()) == set(files)
    saved = json.loads((tmp_path / "theirs/model.safetensors.index.json").read_text())
    assert ours["metadata"] == saved["metadata"]
    for file in files:
        tensors = load_file(tmp_path / "ours" / file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 20_000
    assert_same_tree(load_params(tmp_path / "ours", read_config(tmp_path / "ours"), None), tiny.params)
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    expected = tiny.torch_model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_model_of_mixed_types_is_loaded_whole_by_transformers(tmp_path):
    """transformers loads all weights in the one type that config.json says: so it says the widest."""
    tiny = tiny_case("qwen2")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
    params["embed_tokens"] = tiny.params["embed_tokens"]
    save_params(tmp_path, params, tiny.config)
    assert stored_types(tmp_path)["float32"] == tiny.params["embed_tokens"]["embedding"].size
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    embedding = loaded.state_dict()["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(embedding, params["embed_tokens"]["embedding"])


def test_leaves_are_placed_by_the_caller(tmp_path):
    tiny, _ = saved_tensors(tmp_path)
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = load_params(tmp_path, tiny.config, jnp.float32, lambda leaf: jax.device_put(place_whole(leaf), sharding))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(params))
    assert_same_tree(params, tiny.params)


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(Q_PROJ), f"missing tensors.*{Q_PROJ}"),
        (lambda tensors: tensors.update({"model.extra.weight": np.ones(1)}), "unexpected tensors.*model.extra.weight"),
        (lambda tensors: tensors.update({Q_PROJ: np.ones((3, 2))}), rf"{Q_PROJ} is \[3, 2\], not \[32, 32\]"),
        (lambda tensors: tensors.update({Q_PROJ: np.ones((32, 32), np.int8)}), f"{Q_PROJ} is stored as I8"),
        (
            lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"][:-1].copy()}),
            r"lm_head\.weight is \[60, 32\], not \[61, 32\]",
        ),
    ],
    ids=["missing", "unexpected", "shape", "quantised", "a head of another shape"],
)
def test_tensors_of_another_model_are_refused_by_name(change, message, tmp_path):
    tiny, tensors = saved_tensors(tmp_path)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    refused(message, load_params, tmp_path, tiny.config, jnp.float32)


def test_a_head_that_is_needed_must_be_there(tmp_path):
    """As AutoModel saves an untied model, without it."""
    tiny = tiny_case("qwen2")
    tiny.torch_model.model.save_pretrained(tmp_path)
    message = r"missing tensors.*lm_head\.weight.*tie_word_embeddings false; set it to true .* AutoModelForCausalLM"
    refused(message, load_params, tmp_path, tiny.config, jnp.float32)


def test_folders_without_whole_safetensors_are_refused(tmp_path):
    config = tiny_case("qwen2_tied").config
    refused(r"no model\.safetensors", load_params, tmp_path, config, jnp.float32)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(r"holds pytorch_model\.bin\. Pickled", load_params, tmp_path, config, jnp.float32)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    refused(r"shard\.safetensors: no such file", load_params, tmp_path, config, jnp.float32)
    saved_tensors(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("cut off", load_params, tmp_path, config, jnp.float32)


def test_export_leaves_nothing_partial(tmp_path):
    tiny = tiny_case("qwen2_tied")
    incomplete = {key: leaf for key, leaf in tiny.params.items() if key != "norm"}
    with pytest.raises(ValueError, match="norm/scale"):
        save_params(tmp_path, incomplete, tiny.config)
    assert list(tmp_path.iterdir()) == []
    save_params(tmp_path, tiny.params, tiny.config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as handle:
        assert handle.metadata() == {"format": "pt"}
