"""Derived tables built again from the segments, in one transaction, and compared with what stood there.

Rollups, credit usage and claim keys are functions of the segments alone. Stripe's windows are left as they are: a
window carries what was settled into intents that may be at Stripe already, and which records it was to count was the
configuration's to say at that time. `verify` compares their totals; a difference there is corrected by adjustments,
not by rebuilding.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from otelbill_collector.ledger import credit_usage, evidence, rollups
from otelbill_collector.ledger.claim_runs import append_claims
from otelbill_collector.ledger.credits import list_customers, mark_changed
from otelbill_collector.ledger.derived import ROLLUPS, KeyFunction, derive_key_rows
from otelbill_collector.ledger.findings import Progress, Report, ignore_progress
from otelbill_collector.ledger.journal import find_high_water, find_last_segment, save_high_water

_REPLAYED = ("claim_key", "claim_run", "claim_chunk", "rollup", "credit_usage")


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
    bounds = {name: min(max(find_high_water(connection, name), 0), last) for name in (rollups.NAME, credit_usage.NAME)}
    # Segments from before the runs keep their keys where they are.
    (rows_upto,) = connection.execute("SELECT coalesce(max(segment_id), 0) FROM claim_key").fetchone()
    for table in _REPLAYED:
        connection.execute(f"CREATE TEMP TABLE before_{table} AS SELECT * FROM main.{table}")
        connection.execute(f"DELETE FROM main.{table}")
    connection.execute("DELETE FROM row_seal WHERE table_name = 'claim_run'")  # of rows that were lost, too
    try:
        _rebuild_keys(connection, last, min(rows_upto, last), keys_of, progress)
        for name, fold in (
            (rollups.NAME, lambda: rollups.fold_rollups(connection)),
            (credit_usage.NAME, lambda: credit_usage.fold_credit_usage(connection)[0]),
        ):
            _rebuild_folded(connection, name, bounds[name], fold, progress)
        mark_changed(connection, list_customers(connection))  # what was posted may have followed damaged rows
        replayed = [_compare(connection, table) for table in _REPLAYED]
        while rollups.fold_rollups(connection):  # what came after the mark is new, not different
            pass
        return replayed
    finally:
        for table in _REPLAYED:
            connection.execute(f"DROP TABLE IF EXISTS temp.before_{table}")


def _rebuild_keys(
    connection: sqlite3.Connection, last: int, rows_upto: int, keys_of: KeyFunction, progress: Progress
) -> None:
    report = Report()

    def consume(segment_id: int, table: pa.Table) -> None:
        rows = list(derive_key_rows(segment_id, table, keys_of))
        if segment_id <= rows_upto:
            connection.executemany("INSERT INTO main.claim_key VALUES (?, ?, ?, ?)", sorted(set(rows)))
        elif rows:
            days = {row[0] for row in rows}
            append_claims(connection, segment_id, [row[1] for row in rows], [row[3] for row in rows], days)

    evidence.check_segments(connection, last, report, progress, consume)
    if report.findings:
        first = report.findings[0]
        raise ReplayRefused(f"{first.describe()}; {first.remedy}")


def _rebuild_folded(
    connection: sqlite3.Connection, name: str, bound: int, fold: Callable[[], int], progress: Progress
) -> None:
    if not bound and name == credit_usage.NAME:
        return  # nobody has credits: nothing was ever folded
    save_high_water(connection, name, 0)
    # A name is looked for in `temp` first: the fold sees the segments up to the mark and no others.
    connection.execute(f"CREATE TEMP VIEW segment AS SELECT * FROM main.segment WHERE segment_id <= {bound}")
    try:
        while fold():
            progress(ROLLUPS, find_high_water(connection, name), bound)
    finally:
        connection.execute("DROP VIEW temp.segment")


def _compare(connection: sqlite3.Connection, table: str) -> Replayed:
    def count(query: str) -> int:
        return int(connection.execute(f"SELECT count(*) FROM ({query})").fetchone()[0])

    before, after = f"SELECT * FROM temp.before_{table}", f"SELECT * FROM main.{table}"
    return Replayed(
        table,
        rows=count(after),
        removed=count(f"{before} EXCEPT {after}"),
        added=count(f"{after} EXCEPT {before}"),
    )
