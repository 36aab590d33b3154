"""Which claim keys may stand in the ledger, told without asking it: a bounded filter over the keys of recent days.

Never says no to a key that is stored; says yes to a few that are not, and those cost one query. Owns no SQL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.links import add_to_filter, find_in_filter
from otelbill_collector.native.loading import find_library

_PROBES = 7
_BITS_PER_KEY = 32  # with seven probes about one key in 50,000 is taken for known and is not
_FILTER_KEYS_MAX = 1 << 26
_FILTER_KEYS_MIN = 1 << 14  # the first filters are small, so that a small ledger takes little memory
_LINE_BITS = 512  # all probes of a key lie in one cache line
_SLICE_BITS = 9  # of a hash, which choose a bit of the line
_CHUNK_KEYS = 1 << 13  # at a time, so that their lines stay in the cache from one probe to the next
_BIT = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))
_MIX = np.uint64(0x9E3779B97F4A7C15)
_THREE, _SEVEN, _HALF = np.uint64(3), np.uint64(7), np.uint64(32)

Hashes = NDArray[np.uint64]
Prefixes = NDArray[np.int64]  # first eight bytes of claim keys


class _Filter:
    """A Bloom filter. Claim keys are digests, so their own bits serve as hashes.

    The native library sets and asks the same bits as the code here does without it.
    """

    def __init__(self, keys_max: int) -> None:
        self.keys_max = keys_max
        self.keys = 0
        self.newest_day = 0
        lines = keys_max * _BITS_PER_KEY // _LINE_BITS + 1
        self._line_count, self._lines = lines, np.uint64(lines)
        self._bits: NDArray[np.uint8] = np.zeros(lines * _LINE_BITS >> 3, dtype=np.uint8)

    def add(self, prefixes: Prefixes, newest_day: int) -> None:
        self.keys += len(prefixes)
        self.newest_day = max(self.newest_day, newest_day)
        if find_library() is not None:
            add_to_filter(self._bits, self._line_count, prefixes)
            return
        hashes = prefixes.astype(np.uint64)
        for start in range(0, len(hashes), _CHUNK_KEYS):
            line, mixed = self._locate(hashes[start : start + _CHUNK_KEYS])
            for probe in range(_PROBES):
                self._set_bits(_choose_bit(line, mixed, probe))

    def _set_bits(self, place: Hashes) -> None:
        """Of two bits in one byte an assignment keeps one; those that are missing afterwards are set again."""
        while len(place):
            cell, bit = place >> _THREE, _BIT[place & _SEVEN]
            self._bits[cell] |= bit
            place = place[(self._bits[cell] & bit) == 0]

    def mark(self, prefixes: Prefixes, marks: NDArray[np.bool_]) -> None:
        """Set the marks of those that may have been added. Most others are told by the first probe or two."""
        if find_library() is not None:
            find_in_filter(self._bits, self._line_count, prefixes, marks)
            return
        hashes = prefixes.astype(np.uint64)
        found = np.arange(len(hashes))
        line, mixed = self._locate(hashes)
        for probe in range(_PROBES):
            place = _choose_bit(line, mixed, probe)
            hit = (self._bits[place >> _THREE] & _BIT[place & _SEVEN]) != 0
            found, line, mixed = found[hit], line[hit], mixed[hit]
            if not len(found):
                break
        marks[found] = True

    def _locate(self, hashes: Hashes) -> tuple[Hashes, Hashes]:
        """(first bit of the line, hash that chooses within it) of each: the upper halves, stretched over the lines."""
        return ((hashes >> _HALF) * self._lines >> _HALF) * np.uint64(_LINE_BITS), hashes * _MIX


def _choose_bit(line: Hashes, mixed: Hashes, probe: int) -> Hashes:
    return line + (mixed >> np.uint64(64 - _SLICE_BITS * (probe + 1)) & np.uint64(_LINE_BITS - 1))


class KnownKeys:
    """Keys of the days from `covered_from` on. Holds at most `keys_max`; beyond that the oldest days go uncovered."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._filters: list[_Filter] = []
        self.covered_from = 0

    def covers(self, day: int) -> bool:
        """True when a key of this day and its neighbours that the filter does not know is stored nowhere."""
        return day - 1 >= self.covered_from

    def size(self) -> int:
        """Keys remembered."""
        return sum(item.keys for item in self._filters)

    def add(self, prefixes: Prefixes, newest_day: int) -> None:
        """Remember keys, of which none ended after `newest_day`."""
        while len(prefixes):
            here = self._find_room()
            part = prefixes[: here.keys_max - here.keys]
            here.add(part, newest_day)
            prefixes = prefixes[len(part) :]

    def find(self, prefixes: Prefixes) -> list[int]:
        """Places in `prefixes` of the keys that may be stored, ascending."""
        places: list[int] = np.flatnonzero(self.mark(prefixes)).tolist()
        return places

    def mark(self, prefixes: Prefixes) -> NDArray[np.bool_]:
        """For each key whether it may be stored."""
        marks = np.zeros(len(prefixes), dtype=np.bool_)
        for item in self._filters:
            item.mark(prefixes, marks)
        return marks

    def _find_room(self) -> _Filter:
        last = self._filters[-1] if self._filters else None
        if last is not None and last.keys < last.keys_max:
            return last
        size = min(last.keys_max * 4, _FILTER_KEYS_MAX) if last else _FILTER_KEYS_MIN
        size = max(1, min(size, self._keys_max >> 2))  # a quarter, so that what is forgotten is not all
        while self._filters and self.size() + size > self._keys_max:
            forgotten = self._filters.pop(0)
            self.covered_from = max(self.covered_from, forgotten.newest_day + 1)
        self._filters.append(_Filter(size))
        return self._filters[-1]
