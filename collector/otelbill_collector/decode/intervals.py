"""Which of many intervals contain a given one. Owns that search; knows nothing of spans."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class IntervalIndex:
    """Intervals (start, end, item) from 0 on, searched in logarithmic time for each one found."""

    def __init__(self, intervals: Sequence[tuple[int, int, int]]) -> None:
        ordered = sorted(intervals)
        self._starts = [start for start, _, _ in ordered]
        self._items = [item for _, _, item in ordered]
        self._size = size = 1 << max(0, len(ordered) - 1).bit_length()
        self._latest = [0] * size + [end for _, end, _ in ordered] + [0] * (size - len(ordered))
        for node in range(size - 1, 0, -1):  # a heap of the latest ends: a node covers the two below it
            self._latest[node] = max(self._latest[2 * node], self._latest[2 * node + 1])

    def list_around(self, start: int, end: int) -> list[int]:
        """Items whose interval begins no later and ends no earlier, in the order of their beginnings."""
        count = bisect_right(self._starts, start)
        found: list[int] = []
        pending = [(1, 0, self._size)]
        while pending and count:
            node, first, width = pending.pop()
            if first >= count or self._latest[node] < end:
                continue
            if width == 1:
                found.append(self._items[first])
            else:
                half = width >> 1
                pending.append((2 * node + 1, first + half, half))
                pending.append((2 * node, first, half))
        return found
