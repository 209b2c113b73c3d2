"""Whatever stands in a GGUF file, it is read, or refused in one line."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import InputError
from jaxalign.model.gguf import load_gguf_params, read_gguf_config, read_gguf_tokenizer
from tests.any_input import NUMBERS, TEXTS, spoilt_bytes, thorough, value_or_one_line, written

# What a reader warns of stands beside the one line.
pytestmark = pytest.mark.filterwarnings("error")
WIDTH, HEADS, KV_HEADS, MLP, VOCABULARY = 8, 2, 1, 4, 5
HEAD_DIM = WIDTH // HEADS
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "llama.context_length": 16,
    "llama.embedding_length": WIDTH,
    "llama.block_count": 1,
    "llama.feed_forward_length": MLP,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e4,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "c", "<s>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 4,
}
MORE_KEYS = (
    "llama.attention.key_length",
    "llama.rope.dimension_count",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.chat_template",
    "gemma3.attention.sliding_window",
    "gemma3.attention.sliding_window_pattern",
)


class Entry(NamedTuple):
    """A row of the tensor table."""

    shape: tuple[int, ...]
    kind: int = GGMLQuantizationType.F32
    offset: int = 0


TENSORS = {
    "token_embd.weight": Entry((VOCABULARY, WIDTH)),
    "output_norm.weight": Entry((WIDTH,)),
    "output.weight": Entry((VOCABULARY, WIDTH)),
    "blk.0.attn_norm.weight": Entry((WIDTH,)),
    "blk.0.ffn_norm.weight": Entry((WIDTH,)),
    "blk.0.attn_q.weight": Entry((WIDTH, WIDTH)),
    "blk.0.attn_k.weight": Entry((KV_HEADS * HEAD_DIM, WIDTH)),
    "blk.0.attn_v.weight": Entry((KV_HEADS * HEAD_DIM, WIDTH)),
    "blk.0.attn_output.weight": Entry((WIDTH, WIDTH)),
    "blk.0.ffn_gate.weight": Entry((MLP, WIDTH)),
    "blk.0.ffn_up.weight": Entry((MLP, WIDTH)),
    "blk.0.ffn_down.weight": Entry((WIDTH, MLP)),
}
DATA = bytes(4 * WIDTH * WIDTH)
"""All tensors share it."""


def encoded(metadata: Mapping[str, Any], tensors: Mapping[str, Entry], data: bytes = DATA) -> bytes:
    """A GGUF file with any metadata and any tensor table; the gguf package writes neither wrong types nor shapes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata.items())
    for name, (shape, kind, offset) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)
    return head + bytes(-len(head) % 32) + data


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content


def typed(value: Any) -> bytes:
    """A value after its type."""
    match value:
        case bool():
            return struct.pack("<I?", GGUFValueType.BOOL, value)
        case int():
            return struct.pack("<IQ", GGUFValueType.UINT64, value % 2**64)
        case float():
            return struct.pack("<Id", GGUFValueType.FLOAT64, value)
        case str():
            return struct.pack("<I", GGUFValueType.STRING) + text(value)
        case _:
            # Of one type; an empty list is one of texts.
            items = [typed(item) for item in value]
            kind = items[0][:4] if items else struct.pack("<I", GGUFValueType.STRING)
            inner = b"".join(item[4:] for item in items if item[:4] == kind)
            count = sum(item[:4] == kind for item in items)
            return struct.pack("<I", GGUFValueType.ARRAY) + kind + struct.pack("<Q", count) + inner


def read_all(path: Path) -> None:
    """All that is ever read of a GGUF file; what is read must be a model."""
    value_or_one_line(read_gguf_tokenizer, path)
    config = value_or_one_line(read_gguf_config, path)
    if config is None:
        return
    assert config.vocab_size > 0 and config.heads % config.kv_heads == 0 and config.head_dim % 2 == 0
    params = value_or_one_line(load_gguf_params, path, config, jnp.float32)
    assert params is None or all(leaf.size for leaf in jax.tree.leaves(params))


def test_the_file_that_is_spoilt_is_whole(tmp_path):
    path = written(tmp_path / "model.gguf", encoded(METADATA, TENSORS))
    params = load_gguf_params(path, read_gguf_config(path), jnp.float32)
    assert params["embed_tokens"]["embedding"].shape == (VOCABULARY, WIDTH)
    assert read_gguf_tokenizer(path)("ab").input_ids == [2]


@pytest.mark.parametrize(
    ("metadata", "tensors", "named"),
    [
        ({"llama.attention.head_count_kv": 3}, {}, "2 heads over 3"),
        ({"llama.attention.key_length": 3}, {}, "head_dim 3 is odd"),
        ({}, {"token_embd.weight": Entry((0, WIDTH))}, "cut off or broken"),
        ({}, {"rope_freqs.weight": Entry((HEAD_DIM // 2,))}, "rope scaling: factor must be a positive number"),
        ({"llama.rope.scaling.original_context_length": "x"}, {}, "original_context_length must be a whole number"),
        ({"general.architecture": "two\nlines"}, {}, "architecture two lines is not supported"),
    ],
)
def test_what_is_no_model(tmp_path, metadata, tensors, named):
    path = written(tmp_path / "model.gguf", encoded(METADATA | metadata, TENSORS | tensors))
    with pytest.raises(InputError, match=named):
        read_gguf_config(path)


@thorough
@given(st.binary(max_size=200), st.sampled_from([b"", b"GGUF", b"GGUF\3\0\0\0"]))
def test_gguf_of_any_bytes(tmp_path, content, head):
    read_all(written(tmp_path / "model.gguf", head + content))


@thorough
@given(spoilt_bytes(encoded(METADATA, TENSORS)))
def test_gguf_with_bytes_lost_or_changed(tmp_path, content):
    read_all(written(tmp_path / "model.gguf", content))


SCALARS = st.booleans() | NUMBERS | TEXTS


@thorough
@given(
    st.sampled_from(["llama", "qwen2", "gemma3"]),
    st.dictionaries(st.sampled_from([*METADATA, *MORE_KEYS]), SCALARS | st.lists(SCALARS, max_size=6), max_size=3),
    st.sampled_from([{}, {"rope_freqs.weight": Entry((HEAD_DIM // 2,))}]),
)
def test_gguf_with_any_metadata(tmp_path, architecture, changes, scaling):
    metadata = {key.replace("llama.", f"{architecture}."): value for key, value in (METADATA | changes).items()}
    metadata["general.architecture"] = changes.get("general.architecture", architecture)
    read_all(written(tmp_path / "model.gguf", encoded(metadata, TENSORS | scaling)))


AXES = st.sampled_from([0, 1, 2, WIDTH, 32, 2**32, 2**63, 2**64 - 1])


@thorough
@given(
    st.dictionaries(
        st.sampled_from([*TENSORS, "rope_freqs.weight"]) | TEXTS,
        st.builds(
            Entry,
            st.lists(AXES, max_size=5).map(tuple),
            st.sampled_from(list(GGMLQuantizationType)) | st.integers(0, 2**32 - 1),
            st.sampled_from([0, 1, 2**63]),
        ),
        min_size=1,
        max_size=2,
    )
)
def test_gguf_with_any_tensor_table(tmp_path, changes):
    read_all(written(tmp_path / "model.gguf", encoded(METADATA, TENSORS | changes)))
