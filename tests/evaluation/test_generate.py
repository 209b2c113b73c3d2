from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.evaluation.generate import NEAR_TIE, WATCH, Chosen, Generator, begin, best_token
from jaxalign.model.ragged import decode_prompts, in_order, last_position
from jaxalign.model.transformer import Decoder
from tests.model.tiny_models import FAMILIES, VOCABULARY, WINDOW, TinyModel, slow_but, tiny_case, tiny_model
from tests.training.tiny_runs import mesh_of

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 40, 1, WINDOW, 21, 60, 33, 8, 9, 30)]
MOST = 16
NO_STOPS = (VOCABULARY + 1,)


def make_generator(tiny: TinyModel, *sizes: int) -> Generator:
    return Generator(Decoder(tiny.config), {"params": tiny.params}, mesh_of(*sizes), batch_size=8)


def choices(
    tiny: TinyModel, prompts: Sequence[Sequence[int]], stops: Sequence[int], most: int = MOST, sizes: Any = ()
) -> Chosen:
    """What is chosen after the prompts, margins included."""
    return in_order(make_generator(tiny, *sizes).batches({"params": tiny.params}, prompts, stops, most))


def without_cache(tiny: TinyModel, prompts: Sequence[Sequence[int]], max_tokens: int) -> np.ndarray:
    """Greedy ids [prompts, max_tokens], each from a forward pass over all that stands before it."""
    decoder, variables = Decoder(tiny.config), {"params": tiny.params}

    @jax.jit
    def next_ids(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        hidden = last_position(decode_prompts(decoder, variables, tokens, lengths).hidden, lengths)
        return jnp.argmax(decoder.apply(variables, hidden, method="logits"), -1)

    tokens = np.zeros((len(prompts), 100), np.int32)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    rows = np.arange(len(prompts))
    for step in range(max_tokens):
        tokens[rows, lengths + step] = next_ids(tokens, lengths + np.int32(step))
    return np.stack([tokens[row, length : length + max_tokens] for row, length in enumerate(lengths)])


def by_transformers(model: Any, prompt: Sequence[int], max_tokens: int, stops: Sequence[int]) -> list[int]:
    """Greedy ids of one prompt alone, the one that ended it included."""
    with torch.no_grad():
        ids = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=max_tokens, eos_token_id=list(stops), pad_token_id=0
        )
    return ids[0, len(prompt) :].tolist()


def equal_until_a_near_tie(ours: Any, margins: Any, theirs: Any) -> int:
    """Checks the ids before the first near tie and returns how many they are; float32 may part the rest."""
    ties = np.flatnonzero(margins[: len(ours)] < NEAR_TIE)
    end = int(ties[0]) if len(ties) else max(len(ours), len(theirs))
    assert list(ours[:end]) == list(theirs[:end])
    return min(end, len(ours))


@pytest.mark.parametrize("case", slow_but(FAMILIES, "gemma3_text"))
def test_decoding_is_that_without_a_cache_and_that_of_transformers(case: str):
    tiny = tiny_case(case)
    free = choices(tiny, PROMPTS, NO_STOPS)
    assert free.counts.tolist() == [MOST] * len(PROMPTS) and not free.stopped.any()
    slow = without_cache(tiny, PROMPTS, MOST)
    compared = [equal_until_a_near_tie(*row) for row in zip(free.tokens, free.margins, slow, strict=True)]
    # A near tie early in every row would leave little to compare.
    assert sum(compared) > 0.8 * MOST * len(PROMPTS)

    # Ids that end some rows early, one at its first token; others reach the limit.
    stops = [int(free.tokens[0, 0]), int(free.tokens[1, 5])]
    chosen = choices(tiny, PROMPTS, stops)
    answers = make_generator(tiny)({"params": tiny.params}, PROMPTS, stops, MOST)
    for prompt, answer, tokens, margins, count in zip(
        PROMPTS, answers, chosen.tokens, chosen.margins, chosen.counts, strict=True
    ):
        equal_until_a_near_tie(tokens[:count], margins, by_transformers(tiny.torch_model, prompt, MOST, stops))
        assert answer.stopped == (tokens[count - 1] in stops) and (answer.stopped or count == MOST)
        assert answer.ids == tokens[: count - answer.stopped].tolist() and not tokens[count:].any()
    assert answers[0].ids == [] and answers[0].stopped
    assert len(set(chosen.counts.tolist())) > 2


def test_a_batch_ends_with_its_last_row(monkeypatch: pytest.MonkeyPatch):
    tiny, calls = tiny_case("qwen2"), []

    def counted(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(calls.append, logits.shape[0])
        return best_token(logits)

    monkeypatch.setattr("jaxalign.evaluation.generate.best_token", counted)
    free = without_cache(tiny, PROMPTS[:3], 4)
    # Three rows of eight: the fillers would go on to the limit if they were not finished from the start.
    chosen = choices(tiny, PROMPTS[:3], stops=free[:, 3].tolist())
    jax.effects_barrier()
    assert chosen.stopped.all() and len(calls) == chosen.counts.max() <= 4


@pytest.mark.parametrize("sizes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_answers_do_not_depend_on_mesh_company_or_order(sizes: tuple[int, int, int]):
    tiny = tiny_model("mistral", vocabulary=64)
    one_way = choices(tiny, PROMPTS, NO_STOPS, 8)
    order = np.random.default_rng(1).permutation(len(PROMPTS))
    other = choices(tiny, [PROMPTS[i] for i in order], NO_STOPS, 8, sizes)
    for place, row in enumerate(order):
        equal_until_a_near_tie(one_way.tokens[row], one_way.margins[row], other.tokens[place])
    alike = (one_way.tokens[order] == other.tokens).all(-1)
    assert alike.mean() > 0.8
    # Float32 through three tiny layers.
    np.testing.assert_allclose(one_way.margins[order][alike], other.margins[alike], atol=1e-4)


def test_the_cache_lies_on_the_mesh_by_the_table():
    tiny = tiny_model("qwen2", vocabulary=64)
    runner = make_generator(tiny, 2, 2, 2).runner
    variables, arrays = runner.place({"params": tiny.params}), (np.ones((8, 32), np.int32), np.full(8, 32, np.int32))
    rows, stops = [runner.put(array, runner.by_row) for array in arrays], runner.put(np.zeros(1, np.int32))
    program = runner.lower(begin, variables, *rows, stops, max_tokens=9).compile().as_text()
    assert program is not None
    # [L,B,S,K,H] on one of eight devices: 8 rows over data and fsdp, 2 heads over tensor, 32 + 9 - 1 slots.
    assert "f32[3,2,40,1,8]" in program and "f32[3,8,40,2,8]" not in program


def test_programs_are_counted_once_a_shape():
    tiny = tiny_case("qwen2")
    generator = make_generator(tiny)
    for stops, most in (((3,), 4), ((5,), 4), ((5,), 6)):
        generator({"params": tiny.params}, PROMPTS[:8], stops, most)
    assert generator.runner.compilations == {"begin": 2, "advance": 2}
    assert generator.runner.counts["compilations"] == 4 and generator.runner.counts["prompts"] == 24


def test_equal_logits_take_the_lowest_id_and_margins_are_what_they_say():
    logits = jnp.array([[0.0, 2.0, 2.0, 1.0], [-1.0, -3.0, -1.5, -9.0], [0.0, jnp.nan, 1.0, 2.0]])
    token, margin = best_token(logits)
    assert token[:2].tolist() == [1, 0]
    assert margin[:2].tolist() == [0.0, 0.5] and jnp.isnan(margin[2])


def test_near_ties_are_counted():
    tiny = tiny_case("qwen2")
    # Two tokens with one head column are tied wherever they lead.
    kernel = np.array(tiny.params["lm_head"]["kernel"])
    kernel[:, 1::2] = kernel[:, : VOCABULARY - 1 : 2]
    variables = {"params": {**tiny.params, "lm_head": {"kernel": kernel}}}
    generator = Generator(Decoder(tiny.config), variables, mesh_of(), batch_size=8)
    answers = generator(variables, PROMPTS[:8], NO_STOPS, 10)
    assert all(id % 2 == 0 for answer in answers for id in answer.ids)
    untied = sum(id == VOCABULARY - 1 for answer in answers for id in answer.ids)
    assert sum(answer.near_ties for answer in answers) == 80 - untied


def test_what_cannot_be_decoded_is_refused():
    tiny = tiny_case("gemma3_text")
    variables = {"params": tiny.params}
    generator = Generator(Decoder(tiny.config), variables, mesh_of(), batch_size=8)
    with pytest.raises(InputError, match=r"prompt 1 has 60 tokens .* up to 69, .* 128 positions"):
        generator(variables, [PROMPTS[0], PROMPTS[5]], NO_STOPS, 69)
    broken = {"params": {**tiny.params, "norm": {"scale": np.full_like(tiny.params["norm"]["scale"], np.nan)}}}
    with pytest.raises(InputError, match=r"prompt 0: .* not finite"):
        generator(broken, PROMPTS[:2], NO_STOPS, 3)


EIGHT = PROMPTS[2:]
NO_STOP = (64,)
A_FEW = WATCH + 3
"""Not where the host looks."""


@pytest.fixture(scope="module", params=[(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def generate(request: pytest.FixtureRequest) -> Any:
    """A generator, given its model's variables."""
    tiny = tiny_model("mistral", vocabulary=64)
    variables = {"params": tiny.params}
    return partial(Generator(Decoder(tiny.config), variables, mesh_of(*request.param), batch_size=8), variables)


def test_a_text_goes_on_until_the_host_ends_it(generate: Any):
    """Eight prompts; each text is known from decoding without an end."""
    whole = [answer.ids for answer in generate(EIGHT, NO_STOP, A_FEW)]
    assert {len(ids) for ids in whole} == {A_FEW}

    def third_is(*tokens: int):
        return lambda ids: len(ids) > 2 and ids[2] in tokens

    free = generate(EIGHT, NO_STOP, A_FEW, has_ended=lambda ids: False)
    assert [answer.ids for answer in free] == whole

    ended = generate(EIGHT, NO_STOP, A_FEW, has_ended=third_is(whole[0][2]))
    for answer, ids in zip(ended, whole, strict=True):
        # The host looks after the first token and then after every WATCH.
        assert answer.ids == (ids[: 1 + WATCH] if ids[2] == whole[0][2] else ids) and not answer.stopped
    chosen = generate.func.chosen_tokens
    generate(EIGHT, NO_STOP, A_FEW, has_ended=lambda ids: True)
    assert generate.func.chosen_tokens == chosen + len(EIGHT)

    # A token ends a text as before, also among texts that the host ends.
    stops = [whole[1][4]]
    mixed = generate(EIGHT, stops, A_FEW, has_ended=third_is(whole[0][2]))
    expected = generate(EIGHT, stops, A_FEW)
    for answer, other, ids in zip(mixed, expected, whole, strict=True):
        if ids[2] != whole[0][2]:
            assert answer == other
    assert mixed[1].stopped and mixed[1].ids == expected[1].ids


def test_an_answer_of_one_token_and_one_without_room(generate: Any):
    answers = generate(EIGHT, NO_STOP, 1, has_ended=lambda ids: False)
    assert [len(answer.ids) for answer in answers] == [1] * len(EIGHT)
    with pytest.raises(InputError, match="prompt 0 has 120 tokens"):
        generate([[1] * 120], NO_STOP, 16, has_ended=lambda ids: False)
