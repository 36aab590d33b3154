"""Where members of claim groups stand: claim key -> (segment, position), in sorted runs. Owns their SQL and merging.

Keys are digests. A table ordered by them would dirty a page for every key; a run is written in one piece, and sixteen
runs of a level become one of the next, so that a key is written a few times whatever the ledger's size. Only the first
eight bytes of a key are kept: whoever finds an entry checks the span it leads to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.native.links import sort_entries
from otelbill_collector.native.loading import find_library

_ENTRY = np.dtype([("key", "<i8"), ("segment", "<u4"), ("position", "<u4")])
_CHUNK_ENTRIES = 4_096
_RUNS_PER_LEVEL = 16
_RUN_ENTRIES_MAX = 1 << 20  # a merge happens within a commit, and must stay short beside it

_SORTED_MIN = 2_048  # entries from which the native order is the quicker one

Prefixes = NDArray[np.int64]
Keys = Sequence[bytes] | NDArray[np.uint8]
"""Claim keys of 16 bytes, one by one or as [m, 16]."""
Entries = NDArray[Any]  # of _ENTRY: numpy has no static type for records


def read_prefixes(keys: Keys) -> Prefixes:
    """The first eight bytes of 16-byte keys as integers."""
    raw = keys if isinstance(keys, np.ndarray) else np.frombuffer(b"".join(keys), dtype=np.uint8)
    prefixes: Prefixes = raw.reshape(-1).view("<i8")[::2]
    return prefixes


def append_claims(
    connection: sqlite3.Connection,
    segment_id: int,
    keys: Keys,
    positions: Sequence[int] | NDArray[np.int64],
    days: set[int],
) -> None:
    """Keep that each key leads to the record at its position in the segment. Call inside a write transaction."""
    _save_run(connection, 0, _sort_fresh(make_entries(segment_id, keys, positions)), min(days), max(days))
    _merge_runs(connection, 0)


class ClaimReader:
    """Finds what runs hold of given segments. Remembers of which segments each run is, as runs are of a few each."""

    def __init__(self) -> None:
        self._spans: dict[int, tuple[int, int]] = {}

    def load_entries(self, connection: sqlite3.Connection, segment_ids: Sequence[int]) -> Entries:
        """All entries that lead to records of these segments."""
        wanted = np.array(sorted(segment_ids), dtype=np.uint32)
        found = [np.empty(0, dtype=_ENTRY)]
        for (run_id,) in connection.execute("SELECT run_id FROM claim_run ORDER BY run_id").fetchall():
            first, last = self._spans.get(run_id, (0, int(wanted[-1])))
            if first <= wanted[-1] and wanted[0] <= last:
                entries = _load_run(connection, run_id)
                segments = entries["segment"]
                self._spans[run_id] = int(segments.min()), int(segments.max())
                found.append(entries[np.isin(segments, wanted)])
        return np.concatenate(found)


def append_entries(connection: sqlite3.Connection, entries: Entries, days: tuple[int, int]) -> None:
    """Keep entries as one run; `days` are the first and the last of their records. Call inside a write transaction."""
    _save_run(connection, 0, _sort_fresh(entries), *days)
    _merge_runs(connection, 0)


def make_entries(segment_id: int, keys: Keys, positions: Sequence[int] | NDArray[np.int64]) -> Entries:
    """One entry per key, in the order given."""
    entries: Entries = np.empty(len(keys), dtype=_ENTRY)
    entries["key"] = read_prefixes(keys)
    entries["segment"] = segment_id
    entries["position"] = positions
    return entries


def _sort_fresh(entries: Entries) -> Entries:
    """Entries by key, in place where that is quicker."""
    if len(entries) < _SORTED_MIN or find_library() is None:
        return _sort_runs(entries)
    sort_entries(entries)
    return entries


def _sort_runs(entries: Entries) -> Entries:
    """Entries by key. What consists of a few ordered parts, as runs to be merged do, is ordered by merging them."""
    return entries[np.argsort(entries["key"], kind="stable")]


def read_entries(body: bytes) -> Entries:
    """The entries of a chunk. Raises ValueError for what is no chunk."""
    return np.frombuffer(body, dtype=_ENTRY)


def find_claims(connection: sqlite3.Connection, day: int, key: bytes) -> list[tuple[int, int]]:
    """(segment, position) of the bookings under a key within a day of `day`; may hold some of other keys and days."""
    prefix = int.from_bytes(key[:8], "little", signed=True)
    query = "SELECT run_id FROM claim_run WHERE day_max >= ? AND day_min <= ?"
    found: list[tuple[int, int]] = []
    for (run_id,) in connection.execute(query, (day - 1, day + 1)).fetchall():
        found.extend(_search_run(connection, run_id, prefix))
    # Ledgers from before the runs.
    query = "SELECT segment_id, position FROM claim_key WHERE day IN (?, ?, ?) AND key = ?"
    found.extend(connection.execute(query, (day - 1, day, day + 1, key)))
    return found


def find_claims_of_any_day(connection: sqlite3.Connection, key: bytes) -> list[tuple[int, int]]:
    """The same whatever the day, at the price of a search in every run; may hold some of other keys."""
    prefix = int.from_bytes(key[:8], "little", signed=True)
    found: list[tuple[int, int]] = []
    for (run_id,) in connection.execute("SELECT run_id FROM claim_run").fetchall():
        found.extend(_search_run(connection, run_id, prefix))
    days = "(SELECT DISTINCT day FROM claim_key)"  # ledgers from before the runs
    query = f"SELECT segment_id, position FROM claim_key WHERE day IN {days} AND key = ?"
    found.extend(connection.execute(query, (key,)))
    return found


def list_recent_prefixes(connection: sqlite3.Connection, limit: int) -> Iterator[tuple[int, Prefixes | None]]:
    """(newest day, prefixes) of each run, newest day first; None where days begin that are not all within `limit`."""
    (oldest,) = connection.execute("SELECT max(day) FROM claim_key").fetchone()
    runs = connection.execute("SELECT run_id, day_max, entries FROM claim_run ORDER BY day_max DESC").fetchall()
    for run_id, day, count in runs:
        limit -= count
        if limit < 0 or (oldest is not None and day <= oldest):
            yield day, None
            return
        yield day, _load_run(connection, run_id)["key"]
    if oldest is not None:
        yield oldest, None


def _search_run(connection: sqlite3.Connection, run_id: int, prefix: int) -> Iterator[tuple[int, int]]:
    query = "SELECT first_key, body FROM claim_chunk WHERE run_id = ? AND last_key >= ? ORDER BY last_key, first_key"
    for first_key, body in connection.execute(query, (run_id, prefix)):
        if first_key > prefix:
            return
        entries = np.frombuffer(body, dtype=_ENTRY)
        start, end = np.searchsorted(entries["key"], prefix, "left"), np.searchsorted(entries["key"], prefix, "right")
        for entry in entries[start:end]:
            yield int(entry["segment"]), int(entry["position"])


def _save_run(connection: sqlite3.Connection, level: int, ordered: Entries, day_min: int, day_max: int) -> None:
    row = (level, day_min, day_max, len(ordered))
    run_id = connection.execute(
        "INSERT INTO claim_run (level, day_min, day_max, entries) VALUES (?, ?, ?, ?)", row
    ).lastrowid
    chunks = [ordered[start : start + _CHUNK_ENTRIES] for start in range(0, len(ordered), _CHUNK_ENTRIES)]
    connection.executemany(
        "INSERT INTO claim_chunk (run_id, last_key, first_key, body) VALUES (?, ?, ?, ?)",
        [(run_id, int(chunk["key"][-1]), int(chunk["key"][0]), chunk.tobytes()) for chunk in chunks],
    )


def _merge_runs(connection: sqlite3.Connection, level: int) -> None:
    """Sixteen runs of a level become one of the next, or as many of them as one run may hold."""
    query = "SELECT run_id, day_min, day_max, entries FROM claim_run WHERE level = ? AND entries <= ? ORDER BY run_id"
    runs = connection.execute(query, (level, _RUN_ENTRIES_MAX >> 1)).fetchall()
    if len(runs) < _RUNS_PER_LEVEL:
        return
    sizes = list(accumulate(count for *_, count in runs))
    runs = [run for run, size in zip(runs, sizes, strict=True) if size <= _RUN_ENTRIES_MAX]
    merged = np.concatenate([_load_run(connection, run_id) for run_id, *_ in runs])
    gone = [(run_id,) for run_id, *_ in runs]
    connection.executemany("DELETE FROM claim_chunk WHERE run_id = ?", gone)
    connection.executemany("DELETE FROM claim_run WHERE run_id = ?", gone)
    _save_run(connection, level + 1, _sort_runs(merged), min(run[1] for run in runs), max(run[2] for run in runs))
    _merge_runs(connection, level + 1)


def _load_run(connection: sqlite3.Connection, run_id: int) -> Entries:
    query = "SELECT body FROM claim_chunk WHERE run_id = ? ORDER BY last_key, first_key"
    bodies = [body for (body,) in connection.execute(query, (run_id,))]
    return np.frombuffer(b"".join(bodies), dtype=_ENTRY)


def list_runs_until(connection: sqlite3.Connection, ended_nanos: int) -> list[int]:
    """Runs that may have keys of spans that ended before an instant."""
    day = (ended_nanos - 1) // DAY_NANOS
    return [run_id for (run_id,) in connection.execute("SELECT run_id FROM claim_run WHERE day_min <= ?", (day,))]


def keep_claims(connection: sqlite3.Connection, run_id: int, after: int) -> None:
    """Keep of a run what leads to segments past `after`. Call inside a write transaction."""
    row = connection.execute("SELECT level, day_min, day_max FROM claim_run WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:  # merged meanwhile: the run that has its entries has a later id
        return
    entries = _load_run(connection, run_id)
    kept = entries[entries["segment"] > after]
    if len(kept) == len(entries):
        return
    connection.execute("DELETE FROM claim_chunk WHERE run_id = ?", (run_id,))
    connection.execute("DELETE FROM claim_run WHERE run_id = ?", (run_id,))
    if len(kept):
        _save_run(connection, row[0], kept, row[1], row[2])
