"""Sums by hour, customer, step and model, folded from segments. Owns the rollup table and the usage read model.

A fold moves the high-water mark in its own transaction, so each record is counted exactly once; deleting the rows and
the mark and folding again gives the same rows. Readers add the records past the mark, and so see all that is committed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, floor_slice, format_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.ledger.journal import find_high_water, list_tables, save_high_water
from otelbill_collector.ledger.readings import Reading, read_segments
from otelbill_collector.ledger.segments import build_form, parse_quantities, render_quantities
from otelbill_collector.ledger.sums import SUM_COLUMNS, Sums, encode_key, read_integers, slice_time, sum_groups

NAME = "rollup"
FACT_DIMENSIONS = ("customer", "project", "step", "provider", "model", "currency", "rating", "usage_source")
TIME_DIMENSIONS = ("hour", "day", "month")
SCAN_DIMENSIONS = ("run", "operation", "reason", "trace")  # not in rollups: answered from the segments themselves
DIMENSIONS = (*FACT_DIMENSIONS, *TIME_DIMENSIONS, *SCAN_DIMENSIONS)

_FACT_COLUMNS = ("customer_id", "project_id", "step", "provider", "model", "currency", "rating", "usage_source")
_SCAN_COLUMNS = {"run": "run_id", "operation": "operation", "reason": "reason", "trace": "trace_id"}
_SUM_COLUMNS = (*SUM_COLUMNS, "ended_nanos")
COLUMNS = (*_FACT_COLUMNS, *_SUM_COLUMNS)  # of a segment, that are folded

Key = tuple[Any, ...]  # start of an hour or day, values of FACT_DIMENSIONS


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What `load_usage` answers: dimensions to group by, [from, to) of event time, and exact values to filter by."""

    by: tuple[str, ...]
    from_nanos: int | None = None
    to_nanos: int | None = None
    where: Mapping[str, str] = field(default_factory=dict)


class UnknownDimension(ValueError):
    """A dimension that usage cannot be grouped by; the message lists those it can."""


@dataclass(frozen=True, slots=True)
class Fold:
    """What the next fold writes: rows by table, and sums, as they stand with segments past `before` up to `mark`."""

    before: int
    mark: int
    segments: int
    rows: Mapping[str, Sequence[tuple[Any, ...]]]
    sums: Mapping[str, Mapping[Key, Sums]]


class Standing:
    """Rows that were written lately, as they stand: a fold that adds to them need not read them. Owns their number."""

    def __init__(self, rows_max: int = 60_000) -> None:
        self._rows_max = rows_max
        self._mark = 0
        self._rows: dict[str, dict[Key, Sums]] = {_HOURS: {}, _DAYS: {}}

    def list_rows(self, table: str, mark: int) -> Mapping[Key, Sums]:
        """Rows of a table that are known to stand so at a mark."""
        return self._rows[table] if mark == self._mark else {}

    def accept(self, fold: Fold) -> None:
        """Remember what a fold wrote, once it is committed."""
        for table, rows in self._rows.items():
            if fold.before != self._mark or len(rows) + len(fold.sums[table]) > self._rows_max:
                rows.clear()
            if len(fold.sums[table]) <= self._rows_max:
                rows.update(fold.sums[table])
        self._mark = fold.mark


def prepare_fold(
    connection: sqlite3.Connection, readings: Iterable[Reading] | None = None, standing: Standing | None = None
) -> Fold:
    """Sum the segments past the mark, which `readings` begin with. Reads only: the writer need not wait for it."""
    before = mark = find_high_water(connection, NAME)
    hours: dict[Key, Sums] = {}
    segments = 0
    for reading in [read_segments(connection, before, COLUMNS)] if readings is None else readings:
        mark, segments = reading.mark, segments + len(reading.tables)
        for key, found in _sum_facts(reading.join()) if reading.tables else ():
            held = hours.get(key)
            if held is None:
                hours[key] = found
            else:
                held.add(found)
    sums = {_HOURS: hours, _DAYS: _sum_days(hours)}
    rows = {}
    for table, rows_of in sums.items():
        _add_standing(connection, table, rows_of, {} if standing is None else standing.list_rows(table, before))
        rows[table] = [(*key, *_render_sums(item)) for key, item in rows_of.items()]
        rows[table].sort(key=_ORDERS[table])  # neighbours of a page are written one after another
    return Fold(before, mark, segments, rows, sums)


def _sum_days(hours: Mapping[Key, Sums]) -> dict[Key, Sums]:
    starts = {hour: floor_slice(hour, DAY_NANOS) for hour in {key[0] for key in hours}}
    days: dict[Key, Sums] = {}
    for key, sums in hours.items():
        of_day = (starts[key[0]], *key[1:])
        if of_day in days:
            days[of_day].add(sums)
        else:
            days[of_day] = sums.copy()
    return days


def _add_standing(
    connection: sqlite3.Connection, table: str, rows: Mapping[Key, Sums], known: Mapping[Key, Sums]
) -> None:
    """Add to new sums those that stand under the same keys."""
    asked: list[tuple[Key, Sums]] = []
    for key, sums in rows.items():
        stands = known.get(key)
        if stands is None:
            asked.append((key, sums))
        else:
            sums.add(stands)
    asked.sort(key=lambda item: _ORDERS[table](item[0]))
    for start in range(0, len(asked), _ASKED_AT_ONCE):
        part = asked[start : start + _ASKED_AT_ONCE]
        values = [value for number, (key, _) in enumerate(part) for value in (number, *key)]
        for number, *row in connection.execute(_build_question(table, len(part)), values):
            part[number][1].add(_read_sums(row))


def save_fold(connection: sqlite3.Connection, fold: Fold) -> int:
    """Write a fold, unless another one was quicker; returns how many segments. Call inside a write transaction."""
    if fold.segments and find_high_water(connection, NAME) == fold.before:
        for name, rows in fold.rows.items():
            connection.executemany(_build_insert(name), rows)
        save_high_water(connection, NAME, fold.mark)
    return fold.segments


def fold_rollups(connection: sqlite3.Connection) -> int:
    """Fold segments past the mark into the rollup tables; returns how many. Call inside a write transaction."""
    return save_fold(connection, prepare_fold(connection))


def rebuild_rollups(connection: sqlite3.Connection) -> None:
    """Derive every row again from the segments. Call inside a write transaction."""
    for table in (_HOURS, _DAYS):
        connection.execute(f"DELETE FROM {table}")
    save_high_water(connection, NAME, 0)
    while fold_rollups(connection):
        pass


def count_events(connection: sqlite3.Connection) -> dict[str, int]:
    """Events in the rollups by rating state, and `suspense` for those without a customer."""
    counts = {"rated": 0, "unpriced": 0, "held": 0, "suspense": 0}
    query = "SELECT rating, customer_id = '', sum(events) FROM rollup GROUP BY rating, customer_id = ''"
    for rating, nobody, events in connection.execute(query):
        counts[rating] = counts.get(rating, 0) + events
        counts["suspense"] += events if nobody else 0
    return counts


def load_usage(connection: sqlite3.Connection, query: UsageQuery) -> list[dict[str, Any]]:
    """One object per group: its keys, events, quantities, cost, charge, currency, and counts of what is not settled.

    Only what may be billed is counted; currencies are never added to each other. Raises UnknownDimension.
    """
    for name in (*query.by, *query.where):
        if name not in DIMENSIONS:
            raise UnknownDimension(f"cannot group by {name!r}; choose from {', '.join(DIMENSIONS)}")
    groups: dict[tuple[str | None, ...], dict[str, Sums]] = {}
    for facts, sums in _list_facts(connection, query):
        if any(facts[name] != value for name, value in query.where.items()):
            continue
        key = (*(facts[name] or None for name in query.by), facts["currency"] or None)
        groups.setdefault(key, {}).setdefault(facts["rating"], Sums()).add(sums)
    rows = [_render_group(query.by, key, ratings) for key, ratings in groups.items()]
    rows = [row for row in rows if row["events"] or row["quantities"]]
    rows.sort(key=lambda row: tuple(str(row[name] or "") for name in (*query.by, "currency")))
    return rows


def _render_group(by: Sequence[str], key: tuple[str | None, ...], ratings: Mapping[str, Sums]) -> dict[str, Any]:
    total = Sums()
    for sums in ratings.values():
        total.add(sums)
    rated = ratings.get("rated", Sums())
    settled = bool(rated.events)
    return {
        **dict(zip(by, key, strict=False)),
        "events": total.events,
        "quantities": {
            unit: value if isinstance(value, int) else format(value, "f")
            for unit, value in sorted(total.quantities.items())
            if value
        },
        "cost": format_attos(total.cost_attos) if total.events > total.costless else None,
        "charge": format_attos(rated.charge_attos) if settled else None,
        "currency": key[-1],
        "unpriced": ratings["unpriced"].events if "unpriced" in ratings else 0,
        "held": ratings["held"].events if "held" in ratings else 0,
        "cost_unknown": total.costless,
    }


def _list_facts(connection: sqlite3.Connection, query: UsageQuery) -> Iterator[tuple[dict[str, str], Sums]]:
    """(dimension values, sums) of all in the interval, from rollups where they can tell, otherwise from segments."""
    scan = {name for name in (*query.by, *query.where) if name in SCAN_DIMENSIONS}
    aligned = all(bound is None or bound % HOUR_NANOS == 0 for bound in (query.from_nanos, query.to_nanos))
    mark = 0
    if aligned and not scan:
        mark = find_high_water(connection, NAME)
        for part, table in _split_interval(query):
            for start, values, sums in _list_rollups(connection, part, table):
                yield _name_facts(start, values), sums
    columns = (*COLUMNS, *(_SCAN_COLUMNS[name] for name in scan))
    bounds = {"ended_from": query.from_nanos, "ended_to": query.to_nanos}
    for _, table in list_tables(connection, mark, columns=columns, dictionaries=True, **bounds):
        yield from _scan_table(table, query, scan)


def _name_facts(hour: int, values: Sequence[str]) -> dict[str, str]:
    facts = dict(zip(FACT_DIMENSIONS, values, strict=True))
    facts["hour"] = format_instant(hour)
    facts["day"] = format_instant(floor_slice(hour, DAY_NANOS))[:10]
    facts["month"] = facts["day"][:7]
    return facts


def _scan_table(table: pa.Table, query: UsageQuery, scan: Iterable[str]) -> Iterator[tuple[dict[str, str], Sums]]:
    if query.from_nanos is not None:
        table = table.filter(pc.greater_equal(table["ended_nanos"], query.from_nanos))
    if query.to_nanos is not None:
        table = table.filter(pc.less(table["ended_nanos"], query.to_nanos))
    names = tuple(scan)
    for (hour, *values), sums in _sum_facts(table, [_SCAN_COLUMNS[name] for name in names]):
        facts = _name_facts(hour, values[: len(_FACT_COLUMNS)])
        for name, value in zip(names, values[len(_FACT_COLUMNS) :], strict=True):
            facts[name] = value.hex() if isinstance(value, bytes) else value
        yield facts, sums


def _sum_facts(table: pa.Table, more: Sequence[str] = ()) -> Iterator[tuple[Key, Sums]]:
    """((hour, values of FACT_DIMENSIONS and of `more` columns), sums) of what may be billed."""
    ratings = encode_key(table["rating"])
    if "not_billable" in ratings.values:
        code = ratings.values.index("not_billable")
        table = table.filter(pa.array(ratings.codes != code))
    hours = slice_time(read_integers(table["ended_nanos"]), HOUR_NANOS)
    names = [encode_key(table[name]) for name in (*_FACT_COLUMNS, *more)]
    # Only text is empty where there is none.
    texts = [name.fill("") if all(isinstance(value, str | None) for value in name.values) else name for name in names]
    return sum_groups(table, [hours, *texts])


def _split_interval(query: UsageQuery) -> Iterator[tuple[UsageQuery, str]]:
    """(part of the interval, table that answers it): whole days of one customer are read by the day."""
    if "customer" not in query.where or "hour" in (*query.by, *query.where):
        yield query, _HOURS
        return
    start, end = query.from_nanos, query.to_nanos
    first = None if start is None else -(-start // DAY_NANOS) * DAY_NANOS
    last = None if end is None else floor_slice(end, DAY_NANOS)
    if first is not None and last is not None and first >= last:
        yield query, _HOURS
        return
    yield replace(query, from_nanos=first, to_nanos=last), _DAYS
    if first != start:
        yield replace(query, to_nanos=first), _HOURS
    if last != end:
        yield replace(query, from_nanos=last), _HOURS


_HOURS, _DAYS = "rollup", "rollup_day"
_STARTS = {_HOURS: "hour_nanos", _DAYS: "day_nanos"}
_SUM_NAMES = ("events", "quantities", "cost_attos", "charge_attos", "costless")
_ORDERS = {_HOURS: itemgetter(*range(9)), _DAYS: itemgetter(1, 0, *range(2, 9))}  # of their primary keys
_ASKED_AT_ONCE = 1_024  # keys in one statement, which has less than a third of the variables that it may have


@lru_cache(maxsize=64)
def _build_question(table: str, count: int) -> str:
    """SQL that finds the sums of so many numbered keys."""
    names = (_STARTS[table], *_FACT_COLUMNS)
    marks = ", ".join([f"(?{', ?' * len(names)})"] * count)
    keys = ", ".join(f"key_{place}" for place in range(len(names)))
    clauses = " AND ".join(f"{name} = key_{place}" for place, name in enumerate(names))
    return (
        f"WITH asked (number, {keys}) AS (VALUES {marks}) "
        f"SELECT number, {', '.join(_SUM_NAMES)} FROM asked CROSS JOIN {table} ON {clauses}"
    )


@cache
def _build_insert(table: str) -> str:
    """SQL that saves a row. One that stands keeps its place."""
    names = (_STARTS[table], *_FACT_COLUMNS)
    columns, marks = ", ".join((*names, *_SUM_NAMES)), ", ".join("?" * (len(names) + len(_SUM_NAMES)))
    changes = ", ".join(f"{name} = excluded.{name}" for name in _SUM_NAMES)
    return f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO UPDATE SET {changes}"


def _read_sums(row: Sequence[Any]) -> Sums:
    events, quantities, cost, charge, costless = row
    return Sums(events, parse_quantities(quantities), int(cost), int(charge), costless)


def _render_sums(sums: Sums) -> tuple[int | str, ...]:
    found = sums.quantities
    if 0 in found.values():
        found = {unit: value for unit, value in found.items() if value}
    if set(map(type, found.values())) == {int}:
        form, read = build_form(tuple(found))
        quantities = form % read(found)
    else:
        quantities = render_quantities(found)
    return sums.events, quantities, str(sums.cost_attos), str(sums.charge_attos), sums.costless


_EVER = (-(2**62), 2**62)
# The hours that there are, each found by a step in the primary key, and of each the rows of one customer.
_HOURS_OF_CUSTOMER = """
    WITH RECURSIVE held (hour) AS (
        SELECT min(hour_nanos) FROM rollup WHERE hour_nanos >= :start AND hour_nanos < :end
        UNION ALL
        SELECT (SELECT min(hour_nanos) FROM rollup WHERE hour_nanos > hour AND hour_nanos < :end) FROM held
        WHERE hour IS NOT NULL
    )
    SELECT {columns} FROM held CROSS JOIN rollup ON hour_nanos = hour AND customer_id = :customer
"""


def _list_rollups(
    connection: sqlite3.Connection, query: UsageQuery, table: str
) -> Iterator[tuple[int, tuple[str, ...], Sums]]:
    start = _STARTS[table]
    columns = ", ".join((start, *_FACT_COLUMNS, *_SUM_NAMES))
    sql = f"SELECT {columns} FROM {table} WHERE {start} >= :start AND {start} < :end"
    first = _EVER[0] if query.from_nanos is None else query.from_nanos
    values: dict[str, int | str] = {"start": first, "end": _EVER[1] if query.to_nanos is None else query.to_nanos}
    if "customer" in query.where:
        sql = f"{sql} AND customer_id = :customer" if table == _DAYS else _HOURS_OF_CUSTOMER.format(columns=columns)
        values["customer"] = query.where["customer"]
    for row in connection.execute(sql, values):
        yield row[0], tuple(row[1:9]), _read_sums(row[9:])


def list_users(connection: sqlite3.Connection) -> list[str]:
    """Customers that ever had usage which may be billed."""
    rows = connection.execute("SELECT DISTINCT customer_id FROM rollup_day WHERE customer_id <> ''")
    return [customer_id for (customer_id,) in rows]


def find_usage(connection: sqlite3.Connection, customer_id: str, from_nanos: int, to_nanos: int) -> int | None:
    """The first hour in [from, to) in which a customer has usage that was not taken back; by whole hours."""
    used = "(events <> 0 OR quantities <> '{}' OR charge_attos <> '0' OR cost_attos <> '0')"
    sql = f"{_HOURS_OF_CUSTOMER.format(columns='hour')} WHERE {used} ORDER BY hour LIMIT 1"
    row = connection.execute(sql, {"start": from_nanos, "end": to_nanos, "customer": customer_id}).fetchone()
    return None if row is None else int(row[0])
