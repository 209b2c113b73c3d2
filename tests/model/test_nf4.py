"""4-bit weights against bitsandbytes on the CPU."""

from typing import Any

import bitsandbytes.functional
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.model.quantised import NF4_LEVELS, dequantise_nf4, quantise_nf4

RANDOM = np.random.default_rng(0)
HALVES = (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) / 2

KERNELS = {
    "normal": RANDOM.normal(size=(192, 24)),
    "heavy tails": RANDOM.standard_t(2, size=(128, 16)),
    "tiny and huge": RANDOM.normal(size=(64, 32)) * 10.0 ** RANDOM.integers(-30, 30, (1, 32)),
    "zeros": np.zeros((128, 2)),
    "some blocks of zeros": RANDOM.normal(size=(128, 8)) * (np.arange(128)[:, None] < 64),
    "half-way between levels": np.resize([1.0, *HALVES, *NF4_LEVELS, *np.nextafter(HALVES, 1)], (128, 6)),
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
    ours = jax.jit(quantise_nf4)(kernel)
    packed = np.asarray(ours["codes"]).reshape(-1, 32, kernel.shape[1])  # of each block, inputs i and i + 32 a byte
    np.testing.assert_array_equal(np.concatenate([packed >> 4, packed & 15], axis=1).reshape(kernel.shape), codes)
    np.testing.assert_array_equal(ours["absmax"], absmax)
    np.testing.assert_array_equal(jax.jit(dequantise_nf4)(**ours), restored.numpy())


@pytest.mark.parametrize(("dtype", "torch_dtype"), [(jnp.bfloat16, torch.bfloat16), (jnp.float16, torch.float16)])
def test_weights_of_16_bits(dtype, torch_dtype):
    kernel = KERNELS["normal"].astype(np.float32)
    _, absmax, restored = by_bitsandbytes(kernel, torch_dtype)
    ours = quantise_nf4(jnp.asarray(kernel).astype(dtype))
    np.testing.assert_array_equal(ours["absmax"], absmax)
    # Both round the float32 product of level and scale to the compute type.
    np.testing.assert_array_equal(dequantise_nf4(**ours).astype(dtype).astype(jnp.float32), restored.float().numpy())


def test_layers_are_quantised_apart_from_each_other():
    stacked = RANDOM.normal(size=(3, 128, 8)).astype(np.float32)
    together = quantise_nf4(jnp.asarray(stacked))
    apart = [quantise_nf4(jnp.asarray(layer)) for layer in stacked]
    jax.tree.map(lambda whole, *parts: np.testing.assert_array_equal(whole, np.stack(parts)), together, *apart)
