"""A backup holds all that was acknowledged before it began, whatever is written meanwhile, and comes back whole."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from otelbill_collector.ledger.copies import CopyRefused, back_up_ledger, restore_ledger
from otelbill_collector.ledger.sqlite import LedgerLocked
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, chat
from tests.whole_ledger import make_ledger, verify

BATCHES = 40


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return make_ledger(tmp_path / "ledger")


def count_events(folder: Path) -> int:
    books = TestBooks(folder)
    try:
        return sum(row["events"] for row in books.usage("customer"))
    finally:
        books.close()


def test_a_backup_taken_while_a_writer_ingests_is_whole(tmp_path: Path) -> None:
    """What was acknowledged before the backup began is in it; what came later is in it whole or not at all."""
    books = TestBooks(tmp_path / "ledger")
    posted = [0]
    enough, stop = threading.Event(), threading.Event()

    def ingest() -> None:
        while not stop.is_set() and posted[0] < 100 * BATCHES:
            batch = posted[0]
            books.post(*(chat(f"{batch}/{n}", ended=T0 + batch * SECOND) for n in range(3)))
            books.usage(fold=batch % 5 == 0)
            posted[0] += 1
            if posted[0] >= BATCHES:
                enough.set()

    writer = threading.Thread(target=ingest)
    writer.start()
    try:
        assert enough.wait(60)
        before = posted[0]
        during: list[int] = []
        copied = back_up_ledger(books.store.path, tmp_path / "backup.sqlite", NOW, lambda *_: during.append(posted[0]))
        after = posted[0]
    finally:
        stop.set()
        writer.join()
        books.close()
    assert during, "no progress was told"
    assert before <= copied.last_segment <= after + 1
    restored = restore_ledger(tmp_path / "backup.sqlite", tmp_path / "restored", NOW)
    assert restored.last_segment == copied.last_segment
    report = verify(restored.path)
    assert report.findings == []
    assert count_events(tmp_path / "restored") == 3 * copied.last_segment
    assert posted[0] > before, "nothing was written meanwhile"


def test_ingest_goes_on_after_a_restore(ledger: Path, tmp_path: Path) -> None:
    """A restored ledger knows its spans: sent again they are duplicates, and the chain goes on."""
    back_up_ledger(ledger, tmp_path / "b.sqlite", NOW)
    restore_ledger(tmp_path / "b.sqlite", tmp_path / "new", NOW)
    books = TestBooks(tmp_path / "new")
    again = chat("a0", tokens=(100, 20), ended=T0)
    receipt = books.post(again, chat("fresh"))
    books.close()
    assert (receipt.duplicate, receipt.accepted) == (1, 1)
    assert verify(tmp_path / "new" / "ledger.sqlite").ok


def test_a_backup_is_one_file_for_its_owner_only(ledger: Path, tmp_path: Path) -> None:
    """No log beside it that could be forgotten, nothing left over, and nobody else may read it."""
    folder = tmp_path / "backups" / "today"
    back_up_ledger(ledger, folder / "b.sqlite", NOW)
    assert verify(folder / "b.sqlite").ok
    assert [path.name for path in folder.iterdir()] == ["b.sqlite"]
    assert (folder / "b.sqlite").stat().st_mode & 0o077 == 0


def test_nothing_is_ever_overwritten(ledger: Path, tmp_path: Path) -> None:
    """A backup's name must be free, and a ledger is replaced on request only, and then kept."""
    back_up_ledger(ledger, tmp_path / "b.sqlite", NOW)
    with pytest.raises(CopyRefused, match="exists"):
        back_up_ledger(ledger, tmp_path / "b.sqlite", NOW)
    books = TestBooks(ledger.parent)
    books.post(chat("after the backup"))
    books.close()
    with pytest.raises(CopyRefused, match="--replace"):
        restore_ledger(tmp_path / "b.sqlite", ledger.parent, NOW)
    events = count_events(ledger.parent)
    copied = restore_ledger(tmp_path / "b.sqlite", ledger.parent, NOW, replace=True)
    assert copied.kept is not None
    assert copied.kept.name == "ledger.sqlite.before-20260101T010000Z"
    assert verify(ledger).ok
    assert count_events(ledger.parent) == events - 1
    kept = tmp_path / "kept"
    kept.mkdir()
    copied.kept.rename(kept / "ledger.sqlite")
    assert count_events(kept) == events


def test_what_a_crashed_ledger_had_in_its_log_is_kept_with_it(ledger: Path, tmp_path: Path) -> None:
    """A write-ahead log that nobody has merged belongs to the old ledger, and never meets the new one."""
    back_up_ledger(ledger, tmp_path / "b.sqlite", NOW)
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    books = TestBooks(ledger.parent)
    books.post(chat("in the log"))
    for path in ledger.parent.glob("ledger.sqlite*"):
        (crashed / path.name).write_bytes(path.read_bytes())  # as kill -9 leaves it
    books.close()
    events = count_events(ledger.parent)
    copied = restore_ledger(tmp_path / "b.sqlite", crashed, NOW, replace=True)
    assert verify(crashed / "ledger.sqlite").ok
    assert count_events(crashed) == events - 1
    assert copied.kept is not None
    (tmp_path / "old").mkdir()
    copied.kept.rename(tmp_path / "old" / "ledger.sqlite")
    assert count_events(tmp_path / "old") == events


def test_a_running_sidecars_folder_is_refused(ledger: Path, tmp_path: Path) -> None:
    """A ledger is not exchanged under a writer."""
    back_up_ledger(ledger, tmp_path / "b.sqlite", NOW)
    books = TestBooks(ledger.parent)
    with pytest.raises(LedgerLocked):
        restore_ledger(tmp_path / "b.sqlite", ledger.parent, NOW, replace=True)
    books.close()


def test_what_waited_for_stripe_is_in_doubt_after_a_restore(ledger: Path, tmp_path: Path) -> None:
    """It may have been sent since the backup, so it is sent again only while Stripe remembers identifiers."""
    connection = sqlite3.connect(ledger)
    waiting = {row[0] for row in connection.execute("SELECT intent_id FROM stripe_intent WHERE state <> 'accepted'")}
    connection.close()
    assert waiting
    back_up_ledger(ledger, tmp_path / "b.sqlite", NOW + 60 * SECOND)
    restored = restore_ledger(tmp_path / "b.sqlite", tmp_path / "new", NOW + 120 * SECOND)
    connection = sqlite3.connect(restored.path)
    rows = connection.execute("SELECT intent_id, state, doubt_nanos FROM stripe_intent WHERE state <> 'accepted'")
    doubts = {intent_id: (state, doubt) for intent_id, state, doubt in rows}
    connection.close()
    assert doubts.keys() == waiting
    assert {state for state, _ in doubts.values()} == {"unknown"}
    assert all(doubt is not None and doubt <= NOW + 60 * SECOND for _, doubt in doubts.values())


def test_even_what_is_no_database_any_more_is_replaced_and_kept(ledger: Path, tmp_path: Path) -> None:
    """The worse the damage, the more a restore is needed; the remains are kept as they are."""
    back_up_ledger(ledger, tmp_path / "b.sqlite", NOW)
    ledger.write_bytes(b"no database " * 999)
    copied = restore_ledger(tmp_path / "b.sqlite", ledger.parent, NOW, replace=True)
    assert verify(ledger).ok
    assert copied.kept is not None
    assert copied.kept.read_bytes() == b"no database " * 999


def test_a_failed_restore_leaves_everything_as_it_was(ledger: Path, tmp_path: Path) -> None:
    """A backup that cannot be read, or of a newer otelbill, costs the ledger nothing."""
    before = ledger.read_bytes()
    newer = bytearray(before)
    newer[60:64] = (9_999).to_bytes(4, "big")
    for content in (b"no database " * 999, bytes(newer)):
        (tmp_path / "bad.sqlite").write_bytes(content)
        with pytest.raises(CopyRefused):
            restore_ledger(tmp_path / "bad.sqlite", ledger.parent, NOW, replace=True)
        assert ledger.read_bytes() == before
        assert sorted(path.name for path in ledger.parent.iterdir()) == ["ledger.sqlite", "lock", "parquet"]
