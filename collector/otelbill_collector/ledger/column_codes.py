"""Columns as small numbers: equal values, or combinations of values, get equal numbers. Knows no column by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
_DENSE_MIN = 1 << 16  # numbers up to here, or as many as there are rows, are found without sorting


def encode_values(column: pa.ChunkedArray) -> tuple[Int64s, list[Any]]:
    """(a number per row, the values that the numbers stand for); Any: what the column holds. None is number 0."""
    if pa.types.is_dictionary(column.type):
        array = column.unify_dictionaries().combine_chunks()
    else:
        array = column.combine_chunks().dictionary_encode()
    codes: Int64s = pc.fill_null(pc.add(array.indices.cast(pa.int64()), 1), 0).to_numpy(zero_copy_only=False)
    return codes, [None, *array.dictionary.to_pylist()]


def read_integers(column: pa.ChunkedArray) -> Int64s:
    """The values as integers, 0 where there is none."""
    values: Int64s = column.combine_chunks().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return values


class Combination:
    """Numbers of combinations of columns, built one column at a time."""

    def __init__(self, rows: int) -> None:
        self.codes: Int64s = np.zeros(rows, dtype=np.int64)
        self._size = 1

    def add(self, codes: Int64s, size: int) -> None:
        """Tell rows apart that differ in `codes`, which are below `size`."""
        if self._size * size > _find_dense_max(len(self.codes)):
            self.codes, firsts = number_codes(self.codes, self._size)
            self._size = len(firsts)
        self.codes = self.codes * size + codes
        self._size *= size

    def number(self) -> tuple[Int64s, Int64s]:
        """(numbers from 0 on without gaps, a row of each)."""
        return number_codes(self.codes, self._size)


def _find_dense_max(rows: int) -> int:
    return max(_DENSE_MIN, 2 * rows)


def number_codes(codes: Int64s, size: int) -> tuple[Int64s, Int64s]:
    """(the codes numbered from 0 on without gaps, a row of each number); `codes` are from 0 to below `size`."""
    if size > _find_dense_max(len(codes)):
        _, firsts, numbers = np.unique(codes, return_index=True, return_inverse=True)
        return numbers.astype(np.int64), firsts.astype(np.int64)
    rows = np.full(size, -1, dtype=np.int64)
    rows[codes] = np.arange(len(codes))
    present = np.flatnonzero(rows >= 0)
    places = np.empty(size, dtype=np.int64)
    places[present] = np.arange(len(present))
    return places[codes], rows[present]


def list_rows(numbers: Int64s, wanted: Sequence[int], size: int) -> dict[int, Int64s]:
    """For each wanted number the rows that have it, in one pass; numbers are below `size`."""
    chosen = np.zeros(size, dtype=np.bool_)
    chosen[list(wanted)] = True
    rows = np.flatnonzero(chosen[numbers])
    order = rows[np.argsort(numbers[rows], kind="stable")]
    ordered = numbers[order]
    return {
        number: order[np.searchsorted(ordered, number, "left") : np.searchsorted(ordered, number, "right")]
        for number in wanted
    }
