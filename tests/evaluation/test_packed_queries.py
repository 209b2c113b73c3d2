import numpy as np
import pytest

from jaxalign.data.prompts import Continuation, LabelQuery
from jaxalign.evaluation.score import (
    Item,
    batch_sizes,
    fill,
    pack,
    query_items,
    shared_prefix_length,
)

PREFIX = [1, 2, 3, 4]


def query(*tail: int, words: tuple[Continuation, ...] = ()) -> LabelQuery:
    return LabelQuery([*PREFIX, *tail], words)


def word(prompt: LabelQuery, *ids: int, back: int = 0) -> Continuation:
    """A word after the prompt, of which the last `back` tokens were merged away."""
    kept = prompt.prompt[: len(prompt.prompt) - back]
    return Continuation([*kept, *ids], len(kept))


def test_all_prompts_share_what_they_begin_with():
    assert shared_prefix_length([query(5, 6), query(5, 7), query(5, 6, 8)]) == 5


def test_every_prompt_keeps_a_token_of_its_own():
    # The second prompt is a beginning of the first: its last token is read, so it is not in the prefix.
    assert shared_prefix_length([query(5, 6), query(5)]) == 4
    assert shared_prefix_length([query(5, 6)]) == 5
    assert shared_prefix_length([LabelQuery([7], ()), LabelQuery([8], ())]) == 0


def test_the_token_before_a_word_is_behind_the_prefix():
    prompt = query(5, 6)
    merged = LabelQuery(prompt.prompt, (word(prompt, 9, back=2),))
    # The state at token 4 says the probability of 9.
    assert shared_prefix_length([merged, merged]) == 3


def test_words_are_branches_of_the_prompt():
    prompt = query(5, 6)
    asked = LabelQuery(prompt.prompt, (word(prompt, 7, 8, 9), word(prompt, 8, 9)))
    [item] = query_items(3, asked, 4)
    assert item.tokens == [5, 6, 7, 8, 8]
    assert item.positions == [4, 5, 6, 7, 6]
    assert item.branches == [0, 0, 1, 1, 2]
    assert [(read.query, read.slot, read.targets, read.has_masses) for read in item.reads] == [
        (3, 1, {0: 7, 1: 8}, True),
        (3, 2, {0: 8}, False),
        (3, 3, {0: 9}, False),
        (3, 4, {1: 9}, False),
    ]


def test_a_word_that_parts_earlier_stands_alone():
    prompt = query(5, 6)
    asked = LabelQuery(prompt.prompt, (word(prompt, 7, 9), word(prompt, 8, 9, back=1)))
    own, apart = query_items(0, asked, 4)
    assert own.tokens == [5, 6, 7] and own.reads[0].targets == {0: 7}
    assert apart.tokens == [5, 8] and apart.positions == [4, 5] and apart.branches == [0, 0]
    assert [(read.slot, read.targets) for read in apart.reads] == [(0, {1: 8}), (1, {1: 9})]


def items_of(*lengths: int) -> list[Item]:
    return [Item([index + 1] * length, list(range(length)), [0] * length, []) for index, length in enumerate(lengths)]


def test_rows_hold_every_item_once_and_whole():
    items = items_of(*np.random.default_rng(0).integers(1, 300, 60).tolist())
    length, rows = pack(items, prefix=400, width=64, shortest=128)
    assert length >= 300 or length == 512
    assert all(sum(len(item.tokens) for item in row) <= length for row in rows)
    assert sorted(item.tokens[0] for row in rows for item in row) == list(range(1, 61))


@pytest.mark.parametrize(
    ("lengths", "width", "expected"),
    [
        ((60, 60), 512, 128),
        ((100,) * 20, 4096, 512),  # five to a row instead of one; a wide model's positions are dear
        ((60,) * 20, 16, 128),  # no emptier than longer rows, and a narrow model's keys are dear
        ((1500,), 16, 2048),
    ],
)
def test_the_length_of_least_work(lengths: tuple[int, ...], width: int, expected: int):
    assert pack(items_of(*lengths), prefix=0, width=width, shortest=128)[0] == expected


@pytest.mark.parametrize("unit", [1, 3, 8])
def test_batches_hold_all_rows_in_few_sizes(unit: int):
    most = 8 * unit
    for rows in range(1, 100):
        sizes = batch_sizes(rows, unit, most)
        assert 0 <= sum(sizes) - rows < unit
        assert set(sizes) <= {unit, 2 * unit, 4 * unit, 8 * unit}
        assert sizes == sorted(sizes, reverse=True)
    assert batch_sizes(5, unit, 0) == [unit] * -(-5 // unit)


def test_filled_rows_tell_their_items_apart():
    one, two, three = items_of(3, 2, 4)
    reads = query_items(0, query(5, 6), 4)[0].reads
    (tokens, positions, segment_ids, _), found = fill([[one, two._replace(reads=reads)], [three]], count=3, length=6)
    np.testing.assert_array_equal(tokens, [[1, 1, 1, 2, 2, 0], [3, 3, 3, 3, 0, 0], [0] * 6])
    np.testing.assert_array_equal(segment_ids, [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0], [0] * 6])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0], [0] * 6])
    assert [read.slot for read in found] == [3 + 1]
