"""What derived tables had from evidence that is gone: summed once more before it goes, kept, and added back by replay.

Owns the form of `pruning_step.sums`. The folds of the derived tables do the summing, in a scratch database that sees
the segments of one step; every one of them is a sum, so that steps added up are what was folded in one go.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otelbill_collector.domain.instants import HOUR_NANOS, floor_slice
from otelbill_collector.domain.usage import Quantity
from otelbill_collector.ledger import credit_usage, meters, openings, rollups
from otelbill_collector.ledger.journal import find_high_water, save_high_water
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.schema import migrate_schema
from otelbill_collector.ledger.segments import add_quantities, parse_quantities, render_quantities
from otelbill_collector.ledger.tombstones import FILES, find_pruned

Row = Sequence[Any]  # Any: integers and texts of a table's row
# Table -> names of its columns, then its rows: a later version may have others. SUMMED_WINDOWS is no table.
Steps = dict[str, list[Row]]
SUMMED_WINDOWS = "windows"
_TABLES = {rollups.NAME: ("rollup", "rollup_day"), openings.NAME: (), credit_usage.NAME: ("credit_usage",)}
# Columns that are summed stand last. JSON text of quantities; whole numbers, as integers or as text.
_SUMMED = {"rollup": 5, "rollup_day": 5, "credit_usage": 2}
_FILES_MADE = ("parquet", "ids")  # the marks of `compaction`
_QUANTITIES = -4  # the column of the rollups


def sum_segments(ledger: Path, first: int, last: int, metering: Metering | None) -> Steps:
    """What derived tables have from segments `first` to `last`. Reads only, and no other segment."""
    with _open_scratch(ledger, first, last) as scratch:
        folds: list[Callable[[], int]] = [
            lambda: rollups.fold_rollups(scratch),
            lambda: credit_usage.fold_credit_usage(scratch)[0],
        ]
        if metering is not None:
            folds.append(lambda: meters.fold_meters(scratch, metering))
        for fold in folds:
            while fold():
                pass
        found: Steps = {}
        for table in _SUMMED:
            cursor = scratch.execute(f"SELECT * FROM {table}")
            found[table] = [[name for name, *_ in cursor.description], *cursor]
        columns = "l.meter, l.customer_id, w.start_nanos, w.amount"
        query = f"SELECT {columns} FROM stripe_window w JOIN stripe_lane l USING (lane_id)"
        windows = sum_windows(scratch.execute(query))
        rows = [[*key, str(amount)] for key, amount in sorted(windows.items())]
        found[SUMMED_WINDOWS] = [["meter", "customer_id", "hour_nanos", "amount"], *rows]
        return found


def sum_windows(rows: Iterator[Row]) -> dict[tuple[str, str, int], int]:
    """(meter, customer, hour) -> amount, of rows of meter, customer, instant and amount."""
    sums: dict[tuple[str, str, int], int] = {}
    for meter, customer_id, nanos, amount in rows:
        key = (meter, customer_id, floor_slice(nanos, HOUR_NANOS))
        sums[key] = sums.get(key, 0) + int(amount)
    return sums


@contextmanager
def _open_scratch(ledger: Path, first: int, last: int) -> Iterator[sqlite3.Connection]:
    scratch = sqlite3.connect("", uri=True, isolation_level=None)
    try:
        migrate_schema(scratch)
        scratch.execute("ATTACH ? AS ledger", (f"{ledger.absolute().as_uri()}?mode=ro",))
        # A name is looked for in `temp` first, so the folds read these views.
        bounds = f"segment_id BETWEEN {first} AND {last}"
        scratch.execute(f"CREATE TEMP VIEW segment AS SELECT * FROM ledger.segment WHERE {bounds}")
        scratch.execute("CREATE TEMP VIEW price_version AS SELECT * FROM ledger.price_version")
        yield scratch
    finally:
        scratch.close()


def encode_steps(steps: Steps) -> bytes:
    """Bytes that are kept."""
    return zlib.compress(json.dumps(steps, ensure_ascii=False, separators=(",", ":")).encode())


def list_steps(connection: sqlite3.Connection, schema: str = "main") -> Iterator[Steps]:
    """The sums of every step, oldest first."""
    for (body,) in connection.execute(f"SELECT sums FROM {schema}.pruning_step ORDER BY segment_last"):
        steps: Steps = json.loads(zlib.decompress(body))
        yield steps


def restore_fold(connection: sqlite3.Connection, name: str, *, schema: str = "main") -> None:
    """Let an emptied derived table begin with what pruned segments gave it, and its mark behind them.

    `schema` has the ledger whose segments the fold reads. Call inside a write transaction.
    """
    pruned = find_pruned(connection, schema=schema)
    for steps in list_steps(connection, schema) if pruned and name in _TABLES else ():
        for table in _TABLES[name]:
            add_rows(connection, table, steps[table])
    save_high_water(connection, name, pruned)


def resume_folds(connection: sqlite3.Connection) -> None:
    """Restore tables that a migration has emptied, of which evidence is gone. Call inside a write transaction."""
    pruned = find_pruned(connection)
    for name in _TABLES if pruned else ():
        if find_high_water(connection, name) == 0:
            restore_fold(connection, name)
    if min(find_high_water(connection, name) for name in _FILES_MADE) < pruned:
        for mark in (*_FILES_MADE, FILES):
            save_high_water(connection, mark, max(find_high_water(connection, mark), pruned))


def add_rows(connection: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    """Add sums, with the names of their columns first, to the rows that stand. Call inside a write transaction."""
    names, *rows = rows
    split = -_SUMMED[table]
    where = " AND ".join(f"{name} = ?" for name in names[:split])
    find = f"SELECT {', '.join(names[split:])} FROM main.{table} WHERE {where}"
    save = f"INSERT OR REPLACE INTO main.{table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    for row in rows:
        before = connection.execute(find, tuple(row[:split])).fetchone()
        sums = row[split:] if before is None else _add_sums(before, row[split:])
        if table == "credit_usage" and not any(map(int, sums)):
            connection.execute(f"DELETE FROM main.{table} WHERE {where}", tuple(row[:split]))
        else:
            connection.execute(save, (*row[:split], *sums))


def _add_sums(before: Row, more: Row) -> list[int | str]:
    """Column by column; a text stays a text."""
    quantities = len(before) + _QUANTITIES if len(before) == _SUMMED["rollup"] else None
    return [
        _add_quantities(one, other) if place == quantities else _add_whole(one, other)
        for place, (one, other) in enumerate(zip(before, more, strict=True))
    ]


def _add_whole(one: int | str, other: int | str) -> int | str:
    total = int(one) + int(other)
    return str(total) if isinstance(one, str) else total


def _add_quantities(one: str, other: str) -> str:
    total: dict[str, Quantity] = parse_quantities(one)
    add_quantities(total, parse_quantities(other), 1)
    return render_quantities(_drop_zero(total))


def _drop_zero(quantities: Mapping[str, Quantity]) -> dict[str, Quantity]:
    return {unit: value for unit, value in quantities.items() if value}
