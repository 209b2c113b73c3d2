from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.batches import Batch, TokenisedPairs, training_plan
from jaxalign.errors import InputError
from jaxalign.model.transformer import Decoder
from jaxalign.training.step import place_batch
from tests.defaults import base_layout, base_optimizer, base_step
from tests.model.tiny_models import tiny_case
from tests.training.tiny_runs import LORA, TinyRun, mesh_of, random_adapter, tiny_plan, tiny_run

OPTIMIZER = base_optimizer(learning_rate=1e-2)


def loss_and_gradients(run: TinyRun) -> Any:
    """Of the mean over the target tokens of the first batch."""

    def loss(trainable):
        total, count = run.loss_sums(run.frozen | trainable, run.plan.rows_at(0))
        return total / count

    return jax.jit(jax.value_and_grad(loss))(run.state.trainable)


@pytest.mark.parametrize("case", [pytest.param("llama_gqa_llama3_rope", marks=pytest.mark.slow), "gemma3_text"])
def test_packing_changes_neither_loss_nor_gradients(case):
    model = tiny_case(case)
    alone, packed = tiny_plan(1, packed=False), tiny_plan(1, packed=True)
    assert packed.rows_per_step < alone.rows_per_step and max(len(row) for row in packed.rows[0]) > 2
    results = [loss_and_gradients(tiny_run(model, plan, OPTIMIZER)) for plan in (alone, packed)]
    # Gradients are of the order of 1; the sums run in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *results)


def test_no_pair_of_a_row_sees_another():
    model = tiny_case("gemma3_text")
    decoder = Decoder(model.config, LORA)
    collections = {"params": model.params, "lora": random_adapter(model.config)}
    batch = tiny_plan(1, packed=True).rows_at(0)

    @jax.jit
    def hidden(tokens):
        output: Any = decoder.apply(collections, tokens, batch.positions, batch.segment_ids)
        return output.hidden

    before = np.asarray(hidden(batch.tokens))
    for segment in (1, 2, 3):
        inside = batch.segment_ids == segment
        after = np.asarray(hidden(np.where(inside, (batch.tokens + 7) % 61, batch.tokens)))
        changed = np.any(before != after, axis=-1)
        assert changed[inside].all()
        assert not changed[(batch.segment_ids != segment) & (batch.segment_ids != 0)].any()


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 2, 2)])
def test_eight_devices_train_as_one(shape):
    # A vocabulary that divides, as the tensor axis needs.
    config = replace(tiny_case("qwen2").config, vocab_size=64)
    one = jnp.ones((1, 1), jnp.int32)
    params = Decoder(config).init(jax.random.key(0), one, one, one)["params"]
    model = SimpleNamespace(config=config, params=params)
    plan = tiny_plan(6, packed=False, accumulation=2, row_multiple=4)
    courses = [
        tiny_run(model, plan, OPTIMIZER, mesh=mesh, step_config=base_step(accumulation=2)).go()
        for mesh in (mesh_of(), mesh_of(*shape))
    ]
    # One sum of float32 terms, split over devices.
    np.testing.assert_allclose(courses[1].losses, courses[0].losses, atol=1e-5, rtol=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), courses[1].trained, courses[0].trained)
    assert courses[0].losses[0] - courses[0].losses[-1] > 0.05


def test_state_lies_on_the_mesh_by_the_table():
    run = tiny_run(tiny_case("qwen2"), tiny_plan(1), OPTIMIZER, mesh=mesh_of(2, 4, 1))
    adapter = run.state.trainable["lora"]["layers"]["self_attn"]["q_proj"]["lora_a"]
    assert adapter.sharding.shard_shape(adapter.shape)[1] == adapter.shape[1] // 4
    moments = run.state.opt_state[1][0].mu["lora"]["layers"]["self_attn"]["q_proj"]["lora_a"]
    assert moments.sharding == adapter.sharding


def test_accumulation_changes_nothing_under_token_mean():
    model = tiny_case("llama_gqa_llama3_rope")
    plan = tiny_plan(4, packed=False, accumulation=4)
    whole, parts = (tiny_run(model, plan, OPTIMIZER, step_config=base_step(a)).go() for a in (1, 4))
    np.testing.assert_allclose(parts.losses, whole.losses, atol=1e-5, rtol=0)
    np.testing.assert_allclose(parts.gradient_norms, whole.gradient_norms, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["token_mean", "micro_batch_mean"])
@pytest.mark.parametrize("shape", [pytest.param((1, 1, 1), marks=pytest.mark.slow), (1, 2, 1)])
def test_rows_at_once_change_nothing(reduction, shape):
    model = tiny_case("llama_gqa_llama3_rope")
    plan = tiny_plan(4, accumulation=2, row_multiple=2, rows_at_once=1)
    assert any(not row for step in plan.rows for row in step), "some blocks are empty"
    whole, by_row = (
        tiny_run(model, plan, OPTIMIZER, mesh=mesh, step_config=base_step(2, reduction, rows_at_once=rows)).go()
        for mesh, rows in ((mesh_of(), 0), (mesh_of(*shape), 1))
    )
    np.testing.assert_allclose(by_row.losses, whole.losses, atol=1e-5, rtol=0)
    np.testing.assert_allclose(by_row.gradient_norms, whole.gradient_norms, rtol=1e-5)
    assert by_row.tokens == whole.tokens


def test_empty_rows_are_passed_over():
    """What only filler rows hold, the padding's embedding, is not computed with."""
    model = tiny_case("llama_gqa_llama3_rope")
    pairs = TokenisedPairs(np.arange(1, 61, dtype=np.int32), np.arange(0, 61, 6), np.full(10, 3))
    layout = base_layout(pairs_per_step=5, packed=False, row_multiple=8)
    plan = training_plan(pairs, layout, epochs=1, steps=1, seed=0)
    plan = replace(plan, length=5)  # as long as every pair: no padding beside them
    table = model.params["embed_tokens"]["embedding"].at[0].set(jnp.nan)
    params = {**model.params, "embed_tokens": {"embedding": table}}
    model = SimpleNamespace(config=model.config, params=params)
    losses = [
        tiny_run(model, plan, OPTIMIZER, step_config=base_step(rows_at_once=rows)).go().gradient_norms[0]
        for rows in (1, 0)
    ]
    assert np.isfinite(losses[0]) and np.isnan(losses[1])


def test_filler_micro_batches_do_not_count():
    """The mean over micro-batches is one over those that hold a target."""
    plan = tiny_plan(1, packed=False, accumulation=4)
    batch = plan.rows_at(0)
    batch.loss_mask[12:] = False
    run = tiny_run(tiny_case("qwen2"), plan, OPTIMIZER, step_config=base_step(4, "micro_batch_mean"))
    sums = [run.eval_loss(run.state.trainable, run.frozen, Batch(*(x[i : i + 4] for x in batch))) for i in (0, 4, 8)]
    means = [float(total) / float(count) for total, count in sums]
    _, metrics = run.step(run.state, run.frozen, place_batch(batch, run.shardings.batch))
    assert np.ptp(means) > 0.01
    np.testing.assert_allclose(metrics.loss, np.mean(means), rtol=1e-5)
    assert metrics.tokens.item() == batch.loss_mask.sum()


def test_step_compiles_once():
    run = tiny_run(tiny_case("qwen2"), tiny_plan(5, packed=True, accumulation=2), OPTIMIZER)
    traces = []
    for number in range(run.plan.steps):
        run.state, _ = run.step(run.state, run.frozen, place_batch(run.plan.rows_at(number), run.shardings.batch))
        traces.append(run.traces)
    assert traces[0] > 0 and set(traces) == {traces[0]}


def test_first_update_of_a_warm_up_moves_nothing_and_base_is_untouched():
    model = tiny_case("qwen2")
    run = tiny_run(model, tiny_plan(10), OPTIMIZER)
    base, start = jax.tree.map(np.copy, model.params), jax.device_get(run.state.trainable)
    batch = place_batch(run.plan.rows_at(0), run.shardings.batch)
    run.state, metrics = run.step(run.state, run.frozen, batch)
    assert metrics.learning_rate.item() == 0 and metrics.gradient_norm.item() > 0 and run.state.step.item() == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.trainable), start)
    run.state, _ = run.step(run.state, run.frozen, batch)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (run.state.trainable, start)), strict=True))
    jax.tree.map(np.testing.assert_array_equal, run.frozen["params"], base)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="reduction"):
        base_step(reduction="mean")  # pyright: ignore[reportArgumentType]: the point of the test
    with pytest.raises(InputError, match="rows_at_once=-1"):
        base_step(rows_at_once=-1)
