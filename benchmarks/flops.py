"""Floating-point operations of scoring prompts: what the mathematics needs, in matrix products alone.

A token costs 2 per weight of a layer's projections. A query that sees a key costs 4 N H per layer: its score, and its
share of the values; on a local layer a query sees `window` keys at most. A position that meets the head costs 2 D V.
Axis letters as in jaxalign/model/transformer.py.
"""

from collections.abc import Sequence

import numpy as np

from jaxalign.model.config import ModelConfig
from jaxalign.model.lora import projection_sizes


def forward(config: ModelConfig, start: int, end: int) -> int:
    """The layers at positions start to end - 1, keys and values of the earlier ones at hand."""
    weights = sum(size_in * size_out for _, (size_in, size_out) in projection_sizes(config).values())
    seen = np.arange(start, end) + 1
    locally = np.minimum(seen, config.window) if config.window else seen
    local_layers = config.local_layers or (False,) * config.layers
    pairs = sum(int((locally if local else seen).sum()) for local in local_layers)
    return 2 * weights * config.layers * (end - start) + 4 * config.heads * config.head_dim * pairs


def head(config: ModelConfig, positions: int) -> int:
    """The logits of so many positions."""
    return 2 * config.width * config.vocab_size * positions


def one_at_a_time(config: ModelConfig, lengths: Sequence[int], *, full_logits: bool) -> int:
    """Every prompt whole."""
    return sum(forward(config, 0, length) + head(config, length if full_logits else 1) for length in lengths)


def behind_a_prefix(config: ModelConfig, prefix: int, lengths: Sequence[int]) -> int:
    """The shared prefix once, what follows it in every prompt, and one position of each at the head."""
    after = sum(forward(config, prefix, length) for length in lengths)
    return forward(config, 0, prefix) + after + head(config, len(lengths))
