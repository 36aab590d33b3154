"""Groups of equal keys and exact sums over them, in C. `ledger.sums` says what they are and does it without, too."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.loading import find_library, make_array, point_at

Codes = NDArray[np.uint32]
Int64s = NDArray[np.int64]
_P, _I = ctypes.c_void_p, ctypes.c_int64


@cache
def find_sums() -> ctypes.CDLL | None:
    """The library, told what its functions take; None where there is none."""
    library = find_library()
    if library is None:
        return None
    library.ob_group_keys.argtypes, library.ob_group_keys.restype = (_P, _I, _P, _P), _I
    for function in (library.ob_sum_integers, library.ob_sum_amounts):
        function.argtypes, function.restype = (_P, _P, _I, _P, _P, _I, _P), None
    library.ob_find_largest.argtypes, library.ob_find_largest.restype = (_P, _P, _I, _P), None
    return library


def group_keys(library: ctypes.CDLL, keys: NDArray[np.uint64]) -> tuple[Codes, Int64s]:
    """(group of each row, first row of each group), numbered by first occurrence. Raises MemoryError."""
    groups, firsts = make_array(len(keys), "u4"), make_array(len(keys), "i8")
    found = library.ob_group_keys(point_at(keys), len(keys), point_at(groups), point_at(firsts))
    if found < 0:
        raise MemoryError("no room to group rows")
    return groups, firsts[:found]


def sum_integers(
    library: ctypes.CDLL,
    values: int | None,
    known: tuple[int | None, int],
    signs: NDArray[np.int8],
    of: Codes,
    size: int,
) -> list[int]:
    """Per group the sum of sign x value, where it is known. `values` is an address; None stands for ones."""
    sums = np.zeros((size, 2), dtype="<i8")
    library.ob_sum_integers(values, *known, point_at(signs), point_at(of), len(of), point_at(sums))
    return _join_words(sums[:, 0], sums[:, 1])


def sum_amounts(
    library: ctypes.CDLL, words: int, known: tuple[int | None, int], signs: NDArray[np.int8], of: Codes, size: int
) -> list[int]:
    """Per group the sum of sign x amount of 128 bits, where it is known. `words` is an address."""
    sums = np.zeros((size, 4), dtype="<i8")
    library.ob_sum_amounts(words, *known, point_at(signs), point_at(of), len(of), point_at(sums))
    below, above = _join_words(sums[:, 0], sums[:, 1]), _join_words(sums[:, 2], sums[:, 3])
    return [(upper << 64) + lower for upper, lower in zip(above, below, strict=True)] if any(above) else below


def find_largest(library: ctypes.CDLL, values: Int64s, of: Codes, size: int) -> list[int]:
    """Per group the largest value."""
    largest = np.full(size, np.iinfo(np.int64).min, dtype=np.int64)
    library.ob_find_largest(point_at(values), point_at(of), len(of), point_at(largest))
    found: list[int] = largest.tolist()
    return found


def _join_words(low: Int64s, high: Int64s) -> list[int]:
    """Integers of 128 bits from their words."""
    if np.array_equal(low >> 63, high):
        small: list[int] = low.tolist()
        return small
    return [(upper << 64) + lower for upper, lower in zip(high.tolist(), low.view(np.uint64).tolist(), strict=True)]
