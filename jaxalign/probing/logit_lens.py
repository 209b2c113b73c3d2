"""Logit lens (nostalgebraist 2020; Wendler et al. 2024): each layer's residual read by the final norm and the head.

At the last prompt position, after each block: how much probability lies on the English word of the gold class
(`latent`), how much on its word in the prompt's language (`out`), how spread out the distribution is (entropy), and how
much of the state lies where the head looks (energy).

Label words of two languages may begin with the same tokens. The masses are read in two ways: the study's, which drops
the rows of such words, and `unshared`, which drops the tokens that they share and so keeps every language.

Axis letters: B batch, L layers, C labels, D width.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.prompts import label_candidates, label_words
from jaxalign.data.tasks import TaskRow
from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import check_lengths, decode_prompts, last_position, shared_length
from jaxalign.model.readout import LabelSets, directions, entropy_bits, head_gram, label_masses, pad_label_sets
from jaxalign.model.transformer import Decoder
from jaxalign.probing.probe import TASK, VARIANT, ProbeData, ProbeRun, probe_prompts, write_probe
from jaxalign.statistics import mean_and_half_width


class LensRows(NamedTuple):
    """What the lens saw in one language, float32 [rows, L] each; masses are probabilities, entropy is in bits.

    Energy is relative: 1 is that of the head's own rows.
    """

    latent: np.ndarray
    """mass on the English word of the gold class"""
    out: np.ndarray
    """mass on the prompt language's word of the gold class"""
    all_possible_latent: np.ndarray
    """mass on the union of the English words' candidates"""
    all_possible_out: np.ndarray
    """mass on the union of the prompt language's words' candidates"""
    entropy: np.ndarray
    energy: np.ndarray
    survives: np.ndarray
    """bool [rows]: the two gold sets can be told apart, see `surviving_classes`"""


UNSHARED = "unshared_"
"""What the names of the second way's arrays begin with."""


HEAD_ROWS = 64
"""How many states the head reads at once: reading its weights for fewer takes longer than the product itself."""


class LanguageLens(NamedTuple):
    """One language, read in both ways."""

    study: LensRows
    unshared: LensRows


class WordSets(NamedTuple):
    """Candidate ids of each class, in the order of the task's classes."""

    english: list[list[int]]
    language: list[list[int]]

    def all(self) -> list[list[int]]:
        """English classes, the language's classes, the union of the English ones, the union of the language's."""
        unions = [sorted(set().union(*sets)) for sets in self]
        return [*self.english, *self.language, *unions]

    def unshared(self) -> "WordSets":
        """Without the ids that are both an English and an in-language word's."""
        english, own = (set().union(*sets) for sets in self)
        return WordSets(*([sorted(set(ids) - (english & own)) for ids in sets] for sets in self))


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


def relative_energy(hidden: jax.Array, gram: jax.Array, vocab_size: int) -> jax.Array:
    """How strongly the head's directions respond to a state, relative to how they respond to each other.

    sqrt(mean_v (u_v . h)^2) / sqrt(mean_vw (u_v . u_w)^2) for the state's direction h and the head's unit rows u, of
    which `gram` is the sum of outer products (Wendler et al. 2024, "token energy").

    Args:
      hidden: [..., D], before the final norm.
      gram: float32 [D, D], see `head_gram`.

    Returns:
      float32 [...]; 0 for a state of zeros, and for a head of zeros.
    """

    h = directions(hidden)
    squares = jnp.einsum("...D,DE,...E->...", h, gram, h, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.maximum(squares, 0)  # that of a state which no token's direction meets may be rounded to less
    return jnp.sqrt(squares * vocab_size) / jnp.maximum(jnp.linalg.norm(gram), jnp.finfo(jnp.float32).tiny)


def lens_batch(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    prefix: Prefix | None,
    labels: LabelSets,
    gram: jax.Array,
) -> Any:
    """The lens on a batch: (masses [B, L, C], entropy in bits, energy, whether all logits are finite [B, L] each).

    The scan over layers keeps the last position alone; then the head reads the states of some layers at once. Layer L,
    the model's own output, is read apart, by the product of which the model's own logits come.

    Args:
      prefix: what all prompts begin with, where the batch holds the rest of them alone.
      gram: float32 [D, D], see `head_gram`.
    """

    def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> jax.Array:
        return last_position(hidden, lengths)

    def read(hidden: jax.Array) -> Any:
        normed = decoder.apply(variables, hidden, method="final_norm")
        logits: Any = decoder.apply(variables, normed, method="logits")
        energy = relative_energy(hidden, gram, decoder.config.vocab_size)
        return label_masses(logits, labels), entropy_bits(logits), energy, jnp.isfinite(logits).all(-1)

    states: Any = decode_prompts(decoder, variables, tokens, lengths, tap, prefix=prefix).taps  # [L, B, D]
    inner = jax.lax.map(read, states[:-1], batch_size=max(1, HEAD_ROWS // len(tokens)))
    layers = jax.tree.map(lambda inner, last: jnp.concatenate([inner, last[None]]), inner, read(states[-1]))
    return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1), layers)


class LensProgram:
    """The lens, ready to run on one language after the other, with whatever variables of the run's structure."""

    def __init__(self, run: ProbeRun):
        self.run, self.runner = run, run.runner

    def __call__(self, variables: Any) -> dict[str, LanguageLens]:
        """language -> what the lens sees of its prompts."""
        variables = self.runner.place(variables)
        gram = self.runner.call(head_gram, variables)
        return {language: self.of_language(variables, gram, language) for language in self.run.languages}

    def of_language(self, variables: Any, gram: jax.Array, language: str) -> LanguageLens:
        """One language's prompts: what they begin with runs once."""
        rows, prompts = probe_prompts(self.run.data, language)
        check_lengths(list(map(len, prompts)), self.run.decoder.config.max_positions)
        sets = both_ways(word_sets(self.run.data, language), language)
        shared = shared_length(prompts)
        prefix = self.runner.run_prefix(variables, prompts[0][:shared])
        labels = pad_label_sets([ids for way in sets for ids in way.all()])
        rests = [prompt[shared:] for prompt in prompts]
        masses, entropy, energy, finite = self.runner(
            lens_batch, variables, rests, prefix, labels, gram, on_rows=self.run.on_rows
        )
        if not finite.all():
            row, layer = np.unravel_index(np.argmin(finite), finite.shape)
            raise InputError(
                f"{language}, row {rows[row].row}: logits read at layer {layer + 1} are not finite; "
                "check the weights, or compute in float32"
            )
        return language_lens(rows, language, sets, masses, entropy, energy)


def both_ways(study: WordSets, language: str) -> tuple[WordSets, WordSets]:
    """The study's sets, and those without shared tokens. English has one set of words, and no other to be told from."""
    return study, study if language == "en" else study.unshared()


def language_lens(
    rows: Sequence[TaskRow],
    language: str,
    sets: tuple[WordSets, WordSets],
    masses: np.ndarray,
    entropy: np.ndarray,
    energy: np.ndarray,
) -> LanguageLens:
    """Masses [rows, L, C] of all sets, one way's after the other's, as each row's gold class asks for them."""
    gold = np.array([TASK.classes.index(row.gold_class) for row in rows])
    each, classes = np.arange(len(rows)), len(TASK.classes)

    def lens_rows(sets: WordSets, first: int) -> LensRows:
        return LensRows(
            latent=masses[each, :, first + gold],
            out=masses[each, :, first + classes + gold],
            all_possible_latent=masses[:, :, first + 2 * classes],
            all_possible_out=masses[:, :, first + 2 * classes + 1],
            entropy=entropy,
            energy=energy,
            survives=np.array(surviving_classes(sets, language))[gold],
        )

    study, unshared = sets
    return LanguageLens(lens_rows(study, 0), lens_rows(unshared, len(study.all())))


def lens_arrays(lens: Mapping[str, LanguageLens]) -> dict[str, np.ndarray]:
    """Per-layer means and 95 % half-widths, float32 [languages, L] under `{quantity}_mean`, `{quantity}_half_width`.

    And the same of the second way under `unshared_{quantity}_...`. Averages are over the surviving rows; NaN where a
    language has none.
    """
    arrays = {}
    ways = {"": [both.study for both in lens.values()], UNSHARED: [both.unshared for both in lens.values()]}
    for (prefix, languages), quantity in product(ways.items(), LensRows._fields[:-1]):
        kept = (getattr(rows, quantity)[rows.survives] for rows in languages)
        mean, half_width = zip(*map(mean_and_half_width, kept), strict=True)
        arrays[f"{prefix}{quantity}_mean"] = np.stack(mean).astype(np.float32)
        arrays[f"{prefix}{quantity}_half_width"] = np.stack(half_width).astype(np.float32)
    return arrays


def check_survivors(lens: Mapping[str, LanguageLens]) -> None:
    """InputError where no row of any language survives, even without the shared tokens."""
    if not any(both.unshared.survives.any() for both in lens.values()):
        raise InputError(
            f"logit lens: no row survives in {', '.join(lens)}: their label words begin with the same tokens as the "
            "English ones in this tokenizer; add a language in another script, such as zh, ja or ru"
        )


def lens_document(lens: Mapping[str, LanguageLens]) -> dict[str, Any]:
    """What the arrays of `lens_arrays` mean, and how many rows of each language survived."""
    surviving = {language: int(both.study.survives.sum()) for language, both in lens.items()}
    unshared = {language: int(both.unshared.survives.sum()) for language, both in lens.items()}
    layers = next(iter(lens.values())).study.entropy.shape[1]
    return {
        "axes": {name: ["language", "layer"] for name in lens_arrays(lens)},
        "language": list(lens),
        "layer": list(range(1, layers + 1)),
        "units": {
            "entropy": "bits",
            "latent, out, all_possible_latent, all_possible_out": "probability",
            "energy": "relative to that of the head's own rows",
        },
        "rows": {language: len(both.study.survives) for language, both in lens.items()},
        "surviving_rows": surviving,
        "languages_without_rows": [language for language, count in surviving.items() if count == 0],
        "unshared": "the same without the tokens that begin both an English and an in-language label word",
        "unshared_surviving_rows": unshared,
        "task": TASK.name,
        "variant": VARIANT,
    }


def write_logit_lens(run: ProbeRun) -> dict[str, Any]:
    """Runs the lens on every language; writes `logit_lens.npz` and, naming its axes, `logit_lens.json`, to `run.out`.

    Returns:
      The content of the JSON file.
    """
    lens = LensProgram(run)(run.variables)
    check_survivors(lens)
    document = {**lens_document(lens), **run.description}
    write_probe(run.out, "logit_lens", lens_arrays(lens), document)
    return document
