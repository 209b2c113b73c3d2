"""Inputs of the tiny models, and how far two results lie apart."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from jaxalign.errors import InputError
from jaxalign.model.transformer import Decoder
from tests.model.tiny_models import VOCABULARY

LENGTH = 17
"""Longer than the window (5), and than the 16 positions that llama3 scaling calls original."""


def relative(ours: Any, reference: Any) -> float:
    """The largest difference over the largest magnitude."""
    reference = np.asarray(reference)
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


# Float32 rounding through seven layers, summed in another order than torch's: 2e-6 is seen.
ROUNDING = 1e-5


def some_tokens(rows: int = 2, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, length), dtype=np.int32)


def plain(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens with the positions and segment ids of rows that are one segment each."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(tokens)


@partial(jax.jit, static_argnums=0)
def logits_of(decoder: Decoder, variables: Any, *inputs: np.ndarray, neuron_mask: jax.Array | None = None) -> jax.Array:
    """float32 [B,T,V] of (tokens, positions, segment ids)."""
    hidden = decoder.apply(variables, *inputs, neuron_mask=neuron_mask).hidden
    return decoder.apply(variables, hidden, method="logits")


def torch_logits(network: Any, tokens: np.ndarray) -> np.ndarray:
    """The same of a torch model, for tokens alone."""
    with torch.no_grad():
        return network(torch.tensor(tokens)).logits.numpy()


def refused(message: str, read: Callable[..., Any], *arguments: Any) -> None:
    """`read(*arguments)` must raise InputError with that in its message."""
    with pytest.raises(InputError, match=message):
        read(*arguments)


def arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by their paths, on the host."""
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}
