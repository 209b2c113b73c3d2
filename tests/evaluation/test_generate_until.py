"""Decoding that the host may end, against decoding that it may not."""

from functools import partial
from typing import Any

import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation.generate import WATCH, Generator
from jaxalign.model.transformer import Decoder
from tests.evaluation.test_generate import PROMPTS as TEN_PROMPTS
from tests.model.tiny_models import tiny_model
from tests.training.tiny_runs import mesh_of

PROMPTS = TEN_PROMPTS[2:]
NO_STOPS = (64,)
MOST = WATCH + 3
"""Not where the host looks."""


@pytest.fixture(scope="module", params=[(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def generate(request: pytest.FixtureRequest) -> Any:
    """A generator, given its model's variables."""
    tiny = tiny_model("mistral", vocabulary=64)
    variables = {"params": tiny.params}
    return partial(Generator(Decoder(tiny.config), variables, mesh_of(*request.param), batch_size=8), variables)


def test_a_text_goes_on_until_the_host_ends_it(generate: Any):
    """Eight prompts; each text is known from decoding without an end."""
    whole = [answer.ids for answer in generate(PROMPTS, NO_STOPS, MOST)]
    assert {len(ids) for ids in whole} == {MOST}

    def third_is(*tokens: int):
        return lambda ids: len(ids) > 2 and ids[2] in tokens

    free = generate(PROMPTS, NO_STOPS, MOST, has_ended=lambda ids: False)
    assert [answer.ids for answer in free] == whole

    ended = generate(PROMPTS, NO_STOPS, MOST, has_ended=third_is(whole[0][2]))
    for answer, ids in zip(ended, whole, strict=True):
        # The host looks after the first token and then after every WATCH.
        assert answer.ids == (ids[: 1 + WATCH] if ids[2] == whole[0][2] else ids) and not answer.stopped
    chosen = generate.func.chosen_tokens
    generate(PROMPTS, NO_STOPS, MOST, has_ended=lambda ids: True)
    assert generate.func.chosen_tokens == chosen + len(PROMPTS)

    # A token ends a text as before, also among texts that the host ends.
    stops = [whole[1][4]]
    mixed = generate(PROMPTS, stops, MOST, has_ended=third_is(whole[0][2]))
    expected = generate(PROMPTS, stops, MOST)
    for answer, other, ids in zip(mixed, expected, whole, strict=True):
        if ids[2] != whole[0][2]:
            assert answer == other
    assert mixed[1].stopped and mixed[1].ids == expected[1].ids


def test_an_answer_of_one_token_and_one_without_room(generate: Any):
    answers = generate(PROMPTS, NO_STOPS, 1, has_ended=lambda ids: False)
    assert [len(answer.ids) for answer in answers] == [1] * len(PROMPTS)
    with pytest.raises(InputError, match="prompt 0 has 120 tokens"):
        generate([[1] * 120], NO_STOPS, 16, has_ended=lambda ids: False)
