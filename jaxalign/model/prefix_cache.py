"""A text that many prompts begin with, run once: its keys and values, for the prompts' continuations to look at.

Axis letters as in transformer.py: L layers, P prefix positions, K key/value heads, H head width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.model.attention import Prefix, init_cache
from jaxalign.model.sharding import param_shardings
from jaxalign.model.transformer import Decoder, DecoderOutput, Tap
from jaxalign.runtime import compiler_options


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
