"""transformers + peft tuning an adapter: the study's recipe, and settings that are faster. Imports no jax.

All settings minimise the same loss, the mean over the target tokens of a step (transformers' own since 4.46), with the
study's optimizer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from workers import torch_model

IGNORED = -100
"""The label that transformers' loss passes over."""

Pair = tuple[list[int], int]
"""Its ids, and how many of them are the prompt's."""

Run = Callable[[int], tuple[list[float], list[float]]]
"""Steps to make from the start -> their losses (nats, mean over a step's targets) and gradient norms."""


@dataclass(frozen=True)
class Setting:
    """How the pairs of a step meet the model; attention is transformers' default, sdpa."""

    pairs: int
    """Of a forward pass; the gradients of a step's passes are summed."""
    arranged: Literal["as drawn", "by length", "packed"]
    """Padded on the right to a multiple of 8, in the plan's order or sorted by length; or one behind the other in one
    row, where transformers tells them apart by their positions."""
    study: bool = False
    """Gradient checkpointing, and logits at all positions with transformers' loss; else no checkpointing, and the head
    at target positions alone."""


SETTINGS = {"study": Setting(4, "as drawn", study=True)} | {
    f"{arranged} {pairs}": Setting(pairs, arranged) for arranged in ("by length", "packed") for pairs in (2, 4, 8, 16)
}


@dataclass(frozen=True)
class Micro:
    """A forward pass: torch int64 arrays [rows, T]. `labels` are those of transformers: each id's own, or IGNORED."""

    tokens: Any
    positions: Any
    labels: Any
    attention_mask: Any
    """None where pairs share a row."""


def micro_batches(pairs: Sequence[Pair], setting: Setting) -> list[Micro]:
    """A step's forward passes."""
    ordered = pairs if setting.arranged == "as drawn" else sorted(pairs, key=lambda pair: len(pair[0]))
    groups = [ordered[i : i + setting.pairs] for i in range(0, len(ordered), setting.pairs)]
    return [packed(group) if setting.arranged == "packed" else padded(group) for group in groups]


def packed(group: Sequence[Pair]) -> Micro:
    import torch

    tokens = [token for ids, _ in group for token in ids]
    labels = [label for ids, prompt in group for label in [IGNORED] * prompt + ids[prompt:]]
    positions = [position for ids, _ in group for position in range(len(ids))]
    return Micro(torch.tensor([tokens]), torch.tensor([positions]), torch.tensor([labels]), None)


def padded(group: Sequence[Pair]) -> Micro:
    import torch

    width = -(-max(len(ids) for ids, _ in group) // 8) * 8
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group])
    labels = [[IGNORED] * prompt + ids[prompt:] + [IGNORED] * (width - len(ids)) for ids, prompt in group]
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in group])
    return Micro(tokens, torch.arange(width).expand(len(group), width), torch.tensor(labels), mask)


def adapted_model(folder: Path, work: dict[str, Any], setting: Setting, threads: int) -> tuple[Any, Any]:
    """The model with peft's adapter, and its factors by their paths in our tree (torch's are [out, in])."""
    import peft

    keys = work["lora"]
    config = peft.LoraConfig(r=keys["rank"], lora_alpha=keys["alpha"], target_modules=keys["targets"])
    model: Any = peft.get_peft_model(torch_model(folder, threads), config).train()
    if setting.study:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    factors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            _, module, target, factor = name.removesuffix(".default.weight").rsplit(".", 3)
            factors.setdefault(f"{module}/{target}/{factor.lower()}", []).append(parameter)
    return model, factors


def peer(folder: Path, work: dict[str, Any], start: dict[str, np.ndarray], way: str, threads: int) -> Run:
    """One setting's run. `start`: the adapter that every run begins with, [L, in, r] and [L, r, out]."""
    import torch
    from transformers.optimization import get_cosine_schedule_with_warmup

    setting = SETTINGS[way]
    model, factors = adapted_model(folder, work, setting, threads)
    parameters = [parameter for layers in factors.values() for parameter in layers]
    keys = work["optimizer"]

    def run(steps: int) -> tuple[list[float], list[float]]:
        with torch.no_grad():
            for name, layers in factors.items():
                for parameter, value in zip(layers, start[name], strict=True):
                    parameter.copy_(torch.from_numpy(value.T))
        optimizer = torch.optim.AdamW(
            parameters,
            lr=keys["learning_rate"],
            betas=(keys["b1"], keys["b2"]),
            eps=keys["eps"],
            weight_decay=keys["weight_decay"],
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, work["warmup_steps"], len(work["steps"]))
        losses, norms = [], []
        for pairs in work["steps"][:steps]:
            targets = sum(len(ids) - prompt for ids, prompt in pairs)
            loss = 0.0
            for micro in micro_batches(pairs, setting):
                part = mean_nats(model, micro, targets, setting)
                part.backward()
                loss += part.item()
            losses.append(loss)
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, keys["clip_norm"])))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return losses, norms

    return run


def mean_nats(model: Any, micro: Micro, targets: int, setting: Setting) -> Any:
    """The part of a step's loss that this forward pass adds: its cross-entropies over all `targets` of the step."""
    import torch

    inputs = {"input_ids": micro.tokens, "attention_mask": micro.attention_mask, "use_cache": False}
    if setting.study:
        return model(**inputs, labels=micro.labels, num_items_in_batch=targets).loss
    causal = model.get_base_model()
    labels = micro.labels[:, 1:]
    is_target = labels != IGNORED
    hidden = causal.model(**inputs, position_ids=micro.positions).last_hidden_state[:, :-1]
    logits = causal.lm_head(hidden[is_target])
    return torch.nn.functional.cross_entropy(logits, labels[is_target], reduction="sum") / targets


def peer_computes(work: dict[str, Any], way: str) -> dict[str, Any]:
    """What a turn computes: the length of each row, and how many positions meet the head."""
    setting = SETTINGS[way]
    micros = [micro for pairs in work["steps"] for micro in micro_batches(pairs, setting)]
    return {
        "rows": [length for micro in micros for length in [micro.tokens.shape[1]] * micro.tokens.shape[0]],
        "head_positions": sum(
            int(micro.tokens.numel() if setting.study else (micro.labels != IGNORED).sum()) for micro in micros
        ),
        "recomputed": setting.study,
    }


def product_flops_per_second() -> float:
    """What this process's threads reach in a large float32 matrix product."""
    import torch

    size, seconds = 2048, []
    left, right = torch.randn(size, size), torch.randn(size, size)
    for _ in range(10):
        begun = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)
