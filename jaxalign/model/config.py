"""The architecture of a decoder: one frozen record, which hf_config.py and gguf.py fill from a checkpoint."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "mistral", "qwen2", "gemma3_text"]


@dataclass(frozen=True)
class RopeScaling:
    """Change of rotary frequencies for longer contexts (`linear`: position interpolation; `llama3`: by wavelength;
    `yarn`: by the number of turns within the original context, Peng et al. 2023, arXiv 2309.00071)."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    """Of YaRN: frequencies of more turns stay; those of fewer than `beta_slow` are slowed by `factor`."""
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Of YaRN: cosines and sines are multiplied by it, so logits of attention by its square."""
    truncate: bool = True
    """Of YaRN: whether the bounds of its ramp are rounded to whole frequencies."""


@dataclass(frozen=True)
class ModelConfig:
    """What distinguishes one decoder from another. Families differ only in these fields."""

    family: Family
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_eps: float
    query_scale: float
    """The factor on q·k: head_dim**-0.5, or query_pre_attn_scalar**-0.5 in Gemma."""
    rope_base: float
    tied_head: bool
    activation: Literal["silu", "gelu_tanh"] = "silu"
    rope_scaling: RopeScaling | None = None
    local_rope_base: float | None = None
    """Base on local layers; None: the same as `rope_base`. Scaling never applies to it."""
    window: int | None = None
    """A local layer sees this many positions, its own included."""
    local_layers: tuple[bool, ...] = ()
    """Per layer, whether `window` applies; empty where no layer is local."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: bool = False
    """Norms multiply by 1 + scale (Gemma) instead of scale."""
    post_norms: bool = False
    """A further norm after attention and after the MLP, before the residual sum (Gemma 3)."""
    embedding_scale: float | None = None
    """Embeddings are multiplied by it (Gemma: sqrt(width))."""
    max_positions: int = 0
