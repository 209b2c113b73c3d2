"""Which languages and scripts a layer would write in: the lens distribution summed over the tokens of each.

Logits of the whole vocabulary never exist at once: the head is read in chunks, inside the scan over layers.

Axis letters: B batch, L layers, P last positions, G groups (languages, then scripts), V vocabulary.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import PrefixRunner, PromptFunction, check_lengths, decode_prompts, prefill, shared_length
from jaxalign.model.readout import CHUNK, group_masses
from jaxalign.model.transformer import Decoder
from jaxalign.probing.prompts import TASK, VARIANT, probe_prompts
from jaxalign.probing.records import write_probe
from jaxalign.probing.run import ProbeRun
from jaxalign.probing.token_languages import (
    HELD_OUT,
    SCRIPT_CLASSES,
    UNDECIDABLE,
    HeldOut,
    TokenLanguages,
    token_languages,
)
from jaxalign.statistics import mean_and_half_width


class AttributionInputs(NamedTuple):
    """What the attribution needs beside the prompts."""

    groups: Any
    """int32 [2, V]: each token's language, and its script, numbered through as groups"""
    prefix: Prefix | None = None
    """what all prompts begin with, where the batch holds the rest of them alone"""


def last_positions(states: jax.Array, lengths: jax.Array, count: int) -> jax.Array:
    """The states [B, count, D] at each prompt's last positions, in order, from states [B, T, D]."""
    positions = lengths[:, None] + jnp.arange(-count, 0, dtype=jnp.int32)[None]
    return jnp.take_along_axis(states, positions[:, :, None], axis=1)


def attribution_function(decoder: Decoder, group_count: int, positions: int = 1, chunk: int = CHUNK) -> PromptFunction:
    """The masses of a batch, float32 [B, L, P, G]; prompts are at least P tokens long.

    `extra` is AttributionInputs.
    """

    def attribution(variables: Any, tokens: jax.Array, lengths: jax.Array, extra: AttributionInputs) -> jax.Array:
        def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> jax.Array:
            normed = decoder.apply(variables, last_positions(hidden, lengths, positions), method="final_norm")
            return group_masses(decoder, variables, normed, extra.groups, group_count, chunk)

        return jnp.moveaxis(decode_prompts(decoder, variables, tokens, lengths, tap, prefix=extra.prefix).taps, 0, 1)

    return attribution


def groups_of(tokens: TokenLanguages) -> np.ndarray:
    """The groups of each token, int32 [2, V]: languages, undecidable, scripts."""
    return np.stack([tokens.language_of, tokens.script_of + len(tokens.languages) + 1])


class AttributionProgram:
    """The attribution, ready to run on one language after the other, with whatever variables of the run's structure."""

    def __init__(self, run: ProbeRun, positions: int = 1):
        """`positions`: how many last positions of each prompt are read, each on its own."""
        self.run, self.positions = run, positions
        self.tokens = token_languages(run.data.tokenizer, run.decoder.config.vocab_size, run.data.folder)
        self.groups = groups_of(self.tokens)
        group_count = len(self.tokens.languages) + 1 + len(SCRIPT_CLASSES)
        self.runner = run.runner(attribution_function(run.decoder, group_count, positions))
        self.run_prefix = PrefixRunner(partial(prefill, run.decoder), run.variables, run.mesh)

    def __call__(self, variables: Any) -> dict[str, np.ndarray]:
        """language -> the masses of its prompts, float32 [rows, L, P, G]."""
        variables = self.runner.place(variables)
        return {language: self.of_language(variables, language) for language in self.run.languages}

    def of_language(self, variables: Any, language: str) -> np.ndarray:
        """One language's prompts: what they begin with runs once."""
        run, positions = self.run, self.positions
        rows, prompts = probe_prompts(run.data, language)
        check_lengths(list(map(len, prompts)), run.decoder.config.max_positions)
        short = next((i for i, prompt in enumerate(prompts) if len(prompt) < positions), None)
        if short is not None:
            raise InputError(
                f"attribution: {language}, row {rows[short].row} has {len(prompts[short])} tokens, fewer than the "
                f"{positions} positions asked for; set --config.attribution_positions lower"
            )
        shared = shared_length(prompts, keep=positions)
        inputs = AttributionInputs(self.groups, self.run_prefix(variables, prompts[0][:shared]))
        masses = self.runner(variables, [prompt[shared:] for prompt in prompts], inputs, run.on_rows)
        finite = np.isfinite(masses).all(axis=(1, 2, 3))
        if not finite.all():
            raise InputError(
                f"attribution: {language}, row {rows[int(np.argmin(finite))].row}: logits are not finite; "
                "check the weights, or compute in float32"
            )
        return masses


def attribution_arrays(masses: Mapping[str, np.ndarray], languages: int) -> dict[str, np.ndarray]:
    """Means over rows and their 95 % half-widths, float32 [prompt language, L, P, languages + 1 or scripts].

    Args:
      masses: prompt language -> [rows, L, P, G].
      languages: how many of the groups are languages; the next is the undecidable, then come the scripts.
    """
    means, half_widths = zip(*map(mean_and_half_width, masses.values()), strict=True)
    arrays = {}
    for statistic, values in (("mean", np.stack(means)), ("half_width", np.stack(half_widths))):
        by_language, by_script = np.split(values.astype(np.float32), [languages + 1], axis=-1)
        arrays |= {f"language_mass_{statistic}": by_language, f"script_mass_{statistic}": by_script}
    return arrays


def map_document(tokens: TokenLanguages) -> dict[str, Any]:
    """How the token map was made, and how right it is on held-out texts."""
    undecidable = len(tokens.languages)
    total = HeldOut(*np.sum(list(tokens.held_out.values()), axis=0).tolist())
    of = np.bincount(tokens.language_of, minlength=undecidable + 1).tolist()
    return {
        "rule": "the language that is twice as likely, given the token, as all others together, by counts in parallel "
        "texts; a token without counts: the only language that writes in its script; else undecidable",
        "tokens_of": dict(zip([*tokens.languages, UNDECIDABLE], of, strict=True)),
        "held_out_share": HELD_OUT,
        "held_out": {"all": accuracy(total)} | {code: accuracy(each) for code, each in tokens.held_out.items()},
    }


def accuracy(held_out: HeldOut) -> dict[str, float | int | None]:
    """Share of tokens that are decided, and share of those that are right (null where none is)."""
    return {
        "tokens": held_out.tokens,
        "decided": held_out.decided / held_out.tokens if held_out.tokens else None,
        "accuracy": held_out.correct / held_out.decided if held_out.decided else None,
    }


def write_attribution(run: ProbeRun, positions: int = 1) -> dict[str, Any]:
    """Runs it on every language; writes `attribution.npz` and, naming its axes, `attribution.json`, to `run.out`.

    Args:
      positions: how many last positions of each prompt are read, each on its own.

    Returns:
      The content of the JSON file.
    """
    program = AttributionProgram(run, positions)
    tokens, masses = program.tokens, program(run.variables)
    by_language, by_script = (["language", "layer", "position", f"token_{axis}"] for axis in ("language", "script"))
    document = {
        "axes": {
            f"{kind}_mass_{statistic}": axes
            for kind, axes in (("language", by_language), ("script", by_script))
            for statistic in ("mean", "half_width")
        },
        "language": list(run.languages),
        "layer": list(range(1, run.decoder.config.layers + 1)),
        "position": list(range(-positions, 0)),
        "token_language": [*tokens.languages, UNDECIDABLE],
        "token_script": list(SCRIPT_CLASSES),
        "units": "probability; over token_language, and over token_script, it adds up to 1",
        "rows": {language: len(each) for language, each in masses.items()},
        "token_map": map_document(tokens),
        "task": TASK.name,
        "variant": VARIANT,
        **run.description,
    }
    write_probe(run.out, "attribution", attribution_arrays(masses, len(tokens.languages)), document)
    return document
