"""What tuning did to a language's neurons: their tuned weights put into the base model, one language's at a time.

    base model ──┬─ the tuned weights of this language's neurons ──► nats per text ──► change of log perplexity
    tuned model ─┘  the tuned weights of as many random others in each layer, the control

A neuron's weights are its column of gate and up projection and its row of the down projection. All else is the base's.

Axis letters: K languages, R rows, L layers, D width, F feed-forward width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.probing.masking import (
    effect_labels,
    effects,
    language_masks,
    mask_names,
    measure,
    measured_texts,
    nats_function,
    token_counts,
)
from jaxalign.probing.records import write_probe
from jaxalign.probing.run import ProbeRun


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
    runner = run.runner(nats_function(run.decoder))
    shardings = runner.variable_shardings["params"]
    transplant = jax.jit(transplanted, in_shardings=(shardings, shardings, None), out_shardings=shardings)
    texts = measured_texts(run)
    rows, tokens = texts[languages[0]].rows, token_counts(texts.values())
    every_neuron = [np.ones_like(masks[0])]
    nats = []
    for name, mask in zip(weights, [None, None, *masks[1:]], strict=True):
        params = {"base": base, "tuned": tuned}.get(name)
        params = transplant(base, tuned, jnp.asarray(mask)) if params is None else params
        variables = runner.place({"params": params})
        measured = [measure(run, runner, variables, texts[language], every_neuron) for language in languages]
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
