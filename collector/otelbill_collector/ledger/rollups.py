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

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, floor_slice, format_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.ledger.journal import find_high_water, list_tables, save_high_water
from otelbill_collector.ledger.readings import Reading, read_segments
from otelbill_collector.ledger.segments import build_form, parse_quantities, render_quantities
from otelbill_collector.ledger.sums import SUM_COLUMNS, Key, Sums, encode_key, read_integers, slice_time, sum_groups

NAME = "rollup"
FACT_DIMENSIONS = ("customer", "project", "step", "provider", "model", "currency", "rating", "usage_source")
TIME_DIMENSIONS = ("hour", "day", "month")
SCAN_DIMENSIONS = ("run", "operation", "reason", "trace")  # not in rollups: answered from the segments themselves
DIMENSIONS = (*FACT_DIMENSIONS, *TIME_DIMENSIONS, *SCAN_DIMENSIONS)

_FACT_COLUMNS = ("customer_id", "project_id", "step", "provider", "model", "currency", "rating", "usage_source")
_SCAN_COLUMNS = {"run": "run_id", "operation": "operation", "reason": "reason", "trace": "trace_id"}
_SUM_COLUMNS = (*SUM_COLUMNS, "ended_nanos")
_COLUMNS_OF = {  # of a segment
    **dict(zip(FACT_DIMENSIONS, _FACT_COLUMNS, strict=True)),
    **dict.fromkeys(TIME_DIMENSIONS, "ended_nanos"),
    **_SCAN_COLUMNS,
}
_GROUPS_MAX = 50_000  # past so many a fold reads no more: commits wait while its rows are written
_ROWS_AT_ONCE, _TABLES_AT_ONCE = 400_000, 256
COLUMNS = (*_FACT_COLUMNS, *_SUM_COLUMNS)  # of a segment, that are folded

FactKey = tuple[Any, ...]  # start of an hour or day, values of FACT_DIMENSIONS


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
    sums: Mapping[str, Mapping[FactKey, Sums]]


class Standing:
    """Rows that were written lately, as they stand: a fold that adds to them need not read them. Owns their number."""

    def __init__(self, rows_max: int = 60_000) -> None:
        self._rows_max = rows_max
        self._mark = 0
        self._rows: dict[str, dict[FactKey, Sums]] = {_HOURS: {}, _DAYS: {}}

    def list_rows(self, table: str, mark: int) -> Mapping[FactKey, Sums]:
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
    hours: dict[FactKey, Sums] = {}
    segments = 0
    for reading in [read_segments(connection, before, COLUMNS)] if readings is None else readings:
        mark, segments = reading.mark, segments + len(reading.tables)
        for key, found in _sum_facts(reading.join()) if reading.tables else ():
            held = hours.get(key)
            if held is None:
                hours[key] = found
            else:
                held.add(found)
        if len(hours) >= _GROUPS_MAX:
            break
    sums = {_HOURS: hours, _DAYS: _sum_days(hours)}
    rows = {}
    for table, rows_of in sums.items():
        _add_standing(connection, table, rows_of, {} if standing is None else standing.list_rows(table, before))
        rows[table] = [(*key, *_render_sums(item)) for key, item in rows_of.items()]
        rows[table].sort(key=_ORDERS[table])  # neighbours of a page are written one after another
    return Fold(before, mark, segments, rows, sums)


def _sum_days(hours: Mapping[FactKey, Sums]) -> dict[FactKey, Sums]:
    starts = {hour: floor_slice(hour, DAY_NANOS) for hour in {key[0] for key in hours}}
    days: dict[FactKey, Sums] = {}
    for key, sums in hours.items():
        of_day = (starts[key[0]], *key[1:])
        if of_day in days:
            days[of_day].add(sums)
        else:
            days[of_day] = sums.copy()
    return days


def _add_standing(
    connection: sqlite3.Connection, table: str, rows: Mapping[FactKey, Sums], known: Mapping[FactKey, Sums]
) -> None:
    """Add to new sums those that stand under the same keys."""
    asked: list[tuple[FactKey, Sums]] = []
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
    for (*names, rating), sums in _list_sums(connection, query, (*query.by, "currency", "rating")):
        key = tuple([name or None for name in names])
        groups.setdefault(key, {}).setdefault(str(rating), Sums()).add(sums)
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


Names = Sequence[str | None]


def _list_sums(connection: sqlite3.Connection, query: UsageQuery, names: Sequence[str]) -> Iterator[tuple[Names, Sums]]:
    """(values of dimensions, sums) of all that is asked for, from rollups where they can tell, else from segments."""
    scan = any(name in SCAN_DIMENSIONS for name in (*names, *query.where))
    aligned = all(bound is None or bound % HOUR_NANOS == 0 for bound in (query.from_nanos, query.to_nanos))
    mark = 0
    if aligned and not scan:
        mark = find_high_water(connection, NAME)
        for part, table in _split_interval(query):
            yield from _list_rollups(connection, part, table, names)
    columns = {_COLUMNS_OF[name] for name in (*names, *query.where)} | {*_SUM_COLUMNS, "rating"}
    bounds = {"ended_from": query.from_nanos, "ended_to": query.to_nanos}
    tables = list_tables(connection, mark, columns=sorted(columns), dictionaries=True, **bounds)
    for table in _join_tables(table for _, table in tables):
        yield from _sum_table(table, query, names)


def _join_tables(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Few large tables instead of many small ones: summing costs more for each table than for each row."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(item.num_rows for item in waiting) >= _ROWS_AT_ONCE or len(waiting) >= _TABLES_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _sum_table(table: pa.Table, query: UsageQuery, names: Sequence[str]) -> Iterator[tuple[Names, Sums]]:
    ended = read_integers(table["ended_nanos"])
    wanted = np.ones(len(ended), dtype=np.bool_)
    if query.from_nanos is not None:
        wanted &= ended >= query.from_nanos
    if query.to_nanos is not None:
        wanted &= ended < query.to_nanos
    wanted &= ~_match(encode_key(table["rating"]), "not_billable")
    keys = {name: _read_names(table, ended, name) for name in (*names, *query.where)}
    for name, value in query.where.items():
        wanted &= _match(keys[name], value)
    if not wanted.all():
        rows = np.flatnonzero(wanted)
        table = table.take(pa.array(rows))
        keys = {name: Key(key.codes[rows], key.values) for name, key in keys.items()}
    yield from sum_groups(table, [keys[name] for name in names])


def _match(key: Key, value: str) -> NDArray[np.bool_]:
    return np.array([item == value for item in key.values], dtype=np.bool_)[key.codes]


def _read_names(table: pa.Table, ended: NDArray[np.int64], name: str) -> Key:
    """The values of a dimension in each row."""
    if name in TIME_DIMENSIONS:
        return slice_time(ended, HOUR_NANOS).rename(lambda hour: name_time(name, hour))
    key = encode_key(table[_COLUMNS_OF[name]])
    if name in SCAN_DIMENSIONS:
        return key.rename(lambda value: value.hex() if isinstance(value, bytes) else value)
    return key.fill("")


@lru_cache(maxsize=65_536)
def name_time(name: str, start_nanos: int) -> str:
    """The hour, day or month in which an hour or a day begins."""
    if name == "hour":
        return format_instant(start_nanos)
    day = format_instant(floor_slice(start_nanos, DAY_NANOS))[:10]
    return day if name == "day" else day[:7]


def _sum_facts(table: pa.Table) -> Iterator[tuple[FactKey, Sums]]:
    """((hour, values of FACT_DIMENSIONS), sums) of what may be billed."""
    billable = ~_match(encode_key(table["rating"]), "not_billable")
    if not billable.all():
        table = table.filter(pa.array(billable))
    hours = slice_time(read_integers(table["ended_nanos"]), HOUR_NANOS)
    return sum_groups(table, [hours, *(encode_key(table[name]).fill("") for name in _FACT_COLUMNS)])


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
    SELECT {columns} FROM held CROSS JOIN rollup ON hour_nanos = hour WHERE customer_id = :customer
"""


def _list_rollups(
    connection: sqlite3.Connection, query: UsageQuery, table: str, names: Sequence[str]
) -> Iterator[tuple[Names, Sums]]:
    start = _STARTS[table]
    times = [(place, name) for place, name in enumerate(names) if name in TIME_DIMENSIONS]
    when = [(name, value) for name, value in query.where.items() if name in TIME_DIMENSIONS]
    facts = {name: value for name, value in query.where.items() if name in FACT_DIMENSIONS}
    read = [start if name in TIME_DIMENSIONS else _COLUMNS_OF[name] for name in names]
    columns = ", ".join((start, *read, *_SUM_NAMES))
    sql = f"SELECT {columns} FROM {table} WHERE {start} >= :start AND {start} < :end"
    if table == _HOURS and "customer" in facts:
        sql = _HOURS_OF_CUSTOMER.format(columns=columns)
    sql += "".join(f" AND {_COLUMNS_OF[name]} = :{name}" for name in facts)
    first = _EVER[0] if query.from_nanos is None else query.from_nanos
    bounds = {"start": first, "end": _EVER[1] if query.to_nanos is None else query.to_nanos}
    width = 1 + len(names)
    for row in connection.execute(sql, {**bounds, **facts}):
        if any(name_time(name, row[0]) != value for name, value in when):
            continue
        values: list[str | None] = list(row[1:width])
        for place, name in times:
            values[place] = name_time(name, row[0])
        yield values, _read_sums(row[width:])


def list_users(connection: sqlite3.Connection) -> list[str]:
    """Customers that ever had usage which may be billed."""
    rows = connection.execute("SELECT DISTINCT customer_id FROM rollup_day WHERE customer_id <> ''")
    return [customer_id for (customer_id,) in rows]


def find_usage(connection: sqlite3.Connection, customer_id: str, from_nanos: int, to_nanos: int) -> int | None:
    """The first hour in [from, to) in which a customer has usage that was not taken back; by whole hours."""
    used = "(events <> 0 OR quantities <> '{}' OR charge_attos <> '0' OR cost_attos <> '0')"
    sql = f"{_HOURS_OF_CUSTOMER.format(columns='hour')} AND {used} ORDER BY hour LIMIT 1"
    row = connection.execute(sql, {"start": from_nanos, "end": to_nanos, "customer": customer_id}).fetchone()
    return None if row is None else int(row[0])
