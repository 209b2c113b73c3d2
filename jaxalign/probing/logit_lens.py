"""Logit lens (nostalgebraist 2020; Wendler et al. 2024): each layer's residual read by the final norm and the head.

At the last prompt position, after each block: how much probability lies on the English word of the gold class
(`latent`), how much on its word in the prompt's language (`out`), and how spread out the distribution is.

Axis letters: B batch, L layers, C labels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.label_sets import label_candidates
from jaxalign.data.prompts import label_words
from jaxalign.errors import InputError
from jaxalign.model.next_token import entropy_bits, label_masses, pad_label_sets
from jaxalign.model.prompt_batches import PromptFunction, PromptRunner, decode_prompts, last_position
from jaxalign.model.transformer import Decoder
from jaxalign.probing.prompts import TASK, VARIANT, ProbeData, probe_prompts
from jaxalign.probing.records import write_probe
from jaxalign.probing.run import ProbeRun
from jaxalign.statistics import mean_and_half_width


class LensRows(NamedTuple):
    """What the lens saw in one language, float32 [rows, L] each; masses are probabilities, entropy is in bits."""

    latent: np.ndarray
    """mass on the English word of the gold class"""
    out: np.ndarray
    """mass on the prompt language's word of the gold class"""
    all_possible_latent: np.ndarray
    """mass on the union of the English words' candidates"""
    all_possible_out: np.ndarray
    """mass on the union of the prompt language's words' candidates"""
    entropy: np.ndarray
    survives: np.ndarray
    """bool [rows]: the two gold sets can be told apart, see `surviving_classes`"""


class WordSets(NamedTuple):
    """Candidate ids of each class, in the order of the task's classes."""

    english: list[list[int]]
    language: list[list[int]]

    def all(self) -> list[list[int]]:
        """English classes, the language's classes, the union of the English ones, the union of the language's."""
        unions = [sorted(set().union(*sets)) for sets in self]
        return [*self.english, *self.language, *unions]


def word_sets(data: ProbeData, language: str) -> WordSets:
    """The candidate sets of the English and of the in-language label words."""
    english, own = (label_words(TASK, language, variant) for variant in ("english", VARIANT))
    english, own = (label_candidates(words, data.tokenizer) for words in (english, own))
    return WordSets(list(english.values()), list(own.values()))


def surviving_classes(sets: WordSets, language: str) -> list[bool]:
    """Per class, whether its rows stay (the study's filter): both sets hold ids and, outside English, share none."""
    return [
        bool(english) and bool(own) and (language == "en" or set(english).isdisjoint(own))
        for english, own in zip(*sets, strict=True)
    ]


def lens_function(decoder: Decoder) -> PromptFunction:
    """The lens on a batch: (masses [B, L, C], entropy in bits [B, L], whether all logits are finite [B, L]).

    Logits of one layer exist at a time, at the last position only: the scan over layers reduces them. Layer L is the
    model's own output.
    """

    def lens(variables: Any, tokens: jax.Array, lengths: jax.Array, labels: Any) -> Any:
        def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> Any:
            normed = decoder.apply(variables, last_position(hidden, lengths), method="final_norm")
            logits: Any = decoder.apply(variables, normed, method="logits")
            return label_masses(logits, labels), entropy_bits(logits), jnp.isfinite(logits).all(-1)

        taps = decode_prompts(decoder, variables, tokens, lengths, tap).taps
        return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1), taps)

    return lens


def lens_of_language(
    runner: PromptRunner,
    variables: Any,
    data: ProbeData,
    language: str,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> LensRows:
    """Runs the lens on one language's prompts; `runner` holds `lens_function`."""
    rows, prompts = probe_prompts(data, language)
    sets = word_sets(data, language)
    masses, entropy, finite = runner(variables, prompts, pad_label_sets(sets.all()), on_rows)
    if not finite.all():
        row, layer = np.unravel_index(np.argmin(finite), finite.shape)
        raise InputError(
            f"{language}, row {rows[row].row}: logits read at layer {layer + 1} are not finite; "
            "check the weights, or compute in float32"
        )
    gold = np.array([TASK.classes.index(row.gold_class) for row in rows])
    each, classes = np.arange(len(rows)), len(TASK.classes)
    return LensRows(
        latent=masses[each, :, gold],
        out=masses[each, :, classes + gold],
        all_possible_latent=masses[:, :, 2 * classes],
        all_possible_out=masses[:, :, 2 * classes + 1],
        entropy=entropy,
        survives=np.array(surviving_classes(sets, language))[gold],
    )


def lens_arrays(lens: Mapping[str, LensRows]) -> dict[str, np.ndarray]:
    """Per-layer means and 95 % half-widths, float32 [languages, L] under `{quantity}_mean`, `{quantity}_half_width`.

    Averages are over the surviving rows; NaN where a language has none.
    """
    arrays = {}
    for quantity in LensRows._fields[:-1]:
        kept = (getattr(rows, quantity)[rows.survives] for rows in lens.values())
        mean, half_width = zip(*map(mean_and_half_width, kept), strict=True)
        arrays[f"{quantity}_mean"] = np.stack(mean).astype(np.float32)
        arrays[f"{quantity}_half_width"] = np.stack(half_width).astype(np.float32)
    return arrays


def lens_document(lens: Mapping[str, LensRows]) -> dict[str, Any]:
    """What the arrays of `lens_arrays` mean, and how many rows of each language survived the filter."""
    surviving = {language: int(rows.survives.sum()) for language, rows in lens.items()}
    if not any(surviving.values()):
        raise InputError(
            f"logit lens: no row survives in {', '.join(lens)}: their label words share tokens with the English ones "
            "in this tokenizer; add a language in another script, such as zh, ja or ru"
        )
    layers = next(iter(lens.values())).entropy.shape[1]
    return {
        "axes": {name: ["language", "layer"] for name in lens_arrays(lens)},
        "language": list(lens),
        "layer": list(range(1, layers + 1)),
        "units": {"entropy": "bits", "latent, out, all_possible_latent, all_possible_out": "probability"},
        "rows": {language: len(rows.survives) for language, rows in lens.items()},
        "surviving_rows": surviving,
        "languages_without_rows": [language for language, count in surviving.items() if count == 0],
        "task": TASK.name,
        "variant": VARIANT,
    }


def write_logit_lens(run: ProbeRun) -> dict[str, Any]:
    """Runs the lens on every language; writes `logit_lens.npz` and, naming its axes, `logit_lens.json`, to `run.out`.

    Returns:
      The content of the JSON file.
    """
    runner = run.runner(lens_function(run.decoder))
    variables = runner.place(run.variables)
    lens = {
        language: lens_of_language(runner, variables, run.data, language, run.on_rows) for language in run.languages
    }
    document = {**lens_document(lens), **run.description}
    write_probe(run.out, "logit_lens", lens_arrays(lens), document)
    return document
