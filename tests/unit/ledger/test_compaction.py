"""Segments become files once each, whatever the moment of a crash, and files say what segments say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS
from otelbill_collector.ledger import compaction
from otelbill_collector.ledger.compaction import IDS, RECORDS, Compactor, FileRow, list_files
from otelbill_collector.ledger.copies import back_up_ledger, restore_ledger
from otelbill_collector.ledger.identifiers import find_segments
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.parquet import RECORDS as SCHEMA
from otelbill_collector.ledger.parquet import (
    SOURCES,
    build_records,
    gather_rows,
    merge_records,
    order_rows,
    write_records,
)
from otelbill_collector.ledger.replay import replay_derived
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, chat
from tests.whole_ledger import CHECKS, make_ledger, verify


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def post_batches(books: TestBooks, start: int, count: int) -> None:
    """Segments of three records: two of today, one of some day before."""
    for number in range(start, start + count):
        ended = T0 + number * SECOND
        books.post(
            chat(f"a{number}", customer="acme", ended=ended),
            chat(f"b{number}", customer=None if number % 3 else "globex", ended=ended),
            chat(f"c{number}", customer="initech", ended=ended - number % 4 * DAY_NANOS),
        )


def list_rows(books: TestBooks, kind: str | None = None) -> list[FileRow]:
    return books.store.read(lambda connection: list_files(connection, kind))


def read_files(books: TestBooks) -> list[dict[str, Any]]:
    """All rows of all registered Parquet files, by record id."""
    found = []
    for row in list_rows(books, RECORDS):
        table = pq.read_table(books.folder / "parquet" / row.name)
        assert table.num_rows == row.entries
        keys = [
            (item["customer_id"] is None, item["customer_id"] or "", item["ended_nanos"]) for item in table.to_pylist()
        ]
        assert keys == sorted(keys), "not sorted by customer and time"
        found += table.to_pylist()
    return sorted(found, key=lambda item: item["record_id"])


def read_segments(books: TestBooks) -> list[dict[str, Any]]:
    """The same from the segments."""

    def work(connection: Any) -> list[dict[str, Any]]:
        booked = dict(connection.execute("SELECT segment_id, booked_nanos FROM segment"))
        tables = [(key, booked[key], table) for key, table in list_tables(connection, 0)]
        rows: list[dict[str, Any]] = build_records(tables).to_pylist()
        return rows

    return sorted(books.store.read(work), key=lambda item: item["record_id"])


def test_files_hold_what_the_segments_hold(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record once, with every column, over many steps, days and merges, late ones included."""
    monkeypatch.setattr(compaction, "_STEP_RECORDS", 12)
    compactor = Compactor(books.store)
    for start in range(0, 60, 20):
        post_batches(books, start, 20)
        compactor.compact_all()
        compactor.run(NOW)
    assert any(row.level for row in list_rows(books, RECORDS)), "nothing was merged"
    assert any(row.level for row in list_rows(books, IDS)), "no ids were merged"
    rows = read_files(books)
    assert rows == read_segments(books)
    assert len({row["record_id"] for row in rows}) == len(rows) == 180
    assert verify(books.store.path).findings == []


def test_amounts_are_exact_and_ids_are_text(books: TestBooks) -> None:
    """Decimal text of an amount in a file is that of the record, to the last of 18 digits; ids read as elsewhere."""
    books.post(chat("one", tokens=(1_234_567, 89)))
    Compactor(books.store).compact_all()
    (row,) = read_files(books)
    (usage,) = books.usage()
    assert format(row["charge"].normalize(), "f") == usage["charge"]
    assert len(row["trace_id"]) == 32
    assert len(row["span_id"]) == 16
    assert row["parent_span_id"] is None
    assert row["ended_at"].isoformat() == "2026-01-01T00:00:01"


def test_gathering_takes_tables_from_whoever_has_them(books: TestBooks) -> None:
    """Guarantee: rows that are gathered from a list that gives its tables away are those of the list, in its order."""
    post_batches(books, 0, 30)

    def work(connection: Any) -> tuple[Any, Any, int]:
        tables = [(key, NOW, table) for key, table in list_tables(connection, 0, columns=SOURCES)]
        whole = gather_rows(list(tables))
        return whole, gather_rows(map(tables.pop, [0] * len(tables))), len(tables)

    whole, drained, left = books.store.read(work)
    assert drained.equals(whole)
    assert left == 0


def test_a_merge_in_bounded_memory_is_a_merge(
    tmp_path: Path, books: TestBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files whose rows interleave, and equal rows at the edges of batches, come out sorted and complete."""
    monkeypatch.setattr("otelbill_collector.ledger.parquet._MERGE_BATCH", 3)
    monkeypatch.setattr("otelbill_collector.ledger.parquet._ROW_GROUP", 7)
    post_batches(books, 0, 30)

    def work(connection: Any) -> Any:
        return gather_rows([(key, NOW, table) for key, table in list_tables(connection, 0, columns=SOURCES)])

    rows = books.store.read(work)
    whole = build_records([(1, NOW, rows.drop_columns(["segment_id", "booked_nanos"]))])
    whole = whole.set_column(whole.num_columns - 1, "segment_id", rows["segment_id"])
    paths = [tmp_path / f"{part}.parquet" for part in range(3)]
    for part, path in enumerate(paths):
        chosen = rows.take(list(range(part, rows.num_rows, 3)))
        assert write_records(path, chosen, order_rows(chosen)) == chosen.num_rows
    write_records(tmp_path / "again.parquet", rows.slice(0, 20), order_rows(rows.slice(0, 20)))
    count = merge_records(tmp_path / "m.parquet", [*paths, tmp_path / "again.parquet"], lambda: False)
    merged = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert count == len(merged) == whole.num_rows + 20
    assert merged == sorted(
        merged, key=lambda item: (item["customer_id"] is None, item["customer_id"] or "", item["ended_nanos"])
    )
    expected = [*whole.to_pylist(), *whole.slice(0, 20).to_pylist()]
    assert sorted(map(repr, merged)) == sorted(map(repr, expected))


_CRASHES = 12


class Crash(BaseException):
    """The process is gone; nothing may catch it."""


@pytest.mark.parametrize("place", ["fsync", "replace", "utime", "transact", "commit"])
def test_a_crash_anywhere_registers_no_half_file(books: TestBooks, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Whichever call is the last one, the ledger is whole, the next run goes on, and orphans are swept."""
    monkeypatch.setattr(compaction, "_STEP_RECORDS", 12)
    crashes = 0
    for number in range(_CRASHES):
        post_batches(books, number * 4, 4)
        with monkeypatch.context() as patch:
            _plant_crash(patch, books, place, after=number % 5 if place in ("fsync", "replace") else number % 2)
            try:
                compactor = Compactor(books.store)
                compactor.compact_all()
                compactor.run(NOW)
            except Crash:
                crashes += 1
        books.reopen()
        if number % 4 == 0:
            assert verify(books.store.path).findings == []
    assert crashes >= (1 if place == "utime" else _CRASHES >> 1)
    compactor = Compactor(books.store)
    compactor.compact_all()
    compactor.sweep(NOW, -(2**62))
    assert read_files(books) == read_segments(books)
    on_disk = {path.relative_to(books.folder / "parquet").as_posix() for path in find_all(books.folder / "parquet")}
    assert on_disk == {row.name for row in list_rows(books)}
    assert verify(books.store.path).findings == []


def find_all(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _plant_crash(patch: pytest.MonkeyPatch, books: TestBooks, place: str, *, after: int) -> None:
    calls = [0]

    def wrap(real: Callable[..., Any], *, late: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] <= after:
                return real(*arguments, **named)
            if late:
                real(*arguments, **named)
            raise Crash

        return call

    if place in ("fsync", "utime"):
        patch.setattr(compaction.os, place, wrap(getattr(os, place)))
    elif place == "replace":
        patch.setattr(Path, place, wrap(Path.replace))
    else:
        patch.setattr(books.store, "transact", wrap(books.store.transact, late=place == "commit"))


def test_a_closed_hour_is_compacted_and_the_open_one_waits(books: TestBooks) -> None:
    """Few records wait for their hour to end, so that files are not tiny; then they need no further event."""
    post_batches(books, 0, 2)
    compactor = Compactor(books.store)
    assert compactor.run(NOW + SECOND) == 0
    assert compactor.run(NOW + HOUR_NANOS) == 2
    assert compactor.run(NOW + HOUR_NANOS) == 0


def test_many_records_do_not_wait_for_the_hour(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst is compacted when it is over, and while it goes on once too much waits."""
    post_batches(books, 0, 4)
    compactor = Compactor(books.store)
    monkeypatch.setattr(compaction, "_QUIET_RECORDS", 12)
    assert compactor.run(NOW + SECOND) == 0
    assert compactor.run(NOW + 5 * SECOND) == 4
    post_batches(books, 4, 4)
    monkeypatch.setattr(compaction, "_WAITING_MAX", 12)
    assert compactor.run(NOW + SECOND) == 4


def test_ids_do_not_wait_for_the_records(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a burst an id leads to its segment by a file; the dearer records wait for its end."""
    monkeypatch.setattr(compaction, "_IDS_WAITING_MAX", 9)
    compactor = Compactor(books.store)
    for start in range(0, 12, 4):
        post_batches(books, start, 4)
        assert compactor.run(NOW + SECOND) == 0
    assert list_rows(books, RECORDS) == []
    assert [row.segment_last for row in list_rows(books, IDS)] == [4, 8, 12]
    paths = [books.folder / "parquet" / row.name for row in list_rows(books, IDS)]
    assert all(row["segment_id"] in find_segments(paths, [row["event_id"].encode()]) for row in read_segments(books))
    assert verify(books.store.path).findings == []
    compactor.compact_all()
    assert len(list_rows(books, IDS)) == 3, "nothing twice"
    assert read_files(books) == read_segments(books)


def test_ids_of_a_ledger_from_before_their_mark_go_on_from_the_records(books: TestBooks) -> None:
    """Files of an earlier version hold the ids of their segments: no id is missed, and none is written again."""
    post_batches(books, 0, 3)
    Compactor(books.store).compact_all()
    books.store.transact(lambda connection: connection.execute("DELETE FROM high_water WHERE name = 'ids'"))
    post_batches(books, 3, 3)
    Compactor(books.store).run(NOW + HOUR_NANOS)
    assert [(row.segment_first, row.segment_last) for row in list_rows(books, IDS)] == [(1, 3), (4, 6)]
    assert read_files(books) == read_segments(books)
    assert verify(books.store.path).findings == []


def test_a_file_that_somebody_may_be_reading_stays_for_an_hour(
    books: TestBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a merge replaced is still there for who listed it before, and goes later."""
    monkeypatch.setattr(compaction, "_STEP_RECORDS", 3)
    post_batches(books, 0, 12)
    compactor = Compactor(books.store)
    compactor.compact_all()
    before = {row.name for row in list_rows(books)}
    compactor.run(NOW)
    gone = before - {row.name for row in list_rows(books)}
    assert gone
    compactor.run(NOW + 600 * SECOND)
    assert all((books.folder / "parquet" / name).is_file() for name in gone)
    compactor.run(NOW + HOUR_NANOS + 600 * SECOND)
    assert not any((books.folder / "parquet" / name).exists() for name in gone)


def test_a_lost_folder_is_written_again(books: TestBooks) -> None:
    """Files that are gone at a start cost time and nothing else."""
    post_batches(books, 0, 3)
    Compactor(books.store).compact_all()
    for path in list(find_all(books.folder / "parquet")):
        path.unlink()
    assert {item.remedy.split()[-1] for item in verify(books.store.path).findings} == {"segments"}
    books.reopen()
    compactor = Compactor(books.store)
    compactor.run(NOW + HOUR_NANOS)
    assert read_files(books) == read_segments(books)
    assert verify(books.store.path).findings == []


def test_spans_of_very_many_days_share_a_file(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender of old spans cannot make a file for every day since 1990."""
    monkeypatch.setattr(compaction, "_DAYS_MAX", 3)
    for number in range(8):
        books.post(chat(f"d{number}", ended=T0 - number * DAY_NANOS + SECOND))
    Compactor(books.store).compact_all()
    assert sorted({row.day for row in list_rows(books, RECORDS)})[0] == compaction.MIXED_DAY
    assert len(list_rows(books, RECORDS)) == 4
    assert read_files(books) == read_segments(books)


def test_every_id_leads_to_its_segment(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever id a record has, the index names the segment it stands in, before and after merges."""
    monkeypatch.setattr(compaction, "_STEP_RECORDS", 12)
    post_batches(books, 0, 40)
    compactor = Compactor(books.store)
    compactor.compact_all()
    for _ in range(2):
        paths = [books.folder / "parquet" / row.name for row in list_rows(books, IDS)]
        for row in read_segments(books):
            for name in ("event_id", "record_id", "response_id"):
                assert row["segment_id"] in find_segments(paths, [row[name].encode()]), name
            for name in ("trace_id", "span_id"):
                assert row["segment_id"] in find_segments(paths, [bytes.fromhex(row[name])]), name
        assert find_segments(paths, [b"nobody", b""]) == set()
        compactor.run(NOW)
    assert any(row.level for row in list_rows(books, IDS))


def test_backup_and_restore_leave_files_behind_and_write_them_again(books: TestBooks, tmp_path: Path) -> None:
    """A copy is the one SQLite file; its files are derived where it comes to life, also over older ones."""
    post_batches(books, 0, 3)
    Compactor(books.store).compact_all()
    back_up_ledger(books.store.path, tmp_path / "b.sqlite", NOW)
    assert verify(tmp_path / "b.sqlite").findings == []
    post_batches(books, 3, 3)
    Compactor(books.store).compact_all()
    books.close()
    restore_ledger(tmp_path / "b.sqlite", books.folder, NOW, replace=True)
    books.reopen()
    assert list_rows(books) == []
    post_batches(books, 50, 3)
    Compactor(books.store).run(NOW + HOUR_NANOS)
    assert read_files(books) == read_segments(books)
    assert verify(books.store.path).findings == []


def test_rebuilding_repairs_a_damaged_file(tmp_path: Path) -> None:
    """A changed byte of a file is found, named, and gone after a replay."""
    ledger = make_ledger(tmp_path / "ledger")
    books = TestBooks(ledger.parent)
    path = ledger.parent / "parquet" / list_rows(books, RECORDS)[0].name
    body = bytearray(path.read_bytes())
    body[len(body) >> 1] ^= 1
    path.write_bytes(body)
    (finding,) = verify(ledger).findings
    assert finding.row_key in str(path)
    assert "otelbill replay" in finding.remedy
    books.store.transact(lambda connection: replay_derived(connection, CHECKS.keys_of))
    files, damaged = Compactor(books.store).rebuild()
    assert (files, damaged) == (len(list_rows(books)), 1)
    assert verify(ledger).findings == []
    assert read_files(books) == read_segments(books)
    books.close()


def test_the_columns_are_those_of_the_migration() -> None:
    """Files are not looked into before they are read together: a new column needs a migration that forgets them."""
    assert len(SCHEMA) == 50, "give 0007's successor a `DELETE FROM derived_file` and its mark, then change this number"
