"""From any id to all records it is connected with. Owns the searches through segments; Stripe's part is `outbox`."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.segments import build_record

_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEX16 = re.compile(r"[0-9a-f]{16}")


def find_record(connection: sqlite3.Connection, identifier: str) -> UsageRecord | None:
    """The booking in force of the one event that an event or record id names; ids of several events name none."""
    name = identifier.strip()
    records = list_records_by_id(connection, name)
    named = {
        record.event_id
        for record in records
        if name.lower() in (record.event_id, record.record_id) or name == record.candidate.explicit_event_id
    }
    bookings = [record for record in records if record.sign > 0 and record.event_id in named]
    return max(bookings, key=lambda record: record.revision) if len(named) == 1 else None


def list_records_by_id(connection: sqlite3.Connection, identifier: str) -> list[UsageRecord]:
    """Every record (all revisions and reversals) of the events that an id names, in booking order.

    The id may be a record, event, trace (32 hex characters) or span id (16), a provider response id or a run id.
    """
    hits = _search(connection, lambda table: _match_identifier(table, identifier))
    return list_revisions(connection, {record.event_id for record in hits})


_FIND_DAY = """
WITH RECURSIVE known (day) AS (
    SELECT min(day) FROM claim_key
    UNION ALL
    SELECT (SELECT min(day) FROM claim_key WHERE day > known.day) FROM known WHERE known.day IS NOT NULL
)
SELECT known.day FROM known JOIN claim_key ON claim_key.day = known.day AND claim_key.key = ? LIMIT 1
"""


def find_key_day(connection: sqlite3.Connection, key: bytes) -> int | None:
    """A day under which a claim key is booked. Costs two look-ups for each day that the ledger has."""
    row = connection.execute(_FIND_DAY, (key,)).fetchone()
    return None if row is None else int(row[0])


def list_revisions(connection: sqlite3.Connection, event_ids: Iterable[str]) -> list[UsageRecord]:
    """Every record of the events, in booking order."""
    wanted = pa.array(sorted(event_ids), type=pa.string())
    return _search(connection, lambda table: pc.is_in(table["event_id"], value_set=wanted)) if len(wanted) else []


def list_trace(connection: sqlite3.Connection, trace_ids: Iterable[bytes]) -> list[UsageRecord]:
    """Every record of the spans of these traces, in booking order."""
    wanted = pa.array(sorted(trace_ids), type=pa.binary())
    return _search(connection, lambda table: pc.is_in(table["trace_id"], value_set=wanted)) if len(wanted) else []


def list_window_records(
    connection: sqlite3.Connection, customer_id: str, from_nanos: int, to_nanos: int
) -> list[UsageRecord]:
    """Every record of a customer whose event time lies in [from, to)."""

    def match(table: pa.Table) -> pa.ChunkedArray:
        inside = pc.and_(pc.greater_equal(table["ended_nanos"], from_nanos), pc.less(table["ended_nanos"], to_nanos))
        return pc.and_(inside, pc.equal(table["customer_id"], customer_id))

    return _search(connection, match, ended_from=from_nanos, ended_to=to_nanos)


def list_suspense(connection: sqlite3.Connection, *, limit: int = 1_000) -> list[UsageRecord]:
    """Bookings in force that are billable but belong to no customer yet."""
    return _list_in_force(connection, lambda table: pc.and_(table["billable"], pc.is_null(table["customer_id"])), limit)


def list_unsettled(connection: sqlite3.Connection, *, limit: int = 1_000) -> list[UsageRecord]:
    """Bookings in force that are held (usage not known) or unpriced."""
    states = pa.array(["held", "unpriced"])
    return _list_in_force(connection, lambda table: pc.is_in(table["rating"], value_set=states), limit)


def list_unpriced(connection: sqlite3.Connection, *, limit: int) -> list[UsageRecord]:
    """Bookings in force that no price covered."""
    return _list_in_force(connection, lambda table: pc.equal(table["rating"], "unpriced"), limit)


def _list_in_force(
    connection: sqlite3.Connection, match: Callable[[pa.Table], pa.ChunkedArray], limit: int
) -> list[UsageRecord]:
    in_force: dict[str, UsageRecord] = {}
    for record in _search(connection, match):
        if record.sign > 0:
            in_force[record.event_id] = record
        elif record.event_id in in_force and in_force[record.event_id].revision == record.revision:
            del in_force[record.event_id]
    return list(in_force.values())[:limit]


def _match_identifier(table: pa.Table, identifier: str) -> pa.ChunkedArray:
    text = identifier.strip()
    mask = pc.or_(
        pc.fill_null(pc.equal(table["response_id"], text), False), pc.fill_null(pc.equal(table["run_id"], text), False)
    )
    lowered = text.lower()
    if _HEX32.fullmatch(lowered):
        for column in ("event_id", "record_id"):
            mask = pc.or_(mask, pc.equal(table[column], lowered))
        mask = pc.or_(mask, pc.equal(table["trace_id"], bytes.fromhex(lowered)))
    elif _HEX16.fullmatch(lowered):
        mask = pc.or_(mask, pc.equal(table["span_id"], bytes.fromhex(lowered)))
    else:
        mask = pc.or_(mask, pc.fill_null(pc.equal(table["explicit_event_id"], text), False))
    return mask


def _search(
    connection: sqlite3.Connection,
    match: Callable[[pa.Table], pa.ChunkedArray],
    *,
    ended_from: int | None = None,
    ended_to: int | None = None,
) -> list[UsageRecord]:
    found: list[UsageRecord] = []
    for _, table in list_tables(connection, 0, ended_from=ended_from, ended_to=ended_to):
        found.extend(build_record(row) for row in table.filter(match(table)).to_pylist())
    return found
