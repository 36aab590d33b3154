"""Copies of a ledger: a backup taken while the sidecar writes, and putting one back. Owns the files and their order.

A copy is one self-contained SQLite file. Nothing is ever overwritten: a file that is there is refused, or kept beside.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from otelbill_collector.domain.instants import format_instant
from otelbill_collector.ledger.compaction import forget_files
from otelbill_collector.ledger.findings import Progress, ignore_progress
from otelbill_collector.ledger.integrity import open_for_reading
from otelbill_collector.ledger.journal import find_last_segment
from otelbill_collector.ledger.schema import SchemaTooNew, migrate_schema
from otelbill_collector.ledger.sqlite import LEDGER_NAME, lock_folder

BACKUP, RESTORE = "backup", "restore"
_PAGES = 2_048
_PARTIAL = ".partial"


class CopyRefused(RuntimeError):
    """A copy cannot be made or put back. The message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that is durably on disk. `kept` is where the ledger that stood there before is now."""

    path: Path
    size_bytes: int
    last_segment: int
    kept: Path | None = None


def back_up_ledger(ledger: Path, target: Path, now_nanos: int, progress: Progress = ignore_progress) -> Copied:
    """Copy the ledger as it is now: everything committed before the call, nothing half. Raises CopyRefused.

    One snapshot is held while pages are copied, so commits go on and the copy never starts over.
    """
    if target.exists():
        raise CopyRefused(f"{target} exists; name a file that does not, such as one with the date in its name")
    partial = target.with_name(target.name + _PARTIAL)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        _copy_pages(ledger, partial, progress)
        last = _finish_copy(partial, ((BACKUP, now_nanos),))
        _sync_file(partial)
        _name_file(partial, target)
        partial.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except (OSError, sqlite3.Error, SchemaTooNew) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CopyRefused(f"cannot copy {ledger} to {target}: {error}; the ledger is untouched") from error
    return Copied(target, target.stat().st_size, last)


def _copy_pages(ledger: Path, partial: Path, progress: Progress) -> None:
    def advance(_status: int, remaining: int, total: int) -> None:
        progress(BACKUP, total - remaining, total)

    with open_for_reading(ledger) as source:
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # the snapshot begins here
        copy = sqlite3.connect(partial, isolation_level=None)
        try:
            source.backup(copy, pages=_PAGES, progress=advance, sleep=0)
        finally:
            copy.close()
        source.execute("ROLLBACK")


def _finish_copy(partial: Path, events: tuple[tuple[str, int], ...]) -> int:
    """Make the copy one file that needs no log beside it, and note in it what it is; returns its last segment."""
    copy = sqlite3.connect(partial, isolation_level=None)
    try:
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("PRAGMA synchronous = FULL")
        migrate_schema(copy)
        copy.execute("BEGIN IMMEDIATE")
        for kind, at_nanos in events:
            copy.execute("INSERT INTO copy_event (kind, at_nanos) VALUES (?, ?)", (kind, at_nanos))
        if any(kind == RESTORE for kind, _ in events):
            _doubt_intents(copy)
        forget_files(copy)  # they stay where the ledger was; the sidecar writes those of the copy again
        last = find_last_segment(copy)
        copy.execute("COMMIT")
        return last
    finally:
        copy.close()


def _doubt_intents(copy: sqlite3.Connection) -> None:
    """What waited when the backup was made may have been sent since: it is in doubt, from that moment on."""
    copy.execute(
        "UPDATE stripe_intent SET state = 'unknown', doubt_nanos = coalesce(doubt_nanos,"
        " CASE state WHEN 'sending' THEN last_sent_nanos END,"
        " (SELECT max(at_nanos) FROM copy_event WHERE kind = 'backup'), made_nanos)"
        " WHERE state IN ('pending', 'sending')"
    )


def restore_ledger(backup: Path, data_dir: Path, now_nanos: int, *, replace: bool = False) -> Copied:
    """Put a backup into a folder as its ledger. Raises CopyRefused, LedgerLocked; verify the backup before.

    With `replace`, the ledger that stands there is kept beside it, with the time in its name.
    """
    ledger = data_dir / LEDGER_NAME
    partial = ledger.with_name(ledger.name + _PARTIAL)
    if not backup.is_file():
        raise CopyRefused(f"{backup}: there is no such file; name what `otelbill backup` wrote")
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(data_dir):
            if ledger.exists() and not replace:
                raise CopyRefused(f"{ledger} exists; choose another --data-dir, or --replace to keep it beside")
            try:
                return _put_in_place(backup, partial, ledger, now_nanos)
            finally:
                partial.unlink(missing_ok=True)
    except (OSError, sqlite3.Error, SchemaTooNew) as error:
        raise CopyRefused(f"cannot restore {backup} into {data_dir}: {error}") from error


def _put_in_place(backup: Path, partial: Path, ledger: Path, now_nanos: int) -> Copied:
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    shutil.copyfile(backup, partial)
    last = _finish_copy(partial, ((RESTORE, now_nanos),))
    _sync_file(partial)
    kept = _keep_ledger(ledger, now_nanos) if ledger.exists() else None
    for suffix in ("-wal", "-shm"):  # of a ledger that is gone: they must never meet the new one
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
    partial.replace(ledger)
    _sync_folder(ledger.parent)
    return Copied(ledger, ledger.stat().st_size, last, kept)


def _keep_ledger(ledger: Path, now_nanos: int) -> Path:
    """Move the ledger's log into it where that can still be done, and give all its files a name of their own."""
    stamp = format_instant(now_nanos)[:19].replace(":", "").replace("-", "")
    kept = ledger.with_name(f"{ledger.name}.before-{stamp}Z")
    with suppress(sqlite3.Error):
        old = sqlite3.connect(ledger, isolation_level=None)
        try:
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            old.close()
    _name_file(ledger, kept)
    for suffix in ("-wal", "-shm"):
        part = ledger.with_name(ledger.name + suffix)
        if part.exists():
            part.rename(kept.with_name(kept.name + suffix))
    return kept


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    descriptor = lock_folder(data_dir)
    try:
        yield
    finally:
        os.close(descriptor)


def _name_file(path: Path, name: Path) -> None:
    """Give a file its final name. Unlike a rename, a link refuses a name that has been taken meanwhile."""
    try:
        os.link(path, name)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        path.rename(name)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
