"""How often the gate of each feed-forward neuron is positive, per language: what `jaxalign neurons` selects from.

    each row's text ──► decoder ──► tap: gate > 0 at real tokens, summed over rows and positions ──► + ──► [K, L, F]

A gate of exactly 0 is not active (SiLU and GELU are 0 there too). One within rounding of 0 falls to either side, as the
compute type and the order of its sums will have it.

Axis letters: K languages, B batch, T positions, L layers, F feed-forward width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.model.ragged import EmptyFillerRunner, PromptFunction, decode_prompts
from jaxalign.model.transformer import Decoder
from jaxalign.probing.neuron_counts import ActivationCounts
from jaxalign.probing.prompts import TASK, probe_texts
from jaxalign.probing.records import write_probe
from jaxalign.probing.run import ProbeRun


class BatchCounts(NamedTuple):
    """What a batch of prompts adds."""

    active: jax.Array
    """int32 [L, F]: real tokens at which each neuron's gate was positive"""
    finite: jax.Array
    """bool [B]: the model's states at a prompt's tokens are finite, and so its gates are numbers"""


def count_function(decoder: Decoder) -> PromptFunction:
    """Counts on a batch, `BatchCounts`; rows of length 0 count for nothing."""

    def count(variables: Any, tokens: jax.Array, lengths: jax.Array, extra: Any) -> BatchCounts:
        real = (jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1) < lengths[:, None])[:, :, None]

        def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> jax.Array:
            return jnp.sum((gate > 0) & real, axis=(0, 1), dtype=jnp.int32)

        output = decode_prompts(decoder, variables, tokens, lengths, tap)
        finite = (jnp.isfinite(output.hidden) | ~real).all(axis=(1, 2))
        return BatchCounts(output.taps, finite)

    return count


class CountProgram:
    """The counts, ready to run on whatever variables of the run's structure."""

    def __init__(self, run: ProbeRun):
        self.run = run
        function, longest = count_function(run.decoder), run.decoder.config.max_positions
        self.runner = EmptyFillerRunner(function, run.variables, run.mesh, run.batch_size, longest)

    def __call__(self, variables: Any) -> ActivationCounts:
        """Of every language's texts."""
        variables = self.runner.place(variables)
        active, tokens = zip(*(self.of_language(variables, language) for language in self.run.languages), strict=True)
        return ActivationCounts(list(self.run.languages), np.stack(active), np.array(tokens, np.int64))

    def of_language(self, variables: Any, language: str) -> tuple[np.ndarray, int]:
        """Counts int32 [L, F] over the texts of one language, added up on the devices, and the number of their tokens.

        All real tokens count, a BOS among them.
        """
        rows, prompts = probe_texts(self.run.data, language)
        total = None
        for members, (active, finite) in self.runner.outputs(variables, prompts):
            if not (known := np.asarray(finite)[: len(members)]).all():
                raise InputError(
                    f"{language}, row {rows[members[int(np.argmin(known))]].row}: hidden states are not finite; "
                    "check the weights, or compute in float32"
                )
            total = active if total is None else total + active
            self.run.on_rows(len(members))
        return np.asarray(total), sum(map(len, prompts))


def write_neuron_counts(run: ProbeRun) -> dict[str, Any]:
    """Counts every language's texts; writes `neuron_counts.npz` and, naming its axes, `neuron_counts.json`.

    Returns:
      The content of the JSON file.
    """
    config, counts = run.decoder.config, CountProgram(run)(run.variables)
    arrays = {"languages": np.array(counts.languages), "active": counts.active, "tokens": counts.tokens}
    document = {
        "axes": {"languages": ["language"], "active": ["language", "layer", "neuron"], "tokens": ["language"]},
        "language": list(run.languages),
        "layers": config.layers,
        "neurons_per_layer": config.mlp_dim,
        "counted": "tokens at which a neuron's gate is above 0, over all tokens of the rows' own texts",
        "task": TASK.name,
        **run.description,
    }
    write_probe(run.out, "neuron_counts", arrays, document)
    return document
