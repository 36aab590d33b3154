"""Where members of claim groups stand: claim key -> (segment, position), in sorted runs. Owns their SQL and merging.

Keys are digests. A table ordered by them would dirty a page for every key; a run is written in one piece, and sixteen
runs of a level become one of the next, so that a key is written a few times whatever the ledger's size. That is done
beside the commits (`merge_waiting`): entries are read and ordered on a snapshot, and a transaction of its own puts the
new run in the place of the others. Which runs become one follows from their order alone, not from when it is done. Only
the first eight bytes of a key are kept: whoever finds an entry checks the span it leads to.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.native.links import sort_entries
from otelbill_collector.native.loading import find_library

_ENTRY = np.dtype([("key", "<i8"), ("segment", "<u4"), ("position", "<u4")])
_CHUNK_ENTRIES = 240  # what a search reads of a run: a page of the ledger's file holds so many
_RUNS_PER_LEVEL = 16
_RUN_ENTRIES_MAX = 1 << 20  # commits wait while a merged run is written, a tenth of a second for so many
_WAITING_RUNS_MAX = 64  # of the first level: whoever commits past these merges, so that searches stay short
_HELD_RUNS_MAX = 3  # by a reader, of 16 MB at most each
_SORTED_MIN = 2_048  # entries from which the native order is the quicker one

Prefixes = NDArray[np.int64]
Keys = Sequence[bytes] | NDArray[np.uint8]
"""Claim keys of 16 bytes, one by one or as [m, 16]."""


class Run(NamedTuple):
    """A run, the earliest and the latest day of its keys' spans, and how many entries it has."""

    run_id: int
    day_min: int
    day_max: int
    entries: int


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
    _bound_waiting(connection)


class ClaimReader:
    """Finds what runs hold of given segments. Remembers of which segments each run is, as runs are of a few each, and
    the last that were read: who walks through the segments asks for the same again.
    """

    def __init__(self) -> None:
        self._spans: dict[int, tuple[int, int]] = {}
        self._held: OrderedDict[int, Entries] = OrderedDict()

    def load_entries(self, connection: sqlite3.Connection, segment_ids: Sequence[int]) -> Entries:
        """All entries that lead to records of these segments."""
        wanted = np.array(sorted(segment_ids), dtype=np.uint32)
        found = [np.empty(0, dtype=_ENTRY)]
        for (run_id,) in connection.execute("SELECT run_id FROM claim_run ORDER BY run_id").fetchall():
            first, last = self._spans.get(run_id, (0, int(wanted[-1])))
            if first <= wanted[-1] and wanted[0] <= last:
                entries = self._load(connection, run_id)
                segments = entries["segment"]
                self._spans[run_id] = int(segments.min()), int(segments.max())
                found.append(entries[np.isin(segments, wanted)])
        return np.concatenate(found)

    def _load(self, connection: sqlite3.Connection, run_id: int) -> Entries:
        entries = self._held.pop(run_id, None)
        self._held[run_id] = entries = _load_run(connection, run_id) if entries is None else entries
        if len(self._held) > _HELD_RUNS_MAX:
            self._held.popitem(last=False)
        return entries


def append_entries(connection: sqlite3.Connection, entries: Entries, days: tuple[int, int]) -> None:
    """Keep entries as one run; `days` are the first and the last of their records. Call inside a write transaction."""
    _save_run(connection, 0, _sort_fresh(entries), *days)
    _bound_waiting(connection)


def _bound_waiting(connection: sqlite3.Connection) -> None:
    (waiting,) = connection.execute("SELECT count(*) FROM claim_run WHERE level = 0").fetchone()
    if waiting > _WAITING_RUNS_MAX:
        merge_claims(connection)


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


def has_table(connection: sqlite3.Connection) -> bool:
    """Whether the ledger is from before the runs, so that some keys stand in a table."""
    return connection.execute("SELECT 1 FROM claim_key LIMIT 1").fetchone() is not None


def find_in_table(
    connection: sqlite3.Connection, key: bytes, days: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """What ledgers from before the runs have of a key, on some days or on any."""
    wanted = "SELECT DISTINCT day FROM claim_key" if days is None else ", ".join("?" * len(days))
    query = f"SELECT segment_id, position FROM claim_key WHERE day IN ({wanted}) AND key = ?"
    return connection.execute(query, (*(days or ()), key)).fetchall()


def list_runs(connection: sqlite3.Connection) -> list[Run]:
    """All runs."""
    rows = connection.execute("SELECT run_id, day_min, day_max, entries FROM claim_run ORDER BY run_id")
    return [Run(*row) for row in rows.fetchall()]


def load_prefixes(connection: sqlite3.Connection, run_id: int) -> Prefixes:
    """The keys of a run in order."""
    prefixes: Prefixes = _load_run(connection, run_id)["key"]
    return prefixes


def list_recent_runs(connection: sqlite3.Connection, limit: int) -> Iterator[tuple[int, Run | None]]:
    """(newest day, run), newest day first; None where days begin that are not all within `limit` keys."""
    (oldest,) = connection.execute("SELECT max(day) FROM claim_key").fetchone()
    for run in sorted(list_runs(connection), key=lambda run: run.day_max, reverse=True):
        limit -= run.entries
        if limit < 0 or (oldest is not None and run.day_max <= oldest):
            yield run.day_max, None
            return
        yield run.day_max, run
    if oldest is not None:
        yield oldest, None


def search_run(connection: sqlite3.Connection, run_id: int, prefix: int) -> Iterator[tuple[int, int]]:
    """(segment, position) of what a run has under the first eight bytes of a key."""
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


@dataclass(frozen=True, slots=True)
class Merge:
    """Runs that become one of the next level, and their entries in order."""

    level: int
    runs: tuple[Run, ...]
    entries: Entries


def merge_waiting(store: SqliteStore) -> int:
    """Merge what waits for it, each merge in a transaction of its own; returns how many were done."""
    done = 0
    while (merge := store.read(_prepare_merge)) is not None:
        done += store.transact(partial(_save_merge, merge=merge))
    return done


def merge_claims(connection: sqlite3.Connection) -> None:
    """The same inside one write transaction."""
    while (merge := _prepare_merge(connection)) is not None:
        _save_merge(connection, merge)


def _prepare_merge(connection: sqlite3.Connection) -> Merge | None:
    """The lowest level that has sixteen runs, the oldest of them, as many as one run may hold."""
    query = "SELECT level, run_id, day_min, day_max, entries FROM claim_run WHERE entries <= ? ORDER BY level, run_id"
    levels: dict[int, list[Run]] = {}
    for level, *run in connection.execute(query, (_RUN_ENTRIES_MAX >> 1,)):
        runs = levels.setdefault(level, [])
        runs.append(Run(*run))
        if len(runs) == _RUNS_PER_LEVEL:
            sizes = accumulate(count for *_, count in runs)
            chosen = tuple(run for run, size in zip(runs, sizes, strict=True) if size <= _RUN_ENTRIES_MAX)
            entries = np.concatenate([_load_run(connection, run_id) for run_id, *_ in chosen])
            return Merge(level, chosen, _sort_runs(entries))
    return None


def _save_merge(connection: sqlite3.Connection, merge: Merge) -> bool:
    """Put the merged run in the place of the others; False where they are not there any more."""
    query = "SELECT run_id, day_min, day_max, entries FROM claim_run WHERE level = ? AND run_id BETWEEN ? AND ?"
    bounds = (merge.level, merge.runs[0][0], merge.runs[-1][0])
    if not set(merge.runs) <= set(connection.execute(query, bounds)):
        return False
    first, last = min(run[1] for run in merge.runs), max(run[2] for run in merge.runs)
    _save_run(
        connection, merge.level + 1, merge.entries, first, last
    )  # first, so that no run gets the number of another
    gone = [(run_id,) for run_id, *_ in merge.runs]
    connection.executemany("DELETE FROM claim_chunk WHERE run_id = ?", gone)
    connection.executemany("DELETE FROM claim_run WHERE run_id = ?", gone)
    return True


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
    (newest,) = connection.execute("SELECT max(run_id) FROM claim_run").fetchone()
    if not len(kept) and run_id == newest:  # removed, its number would be given again: it goes with a later pruning
        return
    if len(kept):  # first, so that no run gets the number of another
        _save_run(connection, row[0], kept, row[1], row[2])
    connection.execute("DELETE FROM claim_chunk WHERE run_id = ?", (run_id,))
    connection.execute("DELETE FROM claim_run WHERE run_id = ?", (run_id,))
