"""Scores of continuations against one uncached text at a time in transformers, and how contexts are put together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from jaxalign.errors import InputError
from jaxalign.evaluation import score as scoring
from jaxalign.evaluation.score import ContinuationScore, Pair, Scorer, prefix_groups, queries_of
from jaxalign.model.ragged import shared_length
from jaxalign.model.transformer import Decoder
from tests.model.tiny_models import VOCABULARY, TinyModel, tiny_case, tiny_model
from tests.training.tiny_runs import mesh_of

RANDOM = np.random.default_rng(0)


def ids(count: int) -> tuple[int, ...]:
    return tuple(RANDOM.integers(1, VOCABULARY, count).tolist())


def some_pairs() -> list[Pair]:
    """Contexts of two families that begin alike, one that begins all others of its own, and some alone."""
    first, second = ids(30), ids(20)
    contexts = [
        first,
        *[first + ids(count) for count in (1, 5, 9)],
        *[second + ids(4) for _ in range(3)],
        ids(1),
        ids(50),
    ]
    words = [ids(count) for count in (1, 2, 7, 1)]
    return [(context, word) for context in contexts for word in words] + [(ids(1), ids(70))]


PAIRS = some_pairs()


def uncached(torch_model: Any, pairs: Sequence[Pair]) -> dict[Pair, ContinuationScore]:
    """One text at a time, whole, in transformers; in float64 from the logits on."""
    scores = {}
    for context, continuation in pairs:
        with torch.no_grad():
            logits = torch_model(torch.tensor([[*context, *continuation]])).logits[0].double()
        said = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
        target = torch.tensor(continuation)
        total = float(said[torch.arange(len(target)), target].sum())
        scores[context, continuation] = ContinuationScore(total, bool((said.argmax(-1) == target).all()))
    return scores


def scored(
    tiny: TinyModel, pairs: Sequence[Pair], sizes: tuple[int, ...] = (), batch_tokens: int = 64
) -> dict[Pair, ContinuationScore]:
    variables = {"params": tiny.params}
    scorer = Scorer(Decoder(tiny.config), variables, mesh_of(*sizes), batch_tokens)
    together: dict[Pair, ContinuationScore] = {}
    for some in scorer.continuations(variables, pairs):
        assert not together.keys() & some.keys()
        together |= some
    return together


def assert_same(found: dict[Pair, ContinuationScore], expected: dict[Pair, ContinuationScore]) -> None:
    assert found.keys() == expected.keys()
    for pair, score in expected.items():
        # Float32 sums of up to 70 log-probabilities of about -5.
        assert found[pair].log_probability == pytest.approx(score.log_probability, rel=1e-5)
        assert found[pair].is_greedy == score.is_greedy


@pytest.mark.parametrize(
    ("case", "sizes"),
    [("gemma3_text", (1, 1, 1)), pytest.param("qwen2", (2, 2, 2), marks=pytest.mark.slow)],
)
def test_scores_are_those_of_uncached_transformers(case: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    """Gemma's window is 5: branches look back over their context into the prefix."""
    tiny = tiny_case(case) if sizes == (1, 1, 1) else tiny_model(case, vocabulary=64)
    monkeypatch.setattr(scoring, "BATCHES", 4)
    best = greedy_pair(tiny, PAIRS[0][0])
    pairs = [*PAIRS, best, *PAIRS[:2]]
    expected = uncached(tiny.torch_model, pairs)
    assert expected[best].is_greedy and not expected[PAIRS[0]].is_greedy
    # 16 tokens a batch: both families are groups of their own, and each is cut into several parts.
    assert_same(scored(tiny, pairs, sizes, batch_tokens=16), expected)


def greedy_pair(tiny: TinyModel, context: tuple[int, ...]) -> Pair:
    """The context and the three likeliest tokens after it."""
    with torch.no_grad():
        found = tiny.torch_model.generate(
            torch.tensor([context]), do_sample=False, max_new_tokens=3, eos_token_id=None, pad_token_id=0
        )
    return context, tuple(found[0, len(context) :].tolist())


def test_nothing_to_score_and_what_cannot_be():
    tiny = tiny_case("qwen2")
    assert scored(tiny, []) == {}
    with pytest.raises(InputError, match="has 129 tokens"):
        scored(tiny, [(ids(120), ids(10))])
    broken = tiny_case("qwen2")
    broken.params["norm"]["scale"] = broken.params["norm"]["scale"] * np.float32(np.nan)
    with pytest.raises(InputError, match="not finite"):
        scored(broken, PAIRS[:1])


def test_contexts_stand_once_with_few_continuations_each(monkeypatch: pytest.MonkeyPatch):
    pairs = [((1, 2), (word,)) for word in (5, 6, 5)] + [((1,), (word, 9, 9)) for word in range(10)]
    assert [(query.prompt, len(query.words)) for query in queries_of(pairs)] == [([1, 2], 2), ([1], 10)]
    monkeypatch.setattr(scoring, "BRANCHES", 4)
    assert [len(query.words) for query in queries_of(pairs)] == [2, 4, 4, 2]
    monkeypatch.setattr(scoring, "BRANCH_TOKENS", 8)
    assert [len(query.words) for query in queries_of(pairs)] == [2, 2, 2, 2, 2, 2]
    monkeypatch.setattr(scoring, "BRANCH_TOKENS", 2)
    assert [len(query.words) for query in queries_of(pairs)] == [2, *[1] * 10]


def computed(prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> int:
    """The tokens that the groups cost, each behind its prefix."""
    total = 0
    for group in groups:
        shared = shared_length([prompts[index] for index in group])
        total += shared + sum(len(prompts[index]) - shared for index in group)
    return total


def test_prompts_that_begin_alike_are_grouped():
    """Two families behind one BOS, the BOS alone, and a stranger: a group for each family, one for the others."""
    bos, first, second = [1], [2] * 40, [3] * 30
    prompts = [
        bos,
        *([*bos, *first, 5, word] for word in range(6)),
        *([*bos, *second, word] for word in range(4)),
        [9, 9],
    ]
    groups = prefix_groups(prompts, cost=20)
    assert sorted(map(sorted, groups)) == [[0, 11], [1, 2, 3, 4, 5, 6], [7, 8, 9, 10]]
    [together] = prefix_groups(prompts, cost=1000)
    assert sorted(together) == list(range(12))
    assert prefix_groups([[1]], cost=0) == [[0]]


def test_a_group_is_made_only_where_it_spares_more_than_it_costs():
    random = np.random.default_rng(1)
    for _ in range(200):
        prompts = [random.integers(1, 3, random.integers(1, 12)).tolist() for _ in range(random.integers(1, 20))]
        cost = int(random.integers(0, 10))
        groups = prefix_groups(prompts, cost)
        assert sorted(index for group in groups for index in group) == list(range(len(prompts)))
        alone = computed(prompts, [range(len(prompts))])
        assert computed(prompts, groups) + cost * (len(groups) - 1) <= alone + cost
