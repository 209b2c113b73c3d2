from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.model.ragged import Runner, bucket_length
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import make_mesh
from tests import tiny_world

VARIABLES = {"params": {"norm": {"scale": np.ones(4, np.float32)}}}
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, 100, n).tolist() for n in (5, 130, 1, 64, 65, 7, 300, 2, 9, 70, 3)]


def token_sums(decoder: Decoder, variables: Any, tokens: jax.Array, lengths: jax.Array, added: jax.Array) -> Any:
    return {"sum": tokens.sum(1) + added, "length": lengths}


def runner(batch_size: int, max_positions: int = 0) -> Runner:
    config = replace(tiny_world.DECODER.config, max_positions=max_positions)
    return Runner(Decoder(config), VARIABLES, make_mesh(4, 2, 1), batch_size)


@pytest.mark.parametrize("batch_size", [8, 12])
def test_results_come_in_the_order_of_the_prompts(batch_size: int):
    """A batch of 12 is rounded up to what the mesh takes."""
    result = runner(batch_size)(token_sums, VARIABLES, PROMPTS, np.int32(1))
    assert result["sum"].tolist() == [sum(prompt) + 1 for prompt in PROMPTS]
    assert result["length"].tolist() == [len(prompt) for prompt in PROMPTS]


def test_counts():
    run, seen = runner(8), []
    for _ in range(2):
        run(token_sums, VARIABLES, PROMPTS, np.int32(1), on_rows=seen.append)
    # The eight longest need 320 positions, the other three 16; eight rows are the least on this mesh.
    assert run.counts["computed_positions"] == 2 * 8 * (320 + 16)
    assert run.counts["prompt_tokens"] == 2 * sum(map(len, PROMPTS))
    assert run.counts["prompts"] == sum(seen) == 2 * len(PROMPTS)
    assert run.counts["compilations"] == run.compilations["token_sums"] == 2
    assert run.counts["seconds"] > run.compile_seconds["token_sums"] > 0


@pytest.mark.parametrize(
    ("longest", "length"), [(1, 16), (64, 64), (65, 80), (257, 320), (512, 512), (513, 640), (1344, 1408)]
)
def test_bucket_lengths(longest: int, length: int):
    assert bucket_length(longest) == length


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "no prompt"), ([[1], []], "prompt 1 has no tokens"), ([[1], [1] * 65], "prompt 1 has 65 tokens")],
)
def test_prompts_that_cannot_run_are_named(prompts: list[list[int]], message: str):
    with pytest.raises(InputError, match=message):
        runner(8, max_positions=64)(token_sums, VARIABLES, prompts, np.int32(1))


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(InputError, match="batch size 0"):
        runner(0)
