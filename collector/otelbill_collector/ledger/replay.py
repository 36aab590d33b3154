"""Derived tables built again from the segments, in one transaction, and compared with what stood there.

Rollups and claim keys are functions of the segments alone. Stripe's windows are left as they are: a window carries what
was settled into intents that may be at Stripe already, and which records it was to count was the configuration's to
say at that time. `verify` compares their totals; a difference there is corrected by adjustments, not by rebuilding.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import pyarrow as pa

from otelbill_collector.ledger import evidence, rollups
from otelbill_collector.ledger.claim_runs import append_claims, clear_claims, walk_entries
from otelbill_collector.ledger.derived import ROLLUPS, KeyFunction, derive_keys
from otelbill_collector.ledger.findings import Progress, Report, ignore_progress
from otelbill_collector.ledger.journal import find_high_water, find_last_segment, save_high_water

# What is compared, as rows without regard to how they are laid out: claim keys may have been merged in another order.
_REPLAYED = {
    "claim_key": "CREATE TEMP TABLE {name} (prefix INTEGER, segment_id INTEGER, position INTEGER)",
    "rollup": "CREATE TEMP TABLE {name} AS SELECT * FROM main.rollup",
}


class ReplayRefused(RuntimeError):
    """The segments are damaged, so nothing may be derived from them. The message names the first and the remedy."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One table built again: its rows, how many stood there that were wrong, and how many were missing."""

    table: str
    rows: int
    removed: int
    added: int

    @property
    def equal(self) -> bool:
        """Whether every row was, byte for byte, what stood there."""
        return not self.removed and not self.added


def replay_derived(
    connection: sqlite3.Connection, keys_of: KeyFunction, progress: Progress = ignore_progress
) -> list[Replayed]:
    """Build claim keys and rollups again. Call inside a write transaction. Raises ReplayRefused, changing nothing."""
    last = find_last_segment(connection)
    mark = find_high_water(connection, rollups.NAME)
    bound = min(max(mark, 0), last)
    _take_rows(connection, "before")
    clear_claims(connection)
    connection.execute("DELETE FROM main.rollup")
    try:
        _rebuild_keys(connection, last, keys_of, progress)
        _rebuild_rollups(connection, bound, progress)
        _take_rows(connection, "after")
        replayed = [_compare(connection, table) for table in _REPLAYED]
        while rollups.fold_rollups(connection):  # what came after the mark is new, not different
            pass
        return replayed
    finally:
        for table in _REPLAYED:
            connection.execute(f"DROP TABLE IF EXISTS temp.before_{table}")
            connection.execute(f"DROP TABLE IF EXISTS temp.after_{table}")


def _take_rows(connection: sqlite3.Connection, when: str) -> None:
    for table, create in _REPLAYED.items():
        connection.execute(create.format(name=f"{when}_{table}"))
    try:
        for part in walk_entries(connection):
            connection.executemany(f"INSERT INTO temp.{when}_claim_key VALUES (?, ?, ?)", part)
    except (
        sqlite3.DatabaseError,
        ValueError,
    ):  # runs that cannot be read count as none
        if when == "after":
            raise
        connection.execute(f"DELETE FROM temp.{when}_claim_key")


def _rebuild_keys(connection: sqlite3.Connection, last: int, keys_of: KeyFunction, progress: Progress) -> None:
    report = Report()

    def consume(segment_id: int, table: pa.Table) -> None:
        derived = list(dict.fromkeys(derive_keys(table, keys_of)))
        if derived:
            positions, days, keys = zip(*derived, strict=True)
            append_claims(connection, segment_id, keys, positions, set(days))

    evidence.check_segments(connection, last, report, progress, consume)
    if report.findings:
        first = report.findings[0]
        raise ReplayRefused(f"{first.describe()}; {first.remedy}")


def _rebuild_rollups(connection: sqlite3.Connection, bound: int, progress: Progress) -> None:
    save_high_water(connection, rollups.NAME, 0)
    # A name is looked for in `temp` first: the fold sees the segments up to the mark and no others.
    connection.execute(f"CREATE TEMP VIEW segment AS SELECT * FROM main.segment WHERE segment_id <= {bound}")
    try:
        while rollups.fold_rollups(connection):
            progress(ROLLUPS, find_high_water(connection, rollups.NAME), bound)
    finally:
        connection.execute("DROP VIEW temp.segment")


def _compare(connection: sqlite3.Connection, table: str) -> Replayed:
    def count(query: str) -> int:
        return int(connection.execute(f"SELECT count(*) FROM ({query})").fetchone()[0])

    before, after = f"SELECT * FROM temp.before_{table}", f"SELECT * FROM temp.after_{table}"
    return Replayed(
        table,
        rows=count(after),
        removed=count(f"{before} EXCEPT {after}"),
        added=count(f"{after} EXCEPT {before}"),
    )
