"""Logit lens (nostalgebraist 2020; Wendler et al. 2024): each layer's residual read by the final norm and the head.

At the last prompt position, after each block: how much probability lies on the English word of the gold class
(`latent`), how much on its word in the prompt's language (`out`), how spread out the distribution is (entropy), and how
much of the state lies where the head looks (energy).

Label words of two languages may begin with the same tokens. The masses are read in two ways: the study's, which drops
the rows of such words, and `unshared`, which drops the tokens that they share and so keeps every language.

Axis letters: B batch, L layers, C labels, D width.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.prompts import label_candidates, label_words
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import decode_prompts, last_position, shared_length
from jaxalign.model.readout import LabelSets, directions, entropy_bits, head_gram, label_masses, pad_label_sets
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import PROBE_ARRAYS, Probe
from jaxalign.probing.probe import TASK, VARIANT, ProbeRun, ProbeTexts
from jaxalign.statistics import mean_and_half_width

WAYS = ("", "unshared_")
"""What the names of each way's arrays begin with."""
HEAD_ROWS = 64
"""How many states the head reads at once: reading its weights for fewer takes longer than the product itself."""


class LensRows(NamedTuple):
    """What the lens saw in one language, in both ways: float32 [ways, rows, L] each. Masses are probabilities, entropy
    is in bits, and energy is relative: 1 is that of the head's own rows."""

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
    """bool [ways, rows]: the two gold sets can be told apart, see `WordSets.surviving`"""


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

    def surviving(self, language: str) -> list[bool]:
        """Per class, whether its rows stay, as in the study: both sets hold ids and, but for English, share none."""
        return [
            bool(english) and bool(own) and (language == "en" or set(english).isdisjoint(own))
            for english, own in zip(*self, strict=True)
        ]


def word_sets(tokenizer: Tokenizer, language: str) -> WordSets:
    """The candidate sets of the English and of the in-language label words."""
    words = (label_words(TASK, language, variant) for variant in ("english", VARIANT))
    return WordSets(*(list(label_candidates(own, tokenizer).values()) for own in words))


def relative_energy(hidden: jax.Array, gram: jax.Array, vocab_size: int) -> jax.Array:
    """How strongly the head's directions respond to a state, relative to how they respond to each other, float32 [...].

    sqrt(mean_v (u_v . h)^2) / sqrt(mean_vw (u_v . u_w)^2) for the state's direction h and the head's unit rows u, of
    which `gram` is the sum of outer products (Wendler et al. 2024, "token energy"); 0 for a
    state of zeros, and for a head of zeros.

    Args:
      hidden: [..., D], before the final norm.
      gram: float32 [D, D], see `head_gram`.
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

    prefix: what all prompts begin with, where the batch holds the rest of them alone.
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


def language_lens(run: ProbeRun, texts: ProbeTexts, gram: jax.Array) -> LensRows:
    """What the lens sees of one language's prompts; what they begin with runs once."""
    study = word_sets(texts.tokenizer, texts.language)
    # English has one set of words, and no other to be told from.
    ways = (study, study if texts.language == "en" else study.unshared())
    sets = [ids for way in ways for ids in way.all()]
    shared = shared_length(texts.prompts)
    masses, entropy, energy, finite = run.ask(lens_batch, texts.prompts, shared, pad_label_sets(sets), gram)
    if not finite.all():
        row, layer = np.unravel_index(np.argmin(finite), finite.shape)
        raise InputError(
            f"{texts.language}, row {texts.numbers[row]}: logits read at layer {layer + 1} are not finite; "
            "check the weights, or compute in float32"
        )
    by_way = np.stack(np.split(masses[:, :, : len(sets)], len(ways), axis=-1))  # [ways, rows, L, sets of a way]
    gold, classes = np.array([TASK.classes.index(row.gold_class) for row in texts.rows]), len(TASK.classes)

    def of_gold(first: int) -> np.ndarray:
        """The masses of each row's gold class, among the sets from `first` on."""
        return np.take_along_axis(by_way, (first + gold)[None, :, None, None], axis=-1)[..., 0]

    return LensRows(
        latent=of_gold(0),
        out=of_gold(classes),
        all_possible_latent=by_way[..., 2 * classes],
        all_possible_out=by_way[..., 2 * classes + 1],
        entropy=np.stack([entropy] * len(ways)),
        energy=np.stack([energy] * len(ways)),
        survives=np.array([way.surviving(texts.language) for way in ways])[:, gold],
    )


def lens_probe(lens: Mapping[str, LensRows]) -> Probe:
    """Per-layer means and 95 % half-widths, float32 [languages, L] under `{way}{quantity}_mean` and `..._half_width`.

    Averages are over the surviving rows; NaN where a language has none. InputError where no row of any language
    survives, even without the shared tokens.
    """
    surviving, unshared = ({code: int(rows.survives[way].sum()) for code, rows in lens.items()} for way in (0, 1))
    if not any(unshared.values()):
        raise InputError(
            f"logit lens: no row survives in {', '.join(lens)}: their label words begin with the same tokens as the "
            "English ones in this tokenizer; add a language in another script, such as zh, ja or ru"
        )
    arrays = {}
    for (way, prefix), quantity in product(enumerate(WAYS), LensRows._fields[:-1]):
        kept = (getattr(rows, quantity)[way, rows.survives[way]] for rows in lens.values())
        mean, half_width = zip(*map(mean_and_half_width, kept), strict=True)
        arrays[f"{prefix}{quantity}_mean"] = np.stack(mean).astype(np.float32)
        arrays[f"{prefix}{quantity}_half_width"] = np.stack(half_width).astype(np.float32)
    document = {
        "axes": PROBE_ARRAYS["logit_lens"],
        "language": list(lens),
        "layer": list(range(1, arrays["entropy_mean"].shape[1] + 1)),
        "units": {
            "entropy": "bits",
            "latent, out, all_possible_latent, all_possible_out": "probability",
            "energy": "relative to that of the head's own rows",
        },
        "rows": {language: rows.survives.shape[1] for language, rows in lens.items()},
        "surviving_rows": surviving,
        "languages_without_rows": [language for language, count in surviving.items() if count == 0],
        "unshared": "the same without the tokens that begin both an English and an in-language label word",
        "unshared_surviving_rows": unshared,
        "task": TASK.name,
        "variant": VARIANT,
    }
    return Probe(arrays, document)


def logit_lens(run: ProbeRun) -> Probe:
    """The lens on every language."""
    gram = run.runner.call(head_gram, run.placed)
    return lens_probe({language: language_lens(run, texts, gram) for language, texts in run.texts.items()})
