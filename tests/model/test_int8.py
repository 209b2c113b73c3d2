"""8-bit weights against a computation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.model.quantised import dequantise_int8, quantise_int8

RANDOM = np.random.default_rng(0)

KERNELS = {
    "normal": RANDOM.normal(size=(192, 24)),
    "heavy tails": RANDOM.standard_t(2, size=(128, 16)),
    "tiny and huge": RANDOM.normal(size=(64, 32)) * 10.0 ** RANDOM.integers(-30, 30, (1, 32)),
    "some outputs of zeros": RANDOM.normal(size=(128, 8)) * (np.arange(8) < 5),
    "one input": RANDOM.normal(size=(1, 8)),
}
with_every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


@with_every_kernel
def test_codes_are_the_nearest_multiples(kernel: np.ndarray):
    kernel = kernel.astype(np.float32)
    absmax = np.abs(kernel).max(axis=0, keepdims=True)
    exact = kernel.astype(np.float64) * 127 / np.where(absmax > 0, absmax, 1)
    ours = jax.jit(quantise_int8)(kernel)
    np.testing.assert_array_equal(ours["absmax"], absmax)
    codes = np.asarray(ours["codes"])
    assert codes.dtype == np.int8 and codes.shape == kernel.shape
    # Float32 cannot tell which of two is nearer within 127 roundings of half-way; elsewhere every code is exact.
    assert np.abs(codes - exact).max() <= 0.5 + 127 * 2**-23
    decided = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) > 127 * 2**-23
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(codes[decided], np.rint(exact)[decided])


@with_every_kernel
def test_what_codes_stand_for(kernel: np.ndarray):
    stored = jax.jit(quantise_int8)(kernel.astype(np.float32))
    restored = jax.jit(dequantise_int8)(**stored)
    assert restored.dtype == jnp.float32
    # Two roundings of float32.
    exact = np.asarray(stored["codes"], np.float64) * np.asarray(stored["absmax"], np.float64) / 127
    np.testing.assert_allclose(restored, exact, rtol=2**-22)
    # The largest magnitude of each output comes back, with its sign; any other weight within half a step.
    steps = np.asarray(stored["absmax"]) / 127
    assert (np.abs(restored - kernel) <= np.broadcast_to(0.5001 * steps, kernel.shape)).all()


def test_layers_are_quantised_apart_from_each_other():
    stacked = RANDOM.normal(size=(3, 128, 8)).astype(np.float32)
    together = quantise_int8(jnp.asarray(stacked))
    apart = [quantise_int8(jnp.asarray(layer)) for layer in stacked]
    jax.tree.map(lambda whole, *parts: np.testing.assert_array_equal(whole, np.stack(parts)), together, *apart)
