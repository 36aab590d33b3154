"""Wraps links.c: filters over claim keys, the order of entries, keys in memory, and which spans have company.

Owns how arrays are handed over. Call these only where `find_library` found one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.loading import find_library, make_array, point_at

_FULL_SIXTEENTHS = 11  # of the slots of a table are filled at most
_GROWTH_BITS = 3  # to eight times the size: a commit waits while keys are moved, which is seldom then, and of few keys

Prefixes = NDArray[np.int64]  # first eight bytes of claim keys, at any distance from each other


def add_to_filter(bits: NDArray[np.uint8], lines: int, prefixes: Prefixes) -> None:
    """Set the bits of keys."""
    _library().ob_filter_add(_at(bits), ctypes.c_uint64(lines), *_list_keys(prefixes))


def find_in_filter(bits: NDArray[np.uint8], lines: int, prefixes: Prefixes, found: NDArray[np.bool_]) -> None:
    """Set `found` where a key may have been added, and leave the rest of it as it is."""
    _library().ob_filter_find(_at(bits), ctypes.c_uint64(lines), *_list_keys(prefixes), _at(found))


def find_in_filters(
    filters: Sequence[tuple[NDArray[np.uint8], int]], prefixes: Prefixes, found: NDArray[np.bool_]
) -> None:
    """The same for filters of (bits, lines): `found` is [filters, keys]."""
    if found.shape != (len(filters), len(prefixes)):
        raise ValueError("there is no mark for each filter and key")
    addresses = np.array([point_at(bits) for bits, _ in filters], dtype=np.uint64)
    lines = np.array([count for _, count in filters], dtype=np.uint64)
    tables = ctypes.c_int64(len(filters)), _at(addresses), _at(lines)
    _library().ob_filters_find(*tables, *_list_keys(prefixes), _at(found))


def sort_entries(entries: NDArray[Any]) -> None:
    """Put entries of 16 bytes in the order of the signed eight bytes they begin with; equal ones stay as they came."""
    spare = make_array(len(entries), "V16")
    if entries.itemsize != spare.itemsize:
        raise ValueError("an entry has 16 bytes")
    if _library().ob_sort_entries(_at(entries), _at(spare), ctypes.c_int64(len(entries))):
        raise MemoryError


SLOT = np.dtype([("key", "V16"), ("batch", "<u4"), ("place", "<u4"), ("emitter", "<u4"), ("unused", "<u4")])

Pointers = NDArray[np.uint64]
"""Spans that have a key: the number of their batch and, in the lower half, the place of the key there; 0 is none."""


class KeyTable:
    """Claim keys, each with the batch that has it and the place of the key there. Grows to eight times its size."""

    def __init__(self, size: int = 1 << 11) -> None:
        self._slots: NDArray[Any] = np.zeros(size, dtype=SLOT)
        self._filled = 0

    def cleared(self, pattern: KeyTable) -> KeyTable:
        """An empty table with as much room as another: this one, if it has that."""
        if len(self._slots) != len(pattern._slots):
            return KeyTable(len(pattern._slots))
        self._slots.view(np.uint8).fill(0)
        self._filled = 0
        return self

    def __len__(self) -> int:
        """Keys held, and those that were taken since it was last made larger."""
        return self._filled

    def add(
        self,
        keys: NDArray[np.uint8],
        batch: int,
        emitters: NDArray[np.int32],
        met: NDArray[np.bool_],
        older: KeyTable,
    ) -> Pointers:
        """Enter the keys [m, 16] of a batch; for each the span before it that has the same key.

        `emitters` are those of the keys' spans; a key that is `met`, and not held, has spans that nobody can be led to.
        What `older` holds of a key is taken over.
        """
        self._make_room(len(keys))
        before: Pointers = make_array(len(keys), "u8")
        function = _library().ob_recent_add
        function.restype = ctypes.c_int64
        given = _at(keys), ctypes.c_int64(len(keys)), ctypes.c_uint32(batch), _at(emitters), _at(met), _at(before)
        self._filled += function(*self._table(), *older._table(), *given)
        return before

    def meet(
        self,
        keys: NDArray[np.uint8],
        key_starts: NDArray[np.int32],
        emitters: NDArray[np.int32],
        met: NDArray[np.bool_],
        last: Pointers,
    ) -> None:
        """Of keys that are `met`, unmark twin keys that only spans of the same emitter have, and keys of traces: `last`
        is set to the last span of the trace. `emitters` and `last` are by span.
        """
        rows = ctypes.c_int64(len(key_starts) - 1)
        arrays = (key_starts, emitters, met, last)
        _library().ob_recent_meet(*self._table(), _at(keys), rows, *map(_at, arrays))

    def mark(self, keys: NDArray[np.uint8], marks: NDArray[np.bool_]) -> None:
        """Set the marks of keys [m, 16] that are held, and leave the others as they are."""
        _library().ob_recent_find(*self._table(), _at(keys), ctypes.c_int64(len(keys)), _at(marks))

    def take(self, key: bytes) -> tuple[int, int] | None:
        """The batch of a key and the last place it has there; it is held elsewhere from now on."""
        function = _library().ob_recent_take
        function.restype = ctypes.c_uint64
        found = function(*self._table(), key)
        return (found >> 32, found & 0xFFFFFFFF) if found else None

    def _make_room(self, more: int) -> None:
        size = len(self._slots)
        while size * _FULL_SIXTEENTHS >> 4 < self._filled + more:
            size <<= _GROWTH_BITS
        if size == len(self._slots):
            return
        larger = np.zeros(size, dtype=SLOT)
        function = _library().ob_recent_move
        function.restype = ctypes.c_int64
        old = self._slots
        self._filled = function(_at(old), ctypes.c_int64(len(old)), _at(larger), ctypes.c_uint64(size - 1))
        self._slots = larger

    def _table(self) -> tuple[ctypes.c_void_p, ctypes.c_uint64]:
        return _at(self._slots), ctypes.c_uint64(len(self._slots) - 1)


TWIN = np.dtype([("prefix", "<u8"), ("emitter", "<u4"), ("unused", "<u4")])


class TwinTable:
    """Twin keys by their first eight bytes, each with the emitter of all its spans. Grows to eight times its size."""

    def __init__(self, size: int = 1 << 11) -> None:
        self._slots: NDArray[Any] = np.zeros(size, dtype=TWIN)
        self._filled = 0

    def emptied(self) -> TwinTable:
        """An empty table with as much room."""
        return TwinTable(len(self._slots))

    def __len__(self) -> int:
        return self._filled

    def meet(
        self,
        keys: NDArray[np.uint8],
        key_starts: NDArray[np.int32],
        emitters: NDArray[np.int32],
        met: NDArray[np.bool_],
    ) -> None:
        """Unmark twin keys that are `met` and that only the span's own emitter ever had. `emitters` are by span."""
        rows = ctypes.c_int64(len(key_starts) - 1)
        _library().ob_twins_meet(*self._table(), _at(keys), rows, *map(_at, (key_starts, emitters, met)))

    def note(self, keys: NDArray[np.uint8], emitters: NDArray[np.int32], met: NDArray[np.bool_], *, most: int) -> None:
        """Note the emitters of keys; those that are not `met` are entered, at most so many. `emitters` are by key."""
        self._make_room(min(len(keys), most))
        function = _library().ob_twins_note
        function.restype = ctypes.c_int64
        given = _at(keys), ctypes.c_int64(len(keys)), _at(emitters), _at(met), ctypes.c_int64(most)
        self._filled += function(*self._table(), *given)

    def _make_room(self, more: int) -> None:
        size = len(self._slots)
        while size * _FULL_SIXTEENTHS >> 4 < self._filled + more:
            size <<= _GROWTH_BITS
        if size > len(self._slots):
            larger = np.zeros(size, dtype=TWIN)
            moved = _at(self._slots), ctypes.c_int64(len(self._slots)), _at(larger), ctypes.c_uint64(size - 1)
            _library().ob_twins_move(*moved)
            self._slots = larger

    def _table(self) -> tuple[ctypes.c_void_p, ctypes.c_uint64]:
        return _at(self._slots), ctypes.c_uint64(len(self._slots) - 1)


class Walk(NamedTuple):
    """Spans found in chains: which chain, batch and place of the key there. A chain that is not whole is of no use."""

    chain: NDArray[np.int32]
    batch: NDArray[np.uint32]
    place: NDArray[np.int32]
    whole: NDArray[np.bool_]


def walk_chains(starts: Pointers, low: int, befores: NDArray[np.uint64], room: int) -> Walk | None:
    """The spans of chains that end at `starts`, at most `room`; None where there are more.

    `befores` are addresses of what `KeyTable.add` gave for the batches from number `low` on; 0 for a forgotten one.
    """
    chain, batch, place = (make_array(room, kind) for kind in ("i4", "u4", "i4"))
    whole: NDArray[np.bool_] = make_array(len(starts), "?")
    function = _library().ob_recent_walk
    function.restype = ctypes.c_int64
    sizes = ctypes.c_int64(low), ctypes.c_int64(len(befores))
    arrays = map(_at, (chain, batch, place, whole))
    found = function(ctypes.c_int64(len(starts)), _at(starts), *sizes, _at(befores), ctypes.c_int64(room), *arrays)
    return None if found < 0 else Walk(chain[:found], batch[:found], place[:found], whole)


def find_company(
    keys: NDArray[np.uint8],
    key_starts: NDArray[np.int32],
    emitters: NDArray[np.int32],
    met: NDArray[np.bool_],
    others: bytes,
    company: NDArray[np.bool_],
) -> None:
    """Set `company` of spans whose claim keys, or those of their trace in the batch, others have too.

    `met`: keys that spans elsewhere have; `others`: keys of the batch's other spans, one behind the other. The first
    key of a span is that of its trace, which spans of the batch may share; twin keys may be shared by spans of one
    emitter. What is set beforehand counts as company.
    """
    if key_starts[-1] != len(keys) or len(met) != len(keys) or len(company) != len(key_starts) - 1:
        raise ValueError("keys, their starts and their marks are not of the same spans")
    rows, count = ctypes.c_int64(len(company)), ctypes.c_int64(len(others) >> 4)
    spans = _at(keys), _at(key_starts), _at(emitters)
    if _library().ob_find_company(rows, *spans, _at(met), count, others, _at(company)):
        raise MemoryError


def _list_keys(prefixes: Prefixes) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]:
    """Where keys begin, how far apart they are, and how many there are."""
    (distance,) = prefixes.strides
    return ctypes.c_void_p(int(prefixes.ctypes.data)), ctypes.c_int64(distance), ctypes.c_int64(len(prefixes))


def _library() -> ctypes.CDLL:
    library = find_library()
    assert library is not None
    return library


def _at(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(point_at(array))
