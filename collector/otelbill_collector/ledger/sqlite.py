"""The embedded store: one SQLite file, one writer, any number of readers. Owns connections, transactions and the lock.

WAL with synchronous=FULL: a transaction is on disk when `transact` returns, which is when a sender may be answered.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from otelbill_collector.ledger.schema import SchemaTooNew, list_migrations, migrate_schema

T = TypeVar("T")
LEDGER_NAME = "ledger.sqlite"
_BUSY_MS = 15_000
_PAGES = ("freelist_count", "page_size")
_CACHE_KIB = 65_536  # holds a large commit: what does not fit is written before its time and read again, a third dearer


class LedgerUnavailable(RuntimeError):
    """The ledger cannot be opened. The message names the folder and the remedy."""


class LedgerLocked(LedgerUnavailable):
    """Another sidecar already writes this ledger."""


class SqliteStore:
    """Read and write access to one ledger folder. Writing takes the folder's lock for as long as the store is open."""

    def __init__(self, data_dir: Path, *, read_only: bool = False) -> None:
        self.path = data_dir / LEDGER_NAME
        self._lock_file: int | None = None
        self._writer: sqlite3.Connection | None = None
        self._write_lock = threading.RLock()
        self._readers = threading.local()
        self._open_readers: list[sqlite3.Connection] = []
        if read_only:
            if not self.path.is_file():
                raise LedgerUnavailable(
                    f"no ledger in {data_dir}; name its folder with --data-dir or OTELBILL_DATA_DIR"
                )
            self._check_readable(data_dir)
        else:
            self._open_writer(data_dir)

    def _open_writer(self, data_dir: Path) -> None:
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # who pays how much is nobody else's business
            self._lock_file = lock_folder(data_dir)
            writer = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._writer = writer
            writer.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("PRAGMA synchronous = FULL")
            writer.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            migrate_schema(writer)
        except (OSError, sqlite3.Error) as error:
            self.close()
            remedy = "choose a writable folder with --data-dir"
            if not isinstance(error, OSError | sqlite3.OperationalError):  # the file itself is damaged
                remedy = "put a backup back with `otelbill restore FILE --replace`, or choose another --data-dir"
            raise LedgerUnavailable(f"cannot write a ledger in {data_dir}: {error}; {remedy}") from error
        except SchemaTooNew as error:
            self.close()
            raise LedgerUnavailable(f"cannot write the ledger in {data_dir}: {error}") from error
        except LedgerUnavailable:
            self.close()
            raise

    def _check_readable(self, data_dir: Path) -> None:
        """A reader changes nothing: what it cannot read it must refuse in words, not on a missing table."""
        try:
            (version,) = self.read(lambda connection: connection.execute("PRAGMA user_version").fetchone())
        except sqlite3.Error as error:
            self.close()
            raise LedgerUnavailable(f"cannot read the ledger in {data_dir}: {error}") from error
        known = len(list_migrations())
        if version != known:
            self.close()
            remedy = (
                "upgrade otelbill" if version > known else "start `otelbill collector` on it once, which upgrades it"
            )
            raise LedgerUnavailable(
                f"the ledger in {data_dir} has schema version {version}, this otelbill reads {known}; {remedy}"
            )

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one write transaction; durable when this returns, undone when `work` raises."""
        with self._write_lock:
            writer = self._writer
            if writer is None:
                raise LedgerUnavailable(f"{self.path} is not open for writing")
            writer.execute("BEGIN IMMEDIATE")
            try:
                result = work(writer)
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
            return result

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one consistent snapshot that holds everything committed before the call."""
        reader = self._require_reader()
        reader.execute("BEGIN")
        try:
            return work(reader)
        finally:
            reader.execute("ROLLBACK")

    def _require_reader(self) -> sqlite3.Connection:
        reader: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if reader is None:
            reader = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            reader.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            self._readers.connection = reader
            self._open_readers.append(reader)
        return reader

    def size_bytes(self) -> int:
        """Bytes of the ledger file and its write-ahead log."""
        return sum(path.stat().st_size for path in self.path.parent.glob(f"{LEDGER_NAME}*") if path.is_file())

    def shrink(self) -> None:
        """Write the file anew without what is free in it. Needs as much disk as it then has; nobody may write."""
        with self._write_lock:
            writer = self._writer
            if writer is None:
                raise LedgerUnavailable(f"{self.path} is not open for writing")
            writer.execute("VACUUM")
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close every connection and give the folder's lock back. May be called twice."""
        for connection in (*self._open_readers, self._writer):
            if connection is not None:
                connection.close()
        self._open_readers.clear()
        self._readers = threading.local()
        self._writer = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


def count_free_bytes(connection: sqlite3.Connection) -> int:
    """Bytes inside the ledger file that hold nothing: what comes next is written there first."""
    ((pages,), (size,)) = (connection.execute(f"PRAGMA {name}").fetchone() for name in _PAGES)
    return int(pages * size)


def lock_folder(data_dir: Path) -> int:
    """Hold the folder for this process; the kernel releases it however the process ends."""
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LedgerLocked(
            f"another otelbill collector already writes {data_dir}; stop it or choose another --data-dir"
        ) from error
    return descriptor
