"""Exact sums over groups of records, from columns. Owns the arithmetic; what is summed by what is the caller's.

The native library adds in 128 bits. Without it whole numbers are added as 32-bit limbs in 64-bit integers. Neither can
overflow, and both give the same sums and the same numbers of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.money import EXACT
from otelbill_collector.domain.usage import STANDARD_UNITS, Quantity
from otelbill_collector.ledger.segments import add_quantities, parse_quantities, read_quantities, to_attos
from otelbill_collector.native import sums as native

SUM_COLUMNS = ("sign", *STANDARD_UNITS, "other_quantities", "cost", "charge")
_LIMB_BITS = 32
_CODES_MAX = 2**62

Int64s = NDArray[np.int64]
Signs = NDArray[np.int8]


@dataclass(slots=True)
class Sums:
    """Exact sums over a group. Amounts in attos; `costless` counts events whose cost is not known."""

    events: int = 0
    quantities: dict[str, Quantity] = field(default_factory=dict)
    cost_attos: int = 0
    charge_attos: int = 0
    costless: int = 0

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Add one record (or subtract it, when it is a reversal)."""
        sign = row["sign"]
        self.events += sign
        add_quantities(self.quantities, read_quantities(row), sign)
        cost, charge = to_attos(row["cost"]), to_attos(row["charge"])
        self.cost_attos += sign * (cost or 0)
        self.charge_attos += sign * (charge or 0)
        self.costless += sign if cost is None else 0

    def add(self, other: Sums) -> None:
        """Add another group's sums."""
        self.events += other.events
        mine = self.quantities
        for unit, value in other.quantities.items():
            before = mine.get(unit, 0)
            # `type`, not `isinstance`: a fold does this some ten thousand times.
            exact = type(before) is int and type(value) is int
            mine[unit] = before + value if exact else EXACT.add(Decimal(before), Decimal(value))
        self.cost_attos += other.cost_attos
        self.charge_attos += other.charge_attos
        self.costless += other.costless

    def copy(self) -> Sums:
        """The same sums, to be added to."""
        return Sums(self.events, dict(self.quantities), self.cost_attos, self.charge_attos, self.costless)


@dataclass(frozen=True, slots=True)
class Key:
    """A column to group by: a code for each row, and the value that each code stands for, no two of them equal."""

    codes: Int64s
    values: Sequence[Any]  # of the column's type, None among them

    def fill(self, value: Any) -> Key:
        """The key with `value` in place of None."""
        return self.rename(lambda item: value if item is None else item) if None in self.values else self

    def rename(self, change: Callable[[Any], Any]) -> Key:
        """The key with each value changed; values that become equal are one."""
        places: dict[Any, int] = {}
        found = [places.setdefault(change(item), len(places)) for item in self.values]
        return Key(np.array(found, dtype=np.int64)[self.codes], list(places))


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows with equal keys: the group of each row, numbered by first occurrence, and the first row of each group."""

    of: NDArray[np.uint32]
    firsts: Int64s


def encode_key(column: pa.ChunkedArray | pa.Array) -> Key:
    """A column as a key. Dictionary columns are not looked into row by row."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    places: dict[Any, int] = {}
    parts = [np.empty(0, dtype=np.int64)]
    for chunk in chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else pc.dictionary_encode(chunk)
        known = encoded.dictionary.to_pylist()
        indices = encoded.indices
        if indices.null_count:
            indices = indices.cast(pa.int64()).fill_null(len(known))
            known.append(None)
        mapping = np.array([places.setdefault(value, len(places)) for value in known], dtype=np.int64)
        parts.append(mapping[indices.to_numpy()])
    return Key(np.concatenate(parts), list(places))


def slice_time(nanos: Int64s, length: int) -> Key:
    """The slices of that length in which instants lie, by their starts."""
    if not len(nanos):
        return Key(nanos, [])
    numbers = nanos // length
    first = int(numbers.min())
    return _shorten_key(numbers - first, lambda code: (code + first) * length)


def _shorten_key(codes: Int64s, read: Callable[[int], int]) -> Key:
    if int(codes.max()) < len(codes):
        return Key(codes, [read(code) for code in range(int(codes.max()) + 1)])
    found, places = np.unique(codes, return_inverse=True)
    return Key(places.astype(np.int64), [read(code) for code in found.tolist()])


def group_rows(keys: Sequence[Key]) -> Groups:
    """Rows with equal values of all keys."""
    codes: Int64s = np.zeros(len(keys[0].codes), dtype=np.int64)
    space = 1
    for key in keys:
        size = len(key.values)
        if size == 1:
            continue
        if space * size > _CODES_MAX:
            found, places = np.unique(codes, return_inverse=True)
            codes, space = places.astype(np.int64), len(found)
        codes = codes * size + key.codes if space > 1 else key.codes
        space *= max(size, 1)
    library = native.find_sums()
    if library is None:
        return number_groups(codes)
    return Groups(*native.group_keys(library, np.ascontiguousarray(codes).view(np.uint64)))


def number_groups(codes: Int64s) -> Groups:
    """Rows with equal codes, without the library."""
    _, firsts, of = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    numbers = np.empty(len(order), dtype=np.uint32)
    numbers[order] = np.arange(len(order))
    return Groups(numbers[of], firsts[order].astype(np.int64))


def list_values(keys: Sequence[Key], rows: Int64s) -> Iterator[tuple[Any, ...]]:
    """The values of all keys in some rows."""
    columns = []
    for key in keys:
        values = key.values
        columns.append([values[code] for code in key.codes[rows].tolist()])
    return zip(*columns, strict=True)


def sum_groups(
    table: pa.Table, columns: Sequence[pa.Array | pa.ChunkedArray | Key]
) -> Iterator[tuple[tuple[Any, ...], Sums]]:
    """(values of the columns, sums) per group of rows with equal ones.

    `table` has SUM_COLUMNS; a column has a value for each of its rows.
    """
    if not table.num_rows:
        return
    keys = [column if isinstance(column, Key) else encode_key(column) for column in columns]
    groups = group_rows(keys)
    signs = read_signs(table["sign"])
    events = count_signs(signs, groups)
    known = count_signs(signs, groups, table["cost"]) if table["cost"].null_count else events
    costs, charges = (sum_amounts(table[name], signs, groups) for name in ("cost", "charge"))
    units = {
        unit: sum_integers(table[unit], signs, groups)
        for unit in STANDARD_UNITS
        if table[unit].null_count < table.num_rows
    }
    names, sums = tuple(units), zip(*units.values(), strict=True) if units else (() for _ in events)
    others = _sum_others(table["other_quantities"], signs, groups)
    rows = zip(list_values(keys, groups.firsts), events, sums, costs, charges, known, strict=True)
    for group, (values, count, found, cost, charge, costly) in enumerate(rows):
        quantities: dict[str, Quantity] = {unit: total for unit, total in zip(names, found, strict=True) if total}
        if group in others:
            quantities.update(others[group])
        yield values, Sums(count, quantities, cost, charge, count - costly)


def read_signs(column: pa.ChunkedArray) -> Signs:
    """The signs of records: 1, or -1 of a reversal."""
    signs: Signs = np.ascontiguousarray(column.combine_chunks().to_numpy(zero_copy_only=False), dtype=np.int8)
    return signs


def read_integers(column: pa.ChunkedArray) -> Int64s:
    """The values, 0 where there is none."""
    array = column.combine_chunks()
    array = array.fill_null(0) if array.null_count else array
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)


def count_signs(signs: Signs, groups: Groups, column: pa.ChunkedArray | None = None) -> list[int]:
    """Per group the sum of signs, where the column has a value."""
    library = native.find_sums()
    array = None if column is None else column.combine_chunks()
    if library is not None:
        known = (None, 0) if array is None else _point_known(array)
        return native.sum_integers(library, None, known, signs, groups.of, len(groups.firsts))
    ones = np.ones(len(signs), dtype=np.int64)
    return _sum_limbs(ones if column is None else np.where(_read_nulls(column), 0, ones), signs, groups)


def sum_integers(column: pa.ChunkedArray, signs: Signs, groups: Groups) -> list[int]:
    """Per group the sum of sign x value."""
    library = native.find_sums()
    if library is None:
        return _sum_limbs(read_integers(column), signs, groups)
    array = column.combine_chunks()
    values = array.buffers()[1].address + array.offset * 8
    return native.sum_integers(library, values, _point_known(array), signs, groups.of, len(groups.firsts))


def sum_amounts(column: pa.ChunkedArray, signs: Signs, groups: Groups) -> list[int]:
    """Per group the sum of sign x amount, in attos."""
    array = column.combine_chunks()
    library = native.find_sums()
    if library is not None:
        words = array.buffers()[1].address + array.offset * 16
        return native.sum_amounts(library, words, _point_known(array), signs, groups.of, len(groups.firsts))
    pairs = np.frombuffer(array.buffers()[1], dtype="<i8").reshape(-1, 2)[array.offset : array.offset + len(array)]
    pairs = np.where(_read_nulls(column)[:, None], 0, pairs)
    low, high = pairs[:, 0], pairs[:, 1]
    below = _sum_limbs(low, signs, groups)
    above = _sum_limbs(high + (low < 0), signs, groups)  # the low word was read with a sign that it has not
    return [(upper << 64) + lower for upper, lower in zip(above, below, strict=True)]


def find_largest(values: Int64s, groups: Groups) -> list[int]:
    """Per group the largest value."""
    library = native.find_sums()
    if library is not None:
        return native.find_largest(library, values, groups.of, len(groups.firsts))
    order, starts = _sort_groups(groups)
    largest: list[int] = np.maximum.reduceat(values[order], starts).tolist()
    return largest


def _point_known(array: pa.Array) -> tuple[int | None, int]:
    """(address of the bitmap of what is known, bit of the first value); no address where all is."""
    bitmap = array.buffers()[0] if array.null_count else None
    return (None, 0) if bitmap is None else (bitmap.address, array.offset)


def _read_nulls(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = column.combine_chunks().is_null().to_numpy(zero_copy_only=False)
    return nulls


def _sort_groups(groups: Groups) -> tuple[Int64s, Int64s]:
    """(an order of the rows in which groups stand together, where each group starts in it)."""
    order = np.argsort(groups.of, kind="stable")
    return order, np.searchsorted(groups.of[order], np.arange(len(groups.firsts)))


def _sum_limbs(values: Int64s, signs: Signs, groups: Groups) -> list[int]:
    order, starts = _sort_groups(groups)
    ordered, signed = values[order], signs[order].astype(np.int64)
    high = ordered >> _LIMB_BITS
    low = ordered - (high << _LIMB_BITS)
    sums: list[int] = np.add.reduceat(low * signed, starts).tolist()
    if not high.any():
        return sums
    highs = np.add.reduceat(high * signed, starts).tolist()
    return [(upper << _LIMB_BITS) + lower for upper, lower in zip(highs, sums, strict=True)]


def _sum_others(column: pa.ChunkedArray, signs: Signs, groups: Groups) -> dict[int, dict[str, Quantity]]:
    """Per group the sums of units that have no column of their own: few records have any, and few texts differ."""
    sums: dict[int, dict[str, Quantity]] = {}
    if column.null_count == len(column):
        return sums
    key = encode_key(column)
    parsed = [None if text is None else parse_quantities(text) for text in key.values]
    said = np.array([quantities is not None for quantities in parsed])
    for row in np.flatnonzero(said[key.codes]).tolist():
        quantities = parsed[key.codes[row]]
        assert quantities is not None
        add_quantities(sums.setdefault(int(groups.of[row]), {}), quantities, int(signs[row]))
    return sums
