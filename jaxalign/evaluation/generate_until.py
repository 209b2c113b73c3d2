"""Greedy decoding until a text says that it has ended: what ends it may be a string, whatever its tokens are.

    begin ──► advance by WATCH tokens ──► the host reads the texts so far ──► advance ... ──► all have ended

A row that has ended is at rest from then on. Up to WATCH - 1 tokens behind a string are decoded for nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.evaluation.generate import Answer, Chosen, Generator, Loop, advance, begin
from jaxalign.model.attention import init_cache
from jaxalign.model.ragged import EmptyFillerRunner
from jaxalign.model.sharding import cache_shardings
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import compiler_options

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
