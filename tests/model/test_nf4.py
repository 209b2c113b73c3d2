"""4-bit weights against bitsandbytes on the CPU."""

from typing import Any

import bitsandbytes.functional
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.model.nf4 import LEVELS, dequantise, quantise, quantise_params
from jaxalign.model.sharding import param_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import make_mesh
from tests.model.tiny_models import TinyModel, tiny_model

RANDOM = np.random.default_rng(0)
HALVES = (LEVELS[:-1] + LEVELS[1:]) / 2

KERNELS = {
    "normal": RANDOM.normal(size=(192, 24)),
    "heavy tails": RANDOM.standard_t(2, size=(128, 16)),
    "tiny and huge": RANDOM.normal(size=(64, 32)) * 10.0 ** RANDOM.integers(-30, 30, (1, 32)),
    "zeros": np.zeros((128, 2)),
    "some blocks of zeros": RANDOM.normal(size=(128, 8)) * (np.arange(128)[:, None] < 64),
    "half-way between levels": np.resize([1.0, *HALVES, *LEVELS, *np.nextafter(HALVES, 1)], (128, 6)),
}


def by_bitsandbytes(kernel: np.ndarray, dtype: torch.dtype = torch.float32) -> tuple[np.ndarray, np.ndarray, Any]:
    """Codes [in, out] 0 to 15, absmax [in/64, out], and what they stand for: torch's weight is [out, in]."""
    weight = torch.from_numpy(np.ascontiguousarray(kernel.T)).to(dtype)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(weight.shape).numpy().T
    restored = bitsandbytes.functional.dequantize_4bit(packed, state)
    return codes, state.absmax.reshape(kernel.shape[1], -1).numpy().T, restored.T


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_every_bit_is_that_of_bitsandbytes(kernel: np.ndarray):
    kernel = kernel.astype(np.float32)
    codes, absmax, restored = by_bitsandbytes(kernel)
    ours = jax.jit(quantise)(kernel)
    packed = np.asarray(ours["codes"])
    np.testing.assert_array_equal(np.stack([packed >> 4, packed & 15], axis=1).reshape(kernel.shape), codes)
    np.testing.assert_array_equal(ours["absmax"], absmax)
    np.testing.assert_array_equal(jax.jit(dequantise)(**ours), restored.numpy())


@pytest.mark.parametrize(("dtype", "torch_dtype"), [(jnp.bfloat16, torch.bfloat16), (jnp.float16, torch.float16)])
def test_weights_of_16_bits(dtype, torch_dtype):
    kernel = KERNELS["normal"].astype(np.float32)
    _, absmax, restored = by_bitsandbytes(kernel, torch_dtype)
    ours = quantise(jnp.asarray(kernel).astype(dtype))
    np.testing.assert_array_equal(ours["absmax"], absmax)
    # Both round the float32 product of level and scale to the compute type.
    np.testing.assert_array_equal(dequantise(**ours).astype(dtype).astype(jnp.float32), restored.float().numpy())


def test_layers_are_quantised_apart_from_each_other():
    stacked = RANDOM.normal(size=(3, 128, 8)).astype(np.float32)
    together = quantise(jnp.asarray(stacked))
    apart = [quantise(jnp.asarray(layer)) for layer in stacked]
    jax.tree.map(lambda whole, *parts: np.testing.assert_array_equal(whole, np.stack(parts)), together, *apart)


def wide_model(family: str) -> TinyModel:
    """A tiny model all of whose projections take whole blocks of inputs."""
    return tiny_model(family, vocabulary=64, times=4)


def with_rounded_projections(model: TinyModel) -> Any:
    """The torch model, its projections' weights replaced by what bitsandbytes makes of them."""
    with torch.no_grad():
        for name, weight in model.torch_model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.copy_(by_bitsandbytes(weight.numpy().T)[2].T)
    return model.torch_model


def logits(model: TinyModel, params: Any, mesh: Any = None) -> np.ndarray:
    decoder, tokens = Decoder(model.config), RANDOM_TOKENS
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)

    def apply(params: Any) -> jax.Array:
        hidden = decoder.apply({"params": params}, tokens, positions, np.ones_like(tokens)).hidden
        return decoder.apply({"params": params}, hidden, method="logits")

    if mesh is None:
        return np.asarray(jax.jit(apply)(params))
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(apply, in_shardings=(param_shardings(params, mesh),))(params))


RANDOM_TOKENS = np.random.default_rng(1).integers(0, 64, (8, 9), dtype=np.int32)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
def test_a_model_computes_with_the_rounded_weights(family: str):
    model = wide_model(family)
    exact = logits(model, model.params)
    quantised = quantise_params(model.params, make_mesh(8, 1, 1))
    ours = logits(model, quantised)
    with torch.no_grad():
        expected = with_rounded_projections(model)(torch.from_numpy(RANDOM_TOKENS).long()).logits.numpy()
    # Float32 through a few layers; rounding the weights itself moves logits a thousand times as far.
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert np.abs(ours - exact).max() > 1e-2


def test_only_projections_are_quantised_and_take_four_and_a_half_bits():
    model = wide_model("qwen2")
    quantised = quantise_params(model.params, make_mesh(8, 1, 1))
    rest = {name: leaf for name, leaf in quantised.items() if name != "layers"}
    jax.tree.map(np.testing.assert_array_equal, rest, {name: model.params[name] for name in rest})
    for module in ("self_attn", "mlp"):
        for name in [name for name in model.params["layers"][module] if name.endswith("_proj")]:
            before, after = (tree["layers"][module][name] for tree in (model.params, quantised))
            assert {"codes", "absmax"} == after.keys() - before.keys()
            bits = 8 * (after["codes"].nbytes + after["absmax"].nbytes)
            assert bits == 4.5 * before["kernel"].size
    for name in ("q_proj", "k_proj"):
        biases = (tree["layers"]["self_attn"][name]["bias"] for tree in (model.params, quantised))
        np.testing.assert_array_equal(*biases)


def test_a_mesh_changes_nothing():
    model = wide_model("llama")
    one = logits(model, quantise_params(model.params, make_mesh(8, 1, 1)))
    mesh = make_mesh(2, 2, 2)
    placed = jax.device_put(model.params, param_shardings(model.params, mesh))
    # Float32 sums in another order.
    np.testing.assert_allclose(logits(model, quantise_params(placed, mesh), mesh), one, atol=2e-5)


def test_inputs_that_are_no_whole_blocks_are_refused():
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"layers/self_attn/[qkvo]_proj: nf4 .* 32 is no multiple"):
        quantise_params(model.params, make_mesh(8, 1, 1))
