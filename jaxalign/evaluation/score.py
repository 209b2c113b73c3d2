"""What follows the common prefix of a cell's prompts, packed into rows of fixed length.

Two queries behind a prefix of P tokens; the first goes on with the label words x y" and z" (tokens `x y "` and `z "`),
whose closing quotes are predicted but never fed:

    tokens       a b c x y z d e . .       segment_ids  1 1 1 1 1 1 2 2 0 0
    positions  P+0 1 2 3 4 3 0 1 . .       branch_ids   0 0 0 1 1 2 0 0 . .

The state at c says the masses, and scores x and z; the states at x, y and z score y and the two quotes.
Axis letters: B rows, T positions, C labels, D width, S keys.

Label scores of a cell's prompts: the next token's mass on each label, and the log-probability of each whole word.

    prompts ──► shared prefix ──► prefill ──► keys and values ─┐
            └─► what follows ───► packed rows ──────────────► body ──► states that are read ──► head ──► scores

The few-shot text that all prompts begin with runs once; only states whose next token is asked for meet the head.
Axis letters: B rows, T positions, P prefix positions, D width, R states that are read, C labels.

Log-probabilities of texts, each after a context of its own.

    (context, continuation) ... ──► contexts that begin alike ──► shared prefix ──► prefill ─┐
                                                └─► contexts' rest, a branch for each ─────► body ──► states ──► head

A context that several continuations follow is computed once, and what several contexts begin with as well, where that
saves more than it costs. Only states that say a continuation's token meet the head.
Axis letters: R states that are read, D width, V vocabulary, C continuations of one query.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.data.batches import best_fit_bins
from jaxalign.data.prompts import Continuation, LabelQuery, common_length
from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import Program, check_lengths, prefill, prefix_bucket, shared_length
from jaxalign.model.readout import LabelSets, label_masses, log_probabilities, pad_label_sets
from jaxalign.model.sharding import batch_spec, cache_shardings, param_shardings
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


class Rows(NamedTuple):
    """Packed rows, int32 [B, T] each, and the reads in them."""

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    branch_ids: np.ndarray
    reads: list[Read]


def shared_prefix_length(queries: Sequence[LabelQuery]) -> int:
    """How many first tokens all prompts share, each keeping at least one, and with it every token that is read.

    Compared as tokens, not as text: a tokenizer may merge characters over the seam of the few-shot text.
    """
    first, shared = queries[0].prompt, len(queries[0].prompt)
    for query in queries:
        common = common_length(first[:shared], query.prompt)
        shared = min(common, len(query.prompt) - 1, *(word.scored_from - 1 for word in query.words))
    return max(shared, 0)


def query_items(index: int, query: LabelQuery, prefix: int) -> list[Item]:
    """The positions that one query needs behind `prefix` tokens.

    A word that begins where the prompt ends is a branch of it. Where the tokenizer merged the two, or the prompt was
    made longer than its text, the word's tokens part from the prompt's earlier: they are an item of their own.
    """
    trunk, end = query.prompt[prefix:], len(query.prompt)
    tokens, positions, branches = list(trunk), list(range(prefix, end)), [0] * len(trunk)
    last: dict[int, int] = {}
    reads, apart = [Read(index, len(trunk) - 1, last, has_masses=True)], []
    for label, word in enumerate(query.words):
        scored = word.ids[word.scored_from :]
        if word.scored_from != end:
            apart.append(word_item(index, label, word.ids[prefix:], word.scored_from - prefix, prefix))
            continue
        last[label] = scored[0]
        for step, target in enumerate(scored[1:]):
            reads.append(Read(index, len(tokens), {label: target}, has_masses=False))
            tokens.append(scored[step])
            positions.append(end + step)
            branches.append(label + 1)
    return [Item(tokens, positions, branches, reads), *apart]


def word_item(index: int, label: int, ids: Sequence[int], scored_from: int, prefix: int) -> Item:
    """A prompt's remaining tokens together with one word's; `ids[scored_from:]` are scored."""
    reads = [
        Read(index, slot, {label: ids[slot + 1]}, has_masses=False) for slot in range(scored_from - 1, len(ids) - 1)
    ]
    tokens = list(ids[:-1])
    return Item(tokens, list(range(prefix, prefix + len(tokens))), [0] * len(tokens), reads)


def pack(items: Sequence[Item], prefix: int, width: int, shortest: int) -> tuple[int, list[list[Item]]]:
    """Shares the items out over rows of one length.

    Longer rows leave fewer positions empty, and each position meets more keys. Of `shortest` times 1, 2, 4, 8 (or more
    where an item is longer) the length of least work is taken: a position costs as much as 4 D + S keys, for a layer's
    projections are about 12 D^2 weights, and a key costs 2 D products and as much again in the softmax.

    Args:
      prefix: positions of the prefix, which every position meets.
      width: D.

    Returns:
      The length, and the items of each row.
    """
    lengths = np.array([len(item.tokens) for item in items])
    fitting = [shortest << doubled for doubled in range(32) if shortest << doubled >= lengths.max()]
    candidates = [length for length in fitting if length <= 8 * shortest] or fitting[:1]
    bins = {length: best_fit_bins(lengths, length) for length in candidates}
    best = min(candidates, key=lambda length: len(bins[length]) * length * (4 * width + prefix + length))
    return best, [[items[i] for i in row] for row in bins[best]]


def batch_sizes(rows: int, unit: int, most: int) -> list[int]:
    """Cuts rows into batches of `unit` times a power of two, `most` at most: few shapes, little padding.

    Only the last batch may be larger than the rows that are left for it, by less than `unit`.
    """
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


def fill(rows: Sequence[Sequence[Item]], count: int, length: int) -> Rows:
    """Arrays of `count` rows, those behind the given ones empty."""
    arrays = np.zeros((4, count, length), np.int32)
    reads = []
    for row, items in enumerate(rows):
        start = 0
        for segment, item in enumerate(items, start=1):
            part = slice(start, start + len(item.tokens))
            for array, values in zip(
                arrays[:, row], (item.tokens, item.positions, segment, item.branches), strict=True
            ):
                array[part] = values
            reads += [read._replace(slot=row * length + start + read.slot) for read in item.reads]
            start = part.stop
    tokens, positions, segment_ids, branch_ids = arrays
    return Rows(tokens, positions, segment_ids, branch_ids, reads)


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


@dataclass
class ScoreCounts:
    """What a scorer has done so far."""

    prompts: int = 0
    prompt_tokens_asked: int = 0
    """of all prompts, as one at a time would compute them"""
    prompt_tokens_computed: int = 0
    word_tokens_computed: int = 0
    positions_computed: int = 0
    """with padding"""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("prefill", "body", "head"), 0.0))
    """compilation included; what the device does is waited for where it is needed, a prefill by its first rows"""


class Scorer:
    """Scores queries with one decoder: one program a shape, shared by all parameters of one structure."""

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_tokens: int = 1024):
        """
        Args:
          variables: {"params": base} or {"params": base, "lora": adapters}; only shapes and types are read.
          mesh: axes "data", "fsdp", "tensor"; rows are spread over the first two, the prefix's heads over the third.
          batch_tokens: positions computed at once, at least one row for each device that takes its own.
        """
        self.counts = ScoreCounts()
        self.config, self.batch_tokens = decoder.config, batch_tokens
        self.row_multiple = mesh.shape["data"] * mesh.shape["fsdp"]
        whole = NamedSharding(mesh, PartitionSpec())
        by_row = NamedSharding(mesh, batch_spec())
        self.variable_shardings = param_shardings(variables, mesh)
        prefix = cache_shardings({"prefix": prefix_shape(decoder)}, mesh)["prefix"]

        def run_prefix(variables: Any, tokens: jax.Array, length: jax.Array) -> Prefix:
            return prefill(decoder, variables, tokens, length)

        def run_rows(variables: Any, prefix: Prefix, *rows: jax.Array) -> jax.Array:
            tokens, positions, segment_ids, branch_ids = rows
            return decoder.apply(variables, tokens, positions, segment_ids, prefix=prefix, branch_ids=branch_ids).hidden

        def read(variables: Any, states: jax.Array, labels: LabelSets, targets: jax.Array) -> tuple[jax.Array, ...]:
            logits = decoder.apply(variables, states, method="logits")
            finite = jnp.isfinite(jax.nn.logsumexp(logits, axis=-1))
            return label_masses(logits, labels), log_probabilities(logits, targets), finite

        given = self.variable_shardings
        self.programs = {
            "prefill": Program(run_prefix, mesh, (given, whole, whole), prefix),
            "body": Program(run_rows, mesh, (given, prefix, *[by_row] * 4), whole),
            "head": Program(read, mesh, (given, whole, whole, whole), whole),
        }

    def place(self, variables: Any) -> Any:
        """The variables as the mesh holds them: placed once, they are not moved again for every call."""
        return jax.device_put(variables, self.variable_shardings)

    def score(
        self,
        variables: Any,
        queries: Sequence[LabelQuery],
        label_sets: Sequence[Sequence[int]],
        on_rows: Callable[[int], object] = lambda rows: None,
    ) -> LabelScores:
        """The scores of every label in every query.

        Args:
          variables: of the structure given at the start; the values may change between calls.
          queries: of one cell; the more tokens they begin with together, the fewer are computed.
          label_sets: candidate ids of each label.
          on_rows: told after each batch how many prompts ended in it.

        Returns:
          Scores that do not depend on batches, order or padding beyond 1e-5.

        Raises:
          InputError: a prompt is empty or too long, or the model's logits are not finite.
        """
        fed = [max([len(query.prompt), *(len(word.ids) - 1 for word in query.words)]) for query in queries]
        check_lengths(fed, self.config.max_positions)
        variables = self.place(variables)
        shared = shared_prefix_length(queries)
        prefix = self.run_prefix(variables, queries[0].prompt[:shared])
        items = [item for index, query in enumerate(queries) for item in query_items(index, query, shared)]
        states, reads = self.run_rows(variables, prefix, items, on_rows)
        scores = self.read(variables, queries, label_sets, states, reads)
        self.counts.prompts += len(queries)
        self.counts.prompt_tokens_asked += sum(len(query.prompt) for query in queries)
        trunks = sum(len(query.prompt) - shared for query in queries)
        self.counts.prompt_tokens_computed += shared + trunks
        self.counts.word_tokens_computed += sum(len(item.tokens) for item in items) - trunks
        return scores

    def run_prefix(self, variables: Any, tokens: Sequence[int]) -> Prefix:
        """The keys and values of the shared tokens, of which there may be none."""
        start = time.perf_counter()
        padded = np.zeros(prefix_bucket(len(tokens)), np.int32)
        padded[: len(tokens)] = tokens
        prefix = self.programs["prefill"](variables, padded, np.array(len(tokens), np.int32))
        self.counts.seconds["prefill"] += time.perf_counter() - start
        self.counts.positions_computed += len(padded)
        return prefix

    def run_rows(
        self, variables: Any, prefix: Prefix, items: Sequence[Item], on_rows: Callable[[int], object]
    ) -> tuple[np.ndarray, list[Read]]:
        """The states [R,D] that are read, and what is read from each."""
        start = time.perf_counter()
        length, rows = pack(items, prefix.k.shape[1], self.config.width, SHORTEST_ROW)
        states, reads = [], []

        def collect(hidden: jax.Array, asked: Sequence[Read]) -> None:
            states.append(np.asarray(hidden).reshape(-1, hidden.shape[-1])[[read.slot for read in asked]])
            reads.extend(asked)
            on_rows(sum(read.has_masses for read in asked))

        running: list[tuple[jax.Array, list[Read]]] = []
        for size in batch_sizes(len(rows), self.row_multiple, self.batch_tokens // length):
            batch = fill(rows[:size], size, length)
            rows = rows[size:]
            hidden = self.programs["body"](variables, prefix, *batch[:4])
            self.counts.positions_computed += batch.tokens.size
            # The device computes this batch while the one before is fetched.
            running.append((hidden, batch.reads))
            if len(running) > 1:
                collect(*running.pop(0))
        collect(*running.pop())
        self.counts.seconds["body"] += time.perf_counter() - start
        return np.concatenate(states), reads

    def read(
        self,
        variables: Any,
        queries: Sequence[LabelQuery],
        label_sets: Sequence[Sequence[int]],
        states: np.ndarray,
        reads: Sequence[Read],
    ) -> LabelScores:
        """The queries' scores from the next-token distributions at the states [R,D]."""
        start = time.perf_counter()
        labels, classes = pad_label_sets(label_sets), len(label_sets)
        masses = np.zeros((len(queries), classes), np.float32)
        words = np.array([[0.0 if query.words else np.nan] * classes for query in queries])
        for first in range(0, len(reads), READS):
            some = reads[first : first + READS]
            padded = np.zeros((-(-len(some) // 64) * 64, states.shape[1]), states.dtype)
            padded[: len(some)] = states[first : first + READS]
            targets = np.zeros((len(padded), len(labels.ids)), np.int32)
            for row, read in enumerate(some):
                for label, target in read.targets.items():
                    targets[row, label] = target
            results = jax.device_get(self.programs["head"](variables, padded, labels, targets))
            for read, mass, log_probability, finite in zip(some, *results, strict=False):
                if not finite:
                    raise InputError(
                        f"prompt {read.query}: the model's logits are not finite; "
                        "check the weights, or compute in float32"
                    )
                if read.has_masses:
                    masses[read.query] = mass[:classes]
                for label in read.targets:
                    words[read.query, label] += log_probability[label]
        self.counts.seconds["head"] += time.perf_counter() - start
        return LabelScores(masses, words)

    @property
    def compilations(self) -> dict[str, int]:
        """Programs compiled so far, by name."""
        return {name: len(program.compiled) for name, program in self.programs.items()}

    @property
    def compile_seconds(self) -> dict[str, float]:
        return {name: program.compile_seconds for name, program in self.programs.items()}


def prefix_shape(decoder: Decoder) -> Prefix:
    """The shapes of a prefix of one token: its layout on a mesh does not depend on the length."""
    config = decoder.config

    def one_token() -> Prefix:
        keys = jnp.zeros((config.layers, 1, config.kv_heads, config.head_dim), decoder.dtype)
        return Prefix(keys, keys, jnp.zeros((), jnp.int32))

    return jax.eval_shape(one_token)


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
