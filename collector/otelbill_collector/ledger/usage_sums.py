"""Exact sums of a customer's records over any interval, read from the segments by columns. Owns no prices; reads only.

What blocks a period from being closed is found here as well: usage without a price, without quantities or customer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.money import EXACT
from otelbill_collector.domain.statements import UsageSum
from otelbill_collector.domain.usage import STANDARD_UNITS, Quantity
from otelbill_collector.ledger.journal import list_kept_tables, list_tables
from otelbill_collector.ledger.segments import add_quantities, parse_quantities, to_attos

_NAMES = ("project_id", "step", "provider", "model", "price_version")
_KEYS = ("customer_id", "sign", *_NAMES)
_COLUMNS = ("ended_nanos", "charge", "other_quantities", *_KEYS)
_WIDE = pa.decimal256(76, 18)  # room for 10^38 of the largest amounts that a record may have
_BATCH = 64  # segments that are grouped together
_LOW_BITS = 31
_SAFE = 2**62
_BLOCKING_COLUMNS = (
    *("rating", "customer_id", "billable", "ended_nanos", "sign", "revision", "event_id"),
    *("step", "provider", "model", "reason"),
)

Row = Mapping[str, Any]  # one row of an Arrow table


@dataclass(frozen=True, slots=True)
class Blocker:
    """A booking in force that keeps a period open. `state` is unpriced, held or suspense."""

    event_id: str
    state: str
    ended_nanos: int
    customer_id: str | None
    step: str | None
    provider: str | None
    model: str | None
    reason: str

    def render(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "event_id": self.event_id,
            "state": self.state,
            "ended_at": format_instant(self.ended_nanos),
            "customer_id": self.customer_id,
            "step": self.step,
            "provider": self.provider,
            "model": self.model,
            "reason": self.reason,
        }


def load_usage_sums(
    connection: sqlite3.Connection, *, from_nanos: int, to_nanos: int, customer_id: str | None = None
) -> dict[str, list[UsageSum]]:
    """Sums of rated records with event time in [from, to) by customer; of one customer, or of all that have one."""
    found: dict[tuple[Any, ...], UsageSum] = {}
    units, currencies = _read_versions(connection)
    tables = list_tables(connection, 0, ended_from=from_nanos, ended_to=to_nanos, columns=(*_COLUMNS, *units))
    for table in _join_tables(table for _, table in tables):
        chosen = _choose_rows(table, _match_rated(table, from_nanos, to_nanos, customer_id))
        if chosen.num_rows:
            _add_groups(chosen, units, found)
            _add_other_units(chosen, found)
    customers: dict[str, list[UsageSum]] = {}
    for key, item in found.items():
        item.quantities = {unit: value for unit, value in item.quantities.items() if value}
        item.currency = currencies.get(item.version) if item.version else None
        if item.events or item.quantities or item.charge_attos:
            customers.setdefault(key[0], []).append(item)
    return customers


def _read_versions(connection: sqlite3.Connection) -> tuple[list[str], dict[str, str]]:
    """Standard units that any price is for, as no others are invoiced, and the currency of each version.

    Columns cost as much to read as rows do, and most ledgers price few of the units.
    """
    units: set[str] = set()
    currencies: dict[str, str] = {}
    for version, body in connection.execute("SELECT price_version, body FROM price_version"):
        content = json.loads(body)
        units.update(content.get("prices", ()))
        currencies[version] = content.get("currency")
    return [unit for unit in STANDARD_UNITS if unit in units], currencies


def has_records(
    connection: sqlite3.Connection, customer_id: str, *, after: int, from_nanos: int, to_nanos: int
) -> bool:
    """Whether segments past `after` hold any record of a customer with event time in [from, to)."""
    names = ("customer_id", "ended_nanos")
    tables = list_tables(connection, after, ended_from=from_nanos, ended_to=to_nanos, columns=names)
    return any(
        pc.any(pc.and_(_match_time(table, from_nanos, to_nanos), pc.equal(table["customer_id"], customer_id))).as_py()
        for _, table in tables
    )


def list_customers(connection: sqlite3.Connection, *, from_nanos: int, to_nanos: int) -> list[str]:
    """Customers with any record whose event time lies in [from, to)."""
    found: set[str] = set()
    names = ("customer_id", "ended_nanos")
    for _, table in list_tables(connection, 0, ended_from=from_nanos, ended_to=to_nanos, columns=names):
        found.update(table.filter(_match_time(table, from_nanos, to_nanos))["customer_id"].unique().to_pylist())
    return sorted(name for name in found if name is not None)


def list_blockers(
    connection: sqlite3.Connection, customer_id: str, *, from_nanos: int, to_nanos: int, after: int = 0
) -> list[Blocker]:
    """Bookings in force of [from, to) that are unpriced or held for the customer, or in suspense for anyone.

    `after` is a segment up to which there were none. In pruned segments nothing waits, or they would stand.
    """
    in_force: dict[str, Row] = {}
    for table in list_kept_tables(
        connection, after, ended_from=from_nanos, ended_to=to_nanos, columns=_BLOCKING_COLUMNS
    ):
        own = pc.and_kleene(
            pc.equal(table["customer_id"], customer_id),
            pc.is_in(table["rating"], value_set=pa.array(["held", "unpriced"])),
        )
        suspense = pc.and_(table["billable"], pc.is_null(table["customer_id"]))
        wanted = pc.and_(_match_time(table, from_nanos, to_nanos), pc.or_(pc.fill_null(own, False), suspense))
        for row in table.filter(wanted).to_pylist():
            if row["sign"] > 0:
                in_force[row["event_id"]] = row
            elif row["event_id"] in in_force and in_force[row["event_id"]]["revision"] == row["revision"]:
                del in_force[row["event_id"]]
    rows = sorted(in_force.values(), key=lambda row: (row["ended_nanos"], row["event_id"]))
    return [_create_blocker(row) for row in rows]


def _create_blocker(row: Row) -> Blocker:
    state = "suspense" if row["customer_id"] is None else row["rating"]
    names = (row[name] for name in ("customer_id", "step", "provider", "model", "reason"))
    return Blocker(row["event_id"], state, row["ended_nanos"], *names)


def _join_tables(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Few large tables instead of many small ones: grouping costs more for each table than for each row."""
    source = iter(tables)
    while batch := list(islice(source, _BATCH)):
        yield pa.concat_tables(batch)


def _match_time(table: pa.Table, from_nanos: int, to_nanos: int) -> pa.ChunkedArray:
    ended = table["ended_nanos"]
    return pc.and_(pc.greater_equal(ended, from_nanos), pc.less(ended, to_nanos))


def _match_rated(table: pa.Table, from_nanos: int, to_nanos: int, customer_id: str | None) -> pa.ChunkedArray:
    whose = pc.is_valid(table["customer_id"]) if customer_id is None else pc.equal(table["customer_id"], customer_id)
    # What is not rated has no charge; reading one column spares another.
    mask = pc.and_(pc.and_(_match_time(table, from_nanos, to_nanos), pc.is_valid(table["charge"])), whose)
    return pc.fill_null(mask, False)


def _choose_rows(table: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """Without a copy where every row counts, which is the usual case in the middle of a period."""
    return table if pc.all(mask).as_py() else table.filter(mask)


def _add_groups(table: pa.Table, priced: Sequence[str], found: dict[tuple[Any, ...], UsageSum]) -> None:
    columns: dict[str, pa.ChunkedArray] = {name: table[name] for name in _KEYS}
    columns["charge"] = table["charge"].cast(_WIDE)
    units = [unit for unit in priced if table[unit].null_count < table.num_rows]
    for unit in units:
        columns |= _split_quantities(unit, table[unit])
    sums = [name for name in columns if name not in _KEYS]
    grouped = pa.table(columns).group_by(list(_KEYS)).aggregate([*((name, "sum") for name in sums), ([], "count_all")])
    for row in grouped.to_pylist():
        item, sign = _find_sum(row, found), row["sign"]
        item.events += sign * row["count_all"]
        item.charge_attos += sign * (to_attos(row["charge_sum"]) or 0)
        add_quantities(item.quantities, {unit: _join_quantity(unit, row) for unit in units}, sign)


def _split_quantities(unit: str, column: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """The column, or its high and low bits where the sum of 64-bit integers could overflow."""
    bounds = pc.min_max(column).as_py()
    if max(abs(bounds["min"]), abs(bounds["max"])) * len(column) < _SAFE:
        return {unit: column}
    low = pc.bit_wise_and(column, (1 << _LOW_BITS) - 1)
    return {f"{unit}.low": low, f"{unit}.high": pc.shift_right(column, _LOW_BITS)}


def _join_quantity(unit: str, row: Row) -> int:
    if f"{unit}_sum" in row:
        return int(row[f"{unit}_sum"] or 0)
    return int(row[f"{unit}.low_sum"] or 0) + (int(row[f"{unit}.high_sum"] or 0) << _LOW_BITS)


def _add_other_units(table: pa.Table, found: dict[tuple[Any, ...], UsageSum]) -> None:
    """Units of the customer's own are JSON text; equal texts are counted rather than read again."""
    own = table.select([*_KEYS, "other_quantities"])
    own = own.filter(pc.is_valid(own["other_quantities"]))
    if not own.num_rows:
        return
    grouped = own.group_by([*_KEYS, "other_quantities"]).aggregate([([], "count_all")])
    for row in grouped.to_pylist():
        quantities = parse_quantities(row["other_quantities"])
        times = {unit: _multiply(value, row["count_all"]) for unit, value in quantities.items()}
        add_quantities(_find_sum(row, found).quantities, times, row["sign"])


def _multiply(quantity: Quantity, times: int) -> Quantity:
    return quantity * times if isinstance(quantity, int) else EXACT.multiply(quantity, Decimal(times))


def _find_sum(row: Row, found: dict[tuple[Any, ...], UsageSum]) -> UsageSum:
    names: list[Any] = [row[name] for name in _NAMES]
    key = (row["customer_id"], *names)
    if key not in found:
        found[key] = UsageSum(*names, currency=None)  # type: ignore[misc] # five names and the currency
    return found[key]
