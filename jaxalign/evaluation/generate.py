"""Greedy decoding: prompts continued by the likeliest next token until the text ends, a batch in one program.

A token ends it; where strings do, generate_until.py looks for them in between.

Two prompts of 3 and 2 tokens at a length of 4, with answers of at most 3 tokens, as the cache holds them:

    slot           0 1 2 3 | 4 5
    segment_ids    1 1 1 0 | 1 1        positions   0 1 2 3 | 3 4
                   1 1 0 0 | 1 1                    0 1 2 3 | 2 3

All rows write to one slot at a time, so a short prompt's padding stays between it and its answer, seen by nobody. An
answer's last token is never fed and takes no slot. Axis letters: B batch, T prompt positions, M tokens of an answer at
most, D width, V vocabulary.

Greedy decoding until a text says that it has ended: what ends it may be a string, whatever its tokens are.

    begin ──► advance by WATCH tokens ──► the host reads the texts so far ──► advance ... ──► all have ended

A row that has ended is at rest from then on. Up to WATCH - 1 tokens behind a string are decoded for nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import InputError
from jaxalign.model.attention import Cache, init_cache, write
from jaxalign.model.ragged import EmptyFillerRunner, RunCounts, last_position
from jaxalign.model.sharding import cache_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import compiler_options

NEAR_TIE = 1e-3
"""Best logits nearer than this may change places with the order of float32 additions: which token is then chosen
depends on batch, mesh and framework, and so does the rest of the answer."""


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


@dataclass
class GenerationCounts(RunCounts):
    """What a generator has done. `computed_positions` are those of prompts, `chosen_tokens` end-of-text included."""

    chosen_tokens: int = 0


def generate(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    stops: jax.Array,
    *,
    max_tokens: int,
    mesh: Mesh,
) -> Chosen:
    """Continues right-padded prompts greedily; of equal logits the lowest id is chosen.

    Args:
      tokens: int32 [B,T]; row b holds a prompt in its first `lengths[b]` positions.
      lengths: int32 [B]; a row of length 0 is filler and finished from the start.
      stops: int32 [E], the ids that end a text.
      max_tokens: M, at least 1.
      mesh: the cache lies on it by the sharding table.
    """
    loop = begin(decoder, variables, tokens, lengths, stops, max_tokens=max_tokens, mesh=mesh)
    return advance(decoder, variables, loop, stops, max_tokens).chosen


def begin(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    stops: jax.Array,
    *,
    max_tokens: int,
    mesh: Mesh,
) -> Loop:
    """The prompts read and one token chosen after each; the arguments are those of `generate`."""
    B, T = tokens.shape
    cache = init_cache(decoder.config, B, T, decoder.dtype)
    positions = lax.broadcasted_iota(jnp.int32, (B, T), 1)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    prompt = decoder.apply(variables, tokens, positions, segment_ids, cache=cache)
    nothing = Chosen(
        jnp.zeros((B, max_tokens), jnp.int32),
        jnp.zeros((B, max_tokens), jnp.float32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, bool),
    )
    start = Loop(
        step=jnp.zeros((), jnp.int32),
        newest=jnp.zeros(B, jnp.int32),
        positions=lengths - 1,
        done=lengths == 0,
        cache=with_room(prompt.cache, max_tokens - 1, mesh),
        chosen=nothing,
    )
    return choose(decoder, variables, last_position(prompt.hidden, jnp.maximum(lengths, 1)), start, stops)


def advance(decoder: Decoder, variables: Any, loop: Loop, stops: jax.Array, limit: int | jax.Array) -> Loop:
    """Decoding from one choice at least to `limit` choices, or until every row is done."""

    def unfinished(loop: Loop) -> jax.Array:
        return (loop.step < limit) & ~loop.done.all()

    def feed_and_choose(loop: Loop) -> Loop:
        real = (~loop.done).astype(jnp.int32)[:, None]
        fed = decoder.apply(variables, loop.newest[:, None], loop.positions[:, None], real, cache=loop.cache)
        return choose(decoder, variables, fed.hidden[:, 0], loop._replace(cache=fed.cache), stops)

    return lax.while_loop(unfinished, feed_and_choose, loop)


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


def with_room(cache: Cache, slots: int, mesh: Mesh) -> Cache:
    """The cache with that many empty slots more: the prompts' own attention does not pay for the answers' room."""

    def longer(array: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(array, [(0, slots if i == axis else 0) for i in range(array.ndim)])

    grown = Cache(
        k=longer(cache.k, 2),
        v=longer(cache.v, 2),
        positions=longer(cache.positions, 1),
        segment_ids=longer(cache.segment_ids, 1),
        offset=cache.offset,
    )
    return lax.with_sharding_constraint(grown, cache_shardings({"cache": grown}, mesh)["cache"])


class Generator:
    """Decodes prompts with one decoder: one program for each (rows, prompt bucket, most tokens) met."""

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_size: int):
        """
        Args:
          decoder, variables: as `Decoder.apply` takes them; of `variables` only shapes and types are read.
          mesh: axes "data", "fsdp", "tensor"; rows are spread over the first two, the cache's heads over the third.
          batch_size: prompts decoded at once, a multiple of data * fsdp.
        """
        self.decoder, self.variables, self.mesh, self.batch_size = decoder, variables, mesh, batch_size
        self.counts = GenerationCounts()
        self.runners: dict[int, EmptyFillerRunner] = {}

    def runner(self, max_tokens: int) -> EmptyFillerRunner:
        """The runner of answers of at most so many tokens; all runners count together.

        Filler rows are finished from the start: they must not hold up a batch that has ended.
        """
        if max_tokens not in self.runners:
            function = partial(generate, self.decoder, max_tokens=max_tokens, mesh=self.mesh)
            runner = EmptyFillerRunner(function, self.variables, self.mesh, self.batch_size)
            runner.counts = self.counts
            self.runners[max_tokens] = runner
        return self.runners[max_tokens]

    def __call__(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[int],
        max_tokens: int,
        on_rows: Callable[[int], object] = lambda rows: None,
    ) -> list[Answer]:
        """The greedy continuation of every prompt.

        Args:
          variables: of the structure given at the start.
          prompts: token ids, each at least one.
          stops: the ids that end a text.
          max_tokens: of an answer, at least 1.
          on_rows: told after each batch how many prompts it held.

        Raises:
          InputError: a prompt is empty, leaves no room for its answer, or the logits after it are not finite.
        """
        self.check_room(prompts, max_tokens)
        return self.answers(self.runner(max_tokens)(variables, prompts, np.array(stops, np.int32), on_rows))

    def check_room(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Refuses a prompt that leaves no room for its answer."""
        limit = self.decoder.config.max_positions
        for index, prompt in enumerate(prompts):
            if 0 < limit < len(prompt) + max_tokens:
                raise InputError(
                    f"prompt {index} has {len(prompt)} tokens and its answer up to {max_tokens}, the model takes "
                    f"{limit} positions; lower config.generate.max_tokens or leave the row out"
                )

    def answers(self, chosen: Any) -> list[Answer]:
        """What was chosen (`Chosen`, NumPy arrays), row by row; the logits must have been finite."""
        if not np.isfinite(chosen.margins).all():
            row = int(np.argmin(np.isfinite(chosen.margins).all(-1)))
            raise InputError(
                f"prompt {row}: the model's logits are not finite; check the weights, or compute in float32"
            )
        self.counts.chosen_tokens += int(chosen.counts.sum())
        return [answer(*row) for row in zip(*chosen, strict=True)]


def answer(tokens: np.ndarray, margins: np.ndarray, count: int, stopped: bool) -> Answer:
    """One row of `Chosen`."""
    ids = tokens[: count - int(stopped)].tolist()
    return Answer(ids, bool(stopped), int((margins[:count] < NEAR_TIE).sum()))


WATCH = 8
"""Tokens between two looks at the texts: most stop strings come early, and a look is cheap beside a step."""

HasEnded = Callable[[list[int]], bool]
"""Whether the text of these token ids has ended; once it has, more tokens change nothing."""


class WatchedRunner(EmptyFillerRunner):
    """Decodes prompts, the host looking on: called with (stops int32 [E], a `HasEnded`) as `extra`.

    A text that the host ended has all tokens that were chosen until then, and does not count as stopped.
    """

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_size: int, max_tokens: int):
        """The arguments are those of `Generator`; max_tokens: of an answer, at least 1."""
        whole = NamedSharding(mesh, PartitionSpec())
        held = loop_shardings(decoder, mesh, batch_size)
        function = partial(begin, decoder, max_tokens=max_tokens, mesh=mesh)
        super().__init__(function, variables, mesh, batch_size, out_shardings=held)
        self.max_tokens = max_tokens

        def go_on(variables: Any, loop: Loop, ended: jax.Array, stops: jax.Array, limit: jax.Array) -> Loop:
            return advance(decoder, variables, loop._replace(done=loop.done | ended), stops, limit)

        self.advance = jax.jit(
            go_on,
            in_shardings=(self.variable_shardings, held, whole, whole, whole),
            out_shardings=held,
            donate_argnums=1,
            compiler_options=compiler_options(mesh.devices.flat),
        )

    def outputs(
        self, variables: Any, prompts: Sequence[Sequence[int]], extra: Any = ()
    ) -> Iterator[tuple[list[int], Chosen]]:
        """Per batch, the indices of its prompts and their `Chosen`, on the host."""
        stops, has_ended = extra
        variables = self.place(variables)
        for members, loop in super().outputs(variables, prompts, stops):
            for limit in range(1 + WATCH, self.max_tokens + WATCH, WATCH):
                done, chosen = jax.device_get((loop.done, loop.chosen))
                rows = zip(done, chosen.tokens, chosen.counts, strict=True)
                ended = np.array([over or has_ended(tokens[:count].tolist()) for over, tokens, count in rows])
                if ended.all():
                    break
                with jax.set_mesh(self.mesh):
                    loop = self.advance(variables, loop, ended, stops, np.int32(min(limit, self.max_tokens)))
            yield members, jax.device_get(loop.chosen)


def loop_shardings(decoder: Decoder, mesh: Mesh, rows: int) -> Any:
    """How a loop lies on the mesh: its cache by the sharding table, all else whole on every device."""
    cache = jax.eval_shape(lambda: init_cache(decoder.config, rows, 1, decoder.dtype))
    whole: Any = NamedSharding(mesh, PartitionSpec())
    return Loop(whole, whole, whole, whole, cache_shardings({"cache": cache}, mesh)["cache"], Chosen(*[whole] * 4))


class UntilGenerator(Generator):
    """A generator that also looks for what ends a text."""

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_size: int):
        super().__init__(decoder, variables, mesh, batch_size)
        self.watched_runners: dict[int, WatchedRunner] = {}

    def watched_runner(self, max_tokens: int) -> WatchedRunner:
        """The runner of answers of at most so many tokens; all runners count together."""
        if max_tokens not in self.watched_runners:
            runner = WatchedRunner(self.decoder, self.variables, self.mesh, self.batch_size, max_tokens)
            runner.counts = self.counts
            self.watched_runners[max_tokens] = runner
        return self.watched_runners[max_tokens]

    def until(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[int],
        has_ended: HasEnded,
        max_tokens: int,
    ) -> list[Answer]:
        """The greedy continuation of every prompt to a stop, to `has_ended` and a few tokens more, or to `max_tokens`.

        The other arguments and the errors are those of `Generator.__call__`.
        """
        self.check_room(prompts, max_tokens)
        extra = (np.array(stops, np.int32), has_ended)
        return self.answers(self.watched_runner(max_tokens)(variables, prompts, extra))
