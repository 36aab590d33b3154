"""Rated usage as credits see it: by quarter of an hour, names, unit and price, folded from segments by columns.

Owns the table credit_usage and its mark, which move in one transaction; knows no grants. Equal segments give equal rows
in whatever batches they are folded, because every step is a sum.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.credits import Demand, Place
from otelbill_collector.domain.grants import SLICE_NANOS
from otelbill_collector.domain.instants import floor_slice
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.quantities import MICROS, to_micros
from otelbill_collector.domain.tariffs import PARENTS
from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.journal import find_high_water, find_price_version, list_tables, save_high_water
from otelbill_collector.ledger.segments import parse_quantities, to_attos

NAME = "credit"
_SEGMENTS_MAX = 256
_ROWS_MAX = 200_000
_NAMES = ("customer_id", "project_id", "step", "model", "currency", "price_version")
_KEYS = ("slice", "sign", *_NAMES, "other_quantities")
_COLUMNS = ("ended_nanos", "rating", "charge", "sign", *_NAMES, "other_quantities", *STANDARD_UNITS)
_WIDE = pa.decimal256(76, 18)  # room for the sum of any segment's amounts
_COUNT = pa.decimal256(76, 0)


class UnitPrice(NamedTuple):
    """What one unit is charged, and how many millionths of a credit it costs; 0 where its price is money."""

    attos: int
    credits_micros: int


_AS_GIVEN = UnitPrice(0, 0)  # of a charge that is not the sum of its units' prices
_Key = tuple[str, Place, str, UnitPrice]  # customer, place, currency, price
Sums = dict[_Key, tuple[int, int]]  # -> micros, charge attos
Prices = dict[str, UnitPrice]  # by unit


def fold_credit_usage(connection: sqlite3.Connection) -> tuple[int, set[str]]:
    """Fold segments past the mark; returns how many, and whose usage changed. Call inside a write transaction."""
    mark = find_high_water(connection, NAME)
    sums: Sums = {}
    prices = PriceReader(connection)
    tables: list[pa.Table] = []
    rows = 0
    for segment_id, table in list_tables(connection, mark, columns=_COLUMNS):
        tables.append(table)
        mark, rows = segment_id, rows + table.num_rows
        if len(tables) >= _SEGMENTS_MAX or rows >= _ROWS_MAX:
            break
    if tables:  # grouped together: each group costs as much as a hundred rows
        add_table(pa.concat_tables(tables), prices, sums)
    folded = len(tables)
    for key, (micros, charge) in sums.items():
        _add_row(connection, key, micros, charge)
    if folded:
        save_high_water(connection, NAME, mark)
    return folded, {customer_id for customer_id, *_ in sums}


def load_demands(connection: sqlite3.Connection, customer_id: str, *, before: int, tail: bool = True) -> list[Demand]:
    """A customer's rated usage and period charges of before an instant; with `tail`, of segments past the mark too."""
    rows = connection.execute(
        "SELECT at_nanos, project_id, step, model, unit, currency, price_attos, quantity_micros, charge_attos,"
        " credits_micros FROM credit_usage WHERE customer_id = ? AND at_nanos < ?",
        (customer_id, before),
    )
    found = [Demand(Place(*row[:5]), row[5], *map(int, row[6:])) for row in rows]
    rows = connection.execute(
        "SELECT at_nanos, project_id, step, model, unit, currency, charge_attos FROM credit_charge"
        " WHERE customer_id = ? AND at_nanos < ? ORDER BY charge_id",
        (customer_id, before),
    )
    found += [Demand(Place(*row[:5]), row[5], charge_attos=int(row[6])) for row in rows]
    return found + (_load_tail(connection, customer_id, before) if tail else [])


def sum_demands(connection: sqlite3.Connection, customer_id: str, *, upto: int) -> list[Demand]:
    """A customer's rated usage as the segments up to one say it, in order. Raises EvidencePruned."""
    sums: Sums = {}
    prices = PriceReader(connection)
    for segment_id, table in list_tables(connection, 0, columns=_COLUMNS):
        if segment_id > upto:
            break
        add_table(table.filter(pc.equal(table["customer_id"], customer_id)), prices, sums)
    demands = (
        Demand(place, currency, price.attos, micros, charge, price.credits_micros)
        for (_, place, currency, price), (micros, charge) in sums.items()
    )
    return sorted(demand for demand in demands if demand.quantity_micros or demand.charge_attos)


def find_horizon(
    connection: sqlite3.Connection, customer_id: str, at_nanos: int, charges: Iterable[Demand] = ()
) -> int:
    """Up to when usage must be known to say what credits paid before an instant: what a period takes back at its end
    (see `net_demands`) may reach back beyond it. `charges` are those of periods that are not kept yet.
    """
    query = "SELECT at_nanos, currency, charge_attos FROM credit_charge WHERE customer_id = ? AND at_nanos >= ?"
    rows = connection.execute(query, (customer_id, at_nanos))
    found = [((at, currency), int(charge)) for at, currency, charge in rows]
    found += [((item.place.at_nanos, item.currency), item.charge_attos) for item in charges]
    sums: dict[tuple[int, str], int] = {}
    for key, charge in found:
        sums[key] = sums.get(key, 0) + charge
    return max([at_nanos, *(at + 1 for (at, _), charge in sums.items() if charge < 0)])


def _load_tail(connection: sqlite3.Connection, customer_id: str, before: int) -> list[Demand]:
    sums: Sums = {}
    prices = PriceReader(connection)
    mark = find_high_water(connection, NAME)
    whole = floor_slice(before - 1, SLICE_NANOS) + SLICE_NANOS  # a quarter of an hour that has begun counts, as in rows
    for _, table in list_tables(connection, mark, ended_to=whole, columns=_COLUMNS):
        add_table(table.filter(pc.equal(table["customer_id"], customer_id)), prices, sums)
    return [
        Demand(place, currency, price.attos, micros, charge, price.credits_micros)
        for (_, place, currency, price), (micros, charge) in sums.items()
        if place.at_nanos < before
    ]


class PriceReader:
    """Charge prices by unit of the versions that records name, each read once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[str | None, Prices] = {None: {}}

    def find_prices(self, price_version: str | None) -> Prices:
        """The price of one unit; units without a charge are left out."""
        if price_version not in self._known:
            body = find_price_version(self._connection, price_version or "")
            self._known[price_version] = {} if body is None else _read_prices(body)
        return self._known[price_version]


def _read_prices(body: str) -> Prices:
    prices = json.loads(body).get("prices", {})
    return {unit: _read_price(item) for unit, item in prices.items() if item.get("charge") is not None}


def _read_price(item: Mapping[str, Any]) -> UnitPrice:
    """What a charge of the whole period covers adds nothing to its events."""
    attos = 0 if item["charge"] == "period" else parse_attos(item["charge"])
    return UnitPrice(attos, to_micros(Decimal(item["credits"]["each"])) if "credits" in item else 0)


def add_table(table: pa.Table, prices: PriceReader, sums: Sums) -> None:
    """Add a segment's rated records that have a customer."""
    table = table.select(list(_COLUMNS))
    wanted = pc.and_(pc.equal(table["rating"], "rated"), pc.greater(pc.utf8_length(table["customer_id"]), 0))
    table = table.filter(pc.fill_null(wanted, False))
    if not table.num_rows:
        return
    for row in _group_rows(table):
        _add_group(row, prices.find_prices(row["price_version"]), sums)


def _group_rows(table: pa.Table) -> Iterable[Mapping[str, Any]]:
    """Rows of _KEYS with `charge_sum`, UNIT_sum and `count_all`."""
    ended = table["ended_nanos"].to_numpy()
    columns = {"slice": pa.array(ended - ended % SLICE_NANOS), **{name: table[name] for name in _KEYS[1:]}}
    columns["charge"] = table["charge"].cast(_WIDE)
    units = [unit for unit in STANDARD_UNITS if table[unit].null_count < table.num_rows]
    columns |= {unit: table[unit].cast(_COUNT) for unit in units}
    sums = [(name, "sum") for name in ("charge", *units)]
    grouped = pa.table(columns).group_by(list(_KEYS)).aggregate([*sums, ([], "count_all")])
    rows: list[dict[str, Any]] = grouped.to_pylist()
    return rows


def _add_group(row: Mapping[str, Any], prices: Prices, sums: Sums) -> None:
    place = Place(row["slice"], row["project_id"] or "", row["step"] or "", row["model"] or "", "")
    customer_id, currency, sign = row["customer_id"], row["currency"] or "", row["sign"]
    rest = sign * (to_attos(row["charge_sum"]) or 0)
    for unit, micros in _split_units(row, prices).items():
        price, signed = prices[unit], sign * micros
        charge = signed * price.attos // MICROS  # exact: a price has at most 12 decimals
        rest -= charge
        _add_sum(sums, (customer_id, place._replace(unit=unit), currency, price), signed, charge)
    if rest:  # a charge that an operator gave by hand
        _add_sum(sums, (customer_id, place, currency, _AS_GIVEN), 0, rest)


def _split_units(row: Mapping[str, Any], prices: Prices) -> dict[str, int]:
    """Millionths of each priced unit; a part that has a price of its own is taken out of its whole."""
    micros = {unit: int(row[f"{unit}_sum"]) * MICROS for unit in STANDARD_UNITS if row.get(f"{unit}_sum")}
    if row["other_quantities"]:
        for unit, quantity in parse_quantities(row["other_quantities"]).items():
            micros[unit] = to_micros(Decimal(quantity)) * row["count_all"]
    for part, whole in PARENTS.items():
        if part in prices and part in micros:
            micros[whole] = micros.get(whole, 0) - micros[part]
    return {unit: amount for unit, amount in micros.items() if amount and unit in prices}


def _add_sum(sums: Sums, key: _Key, micros: int, charge: int) -> None:
    before = sums.get(key, (0, 0))
    sums[key] = (before[0] + micros, before[1] + charge)


_WHERE = (
    "customer_id = ? AND at_nanos = ? AND project_id = ? AND step = ? AND model = ? AND unit = ? AND currency = ?"
    " AND price_attos = ? AND credits_micros = ?"
)


def _add_row(connection: sqlite3.Connection, key: _Key, micros: int, charge: int) -> None:
    customer_id, place, currency, price = key
    values = (customer_id, *place, currency, str(price.attos), str(price.credits_micros))
    query = f"SELECT quantity_micros, charge_attos FROM credit_usage WHERE {_WHERE}"
    before = connection.execute(query, values).fetchone() or (0, 0)
    micros, charge = micros + int(before[0]), charge + int(before[1])
    if micros or charge:
        row = (*values, str(micros), str(charge))
        connection.execute("INSERT OR REPLACE INTO credit_usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    else:
        connection.execute(f"DELETE FROM credit_usage WHERE {_WHERE}", values)
