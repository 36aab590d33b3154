"""Verification of a whole ledger file: every check in order, each finding with what it touches and what to do.

Reads only, and beside a running sidecar: work goes in many short snapshots, so that the write-ahead log can be
checkpointed meanwhile. Owns the order of the checks; what each of them looks at stands in `evidence`, `derived` and
`state`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from otelbill_collector.ledger import credit_checks, derived, evidence, periods, pruned_checks, state
from otelbill_collector.ledger.derived import KeyFunction, KeyTally, decode_text, list_price_names
from otelbill_collector.ledger.findings import REPLAY, Progress, Report, ignore_progress
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.tombstones import find_pruned

_BUSY_MS = 15_000
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Checks:
    """What a verification needs to know: the claim-key function of booking; what Stripe is told, None to leave it out.

    `whole` runs SQLite's check over every page in one snapshot, however large the file is.
    """

    keys_of: KeyFunction
    metering: Metering | None = None
    whole: bool = False


@contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection that shows damaged text as it is. Raises sqlite3.Error."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.text_factory = decode_text
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        connection.execute("PRAGMA cell_size_check = ON")
        yield connection
    finally:
        connection.close()


def verify_ledger(path: Path, checks: Checks, progress: Progress = ignore_progress) -> Report:
    """Check everything in the ledger file at `path`. Never raises for what is in the file: that is in the report.

    What retention removes meanwhile would look like a loss: then everything is checked again.
    """
    for _ in range(_ATTEMPTS):
        before = _find_pruned(path)
        report = _verify_once(path, checks, progress)
        if _find_pruned(path) == before:
            break
    return report


def _find_pruned(path: Path) -> int:
    with suppress(Exception), open_for_reading(path) as connection:  # a damaged file raises anything
        return find_pruned(connection)
    return 0


def _verify_once(path: Path, checks: Checks, progress: Progress) -> Report:
    report = Report()
    with report.guard(state.DATABASE, "ledger.sqlite"), open_for_reading(path) as connection:
        version = 0
        with report.guard(state.SCHEMA, "sqlite_schema"):
            version = state.check_schema(connection, report)
            state.check_header(path, version, report)
        progress(state.DATABASE, 0, 0)
        whole = checks.whole or path.stat().st_size <= state.WHOLE_BYTES_MAX
        state.check_pages(connection, whole=whole, report=report)
        _check_contents(connection, path, version, checks, report, progress)
        _check_state(connection, version, report, progress)
    return report.finish()


def _check_contents(
    connection: sqlite3.Connection, path: Path, version: int, checks: Checks, report: Report, progress: Progress
) -> None:
    """Segments, and what is derived from them."""
    last = 0
    tally = KeyTally(checks.keys_of)
    prices: set[str] = set()

    def consume(segment_id: int, table: pa.Table) -> None:
        tally.expect(segment_id, table)
        prices.update(list_price_names(table))

    with report.guard(evidence.CHECK, "segment"):
        tally.pruned = find_pruned(connection)
        (last,) = connection.execute("SELECT coalesce(max(segment_id), 0) FROM segment").fetchone()
        evidence.check_segments(connection, last, report, progress, consume)
    if version >= state.PRUNINGS_SINCE:
        with report.guard(pruned_checks.PRUNINGS, "pruning"):
            pruned_checks.check_prunings(connection, report)
    with report.guard(derived.KEYS, "claim_key"):
        tally.compare(connection, last, report, progress)
    with report.guard(state.PRICES, "price_version"):
        state.check_prices(connection, prices, report)
    if report.has(evidence.CHECK):
        report.notes.append("rollups and stripe windows: not compared, because segments they come from are damaged")
        return
    if version >= state.FILES_SINCE:
        with report.guard(derived.FILES, "derived_file", REPLAY):
            derived.compare_files(connection, path, report, progress)
    if version >= state.OPENINGS_SINCE:
        with report.guard(derived.OPENINGS, "open_event", REPLAY):
            derived.compare_openings(path, report, progress)
    with report.guard(derived.ROLLUPS, "rollup"):
        derived.compare_rollups(path, report, progress, has_days=version >= state.DAYS_SINCE)
    with report.guard(credit_checks.CREDITS, "credit_usage"):
        if version >= state.CREDIT_RATES_SINCE:
            credit_checks.compare_credit_usage(path, report, progress)
    if checks.metering is None:
        report.notes.append(f"{derived.WINDOWS}: not compared with the segments, because Stripe is not configured")
        return
    with report.guard(derived.WINDOWS, "stripe_window"):
        derived.compare_windows(path, checks.metering, report, progress)


def _check_state(connection: sqlite3.Connection, version: int, report: Report, progress: Progress) -> None:
    """Tables that are not derived."""
    progress(state.SEALS, 0, 0)
    if version >= state.SEALS_SINCE:
        state.check_seals(connection, report)
    else:
        report.notes.append(f"{state.SEALS}: this ledger has none yet; the next start of the sidecar adds them")
    with report.guard(state.LETTERS, "dead_letter"):
        state.check_letters(connection, report)
    with report.guard(state.OUTBOX, "stripe_intent"):
        state.check_outbox(connection, report)
    if version >= periods.SINCE:
        with report.guard(periods.INVOICES, "invoice"):
            periods.check_invoices(connection, report)
    with report.guard(credit_checks.CREDITS, "credit_transfer"):
        if version >= state.CREDIT_RATES_SINCE:
            credit_checks.check_credits(connection, report)
        elif credit_checks.has_credits(connection):
            report.notes.append(
                f"{credit_checks.CREDITS}: checked after the next start of the sidecar brings them up to date"
            )
