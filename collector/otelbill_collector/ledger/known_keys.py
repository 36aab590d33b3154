"""Which claim keys may stand in the ledger, told without asking it: bounded filters over the keys of recent days.

Never says no to a key that is stored; says yes to a few that are not, and those cost a look-up. Owns no SQL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.ledger.key_filters import KeyFilter, Prefixes

_BITS_PER_KEY = 16  # about one key in a thousand is taken for known and is not; `claim_search` tells for little which
_BITS_PER_KEY_SMALL = 32  # one in 40,000: what small filters say wrongly adds up, what they take does not
_FILTER_KEYS_MAX = 1 << 26
_FILTER_KEYS_SMALL = 1 << 22
_FILTER_KEYS_MIN = 1 << 14  # the first filters are small, so that a small ledger takes little memory
_GROWTH = 4  # how much more the next filter holds


class _DayFilter:
    """A filter, how many keys are in it, and the newest day of one."""

    def __init__(self, keys_max: int) -> None:
        self.keys_max = keys_max
        self.keys = 0
        self.newest_day = 0
        bits = _BITS_PER_KEY if keys_max > _FILTER_KEYS_SMALL else _BITS_PER_KEY_SMALL
        self._filter = KeyFilter(keys_max, bits)
        self.mark = self._filter.mark

    def add(self, prefixes: Prefixes, newest_day: int) -> None:
        self.keys += len(prefixes)
        self.newest_day = max(self.newest_day, newest_day)
        self._filter.add(prefixes)


class KnownKeys:
    """Keys of the days from `covered_from` on. Holds at most `keys_max`; beyond that the oldest days go uncovered."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._size = _FILTER_KEYS_MIN  # of the next filter
        self._filters: list[_DayFilter] = []
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

    def expect(self, count: int) -> None:
        """So many keys come first, in order: a part of them lies close together, and would crowd in a small filter."""
        while self._size < min(count, _FILTER_KEYS_MAX):
            self._size *= _GROWTH

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

    def _find_room(self) -> _DayFilter:
        last = self._filters[-1] if self._filters else None
        if last is not None and last.keys < last.keys_max:
            return last
        size = max(1, min(self._size, self._keys_max >> 2))  # a quarter, so that what is forgotten is not all
        while self._filters and self.size() + size > self._keys_max:
            forgotten = self._filters.pop(0)
            self.covered_from = max(self.covered_from, forgotten.newest_day + 1)
        self._size = min(self._size * _GROWTH, _FILTER_KEYS_MAX)
        self._filters.append(_DayFilter(size))
        return self._filters[-1]
