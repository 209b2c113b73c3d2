"""Whatever stands in a model folder, or an adapter, it is read, or refused in one line."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from jaxalign.model.config import ModelConfig, read_config, read_end_ids
from jaxalign.model.lora import lora_shapes
from jaxalign.model.peft import load_adapter, save_adapter
from jaxalign.model.weights import load_params, weight_table
from tests.any_input import TEXTS, VALUES, quick, spoilt_bytes, spoilt_document, thorough, value_or_one_line, written
from tests.defaults import base_lora
from tests.model.test_hf_config import EXPECTED

pytestmark = pytest.mark.filterwarnings("error")
RELEASED = [json.loads(text) for text in EXPECTED]
CONFIG = ModelConfig(
    family="llama", vocab_size=5, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_dim=4, norm_eps=1e-5,
    query_scale=0.5, rope_base=1e4, tied_head=True,
)  # fmt: skip


def check_config(folder):
    config = value_or_one_line(read_config, folder)
    if config is not None:
        assert config.heads % config.kv_heads == 0 and config.head_dim % 2 == 0
        assert config.window is None or len(config.local_layers) == config.layers
    for number in value_or_one_line(read_end_ids, folder) or []:
        np.array(number, np.int32)


@thorough
@given(st.sampled_from(RELEASED).flatmap(spoilt_document))
def test_configs_with_any_value(tmp_path, document):
    written(tmp_path / "config.json", json.dumps(document))
    check_config(tmp_path)


@quick
@given(VALUES)
def test_configs_of_any_shape(tmp_path, document):
    written(tmp_path / "config.json", json.dumps(document))
    check_config(tmp_path)


@quick
@given(st.binary(max_size=60) | spoilt_bytes(json.dumps(RELEASED[0]).encode()))
def test_configs_of_any_bytes(tmp_path, content):
    written(tmp_path / "config.json", content)
    check_config(tmp_path)


WEIGHTS = save({weight.name(0): np.zeros(weight.stored_shape, np.float32) for weight in weight_table(CONFIG)})


def with_header(document, data=bytes(64)):
    """A safetensors file with any header."""
    header = json.dumps(document).encode()
    return struct.pack("<Q", len(header)) + header + data


HEADERS = st.dictionaries(
    st.sampled_from(["model.norm.weight", "__metadata__"]) | TEXTS,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "F4", "I64", "BOOL", "C64", "x"]),
            "shape": st.lists(st.sampled_from([0, 1, 4, 16, 2**63]), max_size=3),
            "data_offsets": st.lists(st.sampled_from([0, 4, 64, 2**63]), max_size=3),
        }
    )
    | VALUES,
    max_size=3,
)
SAFETENSORS = st.one_of(
    st.binary(max_size=60),
    st.integers(0, 2**64 - 1).map(lambda length: struct.pack("<Q", length) + b"{}"),
    HEADERS.map(with_header),
)


@thorough
@given(SAFETENSORS | spoilt_bytes(WEIGHTS))
def test_weights_of_any_bytes(tmp_path, content):
    written(tmp_path / "model.safetensors", content)
    value_or_one_line(load_params, tmp_path, CONFIG, jnp.float32)


@quick
@given(st.one_of(VALUES, st.dictionaries(TEXTS, TEXTS).map(lambda names: {"weight_map": names})))
def test_indices_of_any_shape(tmp_path, document):
    written(tmp_path / "model.safetensors.index.json", json.dumps(document))
    assert value_or_one_line(load_params, tmp_path, CONFIG, jnp.float32) is None


LORA = base_lora(2, 4.0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """(adapter_config.json, adapter_model.safetensors) of CONFIG."""
    folder = tmp_path_factory.mktemp("adapter")
    tree = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), lora_shapes(CONFIG, LORA))
    save_adapter(folder, tree, LORA, "org/base")
    return json.loads((folder / "adapter_config.json").read_text()), (folder / "adapter_model.safetensors").read_bytes()


@thorough
@given(data=st.data())
def test_adapters_with_any_value(tmp_path, adapter, data):
    document, weights = adapter
    more = st.dictionaries(st.sampled_from([*document, "layers_pattern"]) | TEXTS, VALUES, max_size=2)
    document = data.draw(spoilt_document(document) | more.map(lambda changes: document | changes) | VALUES)
    written(tmp_path / "adapter_config.json", json.dumps(document))
    written(tmp_path / "adapter_model.safetensors", weights)
    value_or_one_line(load_adapter, tmp_path, CONFIG)


@thorough
@given(data=st.data())
def test_adapter_weights_of_any_bytes(tmp_path, adapter, data):
    document, weights = adapter
    written(tmp_path / "adapter_config.json", json.dumps(document))
    written(tmp_path / "adapter_model.safetensors", data.draw(SAFETENSORS | spoilt_bytes(weights)))
    value_or_one_line(load_adapter, tmp_path, CONFIG)
