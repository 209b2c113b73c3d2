"""What a language's neurons do: the perplexity of every language's texts with the neurons of each switched off.

    selection ──► neuron mask [L, F] ──► decoder ──► nats per text ──► change of log perplexity [masked, measured]
             └──► as many random others in each layer, the control

Perplexity is exp(nats / tokens) over all tokens of the texts but each one's first. The follow-up (arXiv 2505.21505)
measures another quantity, which is kept beside it; see `reference_perplexity`.

Axis letters: K languages, R rows, B batch, T positions, L layers, F feed-forward width, V vocabulary.

What tuning did to a language's neurons: their tuned weights put into the base model, one language's at a time.

    base model ──┬─ the tuned weights of this language's neurons ──► nats per text ──► change of log perplexity
    tuned model ─┘  the tuned weights of as many random others in each layer, the control

A neuron's weights are its column of gate and up projection and its row of the down projection. All else is the base's.

Axis letters: K languages, R rows, L layers, D width, F feed-forward width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.ragged import decode_prompts
from jaxalign.model.transformer import Decoder
from jaxalign.probing.probe import TASK, ProbeRun, probe_texts, write_probe
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


def reference_perplexity(sums: TextNats, tokens: np.ndarray) -> float:
    """The follow-up's "PPL": each text's mean over its tokens and, where that is another, the likeliest; then exp.

    The likeliest token's nats are few, so it is lower than the perplexity, and may fall as that rises.
    """
    return float(np.exp(np.mean((sums.nats + sums.likeliest_nats) / (tokens + sums.mistaken))))


def change_with_interval(differences: np.ndarray, counts: np.ndarray, seed: int, resamples: int = 2000) -> np.ndarray:
    """Change of sum / count, and its 95 % percentile bootstrap interval over rows: float64 [3].

    Args:
      differences: the sum of each row with a mask less that without, float [R].
      counts: of each row, int [R].
    """
    drawn = times_drawn(np.random.default_rng(seed), len(counts), resamples)
    resampled = (drawn @ differences) / (drawn @ counts)
    return np.array([differences.sum() / counts.sum(), *np.quantile(resampled, [0.025, 0.975])])


def effects(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """float64 [3, K, K, 3]: effect (see EFFECTS), masked language, measured language, (change, low, high).

    Args:
      sums: float [1 + 2K, K, R], of each row with each mask of `mask_names`: nats, say, or right answers.
      counts: int [K, R], of what they are sums: a row's predicted tokens, or 1.
    """
    K = len(counts)
    own, control = sums[1 : K + 1] - sums[0], sums[K + 1 :] - sums[0]
    return np.array(
        [
            [
                [change_with_interval(differences[k, m], counts[m], seed) for m in range(K)]
                for k in range(len(differences))
            ]
            for differences in (own, control, own - control)
        ]
    )


def mask_names(languages: Sequence[str]) -> list[str]:
    """What every text is run with: no mask, each language's, each one's control."""
    return ["none", *languages, *(f"random, as {language}" for language in languages)]


def language_masks(
    own: Mapping[str, np.ndarray], languages: Sequence[str], config: ModelConfig, seed: int
) -> list[np.ndarray]:
    """The masks of `mask_names`, float32 [L, F]; the controls depend on the seed alone."""
    masked = [neuron_mask(own[language], config.layers, config.mlp_dim) for language in languages]
    random = np.random.default_rng(seed)
    return [np.ones_like(masked[0]), *masked, *(random_control(mask, random) for mask in masked)]


class Texts(NamedTuple):
    """One language's."""

    language: str
    rows: list[int]
    prompts: list[list[int]]


def measured_texts(run: ProbeRun) -> dict[str, Texts]:
    """Language -> its texts, each of which predicts a token; row i is the same item in all."""
    texts = {}
    for language in run.languages:
        rows, prompts = probe_texts(run.data, language)
        for row, prompt in zip(rows, prompts, strict=True):
            if len(prompt) < 2:
                raise InputError(f"{language}, row {row.row}: a text of one token predicts nothing; leave it out")
        texts[language] = Texts(language, [row.row for row in rows], prompts)
    return texts


def token_counts(texts: Iterable[Texts]) -> np.ndarray:
    """How many tokens are predicted in each text: int [K, R]."""
    return np.array([[len(prompt) - 1 for prompt in each.prompts] for each in texts])


def measure(run: ProbeRun, variables: Any, texts: Texts, masks: Sequence[np.ndarray]) -> list[TextNats]:
    """The sums of one language's texts under each mask."""
    sums = [run.runner(nats_batch, variables, texts.prompts, mask, on_rows=run.on_rows) for mask in masks]
    if not np.isfinite([each.nats for each in sums]).all():
        raise InputError(f"{texts.language}: logits are not finite; check the weights, or compute in float32")
    return sums


def effect_labels(
    axis: str, own: Mapping[str, np.ndarray], languages: Sequence[str], rows: Sequence[int]
) -> dict[str, Any]:
    """What a JSON file says of `effects`, whose languages with changed neurons are `axis`, and of the rows."""
    return {
        "language": list(languages),
        axis: list(languages),
        "row": list(rows),
        "effect": list(EFFECTS),
        "estimate": ["change", "low", "high"],
        "interval": "95 %, percentile bootstrap over rows",
        "neurons": {language: len(own[language]) for language in languages},
        "task": TASK.name,
    }


def write_masking(run: ProbeRun, own: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Masks each language's neurons in turn; writes `masking.npz` and, naming its axes, `masking.json`.

    Args:
      own: language -> (layer, index) of its neurons, int [n, 2], as `jaxalign neurons` writes them.
      seed: of the random controls and of the bootstrap.

    Returns:
      The content of the JSON file.
    """
    languages = list(run.languages)
    masks = language_masks(own, languages, run.decoder.config, seed)
    variables = run.runner.place(run.variables)
    texts = measured_texts(run)
    rows, tokens = texts[languages[0]].rows, token_counts(texts.values())
    measured = [measure(run, variables, texts[language], masks) for language in languages]
    nats = np.stack([[each.nats for each in sums] for sums in measured], axis=1)
    reference = [
        [reference_perplexity(each, predicted) for each in sums]
        for sums, predicted in zip(measured, tokens, strict=True)
    ]
    arrays = {
        "nats": nats.astype(np.float32),
        "tokens": tokens,
        "perplexity": np.exp(nats.sum(axis=2, dtype=np.float64) / tokens.sum(axis=1)),
        "reference_perplexity": np.array(reference).T,
        "log_perplexity_change": effects(nats.astype(np.float64), tokens, seed),
    }
    document = {
        "axes": {
            "nats": ["mask", "language", "row"],
            "tokens": ["language", "row"],
            "perplexity": ["mask", "language"],
            "reference_perplexity": ["mask", "language"],
            "log_perplexity_change": ["effect", "masked_language", "language", "estimate"],
        },
        **effect_labels("masked_language", own, languages, rows),
        "mask": mask_names(languages),
        "units": {"nats": "nats of a row's tokens together", "log_perplexity_change": "nats per token"},
        **run.description,
    }
    write_probe(run.out, "masking", arrays, document)
    return document


def transplanted(base: Any, tuned: Any, mask: jax.Array) -> Any:
    """The parameters of `base` with the neurons at 0 in `mask` float32 [L, F] as they are in `tuned`."""

    def choose(path: tuple[Any, ...], own: jax.Array, other: jax.Array) -> jax.Array:
        match jax.tree_util.keystr(path, simple=True, separator="/").split("/"):
            case ["layers", "mlp", "gate_proj" | "up_proj", "kernel"]:
                kept = mask[:, None, :]
            case ["layers", "mlp", "gate_proj" | "up_proj", "bias"]:
                kept = mask
            case ["layers", "mlp", "down_proj", "kernel"]:
                kept = mask[:, :, None]
            case _:
                return own
        return jnp.where(kept == 0, other, own)

    return jax.tree_util.tree_map_with_path(choose, base, tuned)


def check_tuned(base: Any, tuned: Any) -> None:
    """Refuses a tuning that left the feed-forward weights as they were: there is nothing to transplant."""
    same = jax.tree.map(lambda own, other: jnp.array_equal(own, other), base["layers"]["mlp"], tuned["layers"]["mlp"])
    if all(map(bool, jax.tree.leaves(same))):
        raise InputError(
            "transplant: tuning changed no feed-forward weight, so that there is nothing to transplant; tune with "
            "--config.lora.targets=gate_proj,up_proj,down_proj or with --config.tune=all"
        )


def write_transplant(run: ProbeRun, tuned: Any, own: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Transplants each language's neurons; writes `transplant.npz` and, naming its axes, `transplant.json`.

    Args:
      run: of the base model.
      tuned: parameters of the tuned model, of the base's structure; an adapter merged.
      own: language -> (layer, index) of its neurons, int [n, 2].
      seed: of the random controls and of the bootstrap.

    Returns:
      The content of the JSON file.
    """
    config, languages, base = run.decoder.config, list(run.languages), run.variables["params"]
    check_tuned(base, tuned)
    masks = language_masks(own, languages, config, seed)
    weights = ["base", "tuned", *mask_names(languages)[1:]]
    shardings = run.runner.variable_shardings["params"]
    transplant = jax.jit(transplanted, in_shardings=(shardings, shardings, None), out_shardings=shardings)
    texts = measured_texts(run)
    rows, tokens = texts[languages[0]].rows, token_counts(texts.values())
    every_neuron = [np.ones_like(masks[0])]
    nats = []
    for name, mask in zip(weights, [None, None, *masks[1:]], strict=True):
        params = {"base": base, "tuned": tuned}.get(name)
        params = transplant(base, tuned, jnp.asarray(mask)) if params is None else params
        variables = run.runner.place({"params": params})
        measured = [measure(run, variables, texts[language], every_neuron) for language in languages]
        nats.append([sums[0].nats for sums in measured])
    nats = np.array(nats, np.float32)
    of_transplants = np.delete(nats, weights.index("tuned"), axis=0).astype(np.float64)
    document = {
        "axes": {
            "nats": ["weights", "language", "row"],
            "tokens": ["language", "row"],
            "perplexity": ["weights", "language"],
            "log_perplexity_change": ["effect", "transplanted_language", "language", "estimate"],
        },
        **effect_labels("transplanted_language", own, languages, rows),
        "weights": weights,
        "units": {"nats": "nats of a row's tokens together", "log_perplexity_change": "nats per token, from the base"},
        **run.description,
    }
    arrays = {
        "nats": nats,
        "tokens": tokens,
        "perplexity": np.exp(nats.sum(axis=2, dtype=np.float64) / tokens.sum(axis=1)),
        "log_perplexity_change": effects(of_transplants, tokens, seed),
    }
    write_probe(run.out, "transplant", arrays, document)
    return document
