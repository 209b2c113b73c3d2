"""A tiny random Gemma 3 with vision, as the released 4B, 12B and 27B are: a folder, and the class made of it."""

from pathlib import Path

import torch
import transformers

VOCABULARY = 64


def save_vision_model(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """Three layers of width 32 beside a vision tower of two, whose projections have the decoder's names."""
    torch.manual_seed(0)
    text = transformers.Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=5,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    # Beyond the vocabulary: no text holds an image.
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=vocabulary + 1,
        boi_token_index=vocabulary + 2,
        eoi_token_index=vocabulary + 3,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 32**-0.5)
    model.save_pretrained(folder)
    return folder


def in_transformers(folder: Path):
    """What AutoModelForCausalLM makes of the folder, float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
