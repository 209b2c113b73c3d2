"""The sharding table, and a decoder on a 2 x 2 x 2 mesh against the same on one device."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.model.attention import init_cache
from jaxalign.model.lora import LoraConfig, init_lora, projection_sizes
from jaxalign.model.losses import next_token_loss
from jaxalign.model.sharding import TABLE, batch_spec, param_shardings, param_specs, path_name
from jaxalign.model.transformer import Decoder
from tests.defaults import base_lora
from tests.model.tiny_models import FAMILIES, TinyModel, slow_but, tiny_model

ROWS, LENGTH = 4, 17
# Float32 sums split over devices.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def divisible(family: str) -> tuple[TinyModel, LoraConfig]:
    """A tiny model whose every sharded dimension is even (a vocabulary of 60), with an adapter on all projections."""
    model = tiny_model(family, tied=family == "gemma3_text", vocabulary=60)
    return model, base_lora(4, 8.0, tuple(projection_sizes(model.config)))


def a_batch() -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    tokens, targets = random.integers(0, 60, (2, ROWS, LENGTH), dtype=np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(tokens), targets, random.random((ROWS, LENGTH)) < 0.4


@pytest.mark.parametrize("family", ["gemma3_text", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_a_mesh_changes_no_logits_and_no_gradient(family: str, mesh: Mesh):
    model, lora = divisible(family)
    adapters = init_lora(jax.random.key(0), model.config, lora)
    adapters = jax.tree.map(lambda leaf: leaf + 0.01, adapters)
    decoder = Decoder(model.config, lora, remat="full")

    def loss(adapters, params, tokens, positions, segment_ids, targets, mask):
        def head(states):
            return decoder.apply({"params": params}, states, method="logits")

        hidden = decoder.apply({"params": params, "lora": adapters}, tokens, positions, segment_ids).hidden
        total, count = next_token_loss(head, hidden, targets, mask, targets_per_row=LENGTH, chunk=12)
        return total / count, head(hidden)

    step = jax.value_and_grad(loss, has_aux=True)
    (expected, expected_logits), expected_gradient = jax.jit(step)(adapters, model.params, *a_batch())

    variables = {"params": model.params, "lora": adapters}
    placed = jax.device_put(variables, param_shardings(variables, mesh))
    rows = NamedSharding(mesh, batch_spec())
    layout = (param_shardings(adapters, mesh), param_shardings(model.params, mesh), *[rows] * 5)
    with jax.set_mesh(mesh):
        sharded_step = jax.jit(step, in_shardings=layout).lower(placed["lora"], placed["params"], *a_batch()).compile()
    batch = jax.device_put(a_batch(), rows)
    (value, logits), gradient = sharded_step(placed["lora"], placed["params"], *batch)

    np.testing.assert_allclose(value, expected, rtol=ROUNDING)
    np.testing.assert_allclose(logits, expected_logits, atol=ROUNDING * np.abs(expected_logits).max())
    differences = jax.tree.map(
        lambda ours, other: np.abs(np.asarray(ours) - np.asarray(other)).max() / np.abs(other).max(),
        gradient,
        expected_gradient,
    )
    assert max(jax.tree.leaves(differences)) < ROUNDING


def test_a_device_computes_its_own_rows_only(mesh: Mesh):
    """The residual stream of all rows, or of more than this device's quarter, appears nowhere in the program."""
    model, _ = divisible("llama")
    decoder = Decoder(model.config)
    tokens, positions, segment_ids, *_ = a_batch()
    rows = NamedSharding(mesh, batch_spec())

    def run(params, *inputs):
        return decoder.apply({"params": params}, *inputs).hidden

    layout = (param_shardings(model.params, mesh), rows, rows, rows)
    with jax.set_mesh(mesh):
        lowered = jax.jit(run, in_shardings=layout).lower(model.params, tokens, positions, segment_ids)
    program = lowered.compile().as_text() or ""
    width = model.config.width
    assert f"f32[{ROWS // 4},{LENGTH},{width}]" in program
    assert f"f32[{ROWS},{LENGTH},{width}]" not in program


def test_the_cache_is_sharded_by_rows_and_heads(mesh: Mesh):
    model, _ = divisible("llama")
    cache = init_cache(model.config, ROWS, LENGTH, jnp.float32)
    specs = param_specs({"cache": cache}, mesh)["cache"]
    assert specs.k == specs.v == P(None, ("data", "fsdp"), None, "tensor", None)
    assert specs.positions == specs.segment_ids == batch_spec()
    assert specs.offset == P()

    decoder = Decoder(model.config)
    inputs = a_batch()[:3]
    expected = decoder.apply({"params": model.params}, *inputs).hidden
    placed = jax.device_put({"cache": cache}, param_shardings({"cache": cache}, mesh))["cache"]
    params = jax.device_put(model.params, param_shardings(model.params, mesh))
    with jax.set_mesh(mesh):
        output = jax.jit(lambda params, cache: decoder.apply({"params": params}, *inputs, cache=cache))(params, placed)
    np.testing.assert_allclose(output.hidden, expected, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize("case", slow_but(FAMILIES, "gemma3_text"))
def test_every_parameter_and_adapter_has_exactly_one_row(case: str):
    model, lora = divisible({"llama_gqa_llama3_rope": "llama", "mistral_gqa": "mistral"}.get(case, case))
    variables = {"params": model.params, "lora": init_lora(jax.random.key(0), model.config, lora)}
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        name = path_name(path)
        assert sum(bool(re.search(rf"(^|/){pattern}$", name)) for pattern, _ in TABLE) == 1, name


def test_optimizer_state_follows_its_parameters(mesh: Mesh):
    model, lora = divisible("llama")
    adapters = init_lora(jax.random.key(0), model.config, lora)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3))
    state = optimizer.init(adapters)
    specs = param_specs({"opt_state": state, "step": jnp.zeros((), jnp.int32)}, mesh)
    assert specs["step"] == P()
    adam = specs["opt_state"][1].inner_state[0]
    assert adam.count == P()
    expected = param_specs(adapters, mesh)
    assert jax.tree.leaves(adam.mu) == jax.tree.leaves(adam.nu) == jax.tree.leaves(expected)
    assert adam.mu["layers"]["self_attn"]["q_proj"]["lora_a"] == P(None, "fsdp", None)


def shapes_at(path: str, shape: tuple[int, ...]) -> Any:
    tree: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    for key in reversed(path.split("/")):
        tree = {key: tree}
    return tree


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("layers/self_attn/qkv_proj/kernel", (3, 32, 96), r"layers/self_attn/qkv_proj/kernel \(3, 32, 96\): no row"),
        ("final_norm/scale", (32,), r"final_norm/scale \(32,\): no row"),
        ("lm_head/kernel", (32, 61), r"lm_head/kernel \(32, 61\): size 61 does not divide by mesh axis tensor \(2\)"),
        ("layers/mlp/up_proj/kernel", (32, 48), r"layers/mlp/up_proj/kernel \(32, 48\): .* for 3 dimensions"),
        ("cache/k", (3, 6, 8, 2, 8), r"cache/k .*: size 6 does not divide by mesh axis \('data', 'fsdp'\) \(4\)"),
    ],
)
def test_what_the_table_does_not_fit_is_refused(path: str, shape: tuple[int, ...], message: str, mesh: Mesh):
    with pytest.raises(ValueError, match=message):
        param_specs(shapes_at(path, shape), mesh)
