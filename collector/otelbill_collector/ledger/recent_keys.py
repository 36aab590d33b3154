"""Claim keys of spans booked by columns that are held in memory: which rows of which batch have a key.

Two generations: when the younger is full the older is forgotten with its batches. What is forgotten is found through
the filter and the runs. Owns no SQL; without the native library there are no spans in columns, and this stays empty.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.span_columns import Bytes, Int32s
from otelbill_collector.ledger.members import ColumnSingles
from otelbill_collector.native.links import KeyTable

_BATCH_MAX = 2**32 - 2
_BATCH_KEYS = 16  # as much memory as so many keys take the arrays of a batch, however few spans it has

KeptBatch = tuple[ColumnSingles, Int32s]
"""Spans of a batch, and for each of their keys the place before it of the same key, or -1."""


class RecentKeys:
    """Rows by claim key, at most `keys_max` keys once a batch is settled. Not thread-safe."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._batch = 0
        self.forget()

    def __len__(self) -> int:
        """Keys in memory."""
        return sum(len(table) for table in self._tables)

    def add(self, singles: ColumnSingles) -> None:
        """Hold the keys of a batch. None of them may be held here; a trace may have many rows."""
        if self._batch >= _BATCH_MAX:
            self.forget()
            self._batch = 0
        self._batch += 1
        before = self._tables[0].add(singles.rated.keys, self._batch)
        self._batches[0][self._batch] = (singles, before)

    def mark(self, keys: Bytes) -> NDArray[np.bool_]:
        """For each of the keys [m, 16] whether it is held here."""
        marks = np.zeros(len(keys), dtype=np.bool_)
        for table in self._tables:
            if len(table):
                table.mark(keys, marks)
        return marks

    def take(self, key: bytes) -> list[tuple[ColumnSingles, int]]:
        """The rows that have a key; it is not held here any more."""
        for table, batches in zip(self._tables, self._batches, strict=True):
            found = table.take(key) if len(table) else None
            if found is not None:
                batch, place = found
                return list(_list_rows(batches[batch], place))
        return []

    def list_batches(self) -> list[ColumnSingles]:
        """The batches of which any key may be held."""
        return [singles for batches in self._batches for singles, _ in batches.values()]

    def settle(self) -> None:
        """Keep to the bound."""
        younger, older = map(self._weigh, (0, 1))
        while younger + older > self._keys_max or younger > self._keys_max >> 1:
            self._rotate()
            younger, older = 0, younger

    def forget(self) -> None:
        """Drop everything."""
        self._tables = [KeyTable(), KeyTable()]  # the younger first
        self._batches: list[dict[int, KeptBatch]] = [{}, {}]

    def _weigh(self, generation: int) -> int:
        return len(self._tables[generation]) + _BATCH_KEYS * len(self._batches[generation])

    def _rotate(self) -> None:
        younger, older = self._tables
        self._tables = [older.cleared(younger), younger]
        self._batches = [{}, self._batches[0]]


def _list_rows(batch: KeptBatch, place: int) -> Iterator[tuple[ColumnSingles, int]]:
    singles, before = batch
    while place >= 0:
        yield singles, singles.find_row(place)
        place = int(before[place])
