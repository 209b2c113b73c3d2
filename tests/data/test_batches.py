"""Batches: the layout of a row, the plans of both kinds, and what a process sees."""

import hashlib
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from jaxalign.data.batches import (
    best_fit_bins,
    fit_pairs,
    heldout_plan,
    prefetch,
    split_heldout,
    training_plan,
)
from jaxalign.errors import InputError
from tests.defaults import base_layout


def random_pairs(count: int, seed: int = 0, longest: int = 30):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, longest // 2, (count, 2))
    rendered = [(rng.integers(1, 99, p).tolist(), rng.integers(1, 99, r).tolist()) for p, r in sizes]
    return fit_pairs(rendered, longest, "drop").pairs


def pairs_in(batch) -> list[tuple[int, ...]]:
    """The full ids of every pair in a batch, read back from its arrays alone."""
    found = []
    for b in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[b].max() + 1):
            here = batch.segment_ids[b] == segment
            np.testing.assert_array_equal(batch.positions[b][here], np.arange(here.sum()))
            found.append((*batch.tokens[b][here].tolist(), int(batch.targets[b][here][-1])))
    return found


def all_pairs(pairs) -> list[tuple[int, ...]]:
    return [tuple(pairs.ids[pairs.starts[i] : pairs.starts[i + 1]].tolist()) for i in range(len(pairs))]


def test_six_token_pair_is_laid_out_as_drawn():
    pairs = fit_pairs([([1, 2, 3], [4, 5, 6])], 8, "drop").pairs
    batch = heldout_plan(pairs, base_layout(pairs_per_step=0, rows_per_step=1, length=8)).rows_at(0)
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 3, 4, 5, 0, 0, 0]])
    np.testing.assert_array_equal(batch.targets, [[2, 3, 4, 5, 6, 0, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 4, 0, 0, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.loss_mask, [[False, False, True, True, True, False, False, False]])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_pairs_per_step_holds_exactly_that_many_pairs(packed, accumulation):
    pairs = random_pairs(50)
    layout = base_layout(pairs_per_step=16, packed=packed, accumulation=accumulation)
    plan = training_plan(pairs, layout, epochs=3, steps=0, seed=1)
    assert plan.steps == 3 * (50 // 16)
    seen = []
    for step in range(plan.steps):
        batch = plan.rows_at(step)
        assert batch.tokens.shape == (plan.rows_per_step, plan.length)
        assert batch.loss_mask.sum(1).max() <= plan.targets_per_row
        assert len(pairs_in(batch)) == 16
        seen += pairs_in(batch)
    # The stream runs through whole epochs: three steps of 16 show 48 of the 50 pairs, none twice.
    assert Counter(seen[:48]) <= Counter(all_pairs(pairs))


@pytest.mark.parametrize(("rows", "steps"), [(9_500, 1_779), (19_000, 3_561), (28_500, 5_343)])
def test_the_study_s_step_counts(rows, steps):
    pairs = fit_pairs([([1], [2])] * rows, 8, "drop").pairs
    assert training_plan(pairs, base_layout(pairs_per_step=16), epochs=3, steps=0, seed=0).steps == steps


def test_rows_per_step_shows_every_pair_once_an_epoch():
    pairs = random_pairs(53)
    layout = base_layout(pairs_per_step=0, rows_per_step=4, length=64)
    plan = training_plan(pairs, layout, epochs=2, steps=0, seed=3)
    seen = [pair for step in range(plan.steps) for pair in pairs_in(plan.rows_at(step))]
    assert sorted(seen) == sorted(2 * all_pairs(pairs))
    held = heldout_plan(pairs, base_layout(pairs_per_step=8, row_multiple=2))
    assert sorted(pair for step in range(held.steps) for pair in pairs_in(held.rows_at(step))) == sorted(
        all_pairs(pairs)
    )
    assert plan.rows_at(0).tokens.shape == (4, 64)


def test_fewer_pairs_than_a_step_still_make_a_run():
    for layout in (base_layout(pairs_per_step=8), base_layout(pairs_per_step=0, rows_per_step=2, length=64)):
        assert training_plan(random_pairs(20), layout, epochs=1, steps=17, seed=0).steps == 17
    plan = training_plan(random_pairs(5), base_layout(pairs_per_step=16), epochs=2, steps=0, seed=0)
    assert plan.steps == 1
    assert len(pairs_in(plan.rows_at(0))) == 10


def test_the_plan_is_a_function_of_data_and_seed():
    pairs, layout = random_pairs(40), base_layout(pairs_per_step=8)
    one, same, other = (training_plan(pairs, layout, epochs=2, steps=0, seed=seed) for seed in (1, 1, 2))
    assert one.rows == same.rows and one.fingerprint == same.fingerprint
    assert one.rows != other.rows and one.fingerprint != other.fingerprint
    changed = training_plan(random_pairs(40, seed=9), layout, epochs=2, steps=0, seed=1)
    assert changed.fingerprint["pairs"] != one.fingerprint["pairs"]


@pytest.mark.parametrize(
    ("layout", "digest"),
    [
        ({"pairs_per_step": 16}, "66b967c5ec3d296f"),
        ({"pairs_per_step": 12, "accumulation": 3, "row_multiple": 2}, "f6e4b937237375ed"),
        ({"pairs_per_step": 0, "rows_per_step": 6, "length": 512}, "e507e0ccf0dc2f76"),
        ({"pairs_per_step": 0, "rows_per_step": 4, "length": 300, "packed": False}, "93600994148576fe"),
        ({"pairs_per_step": 16, "rows_at_once": 2}, "2a1ac980c3822de0"),
    ],
)
def test_the_plan_of_a_run_never_changes(layout, digest):
    """Digests of the first version's plans: a run that it began is continued by its own steps."""
    pairs, layout = random_pairs(333, seed=4, longest=300), base_layout(**layout)
    plan = training_plan(pairs.take(np.arange(0, 333, 2)), layout, epochs=2, steps=0, seed=7)
    held = heldout_plan(pairs.take(np.arange(1, 333, 2)), layout)
    facts = [plan.rows, plan.length, plan.targets_per_row, plan.padding, plan.fingerprint, held.rows, held.length]
    assert hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16] == digest


def test_pairs_take_little_more_memory_than_their_ids():
    """They come one by one and are kept as arrays: as lists of Python numbers 200,000 took 2.4 GiB."""
    rendered = (([n + 1000 for n in range(90)], [n + 2000 for n in range(110)]) for _ in range(4000))
    tracemalloc.start()
    pairs = fit_pairs(rendered, 512, "drop").pairs
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 4000
    assert peak < 2 * pairs.ids.nbytes


def test_a_process_builds_the_rows_it_holds():
    plan = training_plan(random_pairs(64), base_layout(pairs_per_step=16, row_multiple=4), epochs=1, steps=0, seed=0)
    whole, part = plan.rows_at(2), plan.rows_at(2, held=[1, 3])
    for name in whole._fields:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[[1, 3]])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", [{"pairs_per_step": 16}, {"pairs_per_step": 0, "rows_per_step": 6}])
def test_no_pair_changes_its_micro_batch_with_the_mesh(kind, packed):
    """However many devices rows are spread over: the same run, and the same fingerprint."""
    pairs = random_pairs(50)

    def micro_batches(row_multiple: int):
        layout = base_layout(**kind, length=64, packed=packed, accumulation=2, row_multiple=row_multiple)
        plan = training_plan(pairs, layout, epochs=2, steps=0, seed=1)
        assert plan.rows_per_step % (2 * row_multiple) == 0
        halves = [part for step in plan.rows for part in np.split(np.arange(len(step)), 2)]
        members = [
            sorted(pair for number in half for pair in plan.rows[step // 2][number]) for step, half in enumerate(halves)
        ]
        return members, plan.fingerprint

    one = micro_batches(1)
    assert sum(map(len, one[0])) >= 96
    for row_multiple in (2, 4, 8, 64):
        assert micro_batches(row_multiple) == one


def test_rows_computed_at_once_are_as_short_as_the_longest_pair():
    pairs = random_pairs(64)
    layout = base_layout(pairs_per_step=16, row_multiple=2, rows_at_once=2)
    plan = training_plan(pairs, layout, epochs=2, steps=0, seed=0)
    assert plan.length == -(-pairs.lengths.max() // 8) * 8
    assert plan.rows_per_step % 4 == 0
    assert all(sum(len(row) for row in step) == 16 for step in plan.rows)


def test_too_long_pairs_are_dropped_or_cut_and_counted():
    rendered = [([1, 2], [3]), (list(range(20)), list(range(10)))]
    dropped = fit_pairs(rendered, 15, "drop")
    assert (dropped.dropped, dropped.cut, len(dropped.pairs), dropped.kept.tolist()) == (1, 0, 1, [0])
    cut = fit_pairs(rendered, 15, "cut")
    assert (cut.dropped, cut.cut, cut.pairs.lengths.tolist()) == (0, 1, [2, 15])
    assert cut.pairs.prompt_lengths[1] == 16 * 20 // 30
    with pytest.raises(InputError, match="length"):
        fit_pairs(rendered[1:], 15, "drop")
    with pytest.raises(InputError, match="too_long"):
        fit_pairs(rendered, 15, "keep")


def test_bins_are_the_fullest_that_still_hold():
    """Against the rule as it is told; of equally full bins the first."""
    for seed, capacity in enumerate((8, 50, 50, 300)):
        lengths = np.random.default_rng(seed).integers(0, capacity + 1, 200)
        bins: list[list[int]] = []
        for item in sorted(range(200), key=lambda item: -lengths[item]):
            room = [capacity - int(lengths[row].sum()) for row in bins]
            holding = [place for place in range(len(bins)) if room[place] >= lengths[item]]
            bins += [] if holding else [[]]
            bins[min(holding, key=lambda place: room[place]) if holding else -1].append(item)
        assert best_fit_bins(lengths, capacity) == bins
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    # Best-fit decreasing uses at most 11/9 of the optimum plus one bin (Johnson 1974).
    assert len(best_fit_bins(lengths, 100)) <= 11 / 9 * np.ceil(lengths.sum() / 100) + 1


def test_heldout_split_covers_all_and_overlaps_nowhere():
    train, heldout = split_heldout(101, 0.05, seed=0)
    assert len(heldout) == 6 and sorted([*train, *heldout]) == list(range(101))
    assert not np.array_equal(heldout, split_heldout(101, 0.05, seed=1)[1])
    with pytest.raises(InputError, match="heldout"):
        split_heldout(1, 0.5, seed=0)


def test_prefetch_keeps_the_order_of_steps():
    plan = training_plan(random_pairs(64), base_layout(pairs_per_step=8), epochs=2, steps=0, seed=0)
    for step, batch in enumerate(prefetch(plan.rows_at, 3, 9), start=3):
        np.testing.assert_array_equal(batch.tokens, plan.rows_at(step).tokens)
    assert step == 8


def test_impossible_layouts_are_refused():
    for pairs, rows, accumulation in ((16, 4, 1), (0, 0, 1), (15, 0, 4), (0, 6, 4)):
        with pytest.raises(InputError, match="batch"):
            base_layout(pairs_per_step=pairs, rows_per_step=rows, accumulation=accumulation)


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ({"epochs": 10**9}, "lower epochs"),
        ({"steps": 10**9}, "lower steps"),
        ({"rows_at_once": 10**9}, "batch.rows_at_once"),
        ({"pairs_per_step": 0, "rows_per_step": 10**9, "steps": 1}, "lower steps"),
        ({"pairs_per_step": 0, "rows_per_step": 16, "length": 10**9}, "batch.length"),
        ({"rows_at_once": 200_000, "epochs": 200}, "rows in the whole run"),
        ({"rows_at_once": -1}, "batch.rows_at_once=-1"),
    ],
)
def test_sizes_that_no_machine_could_plan_are_refused_at_once(layout, named):
    keys = {"epochs": 1, "steps": 0, "seed": 0}
    run = {key: layout.get(key, value) for key, value in keys.items()}
    with pytest.raises(InputError, match=named):
        training_plan(random_pairs(91), base_layout(**{k: v for k, v in layout.items() if k not in keys}), **run)
