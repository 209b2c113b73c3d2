"""Floating-point operations of scoring prompts and of training steps, in matrix products alone.

A token costs 2 per weight of a layer's projections. A query that sees a key costs 4 N H per layer: its score, and its
share of the values; on a local layer a query sees `window` keys at most. A position that meets the head costs 2 D V.
Axis letters as in jaxalign/model/transformer.py.

A backward pass costs a product as much again for each factor whose gradient is asked for. Frozen weights have none, so
that of a projection or the head costs as much as the forward pass, that of attention or an adapter twice as much.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import LoraConfig
from jaxalign.planning.flops import adapters, attention, logits, projections


def forward(config: ModelConfig, start: int, end: int) -> int:
    """The layers at positions start to end - 1, keys and values of the earlier ones at hand."""
    seen = np.arange(start, end) + 1
    locally = np.minimum(seen, config.window) if config.window else seen
    local_layers = config.local_layers or (False,) * config.layers
    pairs = sum(int((locally if local else seen).sum()) for local in local_layers)
    return projections(config, end - start) + attention(config, pairs)


def one_at_a_time(config: ModelConfig, lengths: Sequence[int], *, full_logits: bool) -> int:
    """Every prompt whole."""
    return sum(forward(config, 0, length) + logits(config, length if full_logits else 1) for length in lengths)


def behind_a_prefix(config: ModelConfig, prefix: int, lengths: Sequence[int]) -> int:
    """The shared prefix once, what follows it in every prompt, and one position of each at the head."""
    after = sum(forward(config, prefix, length) for length in lengths)
    return forward(config, 0, prefix) + after + logits(config, len(lengths))


def tuning_needs(config: ModelConfig, lora: LoraConfig, lengths: Iterable[int], targets: int) -> int:
    """Forward and backward pass of pairs of these lengths: no padding, no recomputation, `targets` at the head."""
    lengths = list(lengths)
    of_layers = sum(forward(config, 0, length) for length in lengths)
    of_projections = projections(config, sum(lengths))
    of_adapters = adapters(config, lora, sum(lengths))
    return 2 * of_projections + 3 * (of_layers - of_projections + of_adapters) + 2 * logits(config, targets)


def tuning_takes(
    config: ModelConfig, lora: LoraConfig, rows: Iterable[int], head_positions: int, *, recomputed: bool
) -> int:
    """The same for rows as they are computed: padding and all pairs of a row's positions, each layer's forward pass
    twice where it is recomputed."""
    rows = list(rows)
    of_projections = projections(config, sum(rows))
    others = attention(config, config.layers * sum(length**2 for length in rows)) + adapters(config, lora, sum(rows))
    again = of_projections + others if recomputed else 0
    return 2 * of_projections + 3 * others + again + 2 * logits(config, head_positions)
