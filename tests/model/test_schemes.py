"""Weights in 8 and in 4 bits: against a computation in NumPy, and against bitsandbytes on the CPU."""

from typing import Any

import bitsandbytes.functional
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.model.quantised import NF4_LEVELS, SCHEMES

RANDOM = np.random.default_rng(0)
HALVES = (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) / 2
COMMON = {
    "normal": RANDOM.normal(size=(192, 24)),
    "heavy tails": RANDOM.standard_t(2, size=(128, 16)),
    "tiny and huge": RANDOM.normal(size=(64, 32)) * 10.0 ** RANDOM.integers(-30, 30, (1, 32)),
}
FOR_INT8 = COMMON | {
    "some outputs of zeros": RANDOM.normal(size=(128, 8)) * (np.arange(8) < 5),
    "one input": RANDOM.normal(size=(1, 8)),
}
FOR_NF4 = COMMON | {
    "zeros": np.zeros((128, 2)),
    "some blocks of zeros": RANDOM.normal(size=(128, 8)) * (np.arange(128)[:, None] < 64),
    "half-way between levels": np.resize([1.0, *HALVES, *NF4_LEVELS, *np.nextafter(HALVES, 1)], (128, 6)),
}
INT8, NF4 = SCHEMES["int8"], SCHEMES["nf4"]


@pytest.mark.parametrize("kernel", FOR_INT8.values(), ids=FOR_INT8.keys())
def test_int8_codes_are_the_nearest_multiples_and_stand_for_them(kernel: np.ndarray):
    kernel = kernel.astype(np.float32)
    absmax = np.abs(kernel).max(axis=0, keepdims=True)
    exact = kernel.astype(np.float64) * 127 / np.where(absmax > 0, absmax, 1)
    ours = jax.jit(INT8.quantise)(kernel)
    np.testing.assert_array_equal(ours["absmax"], absmax)
    codes = np.asarray(ours["codes"])
    assert codes.dtype == np.int8 and codes.shape == kernel.shape
    # Float32 cannot tell which of two is nearer within 127 roundings of half-way; elsewhere every code is exact.
    assert np.abs(codes - exact).max() <= 0.5 + 127 * 2**-23
    decided = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) > 127 * 2**-23
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(codes[decided], np.rint(exact)[decided])

    restored = jax.jit(INT8.dequantise)(**ours)
    assert restored.dtype == jnp.float32
    # Two roundings of float32.
    exact = np.asarray(ours["codes"], np.float64) * np.asarray(ours["absmax"], np.float64) / 127
    np.testing.assert_allclose(restored, exact, rtol=2**-22)
    # The largest magnitude of each output comes back, with its sign; any other weight within half a step.
    steps = np.asarray(ours["absmax"]) / 127
    assert (np.abs(restored - kernel) <= np.broadcast_to(0.5001 * steps, kernel.shape)).all()


def by_bitsandbytes(kernel: np.ndarray, dtype: torch.dtype = torch.float32) -> tuple[np.ndarray, np.ndarray, Any]:
    """Codes [in, out] 0 to 15, absmax [in/64, out], and what they stand for: torch's weight is [out, in]."""
    weight = torch.from_numpy(np.ascontiguousarray(kernel.T)).to(dtype)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(weight.shape).numpy().T
    restored = bitsandbytes.functional.dequantize_4bit(packed, state)
    return codes, state.absmax.reshape(kernel.shape[1], -1).numpy().T, restored.T


@pytest.mark.parametrize("kernel", FOR_NF4.values(), ids=FOR_NF4.keys())
def test_every_bit_is_that_of_bitsandbytes(kernel: np.ndarray):
    kernel = kernel.astype(np.float32)
    codes, absmax, restored = by_bitsandbytes(kernel)
    ours = jax.jit(NF4.quantise)(kernel)
    packed = np.asarray(ours["codes"]).reshape(-1, 32, kernel.shape[1])  # of each block, inputs i and i + 32 a byte
    np.testing.assert_array_equal(np.concatenate([packed >> 4, packed & 15], axis=1).reshape(kernel.shape), codes)
    np.testing.assert_array_equal(ours["absmax"], absmax)
    np.testing.assert_array_equal(jax.jit(NF4.dequantise)(**ours), restored.numpy())


@pytest.mark.parametrize(("dtype", "torch_dtype"), [(jnp.bfloat16, torch.bfloat16), (jnp.float16, torch.float16)])
def test_weights_of_16_bits(dtype, torch_dtype):
    kernel = FOR_NF4["normal"].astype(np.float32)
    _, absmax, restored = by_bitsandbytes(kernel, torch_dtype)
    ours = NF4.quantise(jnp.asarray(kernel).astype(dtype))
    np.testing.assert_array_equal(ours["absmax"], absmax)
    # Both round the float32 product of level and scale to the compute type.
    np.testing.assert_array_equal(
        NF4.dequantise(ours["codes"], ours["absmax"]).astype(dtype).astype(jnp.float32), restored.float().numpy()
    )


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_layers_are_quantised_apart_from_each_other(scheme):
    stacked = RANDOM.normal(size=(3, 128, 8)).astype(np.float32)
    together = scheme.quantise(jnp.asarray(stacked))
    apart = [scheme.quantise(jnp.asarray(layer)) for layer in stacked]
    jax.tree.map(lambda whole, *parts: np.testing.assert_array_equal(whole, np.stack(parts)), together, *apart)
