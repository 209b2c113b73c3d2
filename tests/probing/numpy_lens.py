"""The logit lens in float64 NumPy, from transformers' hidden states: final norm and head written out."""

from typing import Any, NamedTuple

import numpy as np
import scipy.special
import torch

from tests.model.tiny_models import numpy_of


class NumpyLens(NamedTuple):
    """The lens of one prompt's last positions: probabilities [L, P, V], entropy in bits and energy [L, P]."""

    probabilities: np.ndarray
    entropy: np.ndarray
    energy: np.ndarray


def lens_in_numpy(torch_model: Any, prompt: list[int], positions: int = 1, gemma: bool = False) -> NumpyLens:
    """The lens by the definitions; `gemma`: the norm's factor is 1 + weight."""
    norm, residuals = torch_model.model.norm, []
    # The last entry of hidden_states is past the final norm, so the last residual is caught on its way in.
    handle = norm.register_forward_pre_hook(lambda module, arguments: residuals.append(arguments[0]))
    with torch.no_grad():
        states = torch_model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    handle.remove()
    x = np.stack([numpy_of(state)[0, -positions:] for state in (*states[1:-1], residuals[0])]).astype(np.float64)
    factor = numpy_of(norm.weight).astype(np.float64) + (1.0 if gemma else 0.0)
    rows = numpy_of(torch_model.lm_head.weight) * factor
    logits = x / np.sqrt((x**2).mean(-1, keepdims=True) + torch_model.config.rms_norm_eps) @ rows.T
    probabilities = scipy.special.softmax(logits, axis=-1)
    unit_rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    unit_x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    typical = np.sqrt(((unit_rows.T @ unit_rows) ** 2).sum() / len(rows) ** 2)
    return NumpyLens(
        probabilities,
        scipy.special.entr(probabilities).sum(-1) / np.log(2),
        np.sqrt(((unit_x @ unit_rows.T) ** 2).mean(-1)) / typical,
    )
