"""Segments compacted to files beside the ledger, once each. Owns the files' names, their rows, the mark and the order.

A file is written under another name, synced and renamed before its row and the mark are committed together. So a crash
leaves a file that no row names, and never a row without its whole file. Files without a row are swept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, NANOS, format_instant
from otelbill_collector.ledger.cuts import cut_records
from otelbill_collector.ledger.identifiers import INDEXED, make_entries, merge_entries, write_entries
from otelbill_collector.ledger.journal import find_high_water, list_tables, save_high_water
from otelbill_collector.ledger.parquet import SOURCES, Cancelled, gather_rows, merge_records, order_rows, write_records
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.ledger.sums import Int64s, read_integers
from otelbill_collector.ledger.tombstones import FILES as TRIMMED
from otelbill_collector.ledger.tombstones import find_pruned

NAME = "parquet"  # of the mark, and of the folder
IDS_NAME = "ids"  # of the mark of ids, which are cheap, and written in the middle of a burst as well
FOLDER = "parquet"
RECORDS, IDS = "records", "ids"
MIXED_DAY = -1
RETIRED_NANOS = HOUR_NANOS  # a reader that listed files has this long to open them

_PARTIAL = ".partial"
_STEP_RECORDS = 196_608  # half as many again as make a file that is not merged; all are in memory at once
_STEP_SEGMENTS_MAX = 16_384
_STEPS_PER_RUN = 2
_DAYS_MAX = 40  # files of one step; what is of still other days shares one
_WAITING_MAX = 4_000_000  # records; more are compacted however busy it is
_IDS_WAITING_MAX = 262_144  # records; the ids of more are written: who looks for one reads what is waiting
_QUIET_RECORDS = 20_000  # worth a file when nothing has come
_QUIET_NANOS = 5 * NANOS  # for so long
_SWEEP_NANOS = 600 * NANOS
_SPARE_BYTES = 256 * 1024 * 1024  # of the disk: what can be written again must not take the ledger's last room
# Entries of a file that is not merged any further, twice this at most: a whole step's file is never written again.
_FULL = {RECORDS: 1 << 17, IDS: 1 << 23}
_FAN_IN = 8
_FAN_IN_OLD = 4  # files of a day that is over
_OLD_NANOS = 36 * HOUR_NANOS


class FileRow(NamedTuple):
    """A row of derived_file."""

    name: str
    kind: str
    day: int
    level: int
    segment_first: int
    segment_last: int
    entries: int
    size_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a kind of file takes: the segments past its mark up to `last`, with their booked times."""

    kind: str
    mark: int
    last: int
    booked: dict[int, int]

    @property
    def span(self) -> tuple[int, int]:
        """First and last segment."""
        return self.mark + 1, self.last


_COLUMNS = ", ".join(FileRow._fields)


def list_files(connection: sqlite3.Connection, kind: str | None = None) -> list[FileRow]:
    """Registered files by name, of one kind or of all."""
    query = f"SELECT {_COLUMNS} FROM derived_file WHERE ? IS NULL OR kind = ? ORDER BY name"
    return [FileRow(*row) for row in connection.execute(query, (kind, kind))]


def forget_files(connection: sqlite3.Connection) -> None:
    """Unregister every file, so that all are written again. Call inside a write transaction."""
    connection.execute("DELETE FROM derived_file")
    connection.execute("DELETE FROM high_water WHERE name IN (?, ?)", (NAME, IDS_NAME))
    if pruned := find_pruned(connection):  # there is nothing to write of what is gone
        for mark in (NAME, IDS_NAME, TRIMMED):
            save_high_water(connection, mark, pruned)


def find_mark(connection: sqlite3.Connection, kind: str) -> int:
    """The last segment of which a kind of file holds everything. Once, ids had no mark: they came with the records."""
    own = "SELECT segment_id FROM high_water WHERE name = ?"
    row = connection.execute(own, (IDS_NAME,)).fetchone() if kind == IDS else None
    return find_high_water(connection, NAME) if row is None else int(row[0])


def find_folder(ledger: Path) -> Path:
    """Where the files of a ledger are."""
    return ledger.parent.joinpath(FOLDER)


def digest_file(path: Path) -> bytes:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class Compactor:
    """Writes and merges the files of one open ledger. One thread at a time; `stop` may be called from another."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._folder = find_folder(store.path)
        self._stopped = threading.Event()
        self._checked = False
        self._swept_nanos = -_SWEEP_NANOS

    def stop(self) -> None:
        """Give up a merge in progress, and begin nothing more."""
        self._stopped.set()

    def run(self, now_nanos: int) -> int:
        """Do what is due, and no more than takes a few seconds; returns of how many segments records were written."""
        if not self._checked:
            self._forget_lost()
            self._checked = True
        if now_nanos - self._swept_nanos >= _SWEEP_NANOS:
            self.sweep(now_nanos, RETIRED_NANOS)
            self._swept_nanos = now_nanos
        if shutil.disk_usage(self._folder.parent).free < _SPARE_BYTES:
            return 0
        done = 0
        for kind in (IDS, RECORDS):
            for _ in range(_STEPS_PER_RUN):
                step = self._plan(kind, now_nanos)
                if step is None or self._stopped.is_set():
                    break
                self._compact(step)
                done += len(step.booked) if kind == RECORDS else 0
        with suppress(Cancelled):
            self._merge(now_nanos)
            self.trim(now_nanos)
        return done

    def compact_all(self, advance: Callable[[int], None] = lambda _: None) -> None:
        """Compact every segment, whatever its age; `advance` is told the last segment of each step."""
        waiting = True
        while waiting:
            steps = [step for kind in (IDS, RECORDS) if (step := self._plan(kind)) is not None]
            for step in steps:
                self._compact(step)
                advance(step.last)
            waiting = bool(steps)

    def _plan(self, kind: str, now_nanos: int | None = None) -> Step | None:
        return self._store.read(lambda connection: _plan_step(connection, kind, now_nanos))

    def rebuild(self, advance: Callable[[int], None] = lambda _: None) -> tuple[int, int]:
        """Write every file again; returns how many there are, and how many there were that were damaged or lost."""
        rows = self._store.read(list_files)
        damaged = sum(find_fault(self._folder, row) is not None for row in rows)
        self._store.transact(forget_files)
        self.compact_all(advance)
        while self._merge(None):
            pass
        self.sweep(0, -(2**62))
        return len(self._store.read(list_files)), damaged

    def _forget_lost(self) -> None:
        """A folder that was lost or not moved with the ledger is no reason to stop: it is written again."""
        rows = self._store.read(list_files)
        for row in rows:
            try:
                size = self._folder.joinpath(row.name).stat().st_size
            except OSError:
                size = -1
            if size != row.size_bytes:
                self._store.transact(forget_files)
                return

    def _compact(self, step: Step) -> None:
        rows = [self._write_ids(step)] if step.kind == IDS else self._write_records(step)

        def register(connection: sqlite3.Connection) -> None:
            if find_mark(connection, step.kind) != step.mark:
                raise RuntimeError("the mark moved meanwhile: two compactors on one ledger")
            if step.kind == RECORDS:
                save_high_water(connection, IDS_NAME, find_mark(connection, IDS))  # it goes its own way from now on
            _insert_rows(connection, rows)
            save_high_water(connection, NAME if step.kind == RECORDS else IDS_NAME, step.last)

        self._store.transact(register)

    def _write_records(self, step: Step) -> list[FileRow]:
        tables = self._store.read(lambda connection: _load_tables(connection, step, SOURCES))
        drained = map(tables.pop, [0] * len(tables))  # the list holds none of them any more
        records = gather_rows((key, step.booked[key], table) for key, table in drained)
        return [
            self._write(RECORDS, day, 0, step.span, partial(write_records, rows=records, order=order))
            for day, order in _split_days(records)
        ]

    def _write_ids(self, step: Step) -> FileRow:
        entries = make_entries(self._store.read(lambda connection: _load_tables(connection, step, INDEXED)))
        return self._write(IDS, MIXED_DAY, 0, step.span, lambda path: write_entries(path, entries))

    def _merge(self, now_nanos: int | None) -> bool:
        """Merge one group of files, if one is due; without a time, every group that can be."""
        group = _find_group(self._store.read(list_files), now_nanos)
        if not group or self._stopped.is_set():
            return False
        kind, day = group[0].kind, group[0].day
        sources = [self._folder.joinpath(row.name) for row in group]
        span = (min(row.segment_first for row in group), max(row.segment_last for row in group))

        def write(path: Path) -> int:
            if kind == IDS:
                return merge_entries(path, sources)
            return merge_records(path, sources, self._stopped.is_set)

        merged = self._write(kind, day, max(row.level for row in group) + 1, span, write)

        def register(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM derived_file WHERE name = ?", [(row.name,) for row in group])
            _insert_rows(connection, [merged])

        self._store.transact(register)
        for path in sources:  # a reader may have listed them: they are swept an hour from now
            os.utime(path, ns=(now_nanos or 0, now_nanos or 0))
        return True

    def trim(self, now_nanos: int) -> None:
        """Let the files hold nothing of segments that retention has emptied. Raises Cancelled."""
        pruned = self._store.read(find_pruned)
        if self._store.read(partial(find_pruned, mark=TRIMMED)) >= pruned:
            return
        old = [row for row in self._store.read(list_files) if row.segment_first <= pruned]
        gone = [row for row in old if row.segment_last <= pruned or row.kind == RECORDS]
        kept = [self._cut(row, pruned) for row in gone if row.segment_last > pruned]

        def register(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM derived_file WHERE name = ?", [(row.name,) for row in gone])
            _insert_rows(connection, [row for row in kept if row.entries])
            save_high_water(connection, TRIMMED, pruned)

        self._store.transact(register)
        for row in gone:  # a reader may have listed them: they are swept an hour from now
            os.utime(self._folder.joinpath(row.name), ns=(now_nanos, now_nanos))

    def _cut(self, row: FileRow, after: int) -> FileRow:
        write = partial(cut_records, source=self._folder.joinpath(row.name), after=after, stop=self._stopped.is_set)
        return self._write(RECORDS, row.day, row.level, (after + 1, row.segment_last), write)

    def _write(self, kind: str, day: int, level: int, span: tuple[int, int], write: Callable[[Path], int]) -> FileRow:
        place = "mixed" if day == MIXED_DAY else format_instant(day * DAY_NANOS)[:10]
        folder = f"{kind}/{place}" if kind == RECORDS else kind
        suffix = "parquet" if kind == RECORDS else "ids"
        name = f"{folder}/{span[0]:012d}-{span[1]:012d}-{level}.{suffix}"
        path = self._folder.joinpath(name)
        draft = path.with_name(path.name + _PARTIAL)
        _make_folder(path.parent, self._folder.parent)
        try:
            entries = write(draft)
            draft.chmod(0o600)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            digest, size = digest_file(draft), draft.stat().st_size
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(path.parent)
        return FileRow(name, kind, day, level, *span, entries, size, digest)

    def sweep(self, now_nanos: int, retired_nanos: int) -> None:
        """Delete files that no row names and nobody may be reading any more, and everything half written."""
        named = {row.name for row in self._store.read(list_files)}
        for path in sorted(self._folder.rglob("*")) if self._folder.is_dir() else ():
            if path.is_dir() or path.relative_to(self._folder).as_posix() in named:
                continue
            if path.name.endswith(_PARTIAL) or path.stat().st_mtime_ns <= now_nanos - retired_nanos:
                path.unlink()


def find_fault(folder: Path, row: FileRow) -> str | None:
    """What is wrong with a registered file; None where it is whole."""
    try:
        digest = digest_file(folder.joinpath(row.name))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest == row.digest else "its digest is not that of its row: bytes of it were changed"


def _plan_step(connection: sqlite3.Connection, kind: str, now_nanos: int | None) -> Step | None:
    """The next segments, if it is time for them; without a time, it is."""
    mark = find_mark(connection, kind)
    query = (
        "SELECT segment_id, booked_nanos, record_count FROM segment WHERE segment_id > ? ORDER BY segment_id LIMIT ?"
    )
    rows = connection.execute(query, (mark, _STEP_SEGMENTS_MAX)).fetchall()
    if now_nanos is not None and not _is_urgent(connection, kind, mark, now_nanos):
        hour = now_nanos - now_nanos % HOUR_NANOS
        rows = [row for row in rows if row[1] < hour]
    booked: dict[int, int] = {}
    records = 0
    for segment_id, booked_nanos, count in rows:
        if booked and records + count > _STEP_RECORDS:
            break
        booked[segment_id] = booked_nanos
        records += count
    return Step(kind, mark, max(booked), booked) if booked else None


def _is_urgent(connection: sqlite3.Connection, kind: str, mark: int, now_nanos: int) -> bool:
    """Whether even the open hour is compacted: because nothing comes just now, or too much has come."""
    query = "SELECT coalesce(sum(record_count), 0), coalesce(max(booked_nanos), 0) FROM segment WHERE segment_id > ?"
    waiting, newest = connection.execute(query, (mark,)).fetchone()
    quiet = now_nanos - newest >= _QUIET_NANOS
    most = _WAITING_MAX if kind == RECORDS else _IDS_WAITING_MAX
    return bool(waiting >= most or (quiet and waiting >= _QUIET_RECORDS))


def _load_tables(connection: sqlite3.Connection, step: Step, columns: Sequence[str]) -> list[tuple[int, pa.Table]]:
    tables = []
    for segment_id, table in list_tables(connection, step.mark, columns=columns, dictionaries=True):
        if segment_id > step.last:
            break
        tables.append((segment_id, table))
    return tables


def _split_days(records: pa.Table) -> list[tuple[int, Int64s]]:
    """(day, its rows in order); the days with the fewest share one file when there are very many."""
    order = order_rows(records)
    days = (read_integers(records["ended_nanos"]) // DAY_NANOS)[order]
    found, counts = np.unique(days, return_counts=True)
    if len(found) == 1:
        return [(int(found[0]), order)]
    own = sorted(zip((-counts).tolist(), found.tolist(), strict=True))[:_DAYS_MAX]
    parts = [(day, order[days == day]) for day in sorted(day for _, day in own)]
    rest = ~np.isin(days, [day for day, _ in parts])
    return [*parts, (MIXED_DAY, order[rest])] if rest.any() else parts


def _find_group(rows: Sequence[FileRow], now_nanos: int | None) -> list[FileRow]:
    """Files to merge: as many of one level as make the next, or all that a day which is over still has in pieces."""
    groups: dict[tuple[str, int], list[FileRow]] = {}
    for row in rows:
        if row.entries < _FULL[row.kind]:
            groups.setdefault((row.kind, row.day), []).append(row)
    for (kind, day), members in sorted(groups.items()):
        members.sort(key=lambda row: (row.level, row.name))
        is_over = kind == RECORDS and day != MIXED_DAY and _is_over(day, now_nanos)
        if is_over and _is_worth_it(members):
            return _limit_group(members)
        for level in sorted({row.level for row in members}):
            peers = [row for row in members if row.level == level]
            if len(peers) >= _FAN_IN:
                return _limit_group(peers)
    return []


def _is_over(day: int, now_nanos: int | None) -> bool:
    return now_nanos is None or (day + 1) * DAY_NANOS + _OLD_NANOS <= now_nanos


def _is_worth_it(members: Sequence[FileRow]) -> bool:
    """Not to write a large file again for every late record."""
    largest = max(row.entries for row in members)
    others = sum(row.entries for row in members) - largest
    return len(members) >= _FAN_IN_OLD or (len(members) > 1 and others * 4 >= largest)


def _limit_group(members: Sequence[FileRow]) -> list[FileRow]:
    chosen: list[FileRow] = []
    for row in members[:_FAN_IN]:
        if chosen and sum(item.entries for item in chosen) + row.entries > 2 * _FULL[row.kind]:
            break
        chosen.append(row)
    return chosen if len(chosen) > 1 else []


def _insert_rows(connection: sqlite3.Connection, rows: Sequence[FileRow]) -> None:
    marks = ", ".join("?" * len(FileRow._fields))
    connection.executemany(f"INSERT INTO derived_file ({_COLUMNS}) VALUES ({marks})", rows)


def _make_folder(folder: Path, root: Path) -> None:
    """Make a folder and those above it, down from `root`, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent, root)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
