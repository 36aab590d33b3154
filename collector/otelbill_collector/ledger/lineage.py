"""From any id to all records it is connected with. Owns the searches through segments; Stripe's part is `outbox`."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.ids import derive_event_id
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.compaction import IDS, find_folder, find_mark, list_files
from otelbill_collector.ledger.identifiers import INDEXED, find_segments
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.openings import FIRST, HELD, SUSPENSE, UNPRICED, Place, list_open_records
from otelbill_collector.ledger.segments import RECORD_COLUMNS, build_record, decode_table

_SEARCHED = (*INDEXED, "explicit_event_id")
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
    names = _list_forms(identifier)
    # Ids of records are derived from what is stored, which takes its time: only where it may be one.
    columns = [name for name in _SEARCHED if name != "record_id" or _HEX32.fullmatch(identifier.strip().lower())]
    hits = _find_records(connection, names, columns, lambda table: _match_identifier(table, identifier))
    return list_revisions(connection, {record.event_id for record in hits})


def list_booked_days(connection: sqlite3.Connection, places: Iterable[tuple[int, int]]) -> list[int]:
    """Days on which the spans at (segment, position) ended."""
    positions: dict[int, list[int]] = {}
    for segment_id, position in places:
        positions.setdefault(segment_id, []).append(position)
    days: set[int] = set()
    for segment_id, found in positions.items():
        (body,) = connection.execute("SELECT body FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
        if not body:  # pruned: its days are before those on which anything is still taken
            continue
        ended = decode_table(body, ("ended_nanos",))["ended_nanos"].take(found).to_pylist()
        days.update(nanos // DAY_NANOS for nanos in ended)
    return sorted(days)


def list_revisions(connection: sqlite3.Connection, event_ids: Iterable[str]) -> list[UsageRecord]:
    """Every record of the events, in booking order."""
    names = sorted(event_ids)
    wanted = pa.array(names, type=pa.string())
    keys = [name.encode() for name in names]
    return _find_records(connection, keys, ["event_id"], lambda table: pc.is_in(table["event_id"], value_set=wanted))


def list_trace(connection: sqlite3.Connection, trace_ids: Iterable[bytes]) -> list[UsageRecord]:
    """Every record of the spans of these traces, in booking order."""
    keys = sorted(trace_ids)
    wanted = pa.array(keys, type=pa.binary())
    return _find_records(connection, keys, ["trace_id"], lambda table: pc.is_in(table["trace_id"], value_set=wanted))


def list_window_records(
    connection: sqlite3.Connection, customer_id: str, from_nanos: int, to_nanos: int
) -> list[UsageRecord]:
    """Every record of a customer whose event time lies in [from, to)."""

    def match(table: pa.Table) -> pa.ChunkedArray:
        inside = pc.and_(pc.greater_equal(table["ended_nanos"], from_nanos), pc.less(table["ended_nanos"], to_nanos))
        return pc.and_(inside, pc.equal(table["customer_id"], customer_id))

    return _search(connection, match, ended_from=from_nanos, ended_to=to_nanos)


def list_suspense(connection: sqlite3.Connection, *, limit: int = 1_000) -> list[UsageRecord]:
    """Bookings in force that are billable but belong to no customer yet, by event time."""
    return list_open_records(connection, (SUSPENSE,), limit)


def list_unsettled(connection: sqlite3.Connection, *, limit: int = 1_000) -> list[UsageRecord]:
    """Bookings in force that are held (usage not known) or unpriced, by event time."""
    return list_open_records(connection, (HELD, UNPRICED), limit)


def list_unpriced(connection: sqlite3.Connection, *, limit: int, after: Place = FIRST) -> list[UsageRecord]:
    """Bookings in force that no price covered, by event time, past a place."""
    return list_open_records(connection, (UNPRICED,), limit, after)


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


def _list_forms(identifier: str) -> list[bytes]:
    """What an identifier may look like in an indexed column."""
    text, lowered = identifier.strip(), identifier.strip().lower()
    forms = [text.encode(), derive_event_id(b"", b"", text).encode()]
    if _HEX32.fullmatch(lowered) or _HEX16.fullmatch(lowered):
        forms += [lowered.encode(), bytes.fromhex(lowered)]
    return forms


def _find_records(
    connection: sqlite3.Connection,
    keys: Sequence[bytes],
    columns: Sequence[str],
    match: Callable[[pa.Table], pa.ChunkedArray],
) -> list[UsageRecord]:
    """Records whose `columns` match, of which every one has one of the keys in an indexed column; in booking order."""
    if not keys:
        return []
    found: list[UsageRecord] = []
    for body in _list_bodies(connection, keys):
        mask = match(decode_table(body, columns))
        if pc.any(mask).as_py():
            found.extend(build_record(row) for row in decode_table(body, RECORD_COLUMNS).filter(mask).to_pylist())
    return found


def _list_bodies(connection: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[bytes]:
    """Segments that may hold one of the keys: those that the id files name, and all that are not in those yet."""
    mark = find_mark(connection, IDS)
    (ledger,) = (Path(file) for _, name, file in connection.execute("PRAGMA database_list") if name == "main")
    try:
        segments = find_segments([find_folder(ledger).joinpath(row.name) for row in list_files(connection, IDS)], keys)
    except (OSError, ValueError):  # lost files are written again by the sidecar; until then, every segment is read
        segments, mark = set(), 0
    for segment_id in sorted(segments):
        query = "SELECT body FROM segment WHERE segment_id = ? AND length(body) > 0"  # what is pruned has none
        yield from (body for (body,) in connection.execute(query, (segment_id,)))
    query = "SELECT body FROM segment WHERE segment_id > ? AND length(body) > 0 ORDER BY segment_id"
    yield from (body for (body,) in connection.execute(query, (mark,)))


def _search(
    connection: sqlite3.Connection,
    match: Callable[[pa.Table], pa.ChunkedArray],
    *,
    ended_from: int | None = None,
    ended_to: int | None = None,
) -> list[UsageRecord]:
    found: list[UsageRecord] = []
    tables = list_tables(connection, 0, ended_from=ended_from, ended_to=ended_to, columns=RECORD_COLUMNS)
    for _, table in tables:
        found.extend(build_record(row) for row in table.filter(match(table)).to_pylist())
    return found
