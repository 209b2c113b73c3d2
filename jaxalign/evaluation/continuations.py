"""Log-probabilities of texts, each after a context of its own.

    (context, continuation) ... ──► contexts that begin alike ──► shared prefix ──► prefill ─┐
                                                └─► contexts' rest, a branch for each ─────► body ──► states ──► head

A context that several continuations follow is computed once, and what several contexts begin with as well, where that
saves more than it costs. Only states that say a continuation's token meet the head.
Axis letters: R states that are read, D width, V vocabulary, C continuations of one query.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.data.prompts import Continuation, LabelQuery
from jaxalign.errors import InputError
from jaxalign.evaluation.packed_queries import Read, query_items, shared_prefix_length
from jaxalign.evaluation.score_labels import READS, Scorer
from jaxalign.model.ragged import Program, check_lengths, shared_length
from jaxalign.model.readout import log_probabilities
from jaxalign.model.transformer import Decoder

BRANCHES = 32
"""Continuations that share one copy of their context: C."""
BRANCH_TOKENS = 512
"""Tokens of such continuations together, unless one alone has more: in a row every position meets every other."""
BATCHES = 8
"""So many batches of positions are computed between two reports; their states lie in memory together."""

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context, at least one, and of what follows it, at least one."""


class Score(NamedTuple):
    log_probability: float
    """of the continuation's tokens together, natural logarithm"""
    is_greedy: bool
    """whether each of them is the likeliest after what stands before it"""


class ContinuationScorer:
    """Scores continuations with one decoder: one program a shape."""

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_tokens: int):
        """The arguments are those of `Scorer`, which runs prefixes and rows here too."""
        self.rows, self.batch_tokens = Scorer(decoder, variables, mesh, batch_tokens), batch_tokens
        self.max_positions = decoder.config.max_positions
        whole = NamedSharding(mesh, PartitionSpec())

        def read(variables: Any, states: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
            logits = decoder.apply(variables, states, method="logits")
            finite = jnp.isfinite(jax.nn.logsumexp(logits, axis=-1))
            return log_probabilities(logits, targets), jnp.argmax(logits, axis=-1), finite

        self.head = Program(read, mesh, (self.rows.variable_shardings, whole, whole), whole)

    def score(self, variables: Any, pairs: Sequence[Pair]) -> Iterator[dict[Pair, Score]]:
        """The scores of all pairs, each distinct one computed once; so many at a time, in no particular order.

        Raises:
          InputError: a pair is longer than the model's positions or has no context, or the model's logits are not
            finite.
        """
        if not pairs:
            return
        check_lengths([len(context) for context, _ in pairs], 0)
        check_lengths([len(context) + len(continuation) - 1 for context, continuation in pairs], self.max_positions)
        variables = self.rows.place(variables)
        queries = queries_of(pairs)
        for group in prefix_groups([query.prompt for query in queries], self.batch_tokens):
            for some in cut([queries[index] for index in group], BATCHES * self.batch_tokens):
                yield self.score_together(variables, some)

    def score_together(self, variables: Any, queries: Sequence[LabelQuery]) -> dict[Pair, Score]:
        """The scores of the queries' words, behind the prefix that the queries share."""
        shared = shared_prefix_length(queries)
        prefix = self.rows.run_prefix(variables, queries[0].prompt[:shared])
        items = [item for index, query in enumerate(queries) for item in query_items(index, query, shared)]
        states, reads = self.rows.run_rows(variables, prefix, items, lambda rows: None)
        log_probability = np.zeros((len(queries), BRANCHES))
        greedy = np.ones((len(queries), BRANCHES), bool)
        for first in range(0, len(reads), READS):
            some = reads[first : first + READS]
            for read, found, best in zip(some, *self.read(variables, states[first : first + READS], some), strict=True):
                for word, target in read.targets.items():
                    log_probability[read.query, word] += found[word]
                    greedy[read.query, word] &= best == target
        return {
            (tuple(query.prompt), tuple(word.ids[word.scored_from :])): Score(
                float(log_probability[index, place]), bool(greedy[index, place])
            )
            for index, query in enumerate(queries)
            for place, word in enumerate(query.words)
        }

    def read(self, variables: Any, states: np.ndarray, reads: Sequence[Read]) -> tuple[np.ndarray, np.ndarray]:
        """At the states [R,D] that are read: the targets' log-probabilities, float32 [R,C], and the likeliest ids [R].

        R is padded to a multiple of 64, so that most calls share a program.
        """
        padded = np.zeros((-(-len(reads) // 64) * 64, states.shape[1]), states.dtype)
        padded[: len(reads)] = states
        targets = np.zeros((len(padded), BRANCHES), np.int32)
        for row, read in enumerate(reads):
            for word, target in read.targets.items():
                targets[row, word] = target
        found, best, finite = (array[: len(reads)] for array in jax.device_get(self.head(variables, padded, targets)))
        if not finite.all():
            raise InputError("the model's logits are not finite; check the weights, or compute in float32")
        return found, best


def queries_of(pairs: Sequence[Pair]) -> list[LabelQuery]:
    """Each distinct context with its distinct continuations; where they are many, several times."""
    following: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for context, continuation in pairs:
        following.setdefault(context, {})[continuation] = None
    queries = []
    for context, continuations in following.items():
        words: list[Continuation] = []
        tokens = 0
        for continuation in continuations:
            if words and (len(words) == BRANCHES or tokens + len(continuation) > BRANCH_TOKENS):
                queries.append(LabelQuery(list(context), tuple(words)))
                words, tokens = [], 0
            words.append(Continuation([*context, *continuation], len(context)))
            tokens += len(continuation)
        queries.append(LabelQuery(list(context), tuple(words)))
    return queries


def prefix_groups(prompts: Sequence[list[int]], cost: int) -> list[list[int]]:
    """The indices of the prompts, in groups that are to be computed behind what each group's begin with.

    n prompts that begin with Q tokens together are a group of their own where this saves more than `cost` tokens: of
    each Q - P, P being what they share with a larger group's others, less the Q that are computed for all of them.
    """
    groups: list[list[int]] = [[]]
    waiting = [(sorted(range(len(prompts)), key=lambda i: prompts[i]), 0, 0)]
    while waiting:
        members, group, known = waiting.pop()
        # They are sorted: what the first and the last share, all do.
        common = shared_length([prompts[members[0]], prompts[members[-1]]])
        if len(members) * (common - known) - common > cost:
            groups.append([])
            group, known = len(groups) - 1, common
        longer = [i for i in members if len(prompts[i]) > common + 1]
        groups[group] += [i for i in members if len(prompts[i]) <= common + 1]
        for _, run in groupby(longer, key=lambda i: prompts[i][common]):
            waiting.append((list(run), group, known))
    return [group for group in groups if group]


def cut(queries: Sequence[LabelQuery], most: int) -> Iterator[list[LabelQuery]]:
    """The queries in their order, a few at a time: behind their prefix `most` tokens, or one query that has more."""
    shared = shared_prefix_length(queries)
    some: list[LabelQuery] = []
    total = 0
    for query in queries:
        size = len(query.prompt) - shared + sum(len(word.ids) - word.scored_from for word in query.words)
        if some and total + size > most:
            yield some
            some, total = [], 0
        some.append(query)
        total += size
    yield some
