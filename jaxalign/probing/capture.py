"""Capture: hidden states at chosen layers, averaged over chosen positions inside the layer scan.

Layers are counted as transformers' `hidden_states`: k = 0 the embeddings, k = 1..L-1 after block k, k = L after block
L and the final norm. Which positions of a prompt count, where its first three tokens are its language's few-shot
examples (`e`) and the others its query (`q`):

    tokens       e e e q q 0 0
    last         . . . . x . .       an average over one position: the state itself
    prompt_mean  x x x x x . .
    query_mean   . . . x x . .
    2            . . x . . . .       counted from 0
    -2           . . . x . . .       counted from the prompt's end

Axis letters: B batch, T positions, L layers, K chosen layers, D width.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.prompts import common_length
from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import decode_prefix, decode_prompts, shared_length
from jaxalign.model.transformer import Decoder, DecoderOutput, Tap
from jaxalign.probing.probe import ProbeRun, ProbeTexts, check_finite

Average = Literal["last", "prompt_mean", "query_mean"]
Position = Average | int
"""What is averaged over, or one position counted from the prompt's start or (negative) its end."""

NO_TOKEN = -1
"""Fills prefixes up to one length; equal to no token."""


class Capture(NamedTuple):
    """What is kept of each prompt."""

    layers: tuple[int, ...] | None
    """of 0..L; None: all of them"""
    position: Position


def parse_capture(layers: str, position: str) -> Capture:
    """Layers as numbers separated by commas, or `all`; a position as the module's drawing names it."""
    try:
        numbers = None if layers == "all" else tuple(int(word) for word in layers.split(","))
    except ValueError:
        numbers = ()
    if numbers is not None and (not numbers or min(numbers) < 0 or list(numbers) != sorted(set(numbers))):
        raise InputError(f"layers {layers}: name them by ascending numbers separated by commas, as 0,6,12, or all")
    if position in get_args(Average):
        return Capture(numbers, cast(Average, position))
    try:
        return Capture(numbers, int(position))
    except ValueError:
        raise InputError(
            f"position {position}: choose {', '.join(get_args(Average))}, or a number (-2: the last but one)"
        ) from None


def captured_layers(capture: Capture, layers: int) -> tuple[int, ...]:
    """The layers that are kept of a model of so many blocks; one that it lacks raises InputError."""
    if capture.layers is None:
        return tuple(range(layers + 1))
    if beyond := [layer for layer in capture.layers if layer > layers]:
        raise InputError(
            f"layer {beyond[0]}: the model has 0 (the embeddings) to {layers} (its output); choose of these"
        )
    return capture.layers


def position_mask(position: Position, tokens: jax.Array, lengths: jax.Array, prefix: jax.Array) -> jax.Array:
    """Which positions are averaged over: bool [B, T].

    prefix: int32 [P], tokens of the few-shot examples, filled up with NO_TOKEN; read for `query_mean` alone. The query
      is what follows the longest start that a prompt shares with it: a tokenizer may merge tokens at the seam.
    """
    places, ends = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1), lengths[:, None]
    if position == "prompt_mean":
        return places < ends
    if position == "query_mean":
        width = min(tokens.shape[1], prefix.shape[0])
        same = tokens[:, :width] == jnp.broadcast_to(prefix[:width], (len(tokens), width))
        starts = jnp.cumprod(same.astype(jnp.int32), axis=1).sum(axis=1, keepdims=True)
        return (starts <= places) & (places < ends)
    place = -1 if position == "last" else position
    return places == (place if place >= 0 else ends + place)


class SharedText(NamedTuple):
    """What all prompts of a language begin with, run once."""

    prefix: Prefix
    sums: Any
    """float32 [L + 1, D], of the states at its positions"""


def capture_batch(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    shared: SharedText | None,
    examples: jax.Array,
    *,
    layers: tuple[int, ...],
    position: Position,
) -> jax.Array:
    """States of the layers, averaged over the position's tokens: float32 [B, K, D].

    shared: where the batch, and `examples`, hold what follows it alone.
    examples: int32 [P], the few-shot tokens of `position_mask`.
    """
    chosen = position_mask(position, tokens, lengths, examples)
    output = decode_prompts(decoder, variables, tokens, lengths, tap_sums(chosen), prefix=shared and shared.prefix)
    sums, counts = every_layer(decoder, variables, tokens, output, chosen), chosen.sum(axis=1)
    if shared is not None and position == "prompt_mean":
        sums, counts = sums + shared.sums[:, None], counts + shared.prefix.length
    # Filler rows have no such position.
    means = sums / jnp.maximum(counts, 1).astype(jnp.float32)[None, :, None]
    return jnp.moveaxis(means[jnp.asarray(layers)], 0, 1)


def run_shared_text(decoder: Decoder, variables: Any, tokens: jax.Array, length: jax.Array) -> SharedText:
    """The text in the first `length` positions of int32 [P] `tokens`."""
    real = (jnp.arange(len(tokens)) < length)[None]
    prefix, output = decode_prefix(decoder, variables, tokens, length, tap_sums(real))
    return SharedText(prefix, every_layer(decoder, variables, tokens[None], output, real)[:, 0])


def summed(states: jax.Array, chosen: jax.Array) -> jax.Array:
    """Of the chosen positions, bool [B, T]: float32 [B, D]."""
    return jnp.where(chosen[:, :, None], states.astype(jnp.float32), 0.0).sum(axis=1)


def tap_sums(chosen: jax.Array) -> Tap:
    """Keeps the sum of each block's states."""
    return lambda layer, hidden, gate: summed(hidden, chosen)


def every_layer(
    decoder: Decoder, variables: Any, tokens: jax.Array, output: DecoderOutput, chosen: jax.Array
) -> jax.Array:
    """The sums of all layers, float32 [L + 1, B, D], from those that `tap_sums` kept of the blocks."""
    embeddings: Any = decoder.apply(variables, tokens, method="embed")
    return jnp.concatenate([summed(embeddings, chosen)[None], output.taps[:-1], summed(output.hidden, chosen)[None]])


def shared_tokens(position: Position, prompts: Sequence[Sequence[int]], examples: Sequence[int]) -> int:
    """How many first tokens of all prompts may run once: none that the position asks for, but in `prompt_mean`."""
    if isinstance(position, int):
        return 0 if position >= 0 else shared_length(prompts, keep=-position)
    shared = shared_length(prompts)
    if position != "query_mean":
        return shared
    return min(shared, *(common_length(prompt, examples) for prompt in prompts))


def capture_languages(
    run: ProbeRun, capture: Capture, languages: Sequence[str]
) -> Iterator[tuple[ProbeTexts, np.ndarray]]:
    """The states float32 [rows, K, D] of one language after the other, so that a reader need not hold all of them.

    Raises:
      InputError: before anything runs, for a layer that the model lacks or a prompt without the position; and for
        states that are not finite.
    """
    chosen = [run.texts[language] for language in languages]
    wanted: Any = {"layers": captured_layers(capture, run.config.layers), "position": capture.position}
    for texts in chosen:
        check_position(capture.position, texts)
    longest = max(len(texts.examples) for texts in chosen)
    for texts in chosen:
        shared = shared_tokens(capture.position, texts.prompts, texts.examples)
        examples = np.full(longest, NO_TOKEN, np.int32)
        examples[: len(texts.examples[shared:])] = texts.examples[shared:]
        states = run.ask(capture_batch, texts.prompts, shared, examples, of_prefix=run_shared_text, **wanted)
        check_finite(texts, states)
        yield texts, states


def check_position(position: Position, texts: ProbeTexts) -> None:
    """Refuses a prompt that has no such position."""
    for row, prompt in zip(texts.numbers, texts.prompts, strict=True):
        if isinstance(position, int):
            present = -len(prompt) <= position < len(prompt)
        else:
            present = position != "query_mean" or common_length(prompt, texts.examples) < len(prompt)
        if not present:
            raise InputError(
                f"{texts.language}, row {row}: its prompt of {len(prompt)} tokens has no position {position}; "
                "choose another position, or leave the row out"
            )
