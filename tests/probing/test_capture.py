from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.model.ragged import Runner, decode_prompts
from jaxalign.model.transformer import Decoder
from jaxalign.probing.capture import (
    NO_TOKEN,
    Capture,
    Position,
    capture_batch,
    capture_languages,
    captured_layers,
    check_position,
    parse_capture,
)
from jaxalign.probing.probe import ProbeRun
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.model.tiny_models import FAMILIES, VOCABULARY, numpy_of, tiny_case
from tests.probing.language_world import probe_run

RNG = np.random.default_rng(0)
PREFIX = RNG.integers(1, VOCABULARY, 10).tolist()
QUERIES = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 70, 20, 1)]
PROMPTS = [PREFIX + query for query in QUERIES]
# What the average of each position is over, by hand.
SLICES: dict[Position, slice] = {
    "last": slice(-1, None),
    "query_mean": slice(10, None),
    4: slice(4, 5),
    -11: slice(-11, -10),
}


def captured(case: str, layers: tuple[int, ...], position: Position, prefix: list[int]) -> np.ndarray:
    tiny = tiny_case(case)
    variables = {"params": tiny.params}
    runner = Runner(Decoder(tiny.config), variables, make_mesh(4, 2, 1), 8)
    examples = np.array([*prefix, NO_TOKEN, NO_TOKEN], np.int32)
    return runner(capture_batch, variables, PROMPTS, None, examples, layers=layers, position=position)


def states_of_transformers(case: str, prompt: list[int]) -> np.ndarray:
    """float64 [L + 1, T, D]"""
    with torch.no_grad():
        hidden = tiny_case(case).torch_model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    return np.stack([numpy_of(state)[0].astype(np.float64) for state in hidden])


@pytest.mark.parametrize("case", FAMILIES)
def test_all_layers_averaged_over_the_prompt_are_those_of_transformers(case: str):
    layers = tuple(range(tiny_case(case).config.layers + 1))
    states = captured(case, layers, "prompt_mean", PREFIX)
    assert states.shape == (len(PROMPTS), len(layers), tiny_case(case).config.width) and states.dtype == np.float32
    for found, prompt in zip(states, PROMPTS, strict=True):
        # Float32 on both sides; residuals reach the tens in seven layers.
        expected = states_of_transformers(case, prompt).mean(axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", SLICES)
def test_other_positions_are_those_of_transformers(position: Position):
    layers = (0, 2, 7)
    states = captured("gemma3_text", layers, position, PREFIX)
    for found, prompt in zip(states, PROMPTS, strict=True):
        expected = states_of_transformers("gemma3_text", prompt)[list(layers), SLICES[position]].mean(axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_a_query_begins_where_the_prompt_leaves_the_prefix():
    # As a tokenizer does that merges the prefix's last character with the query's first.
    other = (PREFIX[-1] % (VOCABULARY - 1)) + 1
    states = captured("qwen2", (1,), "query_mean", [*PREFIX[:-1], other])
    expected = states_of_transformers("qwen2", PROMPTS[0])[1, 9:].mean(axis=0)
    np.testing.assert_allclose(states[0, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def run(tmp_path: Path) -> ProbeRun:
    return probe_run(tmp_path, slice(1, 5))


@pytest.mark.parametrize(
    "position",
    ["query_mean", *(pytest.param(each, marks=pytest.mark.slow) for each in ("prompt_mean", "last", -3, 2))],
)
def test_what_prompts_share_is_run_once_and_counts_in_each_of_them(run: ProbeRun, position: Position):
    """Beside whole prompts: positions before, in and behind the few-shot text."""
    languages = list(capture_languages(run, Capture((0, 1, 3), position), run.languages))
    assert [texts.language for texts, _ in languages] == ["en", "de", "zh"]
    assert all(texts.numbers == [1, 2, 3, 4] and states.shape == (4, 3, 16) for texts, states in languages)
    texts, found = languages[2]
    # A token is a byte here, so no token is merged at the seam.
    chosen = {"query_mean": slice(len(texts.examples), None), "prompt_mean": slice(None), "last": slice(-1, None)}
    chosen |= {-3: slice(-3, -2), 2: slice(2, 3)}
    for row, prompt in enumerate(texts.prompts):
        tokens, lengths = jnp.array([prompt], jnp.int32), jnp.array([len(prompt)], jnp.int32)
        whole = decode_prompts(
            tiny_world.DECODER, tiny_world.variables(), tokens, lengths, lambda layer, hidden, gate: hidden
        )
        embeddings: Any = tiny_world.DECODER.apply(tiny_world.variables(), tokens, method="embed")
        layers = (embeddings[0], whole.taps[0, 0], whole.hidden[0])
        expected = np.stack([states[chosen[position]].mean(axis=0) for states in layers])
        # Float32 twice, summed in another order over up to a hundred positions.
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (Capture((0, 4), "last"), r"layer 4: the model has 0 \(the embeddings\) to 3"),
        (Capture(None, 500), "en, row 1: its prompt of .* tokens has no position 500"),
        (Capture(None, -500), "no position -500"),
    ],
)
def test_what_the_model_or_a_text_lacks_is_refused(run: ProbeRun, capture: Capture, message: str):
    with pytest.raises(InputError, match=message):
        next(capture_languages(run, capture, run.languages))


def test_a_prompt_without_a_query_is_refused(run: ProbeRun):
    texts = run.texts["de"]
    texts.__dict__["examples"] = texts.prompts[2]
    with pytest.raises(InputError, match=r"de, row 3: its prompt of \d+ tokens has no position query_mean"):
        check_position("query_mean", texts)


def test_states_that_are_not_finite_are_refused(run: ProbeRun):
    broken = jax.tree.map(np.copy, tiny_world.variables())
    broken["params"]["norm"]["scale"][3] = np.nan
    with pytest.raises(InputError, match="en, row 1: hidden states or logits are not finite"):
        next(capture_languages(replace(run, variables=broken), Capture(None, "last"), ["en"]))


def test_layers_and_positions_as_text():
    assert parse_capture("all", "query_mean") == Capture(None, "query_mean")
    assert parse_capture("0, 3,12", "-2") == Capture((0, 3, 12), -2)
    assert captured_layers(Capture(None, "last"), 2) == (0, 1, 2)


@pytest.mark.parametrize(
    ("layers", "position", "message"),
    [
        ("1,x", "last", "layers 1,x"),
        ("3,1", "last", "ascending"),
        ("all", "first", "position first: choose last, prompt_mean"),
    ],
)
def test_wrong_layers_and_positions_as_text(layers: str, position: str, message: str):
    with pytest.raises(InputError, match=message):
        parse_capture(layers, position)
