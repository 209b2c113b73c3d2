"""Compiled programs: one for each shape of arguments, counted, and its compilation timed apart from its runs.

Prompts of any length through one decoder: sorted by length, cut into batches, padded to a few fixed lengths.

A batch of two prompts of 3 and 2 tokens at a length of 4:

    tokens       a b c 0      segment_ids  1 1 1 0      positions  0 1 2 3      lengths  3
                 d e 0 0                   1 1 0 0                 0 1 2 3               2

Axis letters: B batch, T positions, D width.

A text that many prompts begin with, run once: its keys and values, for the prompts' continuations to look at.

Axis letters as in transformer.py: L layers, P prefix positions, K key/value heads, H head width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix, init_cache
from jaxalign.model.sharding import BATCH, param_shardings, put
from jaxalign.model.transformer import Decoder, DecoderOutput, Tap
from jaxalign.runtime import compiler_options


class Program:
    """A pure function of (variables, *arrays) that is compiled when arguments of new shapes arrive."""

    def __init__(self, function: Callable[..., Any], mesh: Mesh, in_shardings: Any, out_shardings: Any):
        """The shardings as `jax.jit` takes them; variables and arrays lie so already, or are NumPy arrays, the same in
        every process."""
        self.jitted = jax.jit(
            function,
            in_shardings=in_shardings,
            out_shardings=out_shardings,
            compiler_options=compiler_options(mesh.devices.flat),
        )
        self.mesh, self.array_shardings = mesh, in_shardings[1:]
        self.compiled: dict[Any, Callable[..., Any]] = {}
        self.compile_seconds = 0.0

    def __call__(self, variables: Any, *arrays: Any) -> Any:
        arrays = tuple(
            put(array, sharding) if isinstance(array, np.ndarray) else array
            for array, sharding in zip(arrays, self.array_shardings, strict=True)
        )
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays))
        if shapes not in self.compiled:
            start = time.perf_counter()
            with jax.set_mesh(self.mesh):
                self.compiled[shapes] = self.jitted.lower(variables, *arrays).compile()
            self.compile_seconds += time.perf_counter() - start
        return self.compiled[shapes](variables, *arrays)


PromptFunction = Callable[[Any, jax.Array, jax.Array, Any], Any]
"""(variables, tokens int32 [B, T], lengths int32 [B], extra) -> pytree of arrays with leading axis B."""


def decode_prompts(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    tap: Callable[..., Any] | None = None,
    neuron_mask: jax.Array | None = None,
    prefix: Prefix | None = None,
) -> DecoderOutput:
    """One forward pass over right-padded prompts.

    Args:
      tokens: int32 [B, T]; row b holds a prompt in its first `lengths[b]` positions.
      lengths: int32 [B], at least 1.
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


@dataclass
class RunCounts:
    """What a runner has done so far. `computed_positions` counts padding and filler rows too."""

    prompts: int = 0
    prompt_tokens: int = 0
    computed_positions: int = 0
    compilations: int = 0
    seconds: float = 0.0


class PromptRunner:
    """Calls one jitted function on prompts, a batch at a time, and puts the results back in the prompts' order.

    The function is compiled once per shape [B, T] met. Sorting first keeps padding small at any order of prompts, and
    leaves one batch at most that is not full; it takes the next power of two of rows.
    """

    def __init__(
        self,
        function: PromptFunction,
        variables: Any,
        mesh: Mesh,
        batch_size: int,
        max_positions: int = 0,
        out_shardings: Any = None,
    ):
        """
        Args:
          function: see `PromptFunction`; it is traced, so it must be pure.
          variables: the decoder's collections, or their shapes; they settle structure and sharding.
          mesh: axes "data", "fsdp", "tensor"; rows of a batch are spread over the first two.
          batch_size: B of a full batch, a multiple of data * fsdp.
          max_positions: longest prompt that the model takes; 0: any.
          out_shardings: of what the function returns, as `jax.jit` takes them; None: whole on every device.
        """
        self.counts = RunCounts()
        self.batch_size, self.max_positions = batch_size, max_positions
        self.row_multiple = mesh.shape["data"] * mesh.shape["fsdp"]
        if batch_size < 1 or batch_size % self.row_multiple:
            raise InputError(
                f"batch size {batch_size}: the mesh spreads rows over {self.row_multiple} devices; "
                f"set a multiple of {self.row_multiple}"
            )
        self.mesh, self.by_row = mesh, NamedSharding(mesh, PartitionSpec(BATCH))
        self.variable_shardings = param_shardings(variables, mesh)
        replicated = NamedSharding(mesh, PartitionSpec())
        self.step = jax.jit(
            self.counted(function),
            in_shardings=(self.variable_shardings, self.by_row, self.by_row, replicated),
            out_shardings=replicated if out_shardings is None else out_shardings,
            compiler_options=compiler_options(mesh.devices.flat),
        )

    def counted(self, function: PromptFunction) -> PromptFunction:
        """The function, counting how often jax traces it: once for each program that it compiles."""

        def traced(variables: Any, tokens: jax.Array, lengths: jax.Array, extra: Any) -> Any:
            self.counts.compilations += 1
            return function(variables, tokens, lengths, extra)

        return traced

    def __call__(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        extra: Any = (),
        on_rows: Callable[[int], object] = lambda rows: None,
    ) -> Any:
        """Runs all prompts.

        Args:
          variables: the decoder's collections, of the structure given at the start.
          prompts: token ids, each at least one.
          extra: pytree of arrays handed to the function as it is, the same for every batch.
          on_rows: told after each batch how many prompts it held.

        Returns:
          The function's pytree, NumPy arrays [len(prompts), ...] in the order of `prompts`.

        Raises:
          InputError: there is no prompt, or one is empty or longer than the model's positions.
        """
        order, parts = [], []
        for members, outputs in self.outputs(variables, prompts, extra):
            parts.append(jax.device_get(outputs))
            order += members
            on_rows(len(members))
        # Filler rows stand behind the last prompt, and batches are full before the last.
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[np.argsort(order)], *parts)

    def outputs(
        self, variables: Any, prompts: Sequence[Sequence[int]], extra: Any = ()
    ) -> Iterator[tuple[list[int], Any]]:
        """Per batch, the indices of its prompts and what the function returned, filler rows too, on the devices."""
        check_lengths([len(prompt) for prompt in prompts], self.max_positions)
        start = time.perf_counter()
        variables = self.place(variables)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        for first in range(0, len(order), self.batch_size):
            members = order[first : first + self.batch_size]
            batch = [put(array, self.by_row) for array in self.fill([prompts[i] for i in members])]
            with jax.set_mesh(self.mesh):
                outputs = self.step(variables, *batch, extra)
            self.counts.computed_positions += batch[0].size
            yield members, outputs
        self.counts.prompts += len(prompts)
        self.counts.prompt_tokens += sum(map(len, prompts))
        self.counts.seconds += time.perf_counter() - start

    def place(self, variables: Any) -> Any:
        """The variables as the mesh holds them; those that lie there already are not copied."""
        return jax.device_put(variables, self.variable_shardings)

    def fill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, T] and lengths [B]; rows past the last prompt hold one token and are dropped afterwards."""
        rows = self.row_multiple
        while rows < len(prompts):
            rows = min(2 * rows, self.batch_size)
        tokens = np.zeros((rows, bucket_length(max(map(len, prompts)))), np.int32)
        lengths = np.ones(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        return tokens, lengths


class EmptyFillerRunner(PromptRunner):
    """A runner whose filler rows have length 0, for functions to which they must not be like prompts."""

    def fill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        tokens, lengths = super().fill(prompts)
        lengths[len(prompts) :] = 0
        return tokens, lengths


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


def prefill(decoder: Decoder, variables: Any, tokens: jax.Array, length: jax.Array) -> Prefix:
    """The keys and values of a prefix, as `decode_prefix` takes it and gives them."""
    return decode_prefix(decoder, variables, tokens, length)[0]


def decode_prefix(
    decoder: Decoder, variables: Any, tokens: jax.Array, length: jax.Array, tap: Tap | None = None
) -> tuple[Prefix, DecoderOutput]:
    """One forward pass over a prefix.

    Args:
      tokens: int32 [P], the prefix in its first `length` positions.
      length: int32 scalar, 0 <= length <= P.
      tap: as `Decoder.__call__` takes it.

    Returns:
      A `Prefix` in the compute type; what stands behind `length` is never looked at. And the decoder's output, B = 1.
    """
    positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    cache = init_cache(decoder.config, 1, len(tokens), decoder.dtype)
    segment_ids = (positions < length).astype(jnp.int32)
    output = decoder.apply(variables, tokens[None], positions, segment_ids, cache=cache, tap=tap)
    return Prefix(output.cache.k[:, 0], output.cache.v[:, 0], length), output


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


class PrefixRunner:
    """Runs what prompts begin with, once: one program for each padded length."""

    def __init__(self, function: Callable[..., Any], variables: Any, mesh: Mesh):
        """
        Args:
          function: of variables, tokens and length, as `prefill` takes them behind the decoder; it is traced.
          variables: the decoder's collections, or their shapes; they settle structure and sharding.
        """
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = (param_shardings(variables, mesh), whole, whole)
        self.mesh = mesh
        self.step = jax.jit(
            function,
            in_shardings=shardings,
            out_shardings=whole,
            compiler_options=compiler_options(mesh.devices.flat),
        )

    def __call__(self, variables: Any, tokens: Sequence[int]) -> Any:
        """What the function makes of the tokens, of which there may be none; whole on every device."""
        padded = np.zeros(prefix_bucket(len(tokens)), np.int32)
        padded[: len(tokens)] = tokens
        with jax.set_mesh(self.mesh):
            return self.step(variables, padded, np.array(len(tokens), np.int32))
