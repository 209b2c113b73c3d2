"""config.json of every family, as released and as transformers saves it, against what transformers understands."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, Gemma3Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxalign.errors import InputError
from jaxalign.model.attention import rotary_frequencies
from jaxalign.model.config import ModelConfig, RopeScaling, config_from_hf, read_config, read_end_ids
from tests.model.tiny_inputs import refused

MISTRAL_7B_V01 = """{
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
  "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000
}"""
LLAMA_2_7B = """{
  "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
  "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000
}"""
LLAMA_31_8B = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0.dev0", "use_cache": true, "vocab_size": 128256
}"""
QWEN_15_18B = """{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5504,
  "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 16,
  "num_hidden_layers": 24, "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.37.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
}"""
QWEN_25_7B = """{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
  "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
  "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
  "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
  "vocab_size": 152064
}"""
GEMMA_3_270M = """{
  "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": false,
  "attention_dropout": 0.0, "attn_logit_softcapping": null, "bos_token_id": 2, "eos_token_id": 1,
  "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640,
  "initializer_range": 0.02, "intermediate_size": 2048,
  "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
    "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "sliding_attention",
    "sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
    "sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
  "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
  "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
  "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": null, "rope_theta": 1000000.0,
  "sliding_window": 512, "torch_dtype": "bfloat16", "transformers_version": "4.55.0.dev0",
  "use_bidirectional_attention": false, "use_cache": true, "vocab_size": 262144
}"""
GEMMA_3_1B = """{
  "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
  "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
  "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
  "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
  "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
  "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144
}"""
# A multimodal Gemma 3 leaves most of its text model to the defaults.
GEMMA_3_4B = """{
  "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
  "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
  "model_type": "gemma3",
  "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
  "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "vision_config": {"hidden_size": 1152}
}"""

EXPECTED = {
    MISTRAL_7B_V01: ModelConfig(
        family="mistral", vocab_size=32000, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_dim=14336,
        norm_eps=1e-5, query_scale=128**-0.5, rope_base=10000.0, tied_head=False, window=4096,
        local_layers=(True,) * 32, max_positions=32768,
    ),
    LLAMA_2_7B: ModelConfig(
        family="llama", vocab_size=32000, width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_dim=11008,
        norm_eps=1e-5, query_scale=128**-0.5, rope_base=10000.0, tied_head=False, max_positions=4096,
    ),
    LLAMA_31_8B: ModelConfig(
        family="llama", vocab_size=128256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_dim=14336,
        norm_eps=1e-5, query_scale=128**-0.5, rope_base=500000.0, tied_head=False,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), max_positions=131072,
    ),
    QWEN_15_18B: ModelConfig(
        family="qwen2", vocab_size=151936, width=2048, layers=24, heads=16, kv_heads=16, head_dim=128, mlp_dim=5504,
        norm_eps=1e-6, query_scale=128**-0.5, rope_base=1e6, tied_head=False, qkv_bias=True, max_positions=32768,
    ),
    QWEN_25_7B: ModelConfig(
        family="qwen2", vocab_size=152064, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp_dim=18944,
        norm_eps=1e-6, query_scale=128**-0.5, rope_base=1e6, tied_head=False, qkv_bias=True, max_positions=131072,
    ),
    GEMMA_3_270M: ModelConfig(
        family="gemma3_text", vocab_size=262144, width=640, layers=18, heads=4, kv_heads=1, head_dim=256,
        mlp_dim=2048, norm_eps=1e-6, query_scale=256**-0.5, rope_base=1e6, tied_head=True, activation="gelu_tanh",
        local_rope_base=10000.0, window=512, local_layers=((True,) * 5 + (False,)) * 3, qk_norm=True,
        norm_offset=True, post_norms=True, embedding_scale=640**0.5, max_positions=32768,
    ),
    GEMMA_3_1B: ModelConfig(
        family="gemma3_text", vocab_size=262144, width=1152, layers=26, heads=4, kv_heads=1, head_dim=256,
        mlp_dim=6912, norm_eps=1e-6, query_scale=256**-0.5, rope_base=1e6, tied_head=True, activation="gelu_tanh",
        local_rope_base=10000.0, window=512, local_layers=((True,) * 5 + (False,)) * 4 + (True, True), qk_norm=True,
        norm_offset=True, post_norms=True, embedding_scale=1152**0.5, max_positions=32768,
    ),
    GEMMA_3_4B: ModelConfig(
        family="gemma3_text", vocab_size=262208, width=2560, layers=34, heads=8, kv_heads=4, head_dim=256,
        mlp_dim=10240, norm_eps=1e-6, query_scale=256**-0.5, rope_base=1e6, tied_head=True, activation="gelu_tanh",
        rope_scaling=RopeScaling("linear", 8.0), local_rope_base=10000.0, window=1024,
        local_layers=((True,) * 5 + (False,)) * 5 + (True,) * 4, qk_norm=True, norm_offset=True, post_norms=True,
        embedding_scale=2560**0.5, max_positions=131072,
    ),
}  # fmt: skip
NAMES = [
    "mistral-7b-v0.1",
    "llama-2-7b",
    "llama-3.1-8b",
    "qwen1.5-1.8b",
    "qwen2.5-7b",
    "gemma-3-270m",
    "gemma-3-1b",
    "gemma-3-4b",
]
RELEASED = pytest.mark.parametrize("text", EXPECTED, ids=NAMES)


@RELEASED
def test_released_config_is_read(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert read_config(tmp_path) == EXPECTED[text]


@RELEASED
def test_config_saved_by_transformers_is_read_alike(text, tmp_path):
    document = json.loads(text)
    if "vision_config" in document:
        document["vision_config"]["model_type"] = "siglip_vision_model"
    AutoConfig.for_model(**document).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in (saved.get("text_config") or saved)
    assert read_config(tmp_path) == EXPECTED[text]


@pytest.mark.parametrize("config_class", [LlamaConfig, MistralConfig, Qwen2Config, Gemma3TextConfig])
def test_absent_keys_mean_what_transformers_assumes(config_class):
    everything = json.loads(config_class().to_json_string(use_diff=False))
    nothing = {"model_type": config_class.model_type}
    assert config_from_hf(nothing, "config.json") == config_from_hf(everything, "config.json")


def test_windows_of_qwen_and_mistral():
    qwen = json.loads(QWEN_25_7B) | {"use_sliding_window": True, "num_hidden_layers": 4, "max_window_layers": 3}
    config = config_from_hf(qwen, "config.json")
    assert (config.window, config.local_layers) == (131072, (False, False, False, True))
    saved = json.loads(AutoConfig.for_model(**qwen).to_json_string(use_diff=False))
    assert config_from_hf(saved, "config.json") == config
    mistral = json.loads(MISTRAL_7B_V01)
    assert config_from_hf(mistral | {"sliding_window": None}, "config.json").window is None
    del mistral["sliding_window"]
    assert config_from_hf(mistral, "config.json").window == MistralConfig().sliding_window


def test_biases_head_width_and_linear_scaling():
    document = json.loads(LLAMA_2_7B) | {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 64,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = config_from_hf(document, "config.json")
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, True, True)
    assert (config.head_dim, config.query_scale) == (64, 64**-0.5)
    assert (config.rope_scaling, config.activation) == (RopeScaling("linear", 2.0), "gelu_tanh")


CHANGE_NOTHING: list[tuple[str, dict[str, Any]]] = [
    # Keys that released checkpoints and their fine-tuned descendants carry.
    (LLAMA_31_8B, {"sliding_window": None, "max_window_layers": None}),
    (LLAMA_31_8B, {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 28}),
    (
        MISTRAL_7B_V01,
        {"auto_map": {"AutoModelForCausalLM": "org/model--modeling.Model"}, "_flash_attn_2_enabled": True},
    ),
    (MISTRAL_7B_V01, {"use_sliding_window": False, "max_sequence_length": 2048, "quantization_config": None}),
    (QWEN_25_7B, {"neftune_noise_alpha": 5, "is_decoder": True, "add_cross_attention": False, "seq_length": 32768}),
    (GEMMA_3_1B, {"hidden_act": "gelu_pytorch_tanh", "pruned_heads": {}, "is_encoder_decoder": False}),
    (GEMMA_3_270M, {"a_key_of_tomorrow": None}),
]


@pytest.mark.parametrize(("text", "more"), CHANGE_NOTHING)
def test_keys_that_change_nothing_are_read(text, more):
    assert config_from_hf(json.loads(text) | more, "config.json") == EXPECTED[text]


@pytest.mark.parametrize("text", [LLAMA_31_8B, MISTRAL_7B_V01, QWEN_25_7B, GEMMA_3_270M])
def test_what_older_transformers_wrote_into_every_config_is_read(text):
    """A config of transformers 4 that was written whole, as some checkpoints carry it."""
    texts = ["finetuning_task", "prefix", "sep_token_id", "task_specific_params", "decoder_start_token_id"]
    flags = ["torchscript", "use_bfloat16", "tf_legacy_loss", "tie_encoder_decoder", "is_decoder", "output_scores"]
    numbers = ["num_beams", "num_beam_groups", "num_return_sequences", "length_penalty", "typical_p", "min_length"]
    whole = dict.fromkeys(texts) | dict.fromkeys(flags, False) | dict.fromkeys(numbers, 1)
    assert config_from_hf(json.loads(text) | whole, "config.json") == EXPECTED[text]


def test_yarn_as_qwen_says_to_switch_it_on():
    """Qwen 2.5's own page: the section alone is added, the context becomes 131,072."""
    section = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    document = json.loads(QWEN_25_7B) | {"max_position_embeddings": 32768, "rope_scaling": section}
    config = config_from_hf(document, "config.json")
    assert config.rope_scaling == RopeScaling(
        "yarn", 4.0, original_max_positions=32768, attention_factor=0.1 * math.log(4.0) + 1.0
    )
    assert config.max_positions == 131072
    saved = json.loads(AutoConfig.for_model(**document).to_json_string(use_diff=False))
    assert config_from_hf(saved, "config.json") == config


@pytest.mark.parametrize(
    "section",
    [
        {"factor": 4.0},
        {"factor": 4.0, "original_max_position_embeddings": 64},
        {"factor": None, "original_max_position_embeddings": 64},
        {"factor": 8.0, "attention_factor": 0.7, "beta_fast": 16, "beta_slow": 2},
        {"factor": 8.0, "mscale": 0.707, "mscale_all_dim": 1.0, "beta_fast": None},
        {"factor": 8.0, "mscale": 0.707, "truncate": False, "original_max_position_embeddings": 100},
        {"factor": 0.5},
    ],
)
def test_yarn_turns_as_in_transformers(section):
    names = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
    document = {"model_type": "qwen2", **names, "rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", **section}}
    config = config_from_hf(document, "config.json")
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](AutoConfig.for_model(**copy.deepcopy(document)), "cpu")
    np.testing.assert_allclose(rotary_frequencies(config, local=False), theirs.numpy(), rtol=1e-6)
    assert config.rope_scaling is not None and config.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-12)


def test_gemma_pattern_without_layer_types():
    document = json.loads(GEMMA_3_1B) | {"sliding_window_pattern": 3, "num_hidden_layers": 5}
    assert config_from_hf(document, "config.json").local_layers == (True, True, False, True, True)


REFUSED = [
    (LLAMA_31_8B, {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
    (QWEN_25_7B, {"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": 1}}, "truncate"),
    (QWEN_25_7B, {"rope_scaling": {"type": "yarn", "factor": 4.0, "short_factor": [1.0]}}, "short_factor"),
    (QWEN_25_7B, {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 1.0}, "rope_theta above 1"),
    (LLAMA_31_8B, {"sliding_window": 4096}, "sliding_window"),
    (LLAMA_31_8B, {"is_encoder_decoder": True}, "is_encoder_decoder"),
    (LLAMA_31_8B, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    (MISTRAL_7B_V01, {"use_sliding_window": True}, "use_sliding_window"),
    (GEMMA_3_1B, {"hidden_act": "silu"}, "hidden_act"),
    (LLAMA_31_8B, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
    (LLAMA_31_8B, {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "beta_fast": 1}}, "beta_fast"),
    (LLAMA_31_8B, {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    (LLAMA_31_8B, {"rope_scaling": 8.0}, "rope_scaling"),
    (LLAMA_31_8B, {"hidden_act": "relu"}, "hidden_act"),
    (LLAMA_31_8B, {"hidden_size": "4096"}, "hidden_size"),
    (LLAMA_31_8B, {"num_key_value_heads": 5}, "num_key_value_heads"),
    (LLAMA_31_8B, {"hidden_size": 10**400}, "hidden_size must be a whole number from 1 to 2147483647"),
    (LLAMA_31_8B, {"rope_theta": 10**400}, "rope_theta must be a positive number"),
    (LLAMA_31_8B, {"head_dim": 3}, "head_dim 3 is odd"),
    (LLAMA_31_8B, {"num_experts": 8}, "num_experts"),
    (LLAMA_31_8B, {"two\nlines": 8}, "unknown key two lines"),
    (
        LLAMA_31_8B,
        {"quantization_config": {"quant_method": "gptq"}},
        'quantization_config .*"gptq".*: quantised weights',
    ),
    (GEMMA_3_1B, {"quantization": {"group_size": 64, "bits": 4}}, "quantization .*: quantised weights"),
    ('{"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "awq"}}}', {}, "awq"),
    (LLAMA_31_8B, {"model_type": "gpt2"}, "gpt2"),
    (LLAMA_31_8B, {"model_type": ["llama"]}, "model_type"),
    (LLAMA_31_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (MISTRAL_7B_V01, {"attention_bias": True}, "attention_bias"),
    (MISTRAL_7B_V01, {"layer_types": ["full_attention"]}, "layer_types"),
    (QWEN_25_7B, {"use_mrope": True}, "use_mrope"),
    (QWEN_25_7B, {"layer_types": ["sliding_attention"] * 28}, "sliding_window"),
    (GEMMA_3_1B, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    (GEMMA_3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    (GEMMA_3_1B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (GEMMA_3_270M, {"layer_types": ["full_attention"]}, "layer_types"),
    (GEMMA_3_270M, {"rope_parameters": {"rope_type": "default"}}, "rope_type"),
    (
        GEMMA_3_270M,
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "sliding_attention",
    ),
]


@pytest.mark.parametrize(("text", "change", "name"), REFUSED, ids=[f"{row[2]}-{i}" for i, row in enumerate(REFUSED)])
def test_what_this_decoder_is_not_is_refused_by_name(text, change, name):
    with pytest.raises(InputError, match=rf"folder/config\.json.*{name}") as error:
        config_from_hf(json.loads(text) | change, "folder/config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", [True, False, None])
def test_the_head_of_a_gemma_with_vision_is_of_the_whole_model(flag):
    """The class that transformers makes of it ties by the flag beside text_config, whatever stands within."""
    document = {"model_type": "gemma3", "text_config": {"tie_word_embeddings": flag is False}}
    document |= {} if flag is None else {"tie_word_embeddings": flag}
    theirs = Gemma3Config(**document)
    assert config_from_hf(document, "config.json").tied_head is theirs.tie_word_embeddings is (flag is not False)


def test_unreadable_config_is_refused(tmp_path):
    refused("no such file", read_config, tmp_path)
    (tmp_path / "config.json").write_text("[]")
    refused("one JSON object", read_config, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    refused("text_config", read_config, tmp_path)


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, []),
        ({"config": {"eos_token_id": 2}}, [2]),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [1, 106]}}, [1, 106]),
        ({"config": {"eos_token_id": 2}, "generation_config": {}}, []),
        ({"config": {"eos_token_id": None}}, []),
    ],
)
def test_the_ids_that_end_a_text(tmp_path, files, ids):
    for name, document in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert read_end_ids(tmp_path) == ids


@pytest.mark.parametrize("wrong", ["</s>", -1, [1, "</s>"], True, 2**31])
def test_ids_that_are_none_are_refused(tmp_path, wrong):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    refused(r"generation_config\.json: eos_token_id", read_end_ids, tmp_path)
