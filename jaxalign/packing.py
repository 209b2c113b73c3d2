"""Which texts share a row of positions: best-fit decreasing bins."""

from bisect import bisect_left, insort
from heapq import heappop, heappush

import numpy as np


def best_fit_bins(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Packs items into bins of `capacity`, longest first, each into the fullest bin that still holds it.

    Args:
      lengths: int [n], each at most `capacity`.
      capacity: positions in a bin.

    Returns:
      One list of item indices per bin. Equal lengths keep their order, and of equally full bins the first is taken, so
      the result is a function of the input.
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
