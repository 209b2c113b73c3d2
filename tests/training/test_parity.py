"""Whole training runs against transformers, peft and torch: same model, same adapter, same batches."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from transformers.optimization import get_cosine_schedule_with_warmup

from jaxalign.data.batches import Batch, BatchPlan
from jaxalign.model.lora import LoraConfig
from jaxalign.model.transformer import Decoder
from tests.defaults import base_optimizer, base_step
from tests.model.tiny_models import TinyModel, numpy_of, params_of, tiny_case
from tests.training.tiny_runs import LORA, Course, TinyRun, random_adapter, tiny_plan, tiny_run

STEPS = 30
WARMUP_STEPS = 3
ACCUMULATION = 4
OPTIMIZER = base_optimizer(learning_rate=1e-2, warmup_fraction=0.1, weight_decay=0.01, clip_norm=1.0)


def micro_batches(batch: Batch) -> list[Batch]:
    """The step's micro-batches, in order."""
    return [Batch(*arrays) for arrays in zip(*(np.split(x, ACCUMULATION) for x in batch), strict=True)]


def nats_in_torch(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropies of a batch with one pair a row, 0 where there is no target; float32 [B * T]."""
    ids, attention_mask = (torch.tensor(array, dtype=torch.long) for array in (batch.tokens, batch.segment_ids))
    targets = torch.tensor(np.where(batch.loss_mask, batch.targets, -100), dtype=torch.long)
    logits = model(input_ids=ids, attention_mask=attention_mask).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


def train_in_torch(model: Any, parameters: list[torch.nn.Parameter], plan: BatchPlan, reduction: str) -> Course:
    """AdamW with clipping and the Trainer's schedule; `trained` is left to the caller."""
    optimizer = torch.optim.AdamW(parameters, lr=OPTIMIZER.learning_rate, weight_decay=OPTIMIZER.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, plan.steps)
    losses, norms, tokens = [], [], []
    for step in range(plan.steps):
        batch = plan.rows_at(step)
        total = 0.0
        for micro in micro_batches(batch):
            divisor = batch.loss_mask.sum() if reduction == "token_mean" else ACCUMULATION * micro.loss_mask.sum()
            loss = nats_in_torch(model, micro).sum() / float(divisor)
            loss.backward()
            total += loss.item()
        losses.append(total)
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_norm)))
        tokens.append(float(batch.loss_mask.sum()))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return Course(losses, norms, tokens, None)


TORCH_NAMES = {"lora_a": "lora_A", "lora_b": "lora_B", "magnitude": "lora_magnitude_vector"}


class TorchAdapter:
    """PEFT adapters on a model, read and written as our tree; torch's layout is [out, in] layer by layer."""

    def __init__(self, model: TinyModel, tree: Any, lora: LoraConfig):
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]: its annotation wants int, its code divides
            target_modules=list(lora.targets),
            use_dora=lora.dora,
        )
        self.model = peft.get_peft_model(model.torch_model, config).eval()
        self._like = tree
        layers: Any = self.model.get_submodule("base_model.model.model.layers")
        self.factors = {
            (target, name, layer): getattr(getattr(layers[layer].self_attn, target), TORCH_NAMES[name])[
                "default"
            ].weight
            for target, factors in tree["layers"]["self_attn"].items()
            for name in factors
            for layer in range(model.config.layers)
        }
        with torch.no_grad():
            for (target, name, layer), weight in self.factors.items():
                weight.copy_(torch.tensor(tree["layers"]["self_attn"][target][name][layer].T))

    def tree(self) -> Any:
        tree = jax.tree.map(np.empty_like, self._like)
        for (target, name, layer), weight in self.factors.items():
            tree["layers"]["self_attn"][target][name][layer] = numpy_of(weight).T
        return tree


def distance(tree: Any, other: Any) -> float:
    """The norm of the difference of two trees."""
    squares = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), tree, other)
    return float(np.sqrt(sum(jax.tree.leaves(squares))))


def check_same_course(ours: Course, theirs: Course) -> None:
    # float32 sums in another order, fed back through 30 updates at a high learning rate.
    np.testing.assert_allclose(ours.losses, theirs.losses, atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours.gradient_norms, theirs.gradient_norms, rtol=1e-3)
    assert ours.tokens == theirs.tokens
    # The run is a demanding one: it clips some steps and not others, and learns.
    clipped = np.array(theirs.gradient_norms) > OPTIMIZER.clip_norm
    assert clipped.any() and not clipped.all()
    assert theirs.losses[-1] < theirs.losses[0] - 0.3


@pytest.mark.parametrize(
    ("case", "lora", "reduction"),
    [
        ("llama_gqa_llama3_rope", LORA, "token_mean"),
        pytest.param("llama_gqa_llama3_rope", LORA, "micro_batch_mean", marks=pytest.mark.slow),
        pytest.param("llama_gqa_llama3_rope", replace(LORA, dora=True), "token_mean", marks=pytest.mark.slow),
        pytest.param("gemma3_text", LORA, "token_mean", marks=pytest.mark.slow),
        ("gemma3_text", LORA, "micro_batch_mean"),
    ],
    ids=["llama", "llama, micro-batches", "llama with DoRA", "gemma", "gemma, micro-batches"],
)
def test_tuning_adapters_is_that_of_peft(case, lora, reduction):
    model = tiny_case(case)
    plan = tiny_plan(STEPS, accumulation=ACCUMULATION, packed=False)
    start = random_adapter(model.config, lora, model.params)
    ours = tiny_run(model, plan, OPTIMIZER, lora, step_config=base_step(ACCUMULATION, reduction)).go()
    adapter = TorchAdapter(model, start, lora)
    theirs = train_in_torch(adapter.model, list(adapter.factors.values()), plan, reduction)

    check_same_course(ours, theirs)
    moved = distance(adapter.tree(), start)
    if not lora.dora:  # magnitudes begin as norms of the weights, large beside what they move
        assert moved > 0.5 * distance(start, jax.tree.map(np.zeros_like, start))
    assert distance(ours.trained["lora"], adapter.tree()) < 1e-3 * moved


def test_tuning_all_parameters_is_that_of_torch():
    model = tiny_case("qwen2_tied")
    plan = tiny_plan(STEPS, accumulation=ACCUMULATION, packed=False)
    ours = TinyRun(
        Decoder(model.config), {}, {"params": model.params}, plan, OPTIMIZER, step_config=base_step(ACCUMULATION)
    ).go()
    theirs = train_in_torch(model.torch_model, list(model.torch_model.parameters()), plan, "token_mean")

    np.testing.assert_allclose(ours.losses, theirs.losses, atol=1e-4, rtol=0)
    trained = params_of(model.torch_model.state_dict(), model.config)
    moved = distance(trained, model.params)
    assert distance(ours.trained["params"], trained) < 1e-3 * moved
