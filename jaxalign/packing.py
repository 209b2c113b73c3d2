"""Which texts share a row of positions: best-fit decreasing bins."""

from bisect import bisect_left, insort

import numpy as np


def best_fit_bins(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Packs items into bins of `capacity`, longest first, each into the fullest bin that still holds it.

    Args:
      lengths: int [n], each at most `capacity`.
      capacity: positions in a bin.

    Returns:
      One list of item indices per bin. Equal lengths keep their order, so the result is a function of the input.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), ascending
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        slot = bisect_left(rooms, (length, 0))
        if slot == len(rooms):
            rooms.append((capacity, len(bins)))
            bins.append([])
        room, bin_index = rooms.pop(slot)
        bins[bin_index].append(item)
        insort(rooms, (room - length, bin_index))
    return bins
