"""Tiny GGUF files, written with the gguf package as llama.cpp's converter does, against the arrays they were made of
and against transformers' own GGUF import."""

import dataclasses
import math
from functools import partial

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from transformers import AutoModelForCausalLM

from jaxalign.model.config import RopeScaling
from jaxalign.model.gguf import gguf_types, load_gguf_params, read_gguf_config
from jaxalign.model.weights import place_whole
from tests.model.tiny_inputs import arrays, refused
from tests.model.tiny_models import TinyModel, numpy_of, params_of, tiny_model

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3"}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
F32, Q8_0, Q4_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "Q8_0", "Q4_0"))


def tiny(family, **settings):
    """A tiny model; Gemma 3's query scale and layer pattern are those that a GGUF file implies."""
    model = tiny_model(family, tied=family == "gemma3_text", **settings)
    if family != "gemma3_text":
        return model
    pattern = tuple((layer + 1) % 6 != 0 for layer in range(model.config.layers))
    config = dataclasses.replace(model.config, local_layers=pattern, query_scale=model.config.head_dim**-0.5)
    return TinyModel(model.torch_model, config, model.params)


def permuted(array, heads):
    """Rows of queries or keys in llama.cpp's order (LlamaModel.permute of its convert_hf_to_gguf.py)."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def gguf_tensors(model):
    """What llama.cpp's converter makes of a state dict, float32."""
    config, tensors = model.config, {}
    norms = {"post_attention_layernorm": "ffn_norm"}
    if config.post_norms:
        norms = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
        norms |= {"post_feedforward_layernorm": "post_ffw_norm"}
    for name, tensor in model.torch_model.state_dict().items():
        if config.tied_head and name.startswith("lm_head"):
            continue
        module, kind = name.rsplit(".", 1)
        prefix = ""
        if module.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            prefix = f"blk.{layer}."
        array = numpy_of(tensor)
        if config.family == "llama" and "q_proj" in module:
            array = permuted(array, config.heads)
        if config.family == "llama" and "k_proj" in module:
            array = permuted(array, config.kv_heads)
        if config.family == "gemma3_text" and "norm" in module:
            array = array + np.float32(1.0)
        tensors[f"{prefix}{(NAMES | norms)[module]}.{kind}"] = array
    return tensors


def write_gguf(path, model, kind=F32, tensors=None, split=0, **metadata):
    """Writes a model; `kind` is the type of the matrices whose rows fill whole blocks of 32. With `split` into parts of
    so many tensors, as llama.cpp does."""
    config = model.config
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.family], split_max_tensors=split)
    writer.add_name("tiny")
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_vocab_size(config.vocab_size)
    if config.family == "gemma3_text":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.window)
    else:
        writer.add_rope_dimension_count(config.head_dim)
    for key, value in metadata.items():
        getattr(writer, f"add_{key}")(value)
    for name, array in (tensors or gguf_tensors(model)).items():
        if kind == F32 or array.ndim == 1 or array.shape[-1] % 32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    finish(writer)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same_config(got, expected):
    """Equal once numbers that GGUF keeps as float32 are compared as float32."""
    return dataclasses.replace(got, norm_eps=0.0) == dataclasses.replace(expected, norm_eps=0.0) and np.float32(
        got.norm_eps
    ) == np.float32(expected.norm_eps)


CASES = {
    "llama_mha": ("llama", {"kv_heads": 4}),
    "llama_gqa": ("llama", {}),
    "llama_tied": ("llama", {"tied": True}),
    "llama_biases": ("llama", {"biases": True}),
    "qwen2": ("qwen2", {}),
    "gemma3": ("gemma3_text", {}),
}


def case(name):
    family, settings = CASES[name]
    return tiny_model(family, **settings) if "tied" in settings else tiny(family, **settings)


@pytest.mark.parametrize("name", CASES)
def test_float32_file(name, tmp_path):
    model = case(name)
    path = write_gguf(tmp_path / "tiny.gguf", model)
    config = read_gguf_config(path)
    assert same_config(config, model.config)
    got, expected = arrays(load_gguf_params(path, config, jnp.float32)), arrays(model.params)
    assert got.keys() == expected.keys()
    for name, leaf in expected.items():
        # (1 + scale) - 1 loses up to half a unit in the last place of a number below 4; all else is exact.
        tolerance = 2.4e-7 if model.config.norm_offset and name.endswith("scale") else 0.0
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=tolerance, err_msg=name)


# A block of 32 numbers is kept in steps: of its largest number's 1/127 (Q8_0), or 1/8 (Q4_0: one step off at the other
# end of the range), with a float16 scale.
@pytest.mark.parametrize(("kind", "steps"), [(Q8_0, 127 / 0.51), (Q4_0, 8 / 1.01)], ids=["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["llama_gqa", "qwen2", "gemma3"])
def test_quantised_file(name, kind, steps, tmp_path):
    model = case(name)
    path = write_gguf(tmp_path / "tiny.gguf", model, kind)
    config = read_gguf_config(path)
    params = load_gguf_params(path, config, jnp.float32)
    error = jax.tree.map(lambda got, wanted: np.abs(np.asarray(got) - wanted).max(), params, model.params)
    largest = jax.tree.map(lambda leaf: np.abs(leaf).max() / steps, model.params)
    assert all(jax.tree.leaves(jax.tree.map(lambda off, limit: off <= limit, error, largest)))
    assert error["layers"]["self_attn"]["q_proj"]["kernel"] > 0, "the file is quantised"

    imported = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ours, theirs = arrays(params), arrays(params_of(imported.state_dict(), config))
    for path, leaf in theirs.items():
        # Two dequantisers, the same float32 products; norms as above.
        np.testing.assert_allclose(ours[path], leaf, rtol=0, atol=2.4e-7, err_msg=path)


def test_bfloat16_storage_and_placing(tmp_path):
    model = case("llama_gqa")
    path = write_gguf(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType.BF16)
    seen = []

    def place(leaf):
        seen.append(leaf.path)
        return place_whole(leaf)

    params = load_gguf_params(path, model.config, jnp.bfloat16, place)
    assert "layers/mlp/up_proj/kernel" in seen
    for got, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(model.params), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted).astype(jnp.bfloat16))


def test_rope_scalings(tmp_path):
    model = case("llama_gqa")
    path = write_gguf(
        tmp_path / "linear.gguf", model, rope_scaling_type=gguf.RopeScalingType.LINEAR, rope_scaling_factor=4.0
    )
    assert read_gguf_config(path).rope_scaling == RopeScaling("linear", 4.0)
    yarn = {"rope_scaling_type": gguf.RopeScalingType.YARN, "rope_scaling_factor": 4.0}
    path = write_gguf(tmp_path / "yarn.gguf", model, **yarn, rope_scaling_orig_ctx_len=64)
    config = read_gguf_config(path)
    factor = 0.1 * math.log(4.0) + 1.0
    assert config.rope_scaling == RopeScaling("yarn", 4.0, original_max_positions=64, attention_factor=factor)
    assert config.max_positions == 256
    path = write_gguf(tmp_path / "other.gguf", model, rope_scaling_type=gguf.RopeScalingType.LONGROPE)
    refused("longrope", read_gguf_config, path)


def llama3_rope_freqs(base, head_dim, factor):
    """rope_freqs as llama.cpp's converter computes it (Llama3Model.generate_extra_tensors), 8192 positions, 1 to 4."""
    divisors = []
    for frequency in [1.0 / base ** (i / head_dim) for i in range(0, head_dim, 2)]:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4.0:
            divisors.append(1.0)
        elif wavelength > 8192 / 1.0:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_in_its_frequencies(factor, tmp_path):
    model = case("llama_gqa")
    # Of four frequencies one is kept, one lies between, two are divided.
    config = dataclasses.replace(model.config, rope_base=2e5 * factor)
    model = TinyModel(model.torch_model, config, model.params)
    tensors = gguf_tensors(model) | {"rope_freqs.weight": llama3_rope_freqs(config.rope_base, config.head_dim, factor)}
    path = write_gguf(tmp_path / "tiny.gguf", model, tensors=tensors)
    got = read_gguf_config(path)
    assert got.rope_scaling == RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    load_gguf_params(path, got, jnp.float32)
    tensors["rope_freqs.weight"] = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    refused("rope_freqs", read_gguf_config, write_gguf(tmp_path / "other.gguf", model, tensors=tensors))


def test_gemma_metadata(tmp_path):
    model = case("gemma3")
    path = write_gguf(
        tmp_path / "a.gguf", model, rope_scaling_type=gguf.RopeScalingType.LINEAR, rope_scaling_factor=8.0
    )
    assert read_gguf_config(path).rope_scaling == RopeScaling("linear", 8.0)
    path = write_gguf(tmp_path / "b.gguf", model, sliding_window_pattern=[True, False] * 3 + [True])
    assert read_gguf_config(path).local_layers == (True, False) * 3 + (True,)
    path = write_gguf(tmp_path / "c.gguf", model, rope_freq_base_swa=500.0)
    assert read_gguf_config(path).local_rope_base == 500.0


def test_a_head_beside_the_embedding_is_the_head(tmp_path):
    """Of a family that ties them, too: llama.cpp uses what the file holds."""
    model = tiny("gemma3_text")
    tensors = gguf_tensors(model)
    head = tensors["token_embd.weight"] + np.float32(1.0)
    path = write_gguf(tmp_path / "tiny.gguf", model, tensors=tensors | {"output.weight": head})
    config = read_gguf_config(path)
    assert not config.tied_head
    np.testing.assert_array_equal(load_gguf_params(path, config, None)["lm_head"]["kernel"], head.T)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0"])
def test_each_weight_in_the_type_that_it_is_stored_in(name, tmp_path):
    """What is quantised becomes float32: no narrower type holds it."""
    model = case("llama_gqa")
    path = write_gguf(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType[name])
    found = arrays(load_gguf_params(path, model.config, None))
    kernel = {"F16": "float16", "BF16": "bfloat16", "Q8_0": "float32"}[name]
    # Rows of down_proj are 48 wide, no whole blocks of 32.
    narrow = {leaf for leaf in found if leaf.endswith(("kernel", "embedding")) and "down_proj" not in leaf}
    assert {leaf: array.dtype.name for leaf, array in found.items()} == {
        leaf: kernel if leaf in narrow else "float32" for leaf in found
    }
    for leaf, array in arrays(load_gguf_params(path, model.config, jnp.float32)).items():
        np.testing.assert_array_equal(found[leaf].astype(np.float32), array)
    assert gguf_types(path).most_common(1)[0][0] == kernel


def test_split_files(tmp_path):
    """What llama.cpp's gguf-split makes of a large model; any part names it."""
    model = case("llama_gqa")
    whole = write_gguf(tmp_path / "whole.gguf", model)
    write_gguf(tmp_path / "tiny.gguf", model, split=12)
    parts = sorted(tmp_path.glob("tiny-*.gguf"))
    assert [part.name for part in parts] == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    expected = arrays(load_gguf_params(whole, model.config, jnp.float32))
    for part in parts:
        assert read_gguf_config(part) == read_gguf_config(whole)
        got = arrays(load_gguf_params(part, model.config, jnp.float32))
        assert got.keys() == expected.keys()
        assert all(np.array_equal(got[leaf], expected[leaf]) for leaf in expected)

    moved = parts[0].rename(tmp_path / "renamed.gguf")
    refused(r"one of 3 parts .* \.\.\.-00001-of-00003\.gguf", read_gguf_config, moved)
    moved.rename(parts[0])
    third = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    refused(r"numbered \[0, 1, 1\] and hold", read_gguf_config, parts[1])
    parts[2].unlink()
    refused(r"tiny-00003-of-00003\.gguf is not beside it", read_gguf_config, parts[0])
    parts[2].write_bytes(third[: len(third) // 2])
    refused(r"00003-of-00003\.gguf.*cut off", read_gguf_config, parts[0])


def test_what_is_another_model_is_refused_by_name(tmp_path):
    model = case("qwen2")
    tensors = gguf_tensors(model)
    path = tmp_path / "tiny.gguf"

    def load(changed, **metadata):
        write_gguf(path, model, tensors=changed, **metadata)
        load_gguf_params(path, read_gguf_config(path), jnp.float32)

    def without(name):
        return {key: tensor for key, tensor in tensors.items() if key != name}

    refused(r"missing tensors.*blk\.1\.attn_q\.weight", load, without("blk.1.attn_q.weight"))
    extra = {"blk.0.x.weight": np.ones(3, np.float32)}
    refused(r"unexpected tensors.*blk\.0\.x\.weight", load, tensors | extra)
    narrow = tensors | {"blk.2.ffn_up.weight": np.ones((3, 32), np.float32)}
    refused(r"blk\.2\.ffn_up\.weight is \[3, 32\], not \[48, 32\]", load, narrow)
    refused("I8, which is not supported", load, tensors | {"blk.2.ffn_up.weight": np.ones((48, 32), np.int8)})
    refused("expert_count", partial(load, expert_count=8), tensors)
    refused("dimension_count", partial(load, rope_dimension_count=4), tensors)
    refused("token_embd", load, without("token_embd.weight"))
    finish(gguf.GGUFWriter(path, "mamba"))
    refused("mamba", read_gguf_config, path)


def test_files_that_are_not_whole_gguf_are_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    refused("no such file", read_gguf_config, path)
    for content in (b"", b"GG", b"PK\x03\x04 a zip file of some length"):
        path.write_bytes(content)
        refused("not a GGUF file", read_gguf_config, path)
    whole = write_gguf(path, case("llama_gqa")).read_bytes()
    for length in (4, 20, 30, 100, 400, 2000, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:length])
        refused("cut off", read_gguf_config, path)
    path.write_bytes(whole[:4] + b"\x09" + whole[5:])
    refused("version 9", read_gguf_config, path)
