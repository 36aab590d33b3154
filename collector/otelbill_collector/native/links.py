"""Wraps links.c: the filter over claim keys, and entries in the order of their keys. Owns how arrays are handed over.

Call these only where `find_library` found one.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.loading import find_library, make_array, point_at

Prefixes = NDArray[np.int64]  # first eight bytes of claim keys, at any distance from each other


def add_to_filter(bits: NDArray[np.uint8], lines: int, prefixes: Prefixes) -> None:
    """Set the bits of keys."""
    _library().ob_filter_add(_at(bits), ctypes.c_uint64(lines), *_list_keys(prefixes))


def find_in_filter(bits: NDArray[np.uint8], lines: int, prefixes: Prefixes, found: NDArray[np.bool_]) -> None:
    """Set `found` where a key may have been added, and leave the rest of it as it is."""
    _library().ob_filter_find(_at(bits), ctypes.c_uint64(lines), *_list_keys(prefixes), _at(found))


def sort_entries(entries: NDArray[Any]) -> None:
    """Put entries of 16 bytes in the order of the signed eight bytes they begin with; equal ones stay as they came."""
    spare = make_array(len(entries), "V16")
    if entries.itemsize != spare.itemsize:
        raise ValueError("an entry has 16 bytes")
    if _library().ob_sort_entries(_at(entries), _at(spare), ctypes.c_int64(len(entries))):
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
