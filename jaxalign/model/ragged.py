"""One engine for everything that runs over prompts: a function of the decoder, compiled once for each shape it meets.

    prompts of any length ──► sorted, cut into batches, padded to a few lengths ──► function ──► results in their order
    what they begin with ───► run once: keys and values that the rests look at ────────┘

A batch of two prompts of 3 and 2 tokens at a length of 4, on a mesh that takes four rows at a time:

    tokens       a b c 0      segment_ids  1 1 1 0      positions  0 1 2 3      lengths  3
                 d e 0 0                   1 1 0 0                 0 1 2 3               2
                 0 0 0 0                   0 0 0 0                 0 1 2 3               0
                 0 0 0 0                   0 0 0 0                 0 1 2 3               0

Axis letters: B batch, T positions, P prefix positions, D width.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import InputError
from jaxalign.model.attention import Cache, Prefix, init_cache
from jaxalign.model.sharding import BATCH, cache_shardings, param_shardings, put
from jaxalign.model.transformer import Decoder, DecoderOutput, Tap
from jaxalign.runtime import compiler_options

OnRows = Callable[[int], object]
"""Told after each batch how many prompts ended in it."""


class Runner:
    """Runs pure functions of one decoder on one mesh, a program for each function and shape of its arrays.

    The functions are called as `function(decoder, variables, *arrays, **static)`. Their arrays are whole on every
    device unless they lie on the mesh already, and so is what they return, but for a `Prefix` or a `Cache` in it:
    those lie as the sharding table says.
    """

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_size: int = 1):
        """
        Args:
          variables: the decoder's collections, or their shapes; they settle structure and sharding.
          mesh: axes "data", "fsdp", "tensor"; rows of a batch are spread over the first two.
          batch_size: prompts that run at once, rounded up to a multiple of data * fsdp.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: set it to 1 or more")
        self.decoder, self.mesh = decoder, mesh
        self.row_multiple = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // self.row_multiple) * self.row_multiple
        self.by_row = NamedSharding(mesh, PartitionSpec(BATCH))
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.variable_shardings = param_shardings(variables, mesh)
        self.programs: dict[Any, Callable[..., Any]] = {}
        counted = ("prompts", "prompt_tokens", "computed_positions", "compilations")
        self.counts: dict[str, Any] = {**dict.fromkeys(counted, 0), "seconds": 0.0}
        """what was done in batches so far; positions with padding and filler rows"""
        self.compilations: Counter[str] = Counter()
        """how many programs were compiled, by the function's name"""
        self.compile_seconds: defaultdict[str, float] = defaultdict(float)

    def place(self, variables: Any) -> Any:
        """The variables as the mesh holds them; those that lie there already are not copied."""
        return jax.device_put(variables, self.variable_shardings)

    def call(
        self, function: Callable[..., Any], variables: Any, *arrays: Any, donate: tuple[int, ...] = (), **static: Any
    ) -> Any:
        """What the function returns, on the devices.

        Args:
          variables: of the structure given at the start, placed.
          arrays: trees of arrays; NumPy arrays are the same in every process.
          donate: which of `arrays` the result may take the place of.
          static: settings that a program is compiled for.
        """
        arrays = self.put(arrays)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays))
        key = function, tuple(static.items()), jax.tree.structure(arrays), shapes
        if key not in self.programs:
            start, name = time.perf_counter(), function.__name__
            self.programs[key] = self.lower(function, variables, *arrays, donate=donate, **static).compile()
            self.compilations[name] += 1
            self.compile_seconds[name] += time.perf_counter() - start
        return self.programs[key](variables, *arrays)

    def lower(
        self, function: Callable[..., Any], variables: Any, *arrays: Any, donate: tuple[int, ...] = (), **static: Any
    ) -> Any:
        """The function's program, traced; the arguments are those of `call`, or shapes with shardings."""

        def traced(variables: Any, *arrays: Any) -> Any:
            outputs = function(self.decoder, variables, *arrays, **static)
            return jax.lax.with_sharding_constraint(outputs, self.layout(outputs))

        traced.__name__ = function.__name__  # which a profile tells programs apart by
        jitted = jax.jit(
            traced,
            donate_argnums=tuple(1 + index for index in donate),
            compiler_options=compiler_options(self.mesh.devices.flat),
        )
        with jax.set_mesh(self.mesh):
            return jitted.lower(variables, *arrays)

    def layout(self, tree: Any) -> Any:
        """The shardings of arrays or shapes: a prefix or a cache by the table, all else whole on every device."""

        def shardings(part: Any) -> Any:
            if isinstance(part, Prefix | Cache):
                name = type(part).__name__.lower()
                return cache_shardings({name: part}, self.mesh)[name]
            return self.whole

        return jax.tree.map(shardings, tree, is_leaf=lambda part: isinstance(part, Prefix | Cache))

    def put(self, tree: Any, sharding: NamedSharding | None = None) -> Any:
        """The tree's NumPy arrays, of which every process has the whole, on the devices; whole there unless told."""

        def placed(leaf: Any) -> jax.Array:
            return leaf if isinstance(leaf, jax.Array) else put(np.asarray(leaf), sharding or self.whole)

        return jax.tree.map(placed, tree)

    def run_prefix(
        self, variables: Any, tokens: Sequence[int], function: Callable[..., Any] | None = None, **static: Any
    ) -> Any:
        """The keys and values of what prompts begin with, of which there may be nothing; or what another `function` of
        tokens [P] and length returns."""
        padded = np.zeros(prefix_bucket(len(tokens)), np.int32)
        padded[: len(tokens)] = tokens
        return self.call(function or prefill, self.place(variables), padded, np.int32(len(tokens)), **static)

    def __call__(
        self,
        function: Callable[..., Any],
        variables: Any,
        prompts: Sequence[Sequence[int]],
        *extra: Any,
        on_rows: OnRows = lambda rows: None,
        **static: Any,
    ) -> Any:
        """Runs all prompts.

        Args:
          function: called with tokens int32 [B, T], lengths int32 [B] and `extra`; each array that it returns has
            leading axis B. What it makes of rows of length 0, which fill a batch up, is dropped.
          variables: of the structure given at the start.
          prompts: token ids, each at least one.
          extra: trees of arrays, the same for every batch.

        Returns:
          The function's tree, NumPy arrays [len(prompts), ...] in the order of `prompts`.

        Raises:
          InputError: there is no prompt, or one is empty or longer than the model's positions.
        """
        return in_order(self.batches(function, variables, prompts, *extra, **static), on_rows)

    def batches(
        self,
        function: Callable[..., Any],
        variables: Any,
        prompts: Sequence[Sequence[int]],
        *extra: Any,
        **static: Any,
    ) -> Iterator[tuple[list[int], Any]]:
        """Per batch, the indices of its prompts, longest first, and what the function returned, filler rows too, on the
        devices."""
        check_lengths([len(prompt) for prompt in prompts], self.decoder.config.max_positions)
        start, compiled, counts = time.perf_counter(), self.compilations.total(), self.counts
        variables, extra = self.place(variables), self.put(extra)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        for first in range(0, len(order), self.batch_size):
            members = order[first : first + self.batch_size]
            tokens, lengths = self.put(self.fill([prompts[i] for i in members]), self.by_row)
            yield members, self.call(function, variables, tokens, lengths, *extra, **static)
            counts["computed_positions"] += tokens.size
        counts["prompts"] += len(prompts)
        counts["prompt_tokens"] += sum(map(len, prompts))
        counts["compilations"] += self.compilations.total() - compiled
        counts["seconds"] += time.perf_counter() - start

    def fill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, T] and lengths [B]; B is the next power of two times the least that the mesh takes."""
        rows = self.row_multiple
        while rows < len(prompts):
            rows = min(2 * rows, self.batch_size)
        tokens = np.zeros((rows, bucket_length(max(map(len, prompts)))), np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        return tokens, lengths


def in_order(batches: Iterable[tuple[list[int], Any]], on_rows: OnRows = lambda rows: None) -> Any:
    """What `Runner.batches` yields as one tree of NumPy arrays, in the order of the prompts."""
    order, parts = [], []
    for members, outputs in batches:
        parts.append(jax.device_get(outputs))
        order += members
        on_rows(len(members))
    # Filler rows stand behind the last prompt, and batches are full before the last.
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[np.argsort(order)], *parts)


def check_lengths(lengths: Sequence[int], max_positions: int) -> None:
    """Refuses no prompt at all, an empty one, and one longer than `max_positions`, where that is not 0."""
    if not lengths:
        raise InputError("no prompt to run; name at least one row")
    for index, length in enumerate(lengths):
        if not length:
            raise InputError(f"prompt {index} has no tokens")
        if 0 < max_positions < length:
            raise InputError(
                f"prompt {index} has {length} tokens, the model takes {max_positions} positions; "
                "leave the row out or take a model with more"
            )


def bucket_length(longest: int) -> int:
    """The fixed length that a batch is padded to: a multiple of 16 up to 256, of 64 up to 512, of 128 beyond."""
    step = 16 if longest <= 256 else 64 if longest <= 512 else 128
    return -(-longest // step) * step


def prefix_bucket(length: int) -> int:
    """The fixed length that a prefix is padded to: a multiple of 64 up to 512, of 128 beyond; at least 64."""
    step = 64 if length <= 512 else 128
    return max(1, -(-length // step)) * step


def shared_length(prompts: Sequence[Sequence[int]], keep: int = 1) -> int:
    """How many tokens all prompts begin with; of the shortest, `keep` are left at least."""
    shortest = min(map(len, prompts))
    columns = enumerate(zip(*prompts, strict=False))
    common = next((place for place, tokens in columns if len(set(tokens)) > 1), shortest)
    return max(0, min(common, shortest - keep))


def decode_prompts(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    tap: Callable[..., Any] | None = None,
    neuron_mask: jax.Array | None = None,
    prefix: Prefix | None = None,
) -> DecoderOutput:
    """One forward pass over right-padded prompts: tokens int32 [B, T], of which row b's first `lengths[b]` are one.

    tap, neuron_mask: as `Decoder.__call__` takes them.
    prefix: what all prompts begin with, where `tokens` holds the rest of them alone.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1)
    segment_ids = (places < lengths[:, None]).astype(jnp.int32)
    positions = places if prefix is None else places + prefix.length
    return decoder.apply(variables, tokens, positions, segment_ids, prefix=prefix, tap=tap, neuron_mask=neuron_mask)


def last_position(states: jax.Array, lengths: jax.Array) -> jax.Array:
    """The states [B, D] at each prompt's last position, from states [B, T, D]."""
    return jnp.take_along_axis(states, lengths[:, None, None] - 1, axis=1)[:, 0]


def prefill(decoder: Decoder, variables: Any, tokens: jax.Array, length: jax.Array) -> Prefix:
    """The keys and values of a prefix, as `decode_prefix` takes it and gives them."""
    return decode_prefix(decoder, variables, tokens, length)[0]


def decode_prefix(
    decoder: Decoder, variables: Any, tokens: jax.Array, length: jax.Array, tap: Tap | None = None
) -> tuple[Prefix, DecoderOutput]:
    """One forward pass over a prefix, the first `length` (0 to P) of int32 [P] `tokens`.

    Returns:
      A `Prefix` in the compute type; what stands behind `length` is never looked at. And the decoder's output, B = 1.
    """
    positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    cache = init_cache(decoder.config, 1, len(tokens), decoder.dtype)
    segment_ids = (positions < length).astype(jnp.int32)
    output = decoder.apply(variables, tokens[None], positions, segment_ids, cache=cache, tap=tap)
    return Prefix(output.cache.k[:, 0], output.cache.v[:, 0], length), output
