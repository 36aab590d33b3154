"""Opening a ledger: what cannot be read or written is said in one message, and nothing stays open or locked."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from otelbill_collector.ledger.schema import list_migrations
from otelbill_collector.ledger.sqlite import LEDGER_NAME, LedgerUnavailable, SqliteStore


def _write_version(folder: Path, version: int) -> None:
    """A ledger that says it is of that version."""
    SqliteStore(folder).close()
    connection = sqlite3.connect(folder / LEDGER_NAME)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()


def test_a_newer_ledger_is_refused_with_a_remedy_and_not_held(tmp_path: Path) -> None:
    """Downgrading must not leave a lock behind: the right version starts right after."""
    _write_version(tmp_path, len(list_migrations()) + 1)
    for read_only in (False, True):
        with pytest.raises(LedgerUnavailable, match="upgrade otelbill"):
            SqliteStore(tmp_path, read_only=read_only)
    (tmp_path / LEDGER_NAME).unlink()
    SqliteStore(tmp_path).close()


@pytest.mark.parametrize("version", range(len(list_migrations())))
def test_an_older_ledger_is_not_read_before_the_collector_brought_it_up_to_date(tmp_path: Path, version: int) -> None:
    """A reader changes nothing, so it says what has to happen first instead of failing on a missing table."""
    _write_version(tmp_path, version)
    with pytest.raises(LedgerUnavailable, match="start `otelbill collector`"):
        SqliteStore(tmp_path, read_only=True)
    _write_version(tmp_path / "new", len(list_migrations()))
    SqliteStore(tmp_path / "new", read_only=True).close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_ledger_is_named(tmp_path: Path, read_only: bool) -> None:
    """Rubbish in the place of the ledger is a message and not a traceback, and stays as it is."""
    (tmp_path / LEDGER_NAME).write_bytes(b"these are not the books " * 400)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        SqliteStore(tmp_path, read_only=read_only)
    assert (tmp_path / LEDGER_NAME).read_bytes().startswith(b"these are not")
