"""Tiny random transformers models of each family, with our config and parameters for the same numbers.

Norms, biases and everything else are drawn at random, so that no part hides behind a 0 or a 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxalign.model.config import ModelConfig, RopeScaling

VOCABULARY = 61
WIDTH = 32
HEADS = 4
HEAD_DIM = 8
MLP_DIM = 48
WINDOW = 5
EPS = 1e-6

LLAMA3_ROPE = RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
YARN = RopeScaling("yarn", 4.0, original_max_positions=32, beta_fast=8.0, beta_slow=0.5, attention_factor=1.2)
GEMMA_LOCAL = (True, True, False, True, True, False, True)


@dataclass(frozen=True)
class TinyModel:
    """One set of numbers, twice: `torch_model` (float32, eager attention) and (`config`, `params`)."""

    torch_model: Any
    config: ModelConfig
    params: dict[str, Any]


CASES: dict[str, dict[str, Any]] = {
    "llama_mha": {"family": "llama", "kv_heads": 4},
    "llama_gqa_llama3_rope": {"family": "llama", "rope_scaling": LLAMA3_ROPE},
    "llama_linear_rope_tied": {"family": "llama", "rope_scaling": RopeScaling("linear", 4.0), "tied": True},
    "llama_biases": {"family": "llama", "biases": True},
    "mistral_gqa": {"family": "mistral"},
    "mistral_mqa": {"family": "mistral", "kv_heads": 1},
    "qwen2": {"family": "qwen2"},
    "qwen2_tied": {"family": "qwen2", "tied": True},
    "qwen2_yarn": {"family": "qwen2", "rope_scaling": YARN},
    "gemma3_text": {"family": "gemma3_text", "kv_heads": 1, "tied": True},
    "gemma3_text_scaled_rope": {"family": "gemma3_text", "tied": True, "rope_scaling": RopeScaling("linear", 8.0)},
}
"""Arguments of `tiny_model` that cover the families: MHA, GQA and MQA, tied and untied, each rope."""

FAMILIES = ("llama_gqa_llama3_rope", "mistral_gqa", "qwen2", "gemma3_text")
"""One case of each family, for tests that need not see every variant."""


def slow_but(cases: Sequence[str], kept: str) -> list[Any]:
    """The cases as parameters, all but one of them among the slow tests."""
    return [case if case == kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def tiny_model(
    family: str,
    *,
    kv_heads: int = 2,
    tied: bool = False,
    biases: bool = False,
    rope_scaling: RopeScaling | None = None,
    vocabulary: int = VOCABULARY,
    times: int = 1,
    seed: int = 0,
) -> TinyModel:
    """A random model of `family` (llama, mistral, qwen2, gemma3_text): vocabulary 61, width 32, 3 or 7 layers.

    `times`: all sizes within a layer are so many times as large.
    """
    gemma = family == "gemma3_text"
    # Gemma's heads are wider than width / heads, and its query scale is not head_dim**-0.5.
    head_dim = times * (2 * HEAD_DIM if gemma else HEAD_DIM)
    config = ModelConfig(
        family=family,  # pyright: ignore[reportArgumentType]: the cases spell families as plain strings
        vocab_size=vocabulary,
        width=times * WIDTH,
        layers=len(GEMMA_LOCAL) if gemma else 3,
        heads=HEADS,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=times * MLP_DIM,
        norm_eps=EPS,
        query_scale=24**-0.5 if gemma else head_dim**-0.5,
        rope_base=1_000_000.0 if gemma else 10_000.0,
        tied_head=tied,
        activation="gelu_tanh" if gemma else "silu",
        rope_scaling=rope_scaling,
        local_rope_base=10_000.0 if gemma else None,
        window=WINDOW if gemma or family == "mistral" else None,
        local_layers=GEMMA_LOCAL if gemma else (True,) * 3 if family == "mistral" else (),
        qkv_bias=biases or family == "qwen2",
        output_bias=biases,
        mlp_bias=biases,
        qk_norm=gemma,
        norm_offset=gemma,
        post_norms=gemma,
        embedding_scale=(times * WIDTH) ** 0.5 if gemma else None,
        max_positions=128,
    )
    torch.manual_seed(seed)
    torch_model = _torch_class(family)(_torch_config(config))
    torch_model = torch_model.to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in torch_model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.0 if gemma else 1.0))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else (times * WIDTH) ** -0.5))
    return TinyModel(torch_model, config, params_of(torch_model.state_dict(), config))


def tiny_case(name: str) -> TinyModel:
    """The model of one entry of CASES."""
    return tiny_model(**CASES[name])


def params_of(state: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, Any]:
    """Our parameter tree (float32) of a transformers state dict: kernels transposed, layers stacked."""
    tree: dict[str, Any] = {}
    put(tree, "embed_tokens/embedding", numpy_of(state["model.embed_tokens.weight"]))
    put(tree, "norm/scale", numpy_of(state["model.norm.weight"]))
    if not config.tied_head:
        put(tree, "lm_head/kernel", numpy_of(state["lm_head.weight"]).T)
    prefix = "model.layers.0."
    for name in [key.removeprefix(prefix) for key in state if key.startswith(prefix)]:
        stacked = np.stack([numpy_of(state[f"model.layers.{layer}.{name}"]) for layer in range(config.layers)])
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            leaf = "bias"
        elif stacked.ndim == 2:
            leaf = "scale"
        else:
            leaf, stacked = "kernel", stacked.transpose(0, 2, 1)
        put(tree, f"layers/{module.replace('.', '/')}/{leaf}", stacked)
    return jax.tree.map(jnp.asarray, tree)


def put(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Sets tree[a][b][c] for the path "a/b/c"."""
    *branches, last = path.split("/")
    for branch in branches:
        tree = tree.setdefault(branch, {})
    tree[last] = leaf


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    """A float32 copy of a torch tensor."""
    return tensor.detach().to(torch.float32).numpy().copy()


def _torch_class(family: str) -> Any:
    return {
        "llama": transformers.LlamaForCausalLM,
        "mistral": transformers.MistralForCausalLM,
        "qwen2": transformers.Qwen2ForCausalLM,
        "gemma3_text": transformers.Gemma3ForCausalLM,
    }[family]


def _torch_config(config: ModelConfig) -> Any:
    """The transformers config of the same architecture, in transformers 5's spelling."""
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    if scaling is not None and scaling.kind == "yarn":
        names = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        rope |= {"original_max_position_embeddings": scaling.original_max_positions}
        rope |= {name: getattr(scaling, name) for name in names}
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_head,
        "rope_parameters": rope,
        "attn_implementation": "eager",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if config.family == "llama":
        return transformers.LlamaConfig(**common, attention_bias=config.output_bias, mlp_bias=config.mlp_bias)
    if config.family == "mistral":
        return transformers.MistralConfig(**common, sliding_window=config.window)
    if config.family == "qwen2":
        return transformers.Qwen2Config(**common)
    local = {"rope_type": "default", "rope_theta": config.local_rope_base}
    common["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    return transformers.Gemma3TextConfig(
        **common,
        sliding_window=config.window,
        layer_types=["sliding_attention" if local else "full_attention" for local in config.local_layers],
        query_pre_attn_scalar=round(config.query_scale**-2),
        hidden_activation="gelu_pytorch_tanh",
    )
