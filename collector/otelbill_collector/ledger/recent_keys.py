"""Claim keys of spans booked by columns that are held in memory: which rows of which batch have a key.

Two generations: when the younger is full the older is forgotten with its batches. What is forgotten is found through
the filter and the runs. Owns no SQL; without the native library there are no spans in columns, and this stays empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.span_columns import Bytes, Int32s, SpanColumns, Template
from otelbill_collector.ledger.members import ColumnSingles
from otelbill_collector.native.links import KeyTable, Pointers, walk_chains

_BATCH_MAX = 2**32 - 2
_EARLIER_MAX, _EARLIER_PER_ROW = 65_536, 4  # spans looked at again for the traces of a batch: beyond, rules decide
_BATCH_KEYS = 16  # as much memory as so many keys take the arrays of a batch, however few spans it has

KeptBatch = tuple[ColumnSingles, Pointers]
"""Spans of a batch, and for each of their keys the span before it that has the same one, in whatever batch."""


class Earlier(NamedTuple):
    """Spans of earlier batches: rows of a batch, and of each a row of the new columns in whose trace it is."""

    singles: ColumnSingles
    rows: NDArray[np.intp]
    found_for: NDArray[np.intp]


class RecentKeys:
    """Rows by claim key, at most `keys_max` keys once a batch is settled. Not thread-safe."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._batch = 0
        self._emitters = _Emitters()
        self.forget()

    def __len__(self) -> int:
        """Keys in memory."""
        return sum(len(table) for table in self._tables)

    def add(self, singles: ColumnSingles, emitters: Int32s, met: NDArray[np.bool_]) -> None:
        """Hold the keys of a batch; those held already are keys that their spans may share. By key: `emitters` of the
        spans, and whether it is `met`, which is to say that it was seen before.
        """
        if self._batch >= _BATCH_MAX:
            self.forget()
            self._batch = 0
        self._batch += 1
        before = self._tables[0].add(singles.rated.keys, self._batch, emitters, met, self._tables[1])
        self._batches[0][self._batch] = (singles, before)

    def find_emitters(self, columns: SpanColumns) -> Int32s:
        """A number for the emitter of each span."""
        return self._emitters.find(columns)

    def number_emitter(self, emitter: str) -> int:
        """The number of an emitter."""
        return self._emitters.number(emitter)

    def repeat_emitters(self, singles: ColumnSingles) -> Int32s:
        """The number of the emitter of each key's span."""
        return np.repeat(self._emitters.find(singles.rated.spans), np.diff(singles.rated.key_starts))

    def meet(self, keys: Bytes, key_starts: Int32s, emitters: Int32s, met: NDArray[np.bool_]) -> Pointers:
        """Of keys that are `met`, unmark those that only spans held here have, beside which a span may stand: twin keys
        of its own emitter, and the key of its trace. Gives for each span the last of its trace held here.
        """
        last = np.zeros(len(key_starts) - 1, dtype=np.uint64)
        for table in self._tables:
            if len(table):
                table.meet(keys, key_starts, emitters, met, last)
        return last

    def list_earlier(self, last: Pointers) -> tuple[list[Earlier], NDArray[np.bool_]]:
        """The spans of the traces that `meet` found, by batch; and which of the new rows cannot have theirs told: one
        is forgotten, or there are too many.
        """
        starts, places, inverse = np.unique(last, return_index=True, return_inverse=True)
        missing = np.zeros(len(last), dtype=np.bool_)
        if starts[0] == 0:
            starts, places = starts[1:], places[1:]
            inverse = inverse - 1
        if not len(starts):
            return [], missing
        room = _EARLIER_MAX + _EARLIER_PER_ROW * len(last)
        walk = walk_chains(np.ascontiguousarray(starts), *self._list_befores(), room)
        if walk is None:
            return [], last != 0
        missing[last != 0] = ~walk.whole[inverse[last != 0]]
        sound = walk.whole[walk.chain]
        found: list[Earlier] = []
        for batch in np.unique(walk.batch[sound]).tolist():
            here = np.flatnonzero(sound & (walk.batch == batch))
            singles, _ = self._find_batch(batch)
            rows = singles.find_rows(walk.place[here])
            found.append(Earlier(singles, rows, places[walk.chain[here]]))
        return found, missing

    def _list_befores(self) -> tuple[int, NDArray[np.uint64]]:
        """The number of the oldest batch, and the address of the pointers of each from there on."""
        kept = {**self._batches[1], **self._batches[0]}
        low = min(kept)
        befores = np.zeros(max(kept) - low + 1, dtype=np.uint64)
        for number, (_, before) in kept.items():
            befores[number - low] = before.ctypes.data
        return low, befores

    def _find_batch(self, number: int) -> KeptBatch:
        return self._batches[0].get(number) or self._batches[1][number]

    def mark(self, keys: Bytes) -> NDArray[np.bool_]:
        """For each of the keys [m, 16] whether it is held here."""
        marks = np.zeros(len(keys), dtype=np.bool_)
        for table in self._tables:
            if len(table):
                table.mark(keys, marks)
        return marks

    def take(self, key: bytes) -> list[tuple[ColumnSingles, int]]:
        """The rows that have a key, which is not held here any more; none where one of them is forgotten."""
        for table in self._tables:
            found = table.take(key) if len(table) else None
            if found is not None:
                return self._list_rows(*found)
        return []

    def _list_rows(self, number: int, place: int) -> list[tuple[ColumnSingles, int]]:
        rows: list[tuple[ColumnSingles, int]] = []
        while number:
            kept = self._batches[0].get(number) or self._batches[1].get(number)
            if kept is None:
                return []
            rows.append((kept[0], kept[0].find_row(place)))
            number, place = divmod(int(kept[1][place]), 1 << 32)
        return rows

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


class _Emitters:
    """Numbers for the emitters of templates, whose list only grows."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._templates: Sequence[Template] = ()
        self._known: Int32s = np.empty(0, dtype=np.int32)

    def find(self, columns: SpanColumns) -> Int32s:
        """The number of each span's emitter, from 1."""
        if columns.templates is not self._templates:
            self._templates, self._known = columns.templates, self._known[:0]
        fresh = columns.templates[len(self._known) :]
        if fresh:
            numbers = [self.number(item.emitter) for item in fresh]
            self._known = np.concatenate([self._known, np.array(numbers, dtype=np.int32)])
        return self._known[columns.template]

    def number(self, emitter: str) -> int:
        """The number of an emitter, from 1."""
        return self._numbers.setdefault(emitter, len(self._numbers) + 1)
