"""Greedy decoding: prompts continued by the likeliest next token until the text ends.

A token ends it, or the host, which reads the texts so far: a string that ends a text may be any tokens.

    begin ──► advance by WATCH tokens ──► the host reads the texts so far ──► advance ... ──► all have ended
          └─► advance to the end, where tokens alone end a text

A row that has ended is at rest from then on. Up to WATCH - 1 tokens behind a string are decoded for nothing.

Two prompts of 3 and 2 tokens at a length of 4, with answers of at most 3 tokens, as the cache holds them:

    slot           0 1 2 3 | 4 5
    segment_ids    1 1 1 0 | 1 1        positions   0 1 2 3 | 3 4
                   1 1 0 0 | 1 1                    0 1 2 3 | 2 3

All rows write to one slot at a time, so a short prompt's padding stays between it and its answer, seen by nobody. An
answer's last token is never fed and takes no slot. Axis letters: B batch, T prompt positions, M tokens of an answer at
most, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.model.attention import Cache, init_cache, write
from jaxalign.model.ragged import OnRows, Runner, in_order, last_position
from jaxalign.model.sharding import cache_shardings
from jaxalign.model.transformer import Decoder

NEAR_TIE = 1e-3
"""Best logits nearer than this may change places with the order of float32 additions: which token is then chosen
depends on batch, mesh and framework, and so does the rest of the answer."""

WATCH = 8
"""Tokens between two looks at the texts: most stop strings come early, and a look is cheap beside a step."""

HasEnded = Callable[[list[int]], bool]
"""Whether the text of these token ids has ended; once it has, more tokens change nothing."""


class Chosen(NamedTuple):
    """What was chosen after each prompt: its first `counts[b]` tokens, one that ends the text among them."""

    tokens: jax.Array
    """int32 [B,M], 0 behind the end"""
    margins: jax.Array
    """float32 [B,M]: how far the best logit lay above the second, 0 behind the end"""
    counts: jax.Array
    """int32 [B]"""
    stopped: jax.Array
    """bool [B]: whether the text ended; otherwise M tokens were not enough"""


class Loop(NamedTuple):
    """Decoding after `step` choices."""

    step: jax.Array
    newest: jax.Array
    """int32 [B]: what each row chose last, 0 where it is done"""
    positions: jax.Array
    """int32 [B]: where that stands"""
    done: jax.Array
    """bool [B]"""
    cache: Cache
    chosen: Chosen


@dataclass(frozen=True)
class Answer:
    """One prompt's continuation."""

    ids: list[int]
    """without the token that ended it"""
    stopped: bool
    near_ties: int
    """how often the two best logits lay within NEAR_TIE"""


def begin(
    decoder: Decoder, variables: Any, tokens: jax.Array, lengths: jax.Array, stops: jax.Array, *, max_tokens: int
) -> Loop:
    """Right-padded prompts read, and one token chosen after each; of equal logits the lowest id is chosen.

    Args:
      tokens, lengths: as `decode_prompts` takes them; a row of length 0 is filler and finished from the start.
      stops: int32 [E], the ids that end a text.
      max_tokens: M, at least 1.
    """
    B, T = tokens.shape
    cache = init_cache(decoder.config, B, T, decoder.dtype)
    positions = lax.broadcasted_iota(jnp.int32, (B, T), 1)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    prompt = decoder.apply(variables, tokens, positions, segment_ids, cache=cache)
    zeros, nothing = jnp.zeros((B, max_tokens)), jnp.zeros(B, jnp.int32)
    start = Loop(
        step=jnp.zeros((), jnp.int32),
        newest=nothing,
        positions=lengths - 1,
        done=lengths == 0,
        cache=with_room(prompt.cache, max_tokens - 1),
        chosen=Chosen(zeros.astype(jnp.int32), zeros, nothing, nothing.astype(bool)),
    )
    return choose(decoder, variables, last_position(prompt.hidden, jnp.maximum(lengths, 1)), start, stops)


def advance(decoder: Decoder, variables: Any, loop: Loop, ended: jax.Array, stops: jax.Array, limit: jax.Array) -> Loop:
    """Decoding to `limit` choices, or until every row is done; those that `ended` (bool [B]) are."""

    def unfinished(loop: Loop) -> jax.Array:
        return (loop.step < limit) & ~loop.done.all()

    def feed_and_choose(loop: Loop) -> Loop:
        real = (~loop.done).astype(jnp.int32)[:, None]
        fed = decoder.apply(variables, loop.newest[:, None], loop.positions[:, None], real, cache=loop.cache)
        return choose(decoder, variables, fed.hidden[:, 0], loop._replace(cache=fed.cache), stops)

    return lax.while_loop(unfinished, feed_and_choose, loop._replace(done=loop.done | ended))


def choose(decoder: Decoder, variables: Any, hidden: jax.Array, loop: Loop, stops: jax.Array) -> Loop:
    """The next token of each row, from the states [B,D] at its newest."""
    token, margin = best_token(decoder.apply(variables, hidden, method="logits"))
    token, margin = jnp.where(loop.done, 0, token), jnp.where(loop.done, 0.0, margin)
    ended = ~loop.done & (token[:, None] == stops[None, :]).any(-1)
    chosen = Chosen(
        tokens=write(loop.chosen.tokens, token[:, None], loop.step),
        margins=write(loop.chosen.margins, margin[:, None], loop.step),
        counts=loop.chosen.counts + (~loop.done).astype(jnp.int32),
        stopped=loop.chosen.stopped | ended,
    )
    return Loop(loop.step + 1, token, loop.positions + 1, loop.done | ended, loop.cache, chosen)


def best_token(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The token of the largest logit, int32 [B], and how far it lies above the next, float32 [B]; logits [B,V].

    The margin is NaN where a logit is.
    """
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    is_best = lax.broadcasted_iota(jnp.int32, logits.shape, 1) == token[:, None]
    return token, jnp.max(logits, -1) - jnp.max(jnp.where(is_best, -jnp.inf, logits), -1)


def with_room(cache: Cache, slots: int) -> Cache:
    """The cache with that many empty slots more: the prompts' own attention does not pay for the answers' room."""

    def longer(array: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(array, [(0, slots if i == axis else 0) for i in range(array.ndim)])

    slots_of = longer(cache.positions, 1), longer(cache.segment_ids, 1)
    grown = Cache(longer(cache.k, 2), longer(cache.v, 2), *slots_of, cache.offset)
    mesh = jax.sharding.get_abstract_mesh()
    return lax.with_sharding_constraint(grown, cache_shardings({"cache": grown}, mesh)["cache"])


class Generator:
    """Decodes prompts with one decoder: two programs for each (rows, prompt bucket, most tokens) met."""

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_size: int):
        """The arguments are those of `Runner`; the cache's heads are spread over the mesh's "tensor"."""
        self.runner = Runner(decoder, variables, mesh, batch_size)
        self.chosen_tokens = 0
        """in all so far, those that end a text among them"""

    def __call__(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[int],
        max_tokens: int,
        on_rows: OnRows = lambda rows: None,
        has_ended: HasEnded | None = None,
    ) -> list[Answer]:
        """The greedy continuation of every prompt.

        Args:
          variables: of the structure given at the start.
          prompts: token ids, each at least one.
          stops: the ids that end a text.
          max_tokens: of an answer, at least 1.
          has_ended: ends a text as well; it has all tokens that were chosen until then, and does not count as stopped.

        Raises:
          InputError: a prompt is empty, leaves no room for its answer, or the logits after it are not finite.
        """
        limit = self.runner.decoder.config.max_positions
        for index, prompt in enumerate(prompts):
            if 0 < limit < len(prompt) + max_tokens:
                raise InputError(
                    f"prompt {index} has {len(prompt)} tokens and its answer up to {max_tokens}, the model takes "
                    f"{limit} positions; lower config.generate.max_tokens or leave the row out"
                )
        chosen = in_order(self.batches(variables, prompts, stops, max_tokens, has_ended), on_rows)
        finite = np.isfinite(chosen.margins).all(axis=1)
        if not finite.all():
            raise InputError(
                f"prompt {int(np.argmin(finite))}: the model's logits are not finite; "
                "check the weights, or compute in float32"
            )
        self.chosen_tokens += int(chosen.counts.sum())
        return [
            Answer(tokens[: count - stopped].tolist(), bool(stopped), int((margins[:count] < NEAR_TIE).sum()))
            for tokens, margins, count, stopped in zip(*chosen, strict=True)
        ]

    def timing(self, decoded: int, seconds: float) -> dict[str, Any]:
        """What was done, `seconds` of compilation among it."""
        counts, chosen = self.runner.counts, self.chosen_tokens
        per_second = chosen / counts["seconds"] if counts["seconds"] else 0.0
        return {**counts, "chosen_tokens": chosen, "chosen_tokens_per_second": round(per_second, 1)}

    def batches(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[int],
        max_tokens: int,
        has_ended: HasEnded | None = None,
    ) -> Iterator[tuple[list[int], Chosen]]:
        """Per batch, the indices of its prompts and their `Chosen`; arguments as of a call."""
        runner, ids = self.runner, np.array(stops, np.int32)
        variables = runner.place(variables)
        every = WATCH if has_ended else max_tokens
        for members, loop in runner.batches(begin, variables, prompts, ids, max_tokens=max_tokens):
            for limit in range(1 + every, max_tokens + every, every):
                ended, chosen = jax.device_get((loop.done, loop.chosen))
                if has_ended:
                    rows = zip(ended, chosen.tokens, chosen.counts, strict=True)
                    ended = np.array([done or has_ended(tokens[:count].tolist()) for done, tokens, count in rows])
                if ended.all():
                    break
                most = np.int32(min(limit, max_tokens))
                loop = runner.call(advance, variables, loop, ended, ids, most, donate=(0,))
            yield members, loop.chosen
