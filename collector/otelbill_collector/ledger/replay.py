"""Derived tables built again from the segments, in one transaction, and compared with what stood there.

Rollups and claim keys are functions of the segments alone. Stripe's windows are left as they are: a window carries what
was settled into intents that may be at Stripe already, and which records it was to count was the configuration's to
say at that time. `verify` compares their totals; a difference there is corrected by adjustments, not by rebuilding.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from otelbill_collector.ledger import credit_usage, evidence, openings, rollups
from otelbill_collector.ledger.claim_runs import append_claims, merge_claims, read_entries
from otelbill_collector.ledger.credits import list_customers, mark_changed
from otelbill_collector.ledger.derived import OPENINGS, ROLLUPS, KeyFunction, derive_key_rows, digest_entries
from otelbill_collector.ledger.findings import Progress, Report, ignore_progress
from otelbill_collector.ledger.journal import find_high_water, find_last_segment
from otelbill_collector.ledger.pruned_sums import restore_fold
from otelbill_collector.ledger.tombstones import find_pruned

_REPLAYED = ("claim_key", "claim_run", "claim_chunk", "rollup", "rollup_day", "open_event", "credit_usage")
# What is compared of tables whose rows are numbered by when runs were merged; "{0}" stands before names of tables.
_COMPARED = {
    "claim_run": "SELECT level, day_min, day_max, entries, count(*) FROM {0}claim_run GROUP BY 1, 2, 3, 4",
    "claim_chunk": "SELECT level, day_min, day_max, entries, first_key, last_key, body"
    " FROM {0}claim_chunk LEFT JOIN {0}claim_run USING (run_id)",
}
_FOLDS: dict[str, tuple[str, Callable[[sqlite3.Connection], int]]] = {
    rollups.NAME: (ROLLUPS, rollups.fold_rollups),
    openings.NAME: (OPENINGS, openings.fold_openings),
    credit_usage.NAME: ("credit usage", lambda connection: credit_usage.fold_credit_usage(connection)[0]),
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
    last, pruned = find_last_segment(connection), find_pruned(connection)
    bounds = {name: min(max(find_high_water(connection, name), pruned), last) for name in _FOLDS}
    if not bounds[credit_usage.NAME]:
        del bounds[credit_usage.NAME]  # nobody has credits: nothing was ever folded
    # Segments from before the runs keep their keys where they are.
    (rows_upto,) = connection.execute("SELECT coalesce(max(segment_id), 0) FROM claim_key").fetchone()
    _finish_merges(connection)
    for table in _REPLAYED:
        connection.execute(f"CREATE TEMP TABLE before_{table} AS SELECT * FROM main.{table}")
        connection.execute(f"DELETE FROM main.{table}")
    connection.execute("DELETE FROM row_seal WHERE table_name = 'claim_run'")  # of rows that were lost, too
    try:
        _rebuild_keys(connection, last, min(rows_upto, last), keys_of, progress)
        for name, bound in bounds.items():
            _fold_again(connection, name, bound, progress)
        mark_changed(connection, list_customers(connection))  # what was posted may have followed damaged rows
        replayed = [_compare(connection, table) for table in _REPLAYED]
        if pruned and _sum_claims(connection, "temp.before_", pruned) == _sum_claims(connection, "main.", pruned):
            # The keys of what is gone went out of runs that stand otherwise when they are made again.
            replayed = [_forgive(item) if item.table in ("claim_run", "claim_chunk") else item for item in replayed]
        for name in bounds:
            while _FOLDS[name][1](connection):  # what came after the mark is new, not different
                pass
        return replayed
    finally:
        for table in _REPLAYED:
            connection.execute(f"DROP TABLE IF EXISTS temp.before_{table}")


def _finish_merges(connection: sqlite3.Connection) -> None:
    """Merge the runs that waited for it, so that they are those of a ledger whose keys are written anew."""
    connection.execute("SAVEPOINT merges")
    try:
        merge_claims(connection)
    except (ValueError, sqlite3.Error):  # damaged runs stay as they are, to be compared
        connection.execute("ROLLBACK TO merges")
    connection.execute("RELEASE merges")


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
    merge_claims(connection)


def _fold_again(connection: sqlite3.Connection, name: str, bound: int, progress: Progress) -> None:
    """Fold an emptied table up to where it stood."""
    step, fold = _FOLDS[name]
    restore_fold(connection, name)
    # A name is looked for in `temp` first: the fold sees the segments up to the mark and no others.
    connection.execute(f"CREATE TEMP VIEW segment AS SELECT * FROM main.segment WHERE segment_id <= {bound}")
    try:
        while fold(connection):
            progress(step, find_high_water(connection, name), bound)
    finally:
        connection.execute("DROP VIEW temp.segment")


def _sum_claims(connection: sqlite3.Connection, place: str, pruned: int) -> tuple[int, int, int]:
    """What equal sets of entries of kept segments have in common: their number, a sum of digests, those of the runs."""
    count = total = 0
    for (body,) in connection.execute(f"SELECT body FROM {place}claim_chunk"):
        entries = read_entries(body)
        entries = entries[entries["segment"] > pruned]
        count, total = count + len(entries), (total + int(digest_entries(entries).sum())) % 2**64
    (said,) = connection.execute(f"SELECT coalesce(sum(entries), 0) FROM {place}claim_run").fetchone()
    return count, total, said


def _forgive(item: Replayed) -> Replayed:
    return Replayed(item.table, item.rows, removed=0, added=0)


def _compare(connection: sqlite3.Connection, table: str) -> Replayed:
    def count(query: str) -> int:
        return int(connection.execute(f"SELECT count(*) FROM ({query})").fetchone()[0])

    form = _COMPARED.get(table, "SELECT * FROM {0}" + table)
    before, after = form.format("temp.before_"), form.format("main.")
    return Replayed(
        table,
        rows=count(f"SELECT * FROM main.{table}"),
        removed=count(f"{before} EXCEPT {after}"),
        added=count(f"{after} EXCEPT {before}"),
    )
