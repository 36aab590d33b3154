"""Entries of the files of identifiers, in C. `ledger.identifiers` says what they are and makes them without it, too."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.native.loading import find_library, make_array, point_at

_P, _I = ctypes.c_void_p, ctypes.c_int64


@cache
def find_ids() -> ctypes.CDLL | None:
    """The library, told what its function takes; None where there is none."""
    library = find_library()
    if library is not None:
        arguments = (_P, _P, _I, _P, _I, _I, ctypes.c_uint64, _P)
        library.ob_make_entries.argtypes, library.ob_make_entries.restype = arguments, _I
        library.ob_sort_ids.argtypes, library.ob_sort_ids.restype = (_P, _P, _I), _I
    return library


def make_entries(library: ctypes.CDLL, column: pa.Array, segment_id: int) -> NDArray[np.uint64]:
    """An entry for each value of a binary or text column that is there and not empty, in the column's order."""
    known = column.buffers()[0] if column.null_count else None
    offsets, data = column.buffers()[1:3]
    entries = make_array(len(column), "u8")
    if data is None:
        return entries[:0]
    made = library.ob_make_entries(
        data.address,
        offsets.address + 4 * column.offset,
        0,
        None if known is None else known.address,
        column.offset,
        len(column),
        segment_id,
        point_at(entries),
    )
    return entries[:made]


def sort_entries(library: ctypes.CDLL, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The entries in order, each once; the array itself is sorted. Raises MemoryError."""
    scratch = make_array(len(entries), "u8")
    left = library.ob_sort_ids(point_at(entries), point_at(scratch), len(entries))
    if left < 0:
        raise MemoryError("no room to sort ids")
    return entries[:left]
