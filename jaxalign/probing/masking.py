"""What a language's neurons do: every language measured with the neurons of each changed in turn.

    selection ─┬─► neurons of a language ───┬─► masked: switched off ─────────────┬─► nats per text ─► change of log
               └─► as many random others, ──┴─► transplanted: as tuning made them ┘   perplexity [changed, measured]
                   layer by layer: control      put into the base model

A neuron's weights are its column of gate and up projection and its row of the down projection. Perplexity is
exp(nats / tokens) over all tokens of the texts but each one's first. The follow-up (arXiv 2505.21505) measures another
quantity, which masking keeps beside it; see `reference_perplexity`.

Axis letters: K languages, R rows, B batch, T positions, L layers, D width, F feed-forward width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.ragged import decode_prompts
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import Probe
from jaxalign.probing.probe import TASK, ProbeRun, check_finite
from jaxalign.statistics import times_drawn

POSITIONS = 8
"""Of each row, that have logits at a time; every padded length is a multiple."""
EFFECTS = ("language_neurons", "random_neurons", "difference")


class TextNats(NamedTuple):
    """Sums over the predicted tokens of each text, arrays [B] or [rows]."""

    nats: Any
    """float32: of the tokens themselves"""
    likeliest_nats: Any
    """float32: of the likeliest token, where that is another"""
    mistaken: Any
    """int32: how often it is another"""


def nats_batch(
    decoder: Decoder, variables: Any, tokens: jax.Array, lengths: jax.Array, neuron_mask: jax.Array
) -> TextNats:
    """`TextNats` of a batch; neuron_mask float32 [L, F], 1 where a neuron stays."""
    hidden = decode_prompts(decoder, variables, tokens, lengths, neuron_mask=neuron_mask).hidden
    predicted = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1) < lengths[:, None] - 1

    def by_chunk(array: jax.Array) -> jax.Array:
        """[B, T, ...] -> [chunks, B, POSITIONS, ...]"""
        return jnp.moveaxis(array.reshape(len(array), -1, POSITIONS, *array.shape[2:]), 1, 0)

    def chunk_nats(chunk: tuple[jax.Array, jax.Array, jax.Array]) -> TextNats:
        states, targets, counted = chunk
        logits: Any = decoder.apply(variables, states, method="logits")
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        own = normaliser - jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
        likeliest = normaliser - logits.max(axis=-1)
        mistaken = counted & (logits.argmax(axis=-1) != targets)
        return TextNats(
            jnp.where(counted, own, 0.0).sum(axis=1),
            jnp.where(mistaken, likeliest, 0.0).sum(axis=1),
            mistaken.sum(axis=1, dtype=jnp.int32),
        )

    chunks = tuple(map(by_chunk, (hidden, jnp.roll(tokens, -1, axis=1), predicted)))
    return jax.tree.map(lambda sums: sums.sum(axis=0), jax.lax.map(chunk_nats, chunks))


def neuron_mask(pairs: np.ndarray, layers: int, width: int) -> np.ndarray:
    """float32 [L, F], 0 at the (layer, index) of `pairs` int [n, 2], 1 elsewhere."""
    mask = np.ones((layers, width), np.float32)
    mask[pairs[:, 0], pairs[:, 1]] = 0
    return mask


def random_control(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A mask of as many neurons in each layer, drawn from those that the given one leaves (from all, if too few)."""
    control = np.ones_like(mask)
    for layer, row in enumerate(mask):
        number, others = int((row == 0).sum()), np.flatnonzero(row)
        pool = others if len(others) >= number else np.arange(len(row))
        control[layer, random.choice(pool, number, replace=False)] = 0
    return control


def reference_perplexity(sums: TextNats, tokens: np.ndarray) -> np.ndarray:
    """The follow-up's "PPL", float64 [...] of sums and tokens [..., R]: exp of the mean over texts of each one's mean
    over its tokens and, where that is another, the likeliest, of few nats: so it may fall as perplexity rises."""
    return np.exp(np.mean((sums.nats + sums.likeliest_nats) / (tokens + sums.mistaken), axis=-1))


def change_with_interval(differences: np.ndarray, counts: np.ndarray, seed: int, resamples: int = 2000) -> np.ndarray:
    """Change of sum / count, and its 95 % percentile bootstrap interval over rows: float64 [3], of each row's sum with
    a mask less that without, float [R], and its count, int [R]."""
    drawn = times_drawn(np.random.default_rng(seed), len(counts), resamples)
    resampled = (drawn @ differences) / (drawn @ counts)
    return np.array([differences.sum() / counts.sum(), *np.quantile(resampled, [0.025, 0.975])])


def effects(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """float64 [3, K, K, 3]: effect (see EFFECTS), changed language, measured language, (change, low, high).

    Args:
      sums: float [1 + 2K, K, R], of each row with each change of `change_names`: nats, say, or right answers.
      counts: int [K, R], of what they are sums: a row's predicted tokens, or 1.
    """
    K = len(counts)
    own, control = sums[1 : K + 1] - sums[0], sums[K + 1 :] - sums[0]
    of_rows = np.array([own, control, own - control])
    changes = [
        change_with_interval(of_rows[effect, k, m], counts[m], seed) for effect, k, m in np.ndindex(*of_rows.shape[:3])
    ]
    return np.array(changes).reshape(*of_rows.shape[:3], 3)


def change_names(languages: Sequence[str], none: str) -> list[str]:
    """Whose neurons are changed when every text is run: nobody's, each language's, each one's control."""
    return [none, *languages, *(f"random, as {language}" for language in languages)]


def language_masks(
    own: Mapping[str, np.ndarray], languages: Sequence[str], config: ModelConfig, seed: int
) -> list[np.ndarray]:
    """The masks of `change_names`, float32 [L, F]; the controls depend on the seed alone."""
    masked = [neuron_mask(own[language], config.layers, config.mlp_dim) for language in languages]
    random = np.random.default_rng(seed)
    return [np.ones_like(masked[0]), *masked, *(random_control(mask, random) for mask in masked)]


def with_neurons(params: Any, others: Any, mask: jax.Array) -> Any:
    """The parameters with the neurons at 0 in `mask` float32 [L, F] as they are in `others`, of the same structure,
    where one number may stand for all of a weight; none are quantised."""

    def choose(path: tuple[Any, ...], own: jax.Array, other: jax.Array) -> jax.Array:
        if other is own:
            return own
        match [key.key for key in path]:
            case ["layers", "mlp", "gate_proj" | "up_proj", "kernel"]:
                kept = mask[:, None, :]
            case ["layers", "mlp", "gate_proj" | "up_proj", "bias"]:
                kept = mask
            case ["layers", "mlp", "down_proj", "kernel"]:
                kept = mask[:, :, None]
            case _:
                return own
        return jnp.where(kept == 0, other, own)

    return jax.tree_util.tree_map_with_path(choose, params, others)


def text_sums(run: ProbeRun, variants: Iterable[tuple[Any, np.ndarray]]) -> tuple[TextNats, np.ndarray]:
    """The sums of every text under each variant, (collections, neuron mask): arrays [variants, K, R]; and how many
    tokens each text predicts, int [K, R]. One that predicts none raises InputError."""
    for texts in run.texts.values():
        if short := [row for row, ids in zip(texts.numbers, texts.texts, strict=True) if len(ids) < 2]:
            raise InputError(f"{texts.language}, row {short[0]}: a text of one token predicts nothing; leave it out")
    found = []
    for variables, mask in variants:
        of_languages = []
        for texts in run.texts.values():
            of_languages.append(run.runner(nats_batch, variables, texts.texts, mask, on_rows=run.on_rows))
            check_finite(texts, of_languages[-1].nats)
        found.append(jax.tree.map(lambda *arrays: np.stack(arrays), *of_languages))
    tokens = np.array([[len(ids) - 1 for ids in texts.texts] for texts in run.texts.values()])
    return jax.tree.map(lambda *arrays: np.stack(arrays), *found), tokens


def effect_probe(
    run: ProbeRun, own: Mapping[str, np.ndarray], changed: str, arrays: Mapping[str, tuple[Any, str]], **more: Any
) -> Probe:
    """The probe of a change; `changed` names the axis of languages whose neurons are changed, `arrays` holds each array
    and its axes in one text, `more` is what else the document says."""
    languages = run.languages
    document = {
        "axes": {name: axes.split() for name, (_, axes) in arrays.items()},
        "language": languages,
        changed: languages,
        "row": run.texts[languages[0]].numbers,
        "effect": list(EFFECTS),
        "estimate": ["change", "low", "high"],
        "interval": "95 %, percentile bootstrap over rows",
        "neurons": {language: len(own[language]) for language in languages},
        "task": TASK.name,
        **more,
    }
    return Probe({name: array for name, (array, _) in arrays.items()}, document)


def perplexity(sums: TextNats, tokens: np.ndarray) -> np.ndarray:
    """float64 [variants, K], over all predicted tokens of a language."""
    return np.exp(sums.nats.sum(axis=2, dtype=np.float64) / tokens.sum(axis=1))


def masking(run: ProbeRun, own: Mapping[str, np.ndarray], seed: int) -> Probe:
    """Perplexity with each language's neurons switched off in turn.

    Args:
      own: language -> (layer, index) of its neurons, int [n, 2], as `jaxalign neurons` writes them.
      seed: of the random controls and of the bootstrap.
    """
    masks = language_masks(own, run.languages, run.config, seed)
    sums, tokens = text_sums(run, ((run.placed, mask) for mask in masks))
    change = effects(sums.nats.astype(np.float64), tokens, seed)
    arrays = {
        "nats": (sums.nats, "mask language row"),
        "tokens": (tokens, "language row"),
        "perplexity": (perplexity(sums, tokens), "mask language"),
        "reference_perplexity": (reference_perplexity(sums, tokens), "mask language"),
        "log_perplexity_change": (change, "effect masked_language language estimate"),
    }
    names = change_names(run.languages, "none")
    return effect_probe(run, own, "masked_language", arrays, mask=names, units=units_of("nats per token"))


def transplant(run: ProbeRun, own: Mapping[str, np.ndarray], seed: int, load_base: Callable[[Any], Any]) -> Probe:
    """Perplexity of the base model with each language's neurons as tuning has made them, one language's at a time.

    Args:
      run: of the tuned model; an adapter merged.
      own, seed: as `masking` takes them.
      load_base: gives the base model's parameters, in structure and types of the tuned ones that it is given.
    """
    tuned = run.placed["params"]
    base = load_base(tuned)
    same = jax.tree.map(jnp.array_equal, base["layers"]["mlp"], tuned["layers"]["mlp"])
    if all(map(bool, jax.tree.leaves(same))):
        raise InputError(
            "transplant: tuning changed no feed-forward weight, so that there is nothing to transplant; tune with "
            "lora.targets=gate_proj,up_proj,down_proj or with tune=all"
        )
    none, *masks = language_masks(own, run.languages, run.config, seed)
    shardings = run.runner.variable_shardings["params"]
    change = jax.jit(with_neurons, in_shardings=(shardings, shardings, None), out_shardings=shardings)

    def variants() -> Iterator[tuple[Any, np.ndarray]]:
        yield run.runner.place({"params": base}), none
        yield {"params": tuned}, none
        for mask in masks:
            yield {"params": change(base, tuned, jnp.asarray(mask))}, none

    sums, tokens = text_sums(run, variants())
    of_changes = np.delete(sums.nats, 1, axis=0).astype(np.float64)
    arrays = {
        "nats": (sums.nats, "weights language row"),
        "tokens": (tokens, "language row"),
        "perplexity": (perplexity(sums, tokens), "weights language"),
        "log_perplexity_change": (
            effects(of_changes, tokens, seed),
            "effect transplanted_language language estimate",
        ),
    }
    base_name, *changes = change_names(run.languages, "base")
    names, units = [base_name, "tuned", *changes], units_of("nats per token, from the base")
    return effect_probe(run, own, "transplanted_language", arrays, weights=names, units=units)


def units_of(change: str) -> dict[str, str]:
    return {"nats": "nats of a row's tokens together", "log_perplexity_change": change}
