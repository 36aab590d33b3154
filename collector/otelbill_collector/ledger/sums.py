"""Exact sums over groups of records, from columns. Owns the arithmetic; what is summed by what is the caller's.

Whole numbers are added as 32-bit limbs in 64-bit integers, which no fold can overflow, and put together at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.usage import STANDARD_UNITS, Quantity
from otelbill_collector.ledger.segments import add_quantities, parse_quantities, read_quantities, to_attos

SUM_COLUMNS = ("sign", *STANDARD_UNITS, "other_quantities", "cost", "charge")
_LIMB_BITS = 32
_CODES_MAX = 2**62

Int64s = NDArray[np.int64]


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
        add_quantities(self.quantities, other.quantities, 1)
        self.cost_attos += other.cost_attos
        self.charge_attos += other.charge_attos
        self.costless += other.costless


def sum_groups(table: pa.Table, keys: Sequence[pa.Array]) -> Iterator[tuple[tuple[Any, ...], Sums]]:
    """(values of the keys, sums) per group of rows with equal keys. `table` has SUM_COLUMNS; `keys` a value per row."""
    if not table.num_rows:
        return
    order, starts = sort_groups(keys)
    signs = read_integers(table["sign"])[order]
    events = np.add.reduceat(signs, starts).tolist()
    costless = np.add.reduceat(np.where(_read_nulls(table["cost"])[order], signs, 0), starts).tolist()
    costs, charges = (sum_amounts(table[name], order, starts, signs) for name in ("cost", "charge"))
    units = {
        unit: sum_integers(read_integers(table[unit])[order], starts, signs)
        for unit in STANDARD_UNITS
        if table[unit].null_count < table.num_rows
    }
    firsts = pa.array(order[starts])
    values = zip(*[key.take(firsts).to_pylist() for key in keys], strict=True)
    others = _sum_others(table["other_quantities"], order, starts, signs)
    for group, value in enumerate(values):
        quantities: dict[str, Quantity] = {unit: sums[group] for unit, sums in units.items() if sums[group]}
        quantities.update(others.get(group, {}))
        yield value, Sums(events[group], quantities, costs[group], charges[group], costless[group])


def sort_groups(keys: Sequence[pa.Array]) -> tuple[Int64s, Int64s]:
    """(an order of the rows in which groups stand together, where each group starts in it)."""
    codes: Int64s = np.zeros(len(keys[0]), dtype=np.int64)
    space = 1
    for key in keys:
        encoded = pc.dictionary_encode(key)
        size = len(encoded.dictionary)
        if space * size > _CODES_MAX:
            codes, space = _shorten_codes(codes)
        codes = codes * size + encoded.indices.to_numpy(zero_copy_only=False)
        space *= size
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return order, starts


def _shorten_codes(codes: Int64s) -> tuple[Int64s, int]:
    found, places = np.unique(codes, return_inverse=True)
    return places.astype(np.int64), len(found)


def read_integers(column: pa.ChunkedArray) -> Int64s:
    """The values, 0 where there is none."""
    values: Int64s = column.combine_chunks().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _read_nulls(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = column.combine_chunks().is_null().to_numpy(zero_copy_only=False)
    return nulls


def sum_integers(values: Int64s, starts: Int64s, signs: Int64s) -> list[int]:
    """Per group the sum of sign x value."""
    high = values >> _LIMB_BITS
    low = values - (high << _LIMB_BITS)
    sums: list[int] = np.add.reduceat(low * signs, starts).tolist()
    if not high.any():
        return sums
    highs = np.add.reduceat(high * signs, starts).tolist()
    return [(upper << _LIMB_BITS) + lower for upper, lower in zip(highs, sums, strict=True)]


def sum_amounts(column: pa.ChunkedArray, order: Int64s, starts: Int64s, signs: Int64s) -> list[int]:
    """Per group the sum of sign x amount, in attos."""
    array = column.combine_chunks()
    words = np.frombuffer(array.buffers()[1], dtype="<i8").reshape(-1, 2)[array.offset : array.offset + len(array)]
    words = np.where(_read_nulls(column)[:, None], 0, words)[order]
    low, high = words[:, 0], words[:, 1]
    below = sum_integers(low, starts, signs)
    above = sum_integers(high + (low < 0), starts, signs)  # the low word was read with a sign that it has not
    return [(upper << 64) + lower for upper, lower in zip(above, below, strict=True)]


def _sum_others(
    column: pa.ChunkedArray, order: Int64s, starts: Int64s, signs: Int64s
) -> dict[int, dict[str, Quantity]]:
    """Per group the sums of units that have no column of their own: few records have any."""
    sums: dict[int, dict[str, Quantity]] = {}
    if column.null_count == len(column):
        return sums
    texts = column.combine_chunks().take(pa.array(order))
    groups = np.searchsorted(starts, np.arange(len(order)), side="right") - 1
    for place in np.flatnonzero(~_read_nulls(pa.chunked_array([texts]))).tolist():
        total = sums.setdefault(int(groups[place]), {})
        add_quantities(total, parse_quantities(texts[place].as_py()), int(signs[place]))
    return sums
