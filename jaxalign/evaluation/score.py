"""Log-probabilities behind prompts: of labels in a cell's prompts, and of texts each after a context of its own.

    prompts ──► shared prefix ──► prefill ──► keys and values ─┐
            └─► what follows ───► packed rows ──────────────► body ──► states that are read ──► head ──► scores

What prompts begin with together runs once, a context that several continuations follow as well; and only states whose
next token is asked for meet the head. Two queries behind a prefix of P tokens; the first goes on with the words x y"
and z" (tokens `x y "` and `z "`), whose closing quotes are predicted but never fed:

    tokens       a b c x y z d e . .       segment_ids  1 1 1 1 1 1 2 2 0 0
    positions  P+0 1 2 3 4 3 0 1 . .       branch_ids   0 0 0 1 1 2 0 0 . .

The state at c says the masses, and scores x and z; the states at x, y and z score y and the two quotes.
Axis letters: B rows, T positions, P prefix positions, R states that are read, C labels or continuations, D width.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.data.batches import best_fit_bins
from jaxalign.data.prompts import Continuation, LabelQuery
from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import OnRows, Runner, check_lengths, shared_length
from jaxalign.model.readout import LabelSets, label_masses, pad_label_sets
from jaxalign.model.transformer import Decoder


class Read(NamedTuple):
    """A position whose next-token distribution is asked for."""

    query: int
    slot: int
    """where it stands: among its item's tokens, and once packed among B * T of all rows"""
    targets: dict[int, int]
    """label -> the token whose log-probability counts towards the label's word"""
    has_masses: bool
    """whether this is the query's last prompt position"""


class Item(NamedTuple):
    """Consecutive positions of one row that see the prefix and each other, and nothing else."""

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    reads: list[Read]


def shared_prefix_length(queries: Sequence[LabelQuery]) -> int:
    """How many first tokens (not characters: a tokenizer may merge some at the seam) all prompts share, each keeping at
    least one, and with it every token that is read."""
    starts = [word.scored_from - 1 for query in queries for word in query.words]
    return max(0, min([shared_length([query.prompt for query in queries]), *starts]))


def query_items(index: int, query: LabelQuery, prefix: int) -> list[Item]:
    """The positions that one query needs behind `prefix` tokens.

    A word that begins where the prompt ends is a branch of it. Where the tokenizer merged the two, or the prompt was
    made longer than its text, the word's tokens part from the prompt's earlier: they are an item of their own.
    """
    end = len(query.prompt)
    first: dict[int, int] = {}
    trunk = Item(list(query.prompt[prefix:]), list(range(prefix, end)), [0] * (end - prefix), [])
    trunk.reads.append(Read(index, end - prefix - 1, first, has_masses=True))
    items = [trunk]
    for label, word in enumerate(query.words):
        item, branch, fed = trunk, label + 1, end
        if word.scored_from == end:
            first[label] = word.ids[end]
        else:
            item, branch, fed = Item([], [], [], []), 0, prefix
            items.append(item)
        for at in range(fed, len(word.ids) - 1):
            if at + 1 >= word.scored_from:
                item.reads.append(Read(index, len(item.tokens), {label: word.ids[at + 1]}, has_masses=False))
            item.tokens.append(word.ids[at])
            item.positions.append(at)
            item.branches.append(branch)
    return items


def pack(items: Sequence[Item], prefix: int, width: int, shortest: int) -> tuple[int, list[list[Item]]]:
    """Shares the items out over rows of one length, behind `prefix` positions; returns it and the items of each row.

    Longer rows leave fewer positions empty, and each position meets more keys. Of `shortest` times 1, 2, 4, 8 (or more
    where an item is longer) the length of least work is taken: a position costs as much as 4 D + S keys, for a layer's
    projections are about 12 D^2 weights, and a key costs 2 D products and as much again in the softmax.
    """
    lengths = np.array([len(item.tokens) for item in items])
    fitting = [shortest << doubled for doubled in range(32) if shortest << doubled >= lengths.max()]
    candidates = [length for length in fitting if length <= 8 * shortest] or fitting[:1]
    bins = {length: best_fit_bins(lengths, length) for length in candidates}
    best = min(candidates, key=lambda length: len(bins[length]) * length * (4 * width + prefix + length))
    return best, [[items[i] for i in row] for row in bins[best]]


def batch_sizes(rows: int, unit: int, most: int) -> list[int]:
    """Cuts rows into batches of `unit` times a power of two, `most` at most: few shapes, little padding."""
    size = unit
    while 2 * size <= most:
        size *= 2
    sizes = []
    while rows > 0:
        while size > unit and size > rows:
            size //= 2
        sizes.append(size)
        rows -= size
    return sizes


def fill(rows: Sequence[Sequence[Item]], count: int, length: int) -> tuple[np.ndarray, list[Read]]:
    """Tokens, positions, segment_ids and branch_ids of `count` rows, int32 [4, B, T], and the reads in them; the rows
    behind the given ones are empty."""
    arrays, reads = np.zeros((4, count, length), np.int32), []
    for row, items in enumerate(rows):
        start = 0
        for segment, item in enumerate(items, start=1):
            end = start + len(item.tokens)
            segments = [segment] * len(item.tokens)
            arrays[:, row, start:end] = item.tokens, item.positions, segments, item.branches
            reads += [read._replace(slot=row * length + start + read.slot) for read in item.reads]
            start = end
    return arrays, reads


SHORTEST_ROW = 128
"""Positions: two short queries, and a matrix unit's width on a TPU."""
READS = 256
"""States that meet the head together at most: their float32 logits are 0.25 GiB at Gemma's vocabulary."""


class LabelScores(NamedTuple):
    """Scores of n queries, in their order."""

    prefix_mass: np.ndarray
    """float32 [n,C]: probability that the next token is one of the label's candidates"""
    whole_word: np.ndarray
    """float64 [n,C]: log-probability of the label's word with its closing quote, NaN for queries without words"""


BRANCHES = 32
"""Continuations that share one copy of their context: C."""
BRANCH_TOKENS = 512
"""Tokens of such continuations together, unless one alone has more: in a row every position meets every other."""
BATCHES = 8
"""So many batches of positions are computed between two reports; their states lie in memory together."""

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context, at least one, and of what follows it, at least one."""


class ContinuationScore(NamedTuple):
    log_probability: float
    """of the continuation's tokens together, natural logarithm"""
    is_greedy: bool
    """whether each of them is the likeliest after what stands before it"""


def body(decoder: Decoder, variables: Any, prefix: Prefix, *rows: jax.Array) -> jax.Array:
    """The states [B,T,D] of packed rows: tokens, positions, segment_ids and branch_ids, int32 [B,T] each."""
    tokens, positions, segment_ids, branch_ids = rows
    return decoder.apply(variables, tokens, positions, segment_ids, prefix=prefix, branch_ids=branch_ids).hidden


def head(
    decoder: Decoder, variables: Any, states: jax.Array, targets: jax.Array, labels: LabelSets | None
) -> tuple[jax.Array, ...]:
    """What the next-token distributions at the states [R,D] say: the targets' (int32 [R,C]) log-probabilities, float32
    [R,C]; the labels' masses, float32 [R,C], or without labels the likeliest ids [R]; whether logits are finite [R]."""
    logits = decoder.apply(variables, states, method="logits")
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    found = jnp.take_along_axis(logits, targets, axis=-1) - normaliser[:, None]
    said = jnp.argmax(logits, axis=-1) if labels is None else label_masses(logits, labels)
    return found, said, jnp.isfinite(normaliser)


class Scorer:
    """Scores queries with one decoder: one program a shape, shared by all parameters of one structure."""

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_tokens: int = 1024):
        """
        Args:
          variables: {"params": base} or {"params": base, "lora": adapters}; only shapes and types are read.
          mesh: axes "data", "fsdp", "tensor"; rows are spread over the first two, the prefix's heads over the third.
          batch_tokens: positions computed at once, at least one row for each device that takes its own.
        """
        self.runner, self.batch_tokens = Runner(decoder, variables, mesh), batch_tokens
        self.config = decoder.config
        self.counts: Counter[str] = Counter()
        """what was done so far, by the names of `timing`"""
        self.seconds = dict.fromkeys(("prefill", "body", "head"), 0.0)
        """compilation included; what the device does is waited for where it is needed, a prefill by its first rows"""

    def score(
        self,
        variables: Any,
        queries: Sequence[LabelQuery],
        label_sets: Sequence[Sequence[int]],
        on_rows: OnRows = lambda rows: None,
    ) -> LabelScores:
        """The scores of every label in every query; they do not depend on batches, order or padding beyond 1e-5.

        Args:
          variables: of the structure given at the start; the values may change between calls.
          queries: of one cell; the more tokens they begin with together, the fewer are computed.
          label_sets: candidate ids of each label.

        Raises:
          InputError: a prompt is empty or too long, or the model's logits are not finite.
        """
        fed = [max([len(query.prompt), *(len(word.ids) - 1 for word in query.words)]) for query in queries]
        check_lengths(fed, self.config.max_positions)
        labels, classes = pad_label_sets(label_sets), len(label_sets)
        masses = np.zeros((len(queries), classes), np.float32)
        words = np.array([[0.0 if query.words else np.nan] * classes for query in queries])
        for read, found, mass in self.read(variables, queries, len(labels.ids), labels, on_rows):
            if read.has_masses:
                masses[read.query] = mass[:classes]
            for label in read.targets:
                words[read.query, label] += found[label]
        return LabelScores(masses, words)

    def continuations(self, variables: Any, pairs: Sequence[Pair]) -> Iterator[dict[Pair, ContinuationScore]]:
        """The scores of all pairs, each distinct one computed once; so many at a time, in no particular order.

        Raises:
          InputError: a pair is longer than the model's positions or has no context, or the model's logits are not
            finite.
        """
        if not pairs:
            return
        check_lengths([len(context) for context, _ in pairs], 0)
        check_lengths([len(context) + len(words) - 1 for context, words in pairs], self.config.max_positions)
        queries = queries_of(pairs)
        for group in prefix_groups([query.prompt for query in queries], self.batch_tokens):
            for some in cut([queries[index] for index in group], BATCHES * self.batch_tokens):
                totals = np.zeros((len(some), BRANCHES))
                greedy = np.ones((len(some), BRANCHES), bool)
                for read, found, best in self.read(variables, some, BRANCHES):
                    for word, target in read.targets.items():
                        totals[read.query, word] += found[word]
                        greedy[read.query, word] &= best == target
                yield {
                    (tuple(query.prompt), tuple(word.ids[word.scored_from :])): ContinuationScore(
                        float(totals[index, place]), bool(greedy[index, place])
                    )
                    for index, query in enumerate(some)
                    for place, word in enumerate(query.words)
                }

    def timing(self, scored: int, seconds: float) -> dict[str, Any]:
        """What varies from run to run: `scored` examples in so many seconds; padding is a share of positions, and the
        phases' "seconds" and "examples_per_second" hold no compilation."""
        counts, runner = self.counts, self.runner
        compile_seconds = {phase: runner.compile_seconds[phase] for phase in self.seconds}
        running = sum(self.seconds.values()) - sum(compile_seconds.values())
        names = ("prompt_tokens_asked", "prompt_tokens_computed", "word_tokens_computed", "positions_computed")
        computed, positions = counts["prompt_tokens_computed"] + counts["word_tokens_computed"], counts[names[-1]]
        return {
            **{name: counts[name] for name in names},
            "padding_share": 1 - computed / positions if positions else 0.0,
            "compilations": {phase: runner.compilations[phase] for phase in self.seconds},
            "compile_seconds": compile_seconds,
            "seconds": {phase: spent - compile_seconds[phase] for phase, spent in self.seconds.items()},
            "seconds_in_all": seconds,
            "examples_per_second": scored / running if running else 0.0,
        }

    def read(
        self,
        variables: Any,
        queries: Sequence[LabelQuery],
        width: int,
        labels: LabelSets | None = None,
        on_rows: OnRows = lambda rows: None,
    ) -> Iterator[tuple[Read, np.ndarray, np.ndarray]]:
        """All that the queries read behind the prefix that they share, and of each what `head` says; C is `width`."""
        variables = self.runner.place(variables)
        states, reads = self.run(variables, queries, on_rows)
        start = time.perf_counter()
        for first in range(0, len(reads), READS):
            some = reads[first : first + READS]
            # Rounded up, so that most calls share a program.
            padded = np.zeros((-(-len(some) // 64) * 64, states.shape[1]), states.dtype)
            padded[: len(some)] = states[first : first + READS]
            targets = np.zeros((len(padded), width), np.int32)
            for row, read in enumerate(some):
                for label, target in read.targets.items():
                    targets[row, label] = target
            found, said, finite = jax.device_get(self.runner.call(head, variables, padded, targets, labels))
            if not finite[: len(some)].all():
                where = "" if labels is None else f"prompt {some[int(np.argmin(finite))].query}: "
                raise InputError(f"{where}the model's logits are not finite; check the weights, or compute in float32")
            yield from zip(some, found, said, strict=False)
        self.seconds["head"] += time.perf_counter() - start

    def run(self, variables: Any, queries: Sequence[LabelQuery], on_rows: OnRows) -> tuple[np.ndarray, list[Read]]:
        """The states [R,D] that are read, and what is read from each."""
        start, runner, counts = time.perf_counter(), self.runner, self.counts
        shared = shared_prefix_length(queries)
        prefix = runner.run_prefix(variables, queries[0].prompt[:shared])
        prefilled = time.perf_counter()
        self.seconds["prefill"] += prefilled - start
        counts["positions_computed"] += prefix.k.shape[1]
        items = [item for index, query in enumerate(queries) for item in query_items(index, query, shared)]
        length, rows = pack(items, prefix.k.shape[1], self.config.width, SHORTEST_ROW)
        states, reads = [], []

        def collect(hidden: jax.Array, asked: Sequence[Read]) -> None:
            states.append(np.asarray(hidden).reshape(-1, hidden.shape[-1])[[read.slot for read in asked]])
            reads.extend(asked)
            on_rows(sum(read.has_masses for read in asked))

        running: list[tuple[jax.Array, list[Read]]] = []
        for size in batch_sizes(len(rows), runner.row_multiple, self.batch_tokens // length):
            arrays, asked = fill(rows[:size], size, length)
            rows = rows[size:]
            batch = runner.put(list(arrays), runner.by_row)
            running.append((runner.call(body, variables, prefix, *batch), asked))
            counts["positions_computed"] += size * length
            # The device computes this batch while the one before is fetched.
            if len(running) > 1:
                collect(*running.pop(0))
        collect(*running.pop())
        self.seconds["body"] += time.perf_counter() - prefilled
        prompt_tokens = sum(len(query.prompt) for query in queries)
        trunks = prompt_tokens - shared * len(queries)
        counts["prompt_tokens_asked"] += prompt_tokens
        counts["prompt_tokens_computed"] += shared + trunks
        counts["word_tokens_computed"] += sum(len(item.tokens) for item in items) - trunks
        return np.concatenate(states), reads


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
