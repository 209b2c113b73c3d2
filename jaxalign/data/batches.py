"""Question pairs as fixed-shape arrays: the batch is a function of the step.

A pair is its prompt's ids followed by its response's ids (the closing end-of-text among them). One pair of six ids,
prompt `P1 P2 P3` and response `R1 R2 E`, in a row of eight positions:

    position in the row   0   1   2   3   4   5   6   7
    tokens               P1  P2  P3  R1  R2   0   0   0
    targets              P2  P3  R1  R2   E   0   0   0
    positions             0   1   2   3   4   0   0   0
    segment_ids           1   1   1   1   1   0   0   0
    loss_mask             .   .   x   x   x   .   .   .

The last id is only ever a target, so a pair of six ids takes five positions. A second pair in the same row would
follow with segment 2 and positions from 0; attention never crosses segments, and segment 0 is padding.
"""

import hashlib
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, NamedTuple

import grain
import numpy as np

from jaxalign.errors import InputError


def best_fit_bins(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Packs items of these lengths (int [n], each at most `capacity`), longest first, into the fullest bin that fits.

    Returns the item indices of each bin. Equal lengths keep their order, and of equally full bins the first is taken.
    """
    bins: list[list[int]] = []
    of_room: dict[int, list[int]] = {}  # room left -> heap of the bins that have it
    rooms: list[int] = []  # the keys of `of_room`, ascending
    order = np.argsort(-lengths, kind="stable")
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        slot = bisect_left(rooms, length)
        if slot == len(rooms):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room = rooms[slot]
            chosen = heappop(of_room[room])
            if not of_room[room]:
                del of_room[rooms.pop(slot)]
        bins[chosen].append(item)
        if room - length not in of_room:
            of_room[room - length] = []
            insort(rooms, room - length)
        heappush(of_room[room - length], chosen)
    return bins


class Batch(NamedTuple):
    """Arrays [B, T]: int32, and bool for `loss_mask`."""

    tokens: Any
    targets: Any
    positions: Any
    segment_ids: Any
    loss_mask: Any


@dataclass(frozen=True)
class TokenisedPairs:
    """Pairs as ragged arrays: pair i is `ids[starts[i]:starts[i + 1]]`, its first `prompt_lengths[i]` the prompt."""

    ids: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Positions that each pair takes in a row [n]."""
        return np.diff(self.starts) - 1

    @cached_property
    def target_counts(self) -> np.ndarray:
        """Target positions (response ids) of each pair [n]."""
        return np.diff(self.starts) - self.prompt_lengths

    def take(self, indices: np.ndarray) -> "TokenisedPairs":
        """The pairs of these indices, in their order."""
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[indices])])
        ids = np.empty(starts[-1], self.ids.dtype)
        for new, old in enumerate(indices):
            ids[starts[new] : starts[new + 1]] = self.ids[self.starts[old] : self.starts[old + 1]]
        return TokenisedPairs(ids, starts, self.prompt_lengths[indices])

    def sha256(self) -> str:
        """A digest of all ids and of where they are cut, each as 64 bits."""
        digest = hashlib.sha256()
        for numbers in (self.ids, self.starts, self.prompt_lengths):
            for first in range(0, len(numbers), 2**20):
                digest.update(numbers[first : first + 2**20].astype(np.int64).tobytes())
        return digest.hexdigest()


MOST_SHOWN = 20_000_000
"""Pairs shown, or rows, in a whole run. Two million take 35 s and 0.7 GB to plan on a CPU core, a tenth of this."""
MOST_POSITIONS = 2**28
"""Positions of one step: their arrays alone take 4.5 GB."""


class FittedPairs(NamedTuple):
    """Pairs that fit the length, the indices (int [n]) of those that were kept, and how many were dropped and cut."""

    pairs: TokenisedPairs
    kept: np.ndarray
    dropped: int
    cut: int


def fit_pairs(rendered: Iterable[tuple[list[int], list[int]]], length: int, too_long: str) -> FittedPairs:
    """Joins (prompt ids, response ids) of each pair, read once; those of more than `length` positions are too long.

    too_long: "drop", or "cut": both sides are shortened in proportion, as LLaMA-Factory does.
    """
    if too_long not in ("drop", "cut"):
        raise InputError(f"batch.too_long is {too_long!r}: set it to 'drop' or 'cut'")
    ids, starts, prompt_lengths, kept = array("i"), array("q", [0]), array("q"), array("q")
    dropped = cut = 0
    for index, (prompt, response) in enumerate(rendered):
        excess = len(prompt) + len(response) - 1 - length
        if excess > 0 and too_long == "drop":
            dropped += 1
            continue
        if excess > 0:
            cut += 1
            prompt_room = max(1, (length + 1) * len(prompt) // (len(prompt) + len(response)))
            prompt, response = prompt[:prompt_room], response[: length + 1 - prompt_room]
        ids.fromlist(prompt)
        ids.fromlist(response)
        starts.append(len(ids))
        prompt_lengths.append(len(prompt))
        kept.append(index)
    if not kept:
        raise InputError(f"no pair takes at most {length} positions; raise config.batch.length")
    pairs = TokenisedPairs(np.asarray(ids), np.asarray(starts), np.asarray(prompt_lengths))
    return FittedPairs(pairs, np.asarray(kept), dropped, cut)


@dataclass(frozen=True)
class BatchLayout:
    """The shape of a step. Exactly one of `pairs_per_step` and `rows_per_step` is positive.

    `pairs_per_step`: exactly that many pairs, the row length chosen so that they fit with the least padding.
    `rows_per_step`: that many rows of `length` positions, as many pairs as fit.
    `packed` puts several pairs into a row. `row_multiple`: rows of a micro-batch divide by it (the mesh's batch axes);
    empty rows are added where they do not. It changes the rows, but no pair moves to another micro-batch: a run may go
    on on another mesh. `rows_at_once`, if not 0: so many rows, times `row_multiple`, are computed together, and a step
    has no cost from empty ones beyond them; rows are then no longer than the longest pair, for the cost of attention.
    """

    pairs_per_step: int
    rows_per_step: int
    length: int
    packed: bool
    accumulation: int
    rows_at_once: int
    row_multiple: int = 1

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            least = 1 if key in ("length", "accumulation", "row_multiple") else 0
            if value < least:
                raise InputError(f"batch.{key}={value}: set it to {least} or more")
        if (self.pairs_per_step > 0) == (self.rows_per_step > 0):
            raise InputError("batch: set one of pairs_per_step and rows_per_step, and the other to 0")
        if (self.pairs_per_step or self.rows_per_step) % self.accumulation:
            raise InputError(f"batch: accumulation={self.accumulation} does not divide the pairs or rows of a step")

    @property
    def rows_computed(self) -> int:
        return self.row_multiple * max(1, self.rows_at_once)


@dataclass(frozen=True)
class BatchPlan:
    """All steps of a run, known before the first: `rows[step]` lists the pair indices of each row."""

    pairs: TokenisedPairs
    rows: list[list[list[int]]]
    length: int
    fingerprint: dict[str, Any]

    @cached_property
    def targets_per_row(self) -> int:
        """The most target positions of a row."""
        counts = self.pairs.target_counts
        return max(sum(int(counts[pair]) for pair in row) for step in self.rows for row in step)

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def rows_per_step(self) -> int:
        return len(self.rows[0])

    @property
    def padding(self) -> float:
        """Share of all positions that hold no token."""
        lengths = self.pairs.lengths
        filled = sum(int(lengths[pair]) for step in self.rows for row in step for pair in row)
        return 1.0 - filled / (self.steps * self.rows_per_step * self.length)

    def rows_at(self, step: int, held: Iterable[int] | None = None) -> Batch:
        """The rows of one step whose numbers are in `held` (those of one process), or all: NumPy arrays [rows, T]."""
        rows = self.rows[step] if held is None else [self.rows[step][number] for number in held]
        tokens, targets, positions, segment_ids = (np.zeros((len(rows), self.length), np.int32) for _ in range(4))
        loss_mask = np.zeros((len(rows), self.length), bool)
        for b, row in enumerate(rows):
            t = 0
            for segment, pair in enumerate(row, start=1):
                ids = self.pairs.ids[self.pairs.starts[pair] : self.pairs.starts[pair + 1]]
                end = t + len(ids) - 1
                tokens[b, t:end], targets[b, t:end] = ids[:-1], ids[1:]
                positions[b, t:end], segment_ids[b, t:end] = np.arange(len(ids) - 1), segment
                loss_mask[b, t + self.pairs.prompt_lengths[pair] - 1 : end] = True
                t = end
        return Batch(tokens, targets, positions, segment_ids, loss_mask)


def training_plan(pairs: TokenisedPairs, layout: BatchLayout, *, epochs: int, steps: int, seed: int) -> BatchPlan:
    """The shuffled plan of a whole run. `steps` > 0 sets its length in place of `epochs`.

    With `pairs_per_step` = n a run of e epochs over N pairs has e * floor(N / n) steps, the study's count (its trainer
    floors the steps of an epoch, and the stream of pairs runs on across epochs); every step holds exactly n pairs.
    """
    if epochs < 1 or steps < 0 or seed < 0:
        raise InputError(
            f"epochs={epochs}, steps={steps}, seed={seed}: set epochs to 1 or more, the others to 0 or more"
        )
    shown = steps * (layout.pairs_per_step or layout.rows_per_step) or epochs * len(pairs)
    _check_size(shown, MOST_SHOWN, "pairs or rows in the whole run", "steps" if steps else "epochs")
    rng = np.random.default_rng(seed)
    if layout.pairs_per_step:
        per_step = layout.pairs_per_step
        total = steps * per_step or (epochs * (len(pairs) // per_step) * per_step or epochs * len(pairs))
        order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-total // len(pairs)))])[:total]
        rows, length = _rows_by_pairs(pairs, order, layout)
    else:
        bins: list[list[int]] = []
        epoch = 0
        while len(bins) < steps * layout.rows_per_step or (not steps and epoch < epochs):
            packed = _bins_of(pairs, rng.permutation(len(pairs)), layout.length, layout.packed)
            bins += [packed[i] for i in rng.permutation(len(packed))]  # packing sorts by length
            epoch += 1
        rows, length = _rows_by_bins(bins[: steps * layout.rows_per_step or None], layout), layout.length
    layout_keys = ("pairs_per_step", "rows_per_step", "length", "packed")
    fingerprint = {"pairs": pairs.sha256(), "seed": seed, "epochs": epochs, "steps": steps}
    fingerprint |= {f"batch.{key}": getattr(layout, key) for key in layout_keys}
    return BatchPlan(pairs, rows, length, fingerprint)


def heldout_plan(pairs: TokenisedPairs, layout: BatchLayout) -> BatchPlan:
    """Every pair once, in order; the last batch is filled with empty rows."""
    order = np.arange(len(pairs))
    if layout.pairs_per_step:
        return BatchPlan(pairs, *_rows_by_pairs(pairs, order, layout), {})
    bins = _bins_of(pairs, order, layout.length, layout.packed)
    return BatchPlan(pairs, _rows_by_bins(bins, layout), layout.length, {})


def _rows_by_pairs(pairs: TokenisedPairs, order: np.ndarray, layout: BatchLayout) -> tuple[list[list[list[int]]], int]:
    """Steps of exactly `pairs_per_step` pairs of `order`, and the row length that leaves the least padding."""
    per_micro_batch = layout.pairs_per_step // layout.accumulation
    micro_batches = [order[i : i + per_micro_batch] for i in range(0, len(order), per_micro_batch)]
    longest = min(round_up(int(pairs.lengths.max()), 8), layout.length)
    most = longest if layout.rows_at_once or not layout.packed else max(longest, min(4 * longest, layout.length))
    lengths = range(longest, most + 1, max(64, longest // 4))

    def packed_at(length: int) -> tuple[list[list[list[int]]], int, int]:
        bins = [_bins_of(pairs, members, length, layout.packed) for members in micro_batches]
        return bins, round_up(max(map(len, bins)), layout.rows_computed), length

    bins, rows, length = min(map(packed_at, lengths), key=lambda packed: packed[1] * packed[2])
    return _steps_of(bins, rows, length, layout), length


def _rows_by_bins(bins: list[list[int]], layout: BatchLayout) -> list[list[list[int]]]:
    per_micro_batch = layout.rows_per_step // layout.accumulation
    micro_batches = [bins[i : i + per_micro_batch] for i in range(0, len(bins), per_micro_batch)]
    return _steps_of(micro_batches, round_up(per_micro_batch, layout.rows_computed), layout.length, layout)


def _steps_of(
    micro_batches: list[list[list[int]]], rows: int, length: int, layout: BatchLayout
) -> list[list[list[int]]]:
    """Micro-batches joined to steps, each filled to `rows` rows with empty ones; so is the last step."""
    keys = "batch.rows_per_step, batch.rows_at_once or batch.length"
    _check_size(rows * layout.accumulation * length, MOST_POSITIONS, "positions in a step", keys)
    _check_size(rows * len(micro_batches), MOST_SHOWN, "rows in the whole run, empty ones among them", keys)
    filled = [micro_batch + [[] for _ in range(rows - len(micro_batch))] for micro_batch in micro_batches]
    filled += [[[] for _ in range(rows)] for _ in range(-len(filled) % layout.accumulation)]
    groups = range(0, len(filled), layout.accumulation)
    return [[row for micro_batch in filled[i : i + layout.accumulation] for row in micro_batch] for i in groups]


def _check_size(number: int, most: int, what: str, keys: str) -> None:
    """Refuses what would only end when memory or patience does."""
    if number > most:
        raise InputError(f"{number:,} {what}: {most:,} at most can be planned; lower {keys}")


def _bins_of(pairs: TokenisedPairs, members: np.ndarray, length: int, packed: bool) -> list[list[int]]:
    """Rows of `length` positions holding the member pairs: one pair a row, or as many as fit."""
    if not packed:
        return [[int(pair)] for pair in members]
    numbers = members.tolist()
    return [[numbers[i] for i in row] for row in best_fit_bins(pairs.lengths[members], length)]


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def split_heldout(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held out) of a seeded random split; both in ascending order, the held-out part rounded up."""
    if not 0.0 <= fraction < 1.0:
        raise InputError(f"heldout={fraction}: a share of the pairs is needed, 0 or more and below 1")
    heldout = int(np.ceil(count * fraction))
    if heldout >= count:
        raise InputError(f"heldout={fraction} leaves no pair of {count} to train on; lower it or add pairs")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[heldout:]), np.sort(order[:heldout])


def prefetch(batch_at: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Batches of the steps start..stop-1 in order, built by background threads ahead of their use."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.range(start, stop).map(batch_at).to_iter_dataset(read_options=options))
