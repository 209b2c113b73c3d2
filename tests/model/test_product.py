"""The product that reads weights as they are stored, against plain autodiff: gradients, and memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.model import transformer
from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import LoraConfig, lora_shapes, projection_sizes
from jaxalign.model.quantised import SCHEMES, kernel_of, product, quantise_params
from jaxalign.model.quantised import plain_product as plain
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import make_mesh
from tests.defaults import base_lora

F32, BF16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
RANDOM = np.random.default_rng(0)
X, KERNEL, WEIGHTS = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((2, 7, 128), (128, 24), (2, 7, 24)))
TOLERANCE = {F32: 1e-6, BF16: 2**-8}
"""Of the largest: sums in another order; or one rounding of the result to bfloat16."""


def gradients(multiply: Any, x: Any, stored: Any, dtype: Any) -> Any:
    """The value of a loss, and its gradients of x and of the floating leaves of `stored`."""

    @jax.jit
    def value_and_gradients(x: jax.Array, stored: Any) -> Any:
        def loss(x: jax.Array, floats: Any) -> jax.Array:
            y = multiply(x, stored | floats, dtype)
            return jnp.sum(jnp.asarray(WEIGHTS) * jnp.tanh(y.astype(jnp.float32)))

        floats = {name: leaf for name, leaf in stored.items() if name == "kernel"}
        return jax.value_and_grad(loss, argnums=(0, 1))(x, floats)

    return value_and_gradients(jnp.asarray(x, dtype), stored)


def far(ours: jax.Array, reference: Any) -> float:
    """The largest difference over the largest magnitude."""
    wanted = np.asarray(reference, np.float64)
    return float(np.abs(np.asarray(ours, np.float64) - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("stored_as", [F32, BF16])
def test_value_and_gradients_are_those_of_autodiff(stored_as: Any, dtype: Any):
    stored = {"kernel": jnp.asarray(KERNEL, stored_as)}
    ours, theirs = (gradients(multiply, X, stored, dtype) for multiply in (product, plain))
    assert ours[0] == theirs[0]
    (of_x, of_kernel), (x_expected, kernel_expected) = ours[1], theirs[1]
    assert of_x.dtype == dtype and of_kernel["kernel"].dtype == stored_as
    assert far(of_x, x_expected) < TOLERANCE[dtype]
    coarser = BF16 if BF16 in (dtype, stored_as) else F32
    assert far(of_kernel["kernel"], kernel_expected["kernel"]) < TOLERANCE[coarser]


def test_a_float32_kernel_has_a_gradient_that_was_never_bfloat16():
    stored = {"kernel": jnp.asarray(KERNEL)}
    of_kernel, by_autodiff = (gradients(multiply, X, stored, BF16)[1][1]["kernel"] for multiply in (product, plain))
    assert np.array_equal(by_autodiff, by_autodiff.astype(BF16).astype(F32))
    assert far(of_kernel, by_autodiff) > 0
    rounding = np.abs(of_kernel - of_kernel.astype(BF16).astype(F32))
    assert (rounding > 0).mean() > 0.9


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantised_weights_pass_the_gradient_on(scheme: str, dtype: Any):
    stored = SCHEMES[scheme].quantise(jnp.asarray(KERNEL))
    ours, theirs = (
        gradients(product, X, stored, dtype),
        gradients(plain, X, {"kernel": kernel_of(stored)}, dtype),
    )
    assert ours[0] == theirs[0]
    assert far(ours[1][0], theirs[1][0]) < TOLERANCE[dtype]


def test_a_frozen_kernel_costs_no_gradient():
    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, {"kernel": kernel}, F32).sum()

    def products(argnums: Any) -> int:
        return str(jax.make_jaxpr(jax.grad(loss, argnums=argnums))(X, KERNEL)).count("dot_general")

    assert products(0) == 2 and products((0, 1)) == 3


# Memory

CONFIG = ModelConfig(
    family="llama",
    vocab_size=64,
    width=128,
    layers=48,
    heads=4,
    kv_heads=4,
    head_dim=32,
    mlp_dim=256,
    norm_eps=1e-6,
    query_scale=32**-0.5,
    rope_base=1e4,
    tied_head=True,
)
EVERYWHERE = tuple(projection_sizes(CONFIG))
LORA, DORA = (base_lora(2, 4.0, EVERYWHERE, dora=dora) for dora in (False, True))
WEIGHTS_IN_FLOAT32 = 4 * CONFIG.layers * sum(a * b for _, (a, b) in projection_sizes(CONFIG).values())


def backward_memory(stored_as: str, lora: LoraConfig, remat: Any) -> float:
    """Temporaries of the compiled adapter gradient, in copies of all layers' weights in float32."""
    decoder = Decoder(CONFIG, lora, remat=remat)
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(Decoder(CONFIG).init, jax.random.key(0), tokens, tokens, tokens)["params"]
    params = jax.eval_shape(partial(quantise_params, mesh=make_mesh(8, 1, 1), scheme=stored_as), params)

    def loss(adapter: Any, params: Any) -> jax.Array:
        return jnp.square(decoder.apply({"params": params, "lora": adapter}, tokens, tokens, tokens + 1).hidden).sum()

    memory = jax.jit(jax.grad(loss)).lower(lora_shapes(CONFIG, lora), params).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes / WEIGHTS_IN_FLOAT32


# In bfloat16 there is nothing to see here: XLA's CPU compiler widens a stack of it before the loop, whoever asks. For a
# v5e, plain autodiff of bfloat16 weights keeps half a float32 copy, and the product none.
@pytest.mark.parametrize(
    ("stored_as", "lora", "remat"),
    [("int8", LORA, "none"), ("nf4", LORA, "none"), ("int8", DORA, "none"), ("int8", DORA, "dots")],
    ids=["int8", "nf4", "int8 and DoRA", "int8, DoRA and kept products"],
)
def test_the_backward_pass_keeps_no_converted_copy_of_all_layers(stored_as: str, lora: LoraConfig, remat: str):
    # One layer's weights are a forty-eighth; the rest is activations of four positions.
    assert backward_memory(stored_as, lora, remat) < 0.25


def test_autodiff_would_keep_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformer, "product", plain)
    assert backward_memory("int8", LORA, "none") > 1
