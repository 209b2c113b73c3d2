"""Label scores of a cell's prompts: the next token's mass on each label, and the log-probability of each whole word.

    prompts ──► shared prefix ──► prefill ──► keys and values ─┐
            └─► what follows ───► packed rows ──────────────► body ──► states that are read ──► head ──► scores

The few-shot text that all prompts begin with runs once; only states whose next token is asked for meet the head.
Axis letters: B rows, T positions, P prefix positions, D width, R states that are read, C labels.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.data.prompts import LabelQuery
from jaxalign.errors import InputError
from jaxalign.evaluation.packed_queries import Item, Read, batch_sizes, fill, pack, query_items, shared_prefix_length
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import Program, check_lengths, prefill, prefix_bucket
from jaxalign.model.readout import LabelSets, label_masses, log_probabilities, pad_label_sets
from jaxalign.model.sharding import batch_spec, cache_shardings, param_shardings
from jaxalign.model.transformer import Decoder

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
