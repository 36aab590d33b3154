"""Appending to the ledger and reading it back in order. Owns the SQL of segments, claim keys and price versions."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.claim_runs import append_claims
from otelbill_collector.ledger.segments import decode_table, encode_segment


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
_DECODERS = 2
_DECODE_BATCH = 64  # segments held at once while reading by columns


def append_segment(connection: sqlite3.Connection, placed: Sequence[Placed], booked_nanos: int) -> int:
    """Append one segment with all records and their claim keys; returns its id. Call inside a write transaction."""
    last_id, last_digest = connection.execute(
        "SELECT segment_id, digest FROM segment ORDER BY segment_id DESC LIMIT 1"
    ).fetchone() or (0, _CHAIN_START)
    body = encode_segment([item.record for item in placed])
    ended = [item.record.event_nanos for item in placed]
    segment_id: int = last_id + 1
    connection.execute(
        "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)",
        (segment_id, booked_nanos, min(ended), max(ended), len(placed), chain_digest(last_digest, body), body),
    )
    _append_claims(connection, segment_id, placed)
    return segment_id


def _append_claims(connection: sqlite3.Connection, segment_id: int, placed: Sequence[Placed]) -> None:
    """Reversals need no entry: the revision that follows one, or the record it reverses, has it."""
    booked = [(position, item) for position, item in enumerate(placed) if item.record.sign > 0]
    keys = [key for _, item in booked for key in item.keys]
    positions = [position for position, item in booked for _ in item.keys]
    if keys:
        append_claims(connection, segment_id, keys, positions, {item.day for _, item in booked})


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
) -> Iterator[tuple[int, pa.Table]]:
    """(segment id, table) of each segment past `after`, in order; optionally only those that touch [from, to).

    With `columns`, only these are decoded.
    """
    clauses, values = ["segment_id > ?"], [after]
    if ended_from is not None:
        clauses.append("ended_max >= ?")
        values.append(ended_from)
    if ended_to is not None:
        clauses.append("ended_min < ?")
        values.append(ended_to)
    query = f"SELECT segment_id, body FROM segment WHERE {' AND '.join(clauses)} ORDER BY segment_id"
    rows = connection.execute(query, values)
    if columns is None:
        for segment_id, body in rows:
            yield segment_id, decode_table(body)
        return
    with ThreadPoolExecutor(_DECODERS, "otelbill-decode") as pool:  # Arrow decompresses without the interpreter's lock
        while batch := rows.fetchmany(_DECODE_BATCH):
            tables = pool.map(lambda row: decode_table(row[1], columns), batch)
            yield from zip((segment_id for segment_id, _ in batch), tables, strict=True)


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


def take_due(connection: sqlite3.Connection, now_nanos: int, limit: int) -> list[Due]:
    """Remove and return the groups that are due, oldest first."""
    rows = connection.execute(
        "SELECT due_nanos, day, key FROM due_group WHERE due_nanos <= ? ORDER BY due_nanos LIMIT ?", (now_nanos, limit)
    ).fetchall()
    connection.executemany("DELETE FROM due_group WHERE due_nanos = ? AND day = ? AND key = ?", rows)
    return [Due(*row) for row in rows]


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
