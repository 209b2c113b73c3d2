"""What follows the common prefix of a cell's prompts, packed into rows of fixed length.

Two queries behind a prefix of P tokens; the first goes on with the label words x y" and z" (tokens `x y "` and `z "`),
whose closing quotes are predicted but never fed:

    tokens       a b c x y z d e . .       segment_ids  1 1 1 1 1 1 2 2 0 0
    positions  P+0 1 2 3 4 3 0 1 . .       branch_ids   0 0 0 1 1 2 0 0 . .

The state at c says the masses, and scores x and z; the states at x, y and z score y and the two quotes.
Axis letters: B rows, T positions, C labels, D width, S keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.data.batches import best_fit_bins
from jaxalign.data.prompts import LabelQuery, common_length


class Read(NamedTuple):
    """A position whose next-token distribution is asked for."""

    query: int
    slot: int
    """where it stands: among its item's tokens, and once packed among B * T of all rows"""
    targets: dict[int, int]
    """label -> the token whose log-probability counts towards the label's word"""
    has_masses: bool
    """whether this is the query's last prompt position"""


class Item(NamedTuple):
    """Consecutive positions of one row that see the prefix and each other, and nothing else."""

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    reads: list[Read]


class Rows(NamedTuple):
    """Packed rows, int32 [B, T] each, and the reads in them."""

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    branch_ids: np.ndarray
    reads: list[Read]


def shared_prefix_length(queries: Sequence[LabelQuery]) -> int:
    """How many first tokens all prompts share, each keeping at least one, and with it every token that is read.

    Compared as tokens, not as text: a tokenizer may merge characters over the seam of the few-shot text.
    """
    first, shared = queries[0].prompt, len(queries[0].prompt)
    for query in queries:
        common = common_length(first[:shared], query.prompt)
        shared = min(common, len(query.prompt) - 1, *(word.scored_from - 1 for word in query.words))
    return max(shared, 0)


def query_items(index: int, query: LabelQuery, prefix: int) -> list[Item]:
    """The positions that one query needs behind `prefix` tokens.

    A word that begins where the prompt ends is a branch of it. Where the tokenizer merged the two, or the prompt was
    made longer than its text, the word's tokens part from the prompt's earlier: they are an item of their own.
    """
    trunk, end = query.prompt[prefix:], len(query.prompt)
    tokens, positions, branches = list(trunk), list(range(prefix, end)), [0] * len(trunk)
    last: dict[int, int] = {}
    reads, apart = [Read(index, len(trunk) - 1, last, has_masses=True)], []
    for label, word in enumerate(query.words):
        scored = word.ids[word.scored_from :]
        if word.scored_from != end:
            apart.append(word_item(index, label, word.ids[prefix:], word.scored_from - prefix, prefix))
            continue
        last[label] = scored[0]
        for step, target in enumerate(scored[1:]):
            reads.append(Read(index, len(tokens), {label: target}, has_masses=False))
            tokens.append(scored[step])
            positions.append(end + step)
            branches.append(label + 1)
    return [Item(tokens, positions, branches, reads), *apart]


def word_item(index: int, label: int, ids: Sequence[int], scored_from: int, prefix: int) -> Item:
    """A prompt's remaining tokens together with one word's; `ids[scored_from:]` are scored."""
    reads = [
        Read(index, slot, {label: ids[slot + 1]}, has_masses=False) for slot in range(scored_from - 1, len(ids) - 1)
    ]
    tokens = list(ids[:-1])
    return Item(tokens, list(range(prefix, prefix + len(tokens))), [0] * len(tokens), reads)


def pack(items: Sequence[Item], prefix: int, width: int, shortest: int) -> tuple[int, list[list[Item]]]:
    """Shares the items out over rows of one length.

    Longer rows leave fewer positions empty, and each position meets more keys. Of `shortest` times 1, 2, 4, 8 (or more
    where an item is longer) the length of least work is taken: a position costs as much as 4 D + S keys, for a layer's
    projections are about 12 D^2 weights, and a key costs 2 D products and as much again in the softmax.

    Args:
      prefix: positions of the prefix, which every position meets.
      width: D.

    Returns:
      The length, and the items of each row.
    """
    lengths = np.array([len(item.tokens) for item in items])
    fitting = [shortest << doubled for doubled in range(32) if shortest << doubled >= lengths.max()]
    candidates = [length for length in fitting if length <= 8 * shortest] or fitting[:1]
    bins = {length: best_fit_bins(lengths, length) for length in candidates}
    best = min(candidates, key=lambda length: len(bins[length]) * length * (4 * width + prefix + length))
    return best, [[items[i] for i in row] for row in bins[best]]


def batch_sizes(rows: int, unit: int, most: int) -> list[int]:
    """Cuts rows into batches of `unit` times a power of two, `most` at most: few shapes, little padding.

    Only the last batch may be larger than the rows that are left for it, by less than `unit`.
    """
    size = unit
    while 2 * size <= most:
        size *= 2
    sizes = []
    while rows > 0:
        while size > unit and size > rows:
            size //= 2
        sizes.append(size)
        rows -= size
    return sizes


def fill(rows: Sequence[Sequence[Item]], count: int, length: int) -> Rows:
    """Arrays of `count` rows, those behind the given ones empty."""
    arrays = np.zeros((4, count, length), np.int32)
    reads = []
    for row, items in enumerate(rows):
        start = 0
        for segment, item in enumerate(items, start=1):
            part = slice(start, start + len(item.tokens))
            for array, values in zip(
                arrays[:, row], (item.tokens, item.positions, segment, item.branches), strict=True
            ):
                array[part] = values
            reads += [read._replace(slot=row * length + start + read.slot) for read in item.reads]
            start = part.stop
    tokens, positions, segment_ids, branch_ids = arrays
    return Rows(tokens, positions, segment_ids, branch_ids, reads)
