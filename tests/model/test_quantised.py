"""Models whose projections are kept in 8 or 4 bits, against torch and against themselves dequantised."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.model.lora import LoraConfig, init_lora, projection_sizes
from jaxalign.model.quantised import kernel_of, quantise_params
from jaxalign.model.sharding import param_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import make_mesh
from tests.defaults import base_optimizer
from tests.model.test_schemes import by_bitsandbytes
from tests.model.tiny_inputs import logits_of, plain, torch_logits
from tests.model.tiny_models import TinyModel, slow_but, tiny_model
from tests.training.tiny_runs import LORA, TinyRun, mesh_of, random_adapter, tiny_plan

SCHEMES = ("int8", "nf4")
EVERYWHERE = tuple(projection_sizes(tiny_model("llama").config))
TOKENS = np.random.default_rng(1).integers(0, 64, (8, 9), dtype=np.int32)


def wide_model(family: str) -> TinyModel:
    """A tiny model all of whose projections take whole blocks of inputs."""
    return tiny_model(family, vocabulary=64, times=4)


def quantised(model: TinyModel, scheme: str) -> Any:
    return quantise_params(model.params, mesh_of(), scheme)


def rounded(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    """What a scheme makes of a weight [out, in], by bitsandbytes or by hand."""
    if scheme == "nf4":
        return by_bitsandbytes(weight.numpy().T)[2].T
    largest = weight.abs().amax(dim=1, keepdim=True)
    # Of two tensors: a number over a tensor is a product with its reciprocal in torch, and rounded otherwise.
    return (weight * (torch.tensor(127.0) / largest)).round() * (largest / 127)


def with_rounded_projections(model: TinyModel, scheme: str) -> Any:
    """The torch model, its projections' weights replaced by their rounded ones."""
    with torch.no_grad():
        for name, weight in model.torch_model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.copy_(rounded(weight, scheme))
    return model.torch_model


def logits(model: TinyModel, params: Any, mesh: Any = None) -> np.ndarray:
    def apply(params: Any) -> jax.Array:
        return logits_of(Decoder(model.config), {"params": params}, *plain(TOKENS))

    if mesh is None:
        return np.asarray(jax.jit(apply)(params))
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(apply, in_shardings=(param_shardings(params, mesh),))(params))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
def test_a_model_computes_with_the_rounded_weights(family: str, scheme: str):
    model = wide_model(family)
    exact = logits(model, model.params)
    ours = logits(model, quantised(model, scheme))
    expected = torch_logits(with_rounded_projections(model, scheme), TOKENS)
    # Float32 through a few layers; rounding the weights itself moves logits five hundred times as far and more.
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert np.abs(ours - exact).max() > 1e-2


def dequantised(params: Any) -> Any:
    """The same weights as float32 kernels."""
    layers = dict(params["layers"])
    for module in ("self_attn", "mlp"):
        layers[module] = {
            name: {"kernel": jax.vmap(kernel_of)({key: leaves[key] for key in ("codes", "absmax")})}
            | {key: leaf for key, leaf in leaves.items() if key == "bias"}
            if "codes" in leaves
            else leaves
            for name, leaves in layers[module].items()
        }
    return {**params, "layers": layers}


@pytest.mark.parametrize("scheme", slow_but([*SCHEMES], "nf4"))
@pytest.mark.parametrize(
    ("family", "dora"),
    [
        pytest.param("qwen2", False, id="qwen2 with LoRA"),
        pytest.param("gemma3_text", True, id="gemma3 with DoRA", marks=pytest.mark.slow),
    ],
)
def test_logits_and_adapter_gradients_are_those_of_the_dequantised_model(family: str, dora: bool, scheme: str):
    model = wide_model(family)
    stored = quantised(model, scheme)
    lora = LoraConfig(4, 8.0, EVERYWHERE, dora=dora)
    adapter = init_lora(jax.random.key(0), model.config, lora, stored)
    adapter = jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapter)

    @jax.jit
    def logits_and_gradients(params: Any) -> tuple[Any, Any]:
        def loss(adapter: Any) -> tuple[jax.Array, jax.Array]:
            logits = logits_of(Decoder(model.config, lora), {"params": params, "lora": adapter}, *plain(TOKENS))
            labels = jnp.asarray(np.roll(TOKENS, -1, axis=1))[:, :, None]
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1).mean(), logits

        gradients, logits = jax.grad(loss, has_aux=True)(adapter)
        return logits, gradients

    (ours, our_gradients), (theirs, their_gradients) = map(logits_and_gradients, (stored, dequantised(stored)))
    # The same float32 numbers in the same order, but for what each program fuses.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for gradient, expected in zip(*map(jax.tree.leaves, (our_gradients, their_gradients)), strict=True):
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(ours - logits_and_gradients(model.params)[0]).max() > 1e-2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_projections_are_quantised_and_to_so_many_bits(scheme: str):
    model = wide_model("qwen2")
    stored = quantised(model, scheme)
    rest = {name: leaf for name, leaf in stored.items() if name != "layers"}
    jax.tree.map(np.testing.assert_array_equal, rest, {name: model.params[name] for name in rest})
    for module in ("self_attn", "mlp"):
        for name in [name for name in model.params["layers"][module] if name.endswith("_proj")]:
            before, after = (tree["layers"][module][name] for tree in (model.params, stored))
            assert {"codes", "absmax"} == after.keys() - before.keys()
            bits = 8 * (after["codes"].nbytes + after["absmax"].nbytes) / before["kernel"].size
            # NF4 has a float32 scale to 64 weights; int8 one to all of an output's.
            assert bits == (4 + 32 / 64 if scheme == "nf4" else 8 + 32 / before["kernel"].shape[1])
    for name in ("q_proj", "k_proj"):
        biases = (tree["layers"]["self_attn"][name]["bias"] for tree in (model.params, stored))
        np.testing.assert_array_equal(*biases)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mesh_changes_nothing(scheme: str):
    model = wide_model("llama")
    one = logits(model, quantised(model, scheme))
    mesh = make_mesh(2, 2, 2)
    placed = jax.device_put(model.params, param_shardings(model.params, mesh))
    # Float32 sums in another order.
    np.testing.assert_allclose(logits(model, quantise_params(placed, mesh, scheme), mesh), one, atol=2e-5)


def test_inputs_that_are_no_whole_blocks_are_refused():
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"layers/(self_attn|mlp)/\w+_proj: nf4 .* (32|48) is no multiple"):
        quantised(model, "nf4")
    quantised(model, "int8")


@pytest.mark.parametrize("stored_as", [*SCHEMES, "bfloat16"])
def test_training_state_is_float32_and_the_base_stays(stored_as: str):
    model = wide_model("llama")
    if stored_as == "bfloat16":
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    else:
        params = quantised(model, stored_as)
    before = jax.tree.map(np.array, params)
    decoder = Decoder(model.config, LORA, dtype=jnp.bfloat16)
    trainable = {"lora": random_adapter(model.config)}
    run = TinyRun(decoder, {"params": params}, trainable, tiny_plan(8), base_optimizer(learning_rate=1e-2))
    course = run.go()
    types = {leaf.dtype for leaf in jax.tree.leaves((run.state.trainable, run.state.opt_state)) if leaf.ndim}
    assert types == {jnp.dtype("float32")}
    assert course.losses[-1] < course.losses[0] - 0.05
    jax.tree.map(np.testing.assert_array_equal, run.frozen["params"], before)
