"""What is folded from one reading of the segments is what each table folds by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS
from otelbill_collector.ledger import meters, openings, readings, rollups
from otelbill_collector.ledger.folding import Folder
from otelbill_collector.ledger.meters import Metering
from tests.books import TestBooks
from tests.spans import SECOND, T0, chat

METERING = Metering(HOUR_NANOS, "charge", {"input_tokens": "in", "pages": "pages"})
TABLES = ("rollup", "rollup_day", "open_event", "stripe_lane", "stripe_window", "high_water")


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def post(books: TestBooks, rng: Random, count: int) -> None:
    """Segments of calls of few customers over three days, some of nobody, some without a price."""
    for _ in range(count):
        spans = [
            chat(
                rng.randbytes(6).hex(),
                customer=rng.choice(["acme", "globex", None]),
                model=rng.choice(["gpt-4o-mini", "gpt-4o", "nobody-knows"]),
                started=T0 - 4 * DAY_NANOS,
                ended=T0 - rng.randrange(3 * DAY_NANOS // SECOND) * SECOND,
            )
            for _ in range(rng.randrange(1, 6))
        ]
        books.post(*spans)


def dump(books: TestBooks) -> list[list[Any]]:
    def work(connection: Any) -> list[list[Any]]:
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES]

    return books.store.read(work)


def fold_apart(books: TestBooks) -> None:
    for fold in (
        rollups.fold_rollups,
        openings.fold_openings,
        lambda connection: meters.fold_meters(connection, METERING),
    ):
        while books.store.transact(fold):
            pass


@pytest.mark.parametrize("groups", [1, 20])
def test_a_fold_that_stops_early_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    """Guarantee: the bound on rows of one fold changes neither rows nor marks, whatever is folded with them."""
    monkeypatch.setattr(readings, "_SEGMENTS_MAX", 3)
    together, apart = TestBooks(tmp_path / "together"), TestBooks(tmp_path / "apart")
    for books in (together, apart):
        post(books, Random(groups), 20)
    with monkeypatch.context() as patch:
        patch.setattr(rollups, "_GROUPS_MAX", groups)
        folder, steps = Folder(together.store, None), []
        while step := folder._fold_some(20):
            steps.append(step)
        assert len(steps) > 1
        assert sum(steps) == 20
    for fold in (rollups.fold_rollups, openings.fold_openings):
        while apart.store.transact(fold):
            pass
    assert dump(together) == dump(apart)
    together.close()
    apart.close()


@pytest.mark.parametrize("seed", range(3))
def test_one_reading_gives_what_each_fold_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Guarantee: however segments are portioned, with rows remembered or forgotten, the rows are equal."""
    monkeypatch.setattr(readings, "_SEGMENTS_MAX", 3)
    together, apart = TestBooks(tmp_path / "together"), TestBooks(tmp_path / "apart")
    folder = Folder(together.store, METERING)
    for books in (together, apart):
        rng = Random(seed)
        for _ in range(5):
            post(books, rng, rng.randrange(1, 6))
            if books is together:
                assert folder.fold()
                assert not folder.fold()
    fold_apart(apart)
    found, expected = dump(together), dump(apart)
    assert found == expected
    assert all(found[: len(TABLES)])
    for books in (together, apart):
        books.close()


def test_folds_that_stand_apart_catch_up_by_themselves(books: TestBooks) -> None:
    """Guarantee: after one table was rebuilt, or folded by somebody else, none misses a segment or counts one twice."""
    rng = Random(7)
    folder = Folder(books.store, METERING)
    post(books, rng, 4)
    folder.fold()
    post(books, rng, 3)
    books.store.transact(openings.fold_openings)
    post(books, rng, 2)
    books.store.transact(rollups.fold_rollups)
    post(books, rng, 1)
    folder.fold()
    found = dump(books)
    for table in TABLES:
        books.store.transact(lambda connection, table=table: connection.execute(f"DELETE FROM {table}"))  # type: ignore[misc]
    fold_apart(books)
    assert dump(books)[:3] == found[:3]
    assert [row[1:4] for row in dump(books)[3]] == [row[1:4] for row in found[3]]


def test_a_fault_of_stripes_fold_keeps_no_usage_from_being_counted(books: TestBooks) -> None:
    """Guarantee: a meter that cannot be folded is reported, and rollups go on all the same."""
    post(books, Random(3), 3)
    wrong = Metering(HOUR_NANOS, "charge", {"input_tokens": "charge"})
    folder = Folder(books.store, wrong)
    for _ in range(2):
        with pytest.raises(ValueError, match="different names"):
            folder.fold()
        post(books, Random(4), 3)
    events = sum(row["events"] for row in books.usage())
    with pytest.raises(ValueError, match="different names"):
        folder.fold()
    stored = books.store.read(lambda connection: connection.execute("SELECT sum(events) FROM rollup").fetchone()[0])
    assert stored == events


def test_rows_remembered_are_bounded() -> None:
    """Guarantee: what was written lately is remembered up to a number of rows, and then begun anew."""
    standing = rollups.Standing(rows_max=3)
    key = (0, *"abcdefgh")

    def build(before: int, mark: int, count: int) -> rollups.Fold:
        sums = {(number, *key[1:]): rollups.Sums(1) for number in range(before * 10, before * 10 + count)}
        return rollups.Fold(before, mark, 1, {}, {"rollup": sums, "rollup_day": {}})

    standing.accept(build(0, 1, 2))
    assert len(standing.list_rows("rollup", 1)) == 2
    assert not standing.list_rows("rollup", 2), "somebody else folded since"
    standing.accept(build(1, 2, 2))
    assert len(standing.list_rows("rollup", 2)) == 2, "begun anew"
    standing.accept(build(2, 3, 9))
    assert not standing.list_rows("rollup", 3), "more than are remembered"
