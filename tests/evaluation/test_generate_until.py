"""Decoding that the host may end, against decoding that it may not."""

import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation.generate import WATCH, UntilGenerator
from jaxalign.model.transformer import Decoder
from tests.evaluation.test_generate import PROMPTS as TEN_PROMPTS
from tests.model.tiny_models import tiny_model
from tests.training.tiny_runs import mesh_of

PROMPTS = TEN_PROMPTS[2:]
NO_STOPS = (64,)
MOST = WATCH + 3
"""Not where the host looks."""


@pytest.fixture(scope="module", params=[(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def generator(request: pytest.FixtureRequest) -> UntilGenerator:
    tiny = tiny_model("mistral", vocabulary=64)
    return UntilGenerator(Decoder(tiny.config), {"params": tiny.params}, mesh_of(*request.param), batch_size=8)


def test_a_text_goes_on_until_the_host_ends_it(generator: UntilGenerator):
    """Eight prompts; each text is known from decoding without an end."""
    variables = generator.variables
    whole = [answer.ids for answer in generator(variables, PROMPTS, NO_STOPS, MOST)]
    assert {len(ids) for ids in whole} == {MOST}

    def third_is(*tokens: int):
        return lambda ids: len(ids) > 2 and ids[2] in tokens

    free = generator.until(variables, PROMPTS, NO_STOPS, lambda ids: False, MOST)
    assert [answer.ids for answer in free] == whole

    ended = generator.until(variables, PROMPTS, NO_STOPS, third_is(whole[0][2]), MOST)
    for answer, ids in zip(ended, whole, strict=True):
        # The host looks after the first token and then after every WATCH.
        assert answer.ids == (ids[: 1 + WATCH] if ids[2] == whole[0][2] else ids) and not answer.stopped
    chosen = generator.counts.chosen_tokens
    generator.until(variables, PROMPTS, NO_STOPS, lambda ids: True, MOST)
    assert generator.counts.chosen_tokens == chosen + len(PROMPTS)

    # A token ends a text as before, also among texts that the host ends.
    stops = [whole[1][4]]
    mixed = generator.until(variables, PROMPTS, stops, third_is(whole[0][2]), MOST)
    expected = generator(variables, PROMPTS, stops, MOST)
    for answer, other, ids in zip(mixed, expected, whole, strict=True):
        if ids[2] != whole[0][2]:
            assert answer == other
    assert mixed[1].stopped and mixed[1].ids == expected[1].ids


def test_an_answer_of_one_token_and_one_without_room(generator: UntilGenerator):
    answers = generator.until(generator.variables, PROMPTS, NO_STOPS, lambda ids: False, 1)
    assert [len(answer.ids) for answer in answers] == [1] * len(PROMPTS)
    with pytest.raises(InputError, match="prompt 0 has 120 tokens"):
        generator.until(generator.variables, [[1] * 120], NO_STOPS, lambda ids: False, 16)
