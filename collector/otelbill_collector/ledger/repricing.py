"""What booked usage would be charged under other prices, by columns. Reads segments, writes nothing.

Charges of events that meet the same tariff and have the same units add up, so rows are summed first and the sums are
rated: thousands of groups instead of millions of records, and the same amounts to the last digit. Rows that do not add
up that way (own units, parts larger than their wholes) are rated one by one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.ratecard import EventNames
from otelbill_collector.domain.rating import Rated, Rater
from otelbill_collector.domain.tariffs import PARENTS, Levels, Tariff
from otelbill_collector.domain.usage import (
    CACHE_READ_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    STANDARD_UNITS,
    Quantity,
)
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.segments import add_quantities, read_quantities, to_attos

Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]  # segments done, segments in all

_NAMES = ("provider", "model", "request_model", "service_tier", "customer_id", "step")
_COLUMNS = (
    *("event_id", "sign", "ended_nanos", "rating", "currency", "cost", "charge"),
    *_NAMES,
    "price_version",
    *STANDARD_UNITS,
    "other_quantities",
)
SCOPE_COLUMNS = ("customer_id", "provider", "model", "step")
_TEXTS = (*_NAMES, "price_version")
_BATCH_ROWS = 400_000
_LOW_BITS = 20  # quantities are summed in two halves, so that no sum passes 64 bits
_UNITS = len(STANDARD_UNITS)


@dataclass(slots=True)
class Repriced:
    """Events of one customer, or the net of their bookings and reversals, with what is booked and what would be.

    Amounts in attos. `booked_uncharged` and `uncharged` count events without a charge, then and now.
    """

    events: int = 0
    quantities: dict[str, Quantity] = field(default_factory=dict)
    booked_charge_attos: int = 0
    booked_cost_attos: int = 0
    booked_uncharged: int = 0
    charge_attos: int = 0
    cost_attos: int = 0
    uncharged: int = 0
    changed: int = 0  # events whose amounts would change

    def add(self, other: Repriced) -> None:
        """Add another group."""
        for name in Repriced.__slots__:
            if name == "quantities":
                add_quantities(self.quantities, other.quantities, 1)
            else:
                setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Scope:
    """Which events: [from, to) of event time, and exact values of columns. `fixed` events keep what is booked."""

    from_nanos: int | None = None
    to_nanos: int | None = None
    where: dict[str, str] = field(default_factory=dict)
    fixed: Collection[str] = ()


def sum_repriced(
    connection: sqlite3.Connection, rater: Rater, scope: Scope, progress: Progress
) -> dict[str | None, Repriced]:
    """By customer, what may be billed in the scope, as booked and under the rater's prices. Without what is held."""
    sums: dict[str | None, Repriced] = {}
    for table in _list_batches(connection, scope, progress):
        for customer_id, group in _price_table(table, rater, scope):
            sums.setdefault(customer_id, Repriced()).add(group)
    return sums


def _list_batches(connection: sqlite3.Connection, scope: Scope, progress: Progress) -> Iterator[pa.Table]:
    (total,) = connection.execute("SELECT count(*) FROM segment").fetchone()
    waiting: list[pa.Table] = []
    rows = 0
    tables = list_tables(connection, 0, ended_from=scope.from_nanos, ended_to=scope.to_nanos)
    for done, (_, table) in enumerate(tables, start=1):
        waiting.append(_filter_table(table.select(_COLUMNS), scope))
        rows += waiting[-1].num_rows
        if rows >= _BATCH_ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, rows = [], 0
        progress(done, total)
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def match_scope(table: pa.Table, scope: Scope) -> pa.ChunkedArray:
    """Rows of a scope, whoever fixed them."""
    mask = pc.is_valid(table["ended_nanos"])
    if scope.from_nanos is not None:
        mask = pc.and_(mask, pc.greater_equal(table["ended_nanos"], scope.from_nanos))
    if scope.to_nanos is not None:
        mask = pc.and_(mask, pc.less(table["ended_nanos"], scope.to_nanos))
    for name, value in scope.where.items():
        mask = pc.and_(mask, pc.fill_null(pc.equal(table[name], value), False))
    return mask


def _filter_table(table: pa.Table, scope: Scope) -> pa.Table:
    priced = pc.is_in(table["rating"], value_set=pa.array(["rated", "unpriced"]))
    return table.filter(pc.and_(match_scope(table, scope), priced))


def _price_table(table: pa.Table, rater: Rater, scope: Scope) -> Iterator[tuple[str | None, Repriced]]:
    columns = _Columns(table)
    fixed = columns.match("event_id", scope.fixed)
    odd = columns.find_odd_rows() & ~fixed
    if fixed.any():
        yield from _keep(table.filter(pa.array(fixed)))
    if odd.any():
        for row in table.filter(pa.array(odd)).to_pylist():
            yield row["customer_id"], _price_row(row, rater)
    plain = ~(fixed | odd)
    if not plain.all():
        table = table.filter(pa.array(plain))
        columns = _Columns(table)
    if table.num_rows:
        yield from _Groups(columns, rater).build()


class _Columns:
    """A table's columns as numpy arrays."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.rows = table.num_rows
        self.ended = self._read("ended_nanos")
        self.sign = self._read("sign").astype(np.int64)
        self.units = {unit: self._read(unit) for unit in STANDARD_UNITS}

    def _read(self, name: str) -> Ints:
        found: Ints = pc.fill_null(self.table[name], 0).to_numpy()
        return found

    def match(self, name: str, values: Collection[str]) -> NDArray[np.bool_]:
        """Rows whose column is one of the values."""
        if not values:
            return np.zeros(self.rows, dtype=np.bool_)
        found: NDArray[np.bool_] = pc.is_in(self.table[name], value_set=pa.array(sorted(values))).to_numpy()
        return found

    def find_odd_rows(self) -> NDArray[np.bool_]:
        """Rows that cannot be summed before they are rated."""
        odd: NDArray[np.bool_] = pc.is_valid(self.table["other_quantities"]).to_numpy().copy()
        for subset, whole in PARENTS.items():
            odd |= self.units[subset] > self.units[whole]
        # A subset of a subset's whole takes from the same whole: audio and reasoning are both output.
        odd |= self.units["reasoning_tokens"] + self.units["audio_output_tokens"] > self.units["output_tokens"]
        for values in self.units.values():
            odd |= values < 0
        return odd

    def encode_names(self) -> tuple[Ints, list[tuple[str | None, ...]]]:
        """For each row the number of its combination of names and price version, and the combinations."""
        code = np.zeros(self.rows, dtype=np.int64)
        for name in _TEXTS:
            encoded = self.table[name].combine_chunks().dictionary_encode()
            values = encoded.dictionary
            places = pc.add(pc.fill_null(encoded.indices.cast(pa.int64()), -1), 1).to_numpy()
            _, code = np.unique(code, return_inverse=True)  # small again before the next name multiplies it
            code = code * (len(values) + 1) + places
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        rows = self.table.select(_TEXTS).take(pa.array(first)).to_pylist()
        return inverse.astype(np.int64), [tuple(row[name] for name in _TEXTS) for row in rows]


class _Groups:
    """Rows that meet the same tariff, have the same units and were booked by the same price version."""

    def __init__(self, columns: _Columns, rater: Rater) -> None:
        names, self._combinations = columns.encode_names()
        tariffs: list[Tariff] = []
        tariff_of = np.zeros(columns.rows, dtype=np.int64)
        order = np.argsort(names, kind="stable")
        edges = np.searchsorted(names[order], np.arange(len(self._combinations) + 1))
        for number, combination in enumerate(self._combinations):
            route = rater.find_route(EventNames(*combination[: len(_NAMES)]))
            _assign_tariffs(columns, order[edges[number] : edges[number + 1]], route, tariffs, tariff_of)
        mask = np.zeros(columns.rows, dtype=np.int64)
        for bit, values in enumerate(columns.units.values()):
            mask |= (values != 0).astype(np.int64) << bit
        key = ((names * len(tariffs) + tariff_of) << (_UNITS + 1)) | (mask << 1) | (columns.sign > 0)
        _, first, self._group = np.unique(key, return_index=True, return_inverse=True)
        self._sums = _Sums(columns, self._group, len(first))
        self._names = names[first].tolist()
        self._signs = columns.sign[first].tolist()
        self._rated = [
            rater.rate_sums(tariffs[tariff], self._sums.read_units(number))
            for number, tariff in enumerate(tariff_of[first].tolist())
        ]

    def build(self) -> Iterator[tuple[str | None, Repriced]]:
        """Each group's customer and amounts."""
        for number, rated in enumerate(self._rated):
            customer_id = self._combinations[self._names[number]][_NAMES.index("customer_id")]
            yield customer_id, self._sums.build(number, self._signs[number], rated)


def _assign_tariffs(columns: _Columns, rows: Ints, route: Any, tariffs: list[Tariff], tariff_of: Ints) -> None:
    """Number the tariffs that rows of one combination of names meet. Any: a Timeline of Levels."""
    ended = columns.ended[rows]
    places = np.searchsorted(np.array(route.starts, dtype=np.int64), ended, side="right") if route.starts else 0 * ended
    hours = np.searchsorted(np.array(route.day_starts, dtype=np.int64), ended % DAY_NANOS, side="right") - 1
    for place in np.unique(places).tolist():
        day = route.days[place]
        for hour, levels in enumerate(day):
            here = rows[(places == place) & ((hours == hour) | (len(day) == 1))]
            _assign_levels(columns, here, levels, tariffs, tariff_of)


def _assign_levels(columns: _Columns, rows: Ints, levels: Levels, tariffs: list[Tariff], tariff_of: Ints) -> None:
    units = columns.units
    total = (units[INPUT_TOKENS] + units[CACHE_READ_TOKENS] + units[CACHE_WRITE_TOKENS])[rows]
    level = np.searchsorted(np.array(levels.thresholds, dtype=np.int64), total, side="left")
    for number in np.unique(level).tolist():
        tariff_of[rows[level == number]] = len(tariffs)
        tariffs.append(levels.tariffs[number])


class _Sums:
    """Exact sums by group."""

    def __init__(self, columns: _Columns, group: Ints, groups: int) -> None:
        self._events = np.bincount(group, minlength=groups)
        self._low: dict[str, Ints] = {}
        self._high: dict[str, Ints] = {}
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(groups))
        for unit, values in columns.units.items():
            ordered = values[order]
            self._low[unit] = np.add.reduceat(ordered & ((1 << _LOW_BITS) - 1), starts)
            self._high[unit] = np.add.reduceat(ordered >> _LOW_BITS, starts)
        booked = pa.table({"group": group, "charge": columns.table["charge"], "cost": columns.table["cost"]})
        amounts = booked.group_by("group").aggregate(
            [("charge", "sum"), ("charge", "count"), ("cost", "sum"), ("cost", "count")]
        )
        self._booked = {row["group"]: row for row in amounts.to_pylist()}

    def read_units(self, number: int) -> dict[str, int]:
        """The sums of a group, without units of which there are none."""
        sums = {
            unit: (int(self._high[unit][number]) << _LOW_BITS) + int(self._low[unit][number]) for unit in STANDARD_UNITS
        }
        return {unit: total for unit, total in sums.items() if total}

    def build(self, number: int, sign: int, rated: Rated) -> Repriced:
        """The group as booked and as rated."""
        booked, events = self._booked[number], int(self._events[number])
        charge, cost = to_attos(booked["charge_sum"]) or 0, to_attos(booked["cost_sum"]) or 0
        uncharged = events - booked["charge_count"]
        costless = events - booked["cost_count"]
        now_uncharged = events if rated.charge_attos is None else 0
        same = (charge, cost, uncharged, costless) == (
            rated.charge_attos or 0,
            rated.cost_attos or 0,
            now_uncharged,
            events if rated.cost_attos is None else 0,
        )
        return Repriced(
            events=sign * events,
            quantities={unit: sign * total for unit, total in self.read_units(number).items()},
            booked_charge_attos=sign * charge,
            booked_cost_attos=sign * cost,
            booked_uncharged=sign * uncharged,
            charge_attos=sign * (rated.charge_attos or 0),
            cost_attos=sign * (rated.cost_attos or 0),
            uncharged=sign * now_uncharged,
            changed=0 if same else sign * events,
        )


def _price_row(row: dict[str, Any], rater: Rater) -> Repriced:
    """One row by itself. Any: a row of an Arrow table."""
    names = {name: row[name] for name in _NAMES}
    rated = rater.rate(read_quantities(row), row["ended_nanos"], **names)
    charge, cost = to_attos(row["charge"]), to_attos(row["cost"])
    kept = _book_row(row, row["sign"])
    kept.charge_attos = row["sign"] * (rated.charge_attos or 0)
    kept.cost_attos = row["sign"] * (rated.cost_attos or 0)
    kept.uncharged = row["sign"] * (rated.charge_attos is None)
    kept.changed = row["sign"] * ((charge, cost) != (rated.charge_attos, rated.cost_attos))
    return kept


def _keep(table: pa.Table) -> Iterator[tuple[str | None, Repriced]]:
    """Rows whose charge an operator gave: no price changes it."""
    for row in table.to_pylist():
        yield row["customer_id"], _book_row(row, row["sign"])


def _book_row(row: dict[str, Any], sign: int) -> Repriced:
    charge, cost = to_attos(row["charge"]), to_attos(row["cost"])
    quantities: dict[str, Quantity] = {}
    add_quantities(quantities, read_quantities(row), sign)
    return Repriced(
        events=sign,
        quantities=quantities,
        booked_charge_attos=sign * (charge or 0),
        booked_cost_attos=sign * (cost or 0),
        booked_uncharged=sign * (charge is None),
        charge_attos=sign * (charge or 0),
        cost_attos=sign * (cost or 0),
        uncharged=sign * (charge is None),
    )
