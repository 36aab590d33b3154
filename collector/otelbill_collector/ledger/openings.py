"""Events that wait for somebody: in suspense, held, unpriced. Owns their table, folded from segments exactly once.

A booking opens, its reversal closes; both carry the same event time and state. Readers add what is past the mark.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.journal import find_high_water, save_high_water
from otelbill_collector.ledger.readings import Reading, read_segments
from otelbill_collector.ledger.segments import RECORD_COLUMNS, build_record, decode_table
from otelbill_collector.ledger.sums import encode_key

NAME = "open"
SUSPENSE, HELD, UNPRICED = "suspense", "held", "unpriced"

_RATINGS = pa.array([HELD, UNPRICED])
_COLUMNS = ("event_id", "revision", "sign", "ended_nanos", "rating", "billable", "customer_id")
COLUMNS = ("rating", "customer_id")  # of a segment, that are folded: few hold anything that waits


class Opening(NamedTuple):
    """A row of open_event: which booking of which event waits for what, and where it stands."""

    kind: str
    ended_nanos: int
    event_id: str
    revision: int
    segment_id: int
    position: int


class Fold(NamedTuple):
    """What the next fold writes: openings and closings in order, of segments past `before` up to `mark`."""

    before: int
    mark: int
    segments: int
    changes: Sequence[tuple[int, Opening]]


def prepare_openings(connection: sqlite3.Connection, reading: Reading | None = None) -> Fold:
    """Look through the segments past the mark, which `reading` begins with. Reads only: the writer need not wait."""
    before = find_high_water(connection, NAME)
    if reading is None:
        reading = read_segments(connection, before, COLUMNS)
    return extend_openings(connection, Fold(before, before, 0, ()), reading)


def extend_openings(connection: sqlite3.Connection, fold: Fold, reading: Reading) -> Fold:
    """A fold that goes on with the segments that are read next."""
    changes = list(fold.changes)
    for segment_id, table in reading.tables:
        if _may_wait(table):
            (body,) = connection.execute("SELECT body FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
            changes += _list_changes(segment_id, decode_table(body, _COLUMNS))
    return Fold(fold.before, reading.mark, fold.segments + len(reading.tables), changes)


def _may_wait(table: pa.Table) -> bool:
    """Whether any of a segment's records may wait for somebody, told by its names alone."""
    customers: pa.ChunkedArray = table["customer_id"]
    if customers.null_count or any(chunk.dictionary.null_count for chunk in customers.chunks):
        return True
    return not {HELD, UNPRICED}.isdisjoint(encode_key(table["rating"]).values)


def save_openings(connection: sqlite3.Connection, fold: Fold) -> int:
    """Write a fold, unless another one was quicker; returns how many segments. Call inside a write transaction."""
    if fold.segments and find_high_water(connection, NAME) == fold.before:
        close = "DELETE FROM open_event WHERE kind = ? AND ended_nanos = ? AND event_id = ? AND revision = ?"
        for sign, item in fold.changes:
            if sign > 0:
                connection.execute("INSERT OR REPLACE INTO open_event VALUES (?, ?, ?, ?, ?, ?)", item)
            else:
                connection.execute(close, item[:4])
        save_high_water(connection, NAME, fold.mark)
    return fold.segments


def fold_openings(connection: sqlite3.Connection) -> int:
    """Fold segments past the mark into the table; returns how many. Call inside a write transaction."""
    return save_openings(connection, prepare_openings(connection))


Place = tuple[int, str]  # event time in nanoseconds, event id: the order in which open events are listed
FIRST: Place = (-(2**63), "")


def list_open_records(
    connection: sqlite3.Connection, kinds: Sequence[str], limit: int, after: Place = FIRST
) -> list[UsageRecord]:
    """Bookings in force of these kinds, by event time, past a place."""
    opened: dict[tuple[str, str], Opening] = {}
    closed: set[tuple[str, int, str, int]] = set()
    for segment_id, table in _list_columns(connection, find_high_water(connection, NAME)):
        for sign, item in _list_changes(segment_id, table):
            if sign > 0:
                opened[item.kind, item.event_id] = item
            elif opened.get((item.kind, item.event_id), item).revision == item.revision:
                opened.pop((item.kind, item.event_id), None)
                closed.add(item[:4])
    found = [item for item in opened.values() if item.kind in kinds and (item.ended_nanos, item.event_id) > after]
    query = (
        "SELECT * FROM open_event WHERE kind = ? AND (ended_nanos, event_id) > (?, ?) "
        "ORDER BY ended_nanos, event_id LIMIT ?"
    )
    for kind in kinds:
        stored = map(Opening._make, connection.execute(query, (kind, *after, limit + len(closed))))
        found += [item for item in stored if item[:4] not in closed]
    found.sort(key=lambda item: (item.ended_nanos, item.event_id))
    return _load_records(connection, found[:limit])


def _load_records(connection: sqlite3.Connection, openings: Sequence[Opening]) -> list[UsageRecord]:
    wanted: dict[int, list[int]] = {}
    for item in openings:
        wanted.setdefault(item.segment_id, []).append(item.position)
    records: dict[tuple[int, int], UsageRecord] = {}
    for segment_id, positions in wanted.items():
        (body,) = connection.execute("SELECT body FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
        rows = decode_table(body, RECORD_COLUMNS).take(positions).to_pylist()
        for position, row in zip(positions, rows, strict=True):
            records[segment_id, position] = build_record(row)
    return [records[item.segment_id, item.position] for item in openings]


def _list_columns(connection: sqlite3.Connection, after: int) -> Iterator[tuple[int, pa.Table]]:
    query = "SELECT segment_id, body FROM segment WHERE segment_id > ? ORDER BY segment_id"
    for segment_id, body in connection.execute(query, (after,)):
        yield segment_id, decode_table(body, _COLUMNS)


def _list_changes(segment_id: int, table: pa.Table) -> Iterator[tuple[int, Opening]]:
    """(sign, row) of every record that opens or closes something, in order."""
    waits = pc.is_in(table["rating"], value_set=_RATINGS)
    nobody = pc.and_(table["billable"], pc.is_null(table["customer_id"]))
    positions = pc.indices_nonzero(pc.or_(waits, nobody))
    for position, row in zip(positions.to_pylist(), table.take(positions).to_pylist(), strict=True):
        place = (row["ended_nanos"], row["event_id"], row["revision"], segment_id, position)
        if row["rating"] in (HELD, UNPRICED):
            yield row["sign"], Opening(row["rating"], *place)
        if row["billable"] and row["customer_id"] is None:
            yield row["sign"], Opening(SUSPENSE, *place)
