"""The evidence checked: segments in an unbroken chain whose columns say what their bodies hold. Reads only.

Owns the walk over segments in short snapshots, so that a running sidecar's write-ahead log does not grow meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.instants import HOUR_NANOS, format_instant
from otelbill_collector.ledger.findings import RESTORE, Finding, Progress, Report, Touched, shorten_names
from otelbill_collector.ledger.journal import chain_digest
from otelbill_collector.ledger.segments import decode_table
from otelbill_collector.ledger.tombstones import find_pruned

CHECK = "segments"
RECENT_SEGMENTS = 1_000  # looked at when the sidecar starts,
RECENT_BYTES = 64 * 1024 * 1024  # and not more bytes than this: a fraction of a second
_BATCH = 32
_UNREADABLE_BATCHES_MAX = 3
_HOURS_MAX = 48
_COLUMNS = "segment_id, booked_nanos, ended_min, ended_max, record_count, digest, body"


class SegmentRow(NamedTuple):
    """A row of the segment table, as stored."""

    segment_id: int
    booked_nanos: int
    ended_min: int
    ended_max: int
    record_count: int
    digest: bytes
    body: bytes


Consume = Callable[[int, pa.Table], None]  # a sound segment's id and columns


def check_segments(
    connection: sqlite3.Connection, last: int, report: Report, progress: Progress, consume: Consume
) -> None:
    """Check segments 1 to `last` and hand every sound one to `consume`. Each batch is a snapshot of its own.

    Of those that retention has emptied, the row is taken as it stands: its seal and the decision prove it, and the
    first segment with a body proves the last digest.
    """
    previous = _Previous(0, bytes(32))
    records = 0
    pruned = find_pruned(connection)
    for row in _walk(connection, last, report, progress):
        if row.segment_id != previous.segment_id + 1:
            _report_gap(report, previous.segment_id + 1, row.segment_id - 1)
        elif row.segment_id <= pruned:
            if row.body:
                problem = "has a body, though the ledger says that it was pruned"
                report.add(Finding(CHECK, "segment", str(row.segment_id), problem, RESTORE, find_touched(row)))
            previous = _Previous(row.segment_id, row.digest)
            continue
        elif chain_digest(previous.digest, row.body) != row.digest:
            if not _is_digest_excused(connection, previous, row):
                report.add(_describe_mismatch(row))
                previous = _Previous(row.segment_id, row.digest)
                continue
            report.add(_describe_digest(row))
            row = row._replace(digest=chain_digest(previous.digest, row.body))
        previous = _Previous(row.segment_id, row.digest)
        with report.guard(CHECK, f"segment {row.segment_id}"):
            table = decode_table(row.body, validate=True)
            _check_columns(row, table, report)
            consume(row.segment_id, table)
            records += table.num_rows
    if previous.segment_id < last:
        _report_gap(report, previous.segment_id + 1, last)
    report.counts["segments"] = last
    report.counts["records"] = records


class _Previous(NamedTuple):
    segment_id: int
    digest: bytes


def _walk(connection: sqlite3.Connection, last: int, report: Report, progress: Progress) -> Iterator[SegmentRow]:
    """Readable rows in order. A page that cannot be read costs the segments on it, not those after it."""
    after, failures = 0, 0
    query = (
        f"SELECT {_COLUMNS} FROM segment WHERE segment_id > ? AND segment_id <= ? ORDER BY segment_id LIMIT {_BATCH}"
    )
    while after < last:
        progress(CHECK, after, last)
        try:
            rows = [SegmentRow(*row) for row in connection.execute(query, (after, last)).fetchall()]
            failures = 0
        except sqlite3.Error:
            rows = list(_walk_singly(connection, after, min(after + _BATCH, last), report))
            failures += not rows
            if failures >= _UNREADABLE_BATCHES_MAX:
                report.add(Finding(CHECK, "segment", f"{after + 1}..{last}", "cannot be read any further", RESTORE))
                return
            yield from rows
            after += _BATCH
            continue
        if not rows or rows[-1].segment_id <= after:
            return
        yield from rows
        after = rows[-1].segment_id
    progress(CHECK, last, last)


def _walk_singly(connection: sqlite3.Connection, after: int, upto: int, report: Report) -> Iterator[SegmentRow]:
    for segment_id in range(after + 1, upto + 1):
        row = None
        try:
            row = connection.execute(f"SELECT {_COLUMNS} FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
        except sqlite3.Error as error:
            touched = _find_touched_by_columns(connection, segment_id)
            report.add(Finding(CHECK, "segment", str(segment_id), f"cannot be read: {error}", RESTORE, touched))
        if row is not None:
            yield SegmentRow(*row)


def _find_touched_by_columns(connection: sqlite3.Connection, segment_id: int) -> Touched:
    """Hours and count by the columns that stand before the body, where those can still be read."""
    try:
        row = connection.execute(
            "SELECT ended_min, ended_max, record_count FROM segment WHERE segment_id = ?", (segment_id,)
        ).fetchone()
        return Touched() if row is None else Touched(hours=list_hours(row[0], row[1]), event_count=row[2])
    except (sqlite3.Error, ValueError, OverflowError, TypeError):
        return Touched()


def _is_digest_excused(connection: sqlite3.Connection, previous: _Previous, row: SegmentRow) -> bool:
    """Whether the next segment's digest proves this body, so that only the stored digest is wrong."""
    try:
        following = connection.execute(
            "SELECT digest, body FROM segment WHERE segment_id = ?", (row.segment_id + 1,)
        ).fetchone()
    except sqlite3.Error:
        return False
    if following is None:
        return False
    own = chain_digest(previous.digest, row.body)
    return bool(chain_digest(own, following[1]) == following[0])


def _report_gap(report: Report, first: int, last: int) -> None:
    name = str(first) if first == last else f"{first}..{last}"
    report.add(Finding(CHECK, "segment", name, "is missing", RESTORE))


def _describe_mismatch(row: SegmentRow) -> Finding:
    return Finding(
        CHECK,
        "segment",
        str(row.segment_id),
        "its digest does not fit its body and the segment before it: bytes of it were changed",
        RESTORE,
        find_touched(row),
    )


def _describe_digest(row: SegmentRow) -> Finding:
    problem = "its stored digest was changed; the next segment proves that its records are intact"
    return Finding(CHECK, "segment", str(row.segment_id), problem, RESTORE, find_touched(row))


def _check_columns(row: SegmentRow, table: pa.Table, report: Report) -> None:
    """The columns beside the body, by which readers skip segments, against the body."""
    bounds = pc.min_max(table["ended_nanos"]).as_py()
    stored = {"record_count": row.record_count, "ended_min": row.ended_min, "ended_max": row.ended_max}
    held = {"record_count": table.num_rows, "ended_min": bounds["min"], "ended_max": bounds["max"]}
    for name, value in stored.items():
        if value != held[name]:
            problem = f"{name} is {value!r}, its records say {held[name]}: readers would skip it wrongly"
            touched = summarise_table(table)
            report.add(Finding(CHECK, "segment", str(row.segment_id), problem, RESTORE, touched))


def find_touched(row: SegmentRow) -> Touched:
    """What a damaged segment holds, as far as it can be read: its records, otherwise its columns."""
    try:
        table = decode_table(row.body, validate=True)
        return summarise_table(table)
    except Exception:  # noqa: BLE001 damaged Arrow raises anything; the columns still say when and how many
        try:
            return Touched(hours=list_hours(row.ended_min, row.ended_max), event_count=row.record_count)
        except (ValueError, OverflowError, TypeError):
            return Touched()


def find_segment_touched(connection: sqlite3.Connection, segment_id: int) -> Touched:
    """The same by id; nothing where there is no such segment. Raises sqlite3.Error."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
    return Touched() if row is None else find_touched(SegmentRow(*row))


def summarise_table(table: pa.Table, positions: list[int] | None = None) -> Touched:
    """Customers, hours and events of a segment's records, or of those at the positions given."""
    chosen = table.select(["customer_id", "ended_nanos", "event_id"])
    if positions is not None:
        chosen = chosen.take(positions)
    rows: list[dict[str, Any]] = chosen.to_pylist()
    hours = sorted({row["ended_nanos"] // HOUR_NANOS * HOUR_NANOS for row in rows})
    return Touched(
        shorten_names(sorted({row["customer_id"] or "(suspense)" for row in rows})),
        shorten_names([format_instant(hour) for hour in hours]),
        shorten_names(sorted({row["event_id"] for row in rows})),
        len(rows),
    )


def list_hours(ended_min: int, ended_max: int) -> tuple[str, ...]:
    """The UTC hours between two event times, both included. Raises ValueError for times no calendar has."""
    first, last = ended_min // HOUR_NANOS, ended_max // HOUR_NANOS
    last = min(last, first + _HOURS_MAX)
    return shorten_names([format_instant(hour * HOUR_NANOS) for hour in range(first, last + 1)])


def find_recent_damage(connection: sqlite3.Connection) -> Finding | None:
    """The first thing wrong with the newest segments: RECENT_SEGMENTS or RECENT_BYTES, whichever is less."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM segment ORDER BY segment_id DESC LIMIT {RECENT_SEGMENTS + 1}")
    newer: SegmentRow | None = None
    seen = 0
    pruned = find_pruned(connection)
    for values in rows:
        row = SegmentRow(*values)
        if newer is not None and newer.segment_id <= pruned:
            return None
        if newer is not None:
            if row.segment_id != newer.segment_id - 1:
                return Finding(CHECK, "segment", str(newer.segment_id - 1), "is missing", RESTORE)
            if chain_digest(row.digest, newer.body) != newer.digest:
                return _describe_mismatch(newer)
        seen += len(row.body)
        if seen > RECENT_BYTES:
            return None
        newer = row
    if (
        newer is not None
        and newer.segment_id == 1
        and not pruned
        and chain_digest(bytes(32), newer.body) != newer.digest
    ):
        return _describe_mismatch(newer)
    return None
