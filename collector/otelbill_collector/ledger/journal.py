"""Appending to the ledger and reading it back in order. Owns the SQL of segments, claim keys and price versions."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.domain.span_columns import Bytes
from otelbill_collector.ledger.claim_runs import append_claims
from otelbill_collector.ledger.columns import encode_singles
from otelbill_collector.ledger.members import ColumnSingles, Singles, join_keys
from otelbill_collector.ledger.segments import decode_table, encode_segment
from otelbill_collector.ledger.span_batches import encode_columns
from otelbill_collector.ledger.tombstones import describe_segment

Alone = ColumnSingles | Singles


class Placed(NamedTuple):
    """A record and the claim keys under which its event can be found again."""

    record: UsageRecord
    day: int
    keys: tuple[bytes, ...]


class Due(NamedTuple):
    """A group that must be decided again."""

    due_nanos: int
    day: int
    key: bytes


_CHAIN_START = bytes(32)


def append_segment(
    connection: sqlite3.Connection, placed: Sequence[Placed], booked_nanos: int, alone: Sequence[Alone] = ()
) -> int:
    """Append one segment with all records and their claim keys; returns its id. Call inside a write transaction.

    First come spans in columns, then others that stand alone.
    """
    body = encode_segment([item.record for item in placed], [_encode_alone(part) for part in alone])
    ended = [item.record.event_nanos for item in placed]
    for part in alone:
        ended += part.find_ended_bounds()
    count = sum(map(len, alone)) + len(placed)
    segment_id = append_encoded(connection, Encoded(body, min(ended), max(ended), count), booked_nanos)
    _append_claims(connection, segment_id, placed, alone)
    return segment_id


class Encoded(NamedTuple):
    """A segment's body, with the first and the last event time in it and how many records it holds."""

    body: bytes
    ended_min: int
    ended_max: int
    records: int


def append_encoded(connection: sqlite3.Connection, encoded: Encoded, booked_nanos: int) -> int:
    """Append one segment without claim keys; returns its id. Call inside a write transaction."""
    last_id, last_digest = connection.execute(
        "SELECT segment_id, digest FROM segment ORDER BY segment_id DESC LIMIT 1"
    ).fetchone() or (0, _CHAIN_START)
    body, ended_min, ended_max, records = encoded
    segment_id: int = last_id + 1
    connection.execute(
        "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)",
        (segment_id, booked_nanos, ended_min, ended_max, records, chain_digest(last_digest, body), body),
    )
    return segment_id


def _encode_alone(part: Alone) -> pa.RecordBatch:
    return encode_columns(part.rated) if isinstance(part, ColumnSingles) else encode_singles(part)


def _append_claims(
    connection: sqlite3.Connection, segment_id: int, placed: Sequence[Placed], alone: Sequence[Alone]
) -> None:
    """Reversals need no entry: the revision that follows one, or the record it reverses, has it."""
    keys: list[Bytes] = []
    positions: list[NDArray[np.int64]] = []
    days: set[int] = set()
    before = 0
    for part in alone:
        found, sizes = part.list_keys()
        keys.append(found)
        positions.append(np.repeat(np.arange(before, before + len(part)), sizes))
        days.update(ended // DAY_NANOS for ended in part.find_ended_bounds())
        before += len(part)
    booked = [(before + number, item) for number, item in enumerate(placed) if item.record.sign > 0]
    if booked:
        keys.append(join_keys([key for _, item in booked for key in item.keys]))
        positions.append(np.array([number for number, item in booked for _ in item.keys], dtype=np.int64))
        days.update(item.day for _, item in booked)
    if keys and (every := np.concatenate(keys)).size:
        append_claims(connection, segment_id, every, np.concatenate(positions), days)


def chain_digest(previous: bytes, body: bytes) -> bytes:
    """Digest of a segment, which covers every segment before it."""
    return hashlib.sha256(previous + body).digest()


def find_last_segment(connection: sqlite3.Connection) -> int:
    """Id of the newest segment, 0 in an empty ledger."""
    (last,) = connection.execute("SELECT coalesce(max(segment_id), 0) FROM segment").fetchone()
    return int(last)


def list_tables(
    connection: sqlite3.Connection,
    after: int,
    *,
    ended_from: int | None = None,
    ended_to: int | None = None,
    columns: Sequence[str] | None = None,
    dictionaries: bool = False,
) -> Iterator[tuple[int, pa.Table]]:
    """(segment id, columns) of each segment past `after`, in order; optionally only those that touch [from, to).

    With `columns` only these are read; `dictionaries` as for `decode_table`. Raises EvidencePruned at a segment whose
    body is gone, so that no answer is smaller than it looks.
    """
    for segment_id, body in _walk_bodies(connection, after, ended_from, ended_to):
        yield segment_id, decode_table(_require_body(connection, segment_id, body), columns, dictionaries=dictionaries)


def _require_body(connection: sqlite3.Connection, segment_id: int, body: bytes) -> bytes:
    """Raises EvidencePruned for a segment that was pruned."""
    if not body:
        raise EvidencePruned(f"{describe_segment(connection, segment_id)}; ask for a later time")
    return body


def list_kept_tables(
    connection: sqlite3.Connection, after: int, *, ended_from: int, ended_to: int, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The same without the segments whose body is gone: for questions to which they have nothing to say."""
    for _, body in _walk_bodies(connection, after, ended_from, ended_to):
        if body:
            yield decode_table(body, columns)


def _walk_bodies(
    connection: sqlite3.Connection, after: int, ended_from: int | None, ended_to: int | None
) -> Iterator[tuple[int, bytes]]:
    clauses, values = ["segment_id > ?"], [after]
    if ended_from is not None:
        clauses.append("ended_max >= ?")
        values.append(ended_from)
    if ended_to is not None:
        clauses.append("ended_min < ?")
        values.append(ended_to)
    query = f"SELECT segment_id, body FROM segment WHERE {' AND '.join(clauses)} ORDER BY segment_id"
    yield from connection.execute(query, values)


def list_bodies(
    connection: sqlite3.Connection,
    before: int,
    *,
    after: int = 0,
    ended_from: int | None = None,
    ended_to: int | None = None,
) -> Iterator[tuple[int, bytes]]:
    """(segment id, body) of the segments past `after` and before another, the newest first; optionally as above."""
    clauses, values = ["segment_id < ?", "segment_id > ?"], [before, after]
    if ended_from is not None:
        clauses.append("ended_max >= ?")
        values.append(ended_from)
    if ended_to is not None:
        clauses.append("ended_min < ?")
        values.append(ended_to)
    query = f"SELECT segment_id, body FROM segment WHERE {' AND '.join(clauses)} ORDER BY segment_id DESC"
    for segment_id, body in connection.execute(query, values):
        yield segment_id, _require_body(connection, segment_id, body)


def save_price_versions(connection: sqlite3.Connection, bodies: Mapping[str, str]) -> None:
    """Keep the content of price versions that records name. A version never changes: its id is its content's digest."""
    connection.executemany("INSERT INTO price_version VALUES (?, ?) ON CONFLICT DO NOTHING", sorted(bodies.items()))


def find_price_version(connection: sqlite3.Connection, price_version: str) -> str | None:
    """JSON text of a price version."""
    row = connection.execute("SELECT body FROM price_version WHERE price_version = ?", (price_version,)).fetchone()
    return None if row is None else str(row[0])


def save_due(connection: sqlite3.Connection, dues: Iterable[Due]) -> None:
    """Remember groups to decide again."""
    connection.executemany("INSERT INTO due_group VALUES (?, ?, ?) ON CONFLICT DO NOTHING", dues)


def list_due(connection: sqlite3.Connection, now_nanos: int, limit: int) -> list[Due]:
    """The groups that are due, oldest first."""
    query = "SELECT due_nanos, day, key FROM due_group WHERE due_nanos <= ? ORDER BY due_nanos, day, key LIMIT ?"
    return [Due(*row) for row in connection.execute(query, (now_nanos, limit))]


def remove_due(connection: sqlite3.Connection, dues: Iterable[Due]) -> None:
    """Forget groups that are decided in the same transaction, or are saved with another instant."""
    connection.executemany("DELETE FROM due_group WHERE due_nanos = ? AND day = ? AND key = ?", dues)


def find_high_water(connection: sqlite3.Connection, name: str) -> int:
    """Id of the last segment folded into a derived table."""
    row = connection.execute("SELECT segment_id FROM high_water WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row[0])


def save_high_water(connection: sqlite3.Connection, name: str, segment_id: int) -> None:
    """Move a mark, in the same transaction as the fold it stands for."""
    connection.execute(
        "INSERT INTO high_water VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET segment_id = excluded.segment_id",
        (name, segment_id),
    )
