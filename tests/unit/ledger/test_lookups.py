"""What waits, and what an id leads to, is found without reading every segment, and is what reading all would find."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger import lineage
from otelbill_collector.ledger.books import UnknownEvent
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.lineage import list_records_by_id, list_suspense, list_trace, list_unsettled
from otelbill_collector.ledger.openings import fold_openings
from otelbill_collector.ledger.resolutions import Resolution
from otelbill_collector.ledger.segments import build_record
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def silent(name: str, customer: str | None = "acme", ended: int = T0) -> TestSpan:
    """A call whose usage did not reach us."""
    whole = chat(name, customer=customer)
    attributes = {key: value for key, value in whole.attributes.items() if ".usage." not in key}
    return TestSpan(name, attributes, trace=name, ended=ended)


def read_all(books: TestBooks) -> list[UsageRecord]:
    """Every record, in booking order."""

    def work(connection: Any) -> list[UsageRecord]:
        return [build_record(row) for _, table in list_tables(connection, 0) for row in table.to_pylist()]

    return books.store.read(work)


def list_in_force(books: TestBooks) -> list[UsageRecord]:
    """Bookings in force by event time, from all records."""
    found = {record.event_id: record for record in read_all(books) if record.sign > 0}
    return sorted(found.values(), key=lambda record: (record.event_nanos, record.event_id))


def check_waiting(books: TestBooks) -> None:
    """What waits is what every record says."""
    in_force = list_in_force(books)
    unsettled = [record for record in in_force if record.amounts.state.value in ("held", "unpriced")]
    nobodys = [record for record in in_force if record.decision.billable and record.decision.customer_id is None]
    assert books.store.read(list_unsettled) == unsettled
    assert books.store.read(list_suspense) == nobodys
    assert books.store.read(lambda connection: list_unsettled(connection, limit=2)) == unsettled[:2]
    assert books.store.read(lambda connection: list_suspense(connection, limit=1)) == nobodys[:1]


@pytest.mark.parametrize("folds", [(), (0,), (1,), (2,), (0, 1, 2, 3)])
def test_what_waits_is_listed_until_it_is_settled(books: TestBooks, folds: tuple[int, ...]) -> None:
    """Held, unpriced and in suspense, before and after remedies, wherever the fold stands between them."""

    def settle_customers() -> None:
        for record in books.store.read(list_suspense)[:2]:
            books.books.correct(Wish((record.event_id,), "ann", "her word", NOW, customer_id="initech"))

    def resolve_some() -> None:
        held = [item for item in books.store.read(list_unsettled) if item.amounts.state.value == "held"]
        for record in held[:2]:
            books.books.resolve_usage(Resolution(record.event_id, {"input_tokens": 7}, "ann", "console", NOW))

    def post(start: int) -> None:
        for number in range(start, start + 3):
            ended = T0 + (50 - number) * SECOND  # later ones happened earlier
            books.post(
                silent(f"silent {number}", None if number % 2 else "acme", ended),
                chat(f"nobody {number}", customer=None, ended=ended),
                chat(f"strange {number}", model="model-nobody-knows", ended=ended),
                chat(f"usual {number}", ended=ended),
            )

    steps = [lambda: post(0), settle_customers, resolve_some, lambda: post(3), settle_customers]
    for number, step in enumerate(steps):
        step()
        if number in folds:
            while books.store.transact(fold_openings):
                pass
        check_waiting(books)
    books.reopen()
    check_waiting(books)


def ids_of(record: UsageRecord) -> list[str]:
    """Every id that leads to a record."""
    candidate = record.candidate
    ids = [record.event_id, record.record_id, candidate.trace_id.hex(), candidate.span_id.hex().upper()]
    return [*ids, *filter(None, (candidate.response_id, record.decision.run_id, candidate.explicit_event_id))]


def test_every_id_is_found_wherever_its_records_stand(books: TestBooks) -> None:
    """In segments, in the id files, split over both, or with the files gone: always the same records, in order."""
    named = {"otelbill.run.id": "run-1", "otelbill.event.id": "order 7"}
    books.post(
        chat("explicit", attributes=named, customer=None), chat("other", attributes={"otelbill.run.id": "run-1"})
    )
    for number in range(8):
        books.post(chat(f"s{number}", ended=T0 + number * SECOND))
    wanted = {name: books.store.read(lambda connection, name=name: list_records_by_id(connection, name))
              for record in read_all(books) for name in ids_of(record)}  # fmt: skip
    assert len(wanted) == 5 * 10 + 2
    assert [record.candidate.explicit_event_id for record in wanted["order 7"]] == ["order 7"]
    assert len(wanted["run-1"]) == 2
    Compactor(books.store).compact_all()
    check_ids(books, wanted)
    (waiting,) = books.store.read(list_suspense)
    books.books.correct(Wish(("order 7",), "ann", "her word", NOW, customer_id="initech"))
    later = books.store.read(lambda connection: list_records_by_id(connection, "order 7"))
    assert [(record.revision, record.sign) for record in later] == [(0, 1), (0, -1), (1, 1)]
    assert later[0] == waiting
    trace = waiting.candidate.trace_id
    assert books.store.read(lambda connection: list_trace(connection, [trace])) == later
    for path in (books.folder / "parquet" / "ids").iterdir():
        path.unlink()
    assert books.store.read(lambda connection: list_records_by_id(connection, "order 7")) == later


def check_ids(books: TestBooks, wanted: dict[str, list[UsageRecord]]) -> None:
    for name, records in wanted.items():
        assert books.store.read(lambda connection, name=name: list_records_by_id(connection, name)) == records, name


def test_an_id_is_looked_up_in_the_segments_that_have_it_only(
    books: TestBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of explaining a record does not grow with the ledger."""
    for number in range(30):
        books.post(chat(f"s{number}", ended=T0 + number * SECOND))
    Compactor(books.store).compact_all()
    books.post(chat("not compacted"))
    read: list[bytes] = []
    real = lineage.decode_table

    def count(body: bytes, columns: Any = None) -> Any:
        if len(columns) <= len(lineage._SEARCHED):
            read.append(body)
        return real(body, columns)

    monkeypatch.setattr(lineage, "decode_table", count)
    record = read_all(books)[11]
    assert books.store.read(lambda connection: list_records_by_id(connection, record.record_id)) == [record]
    assert len(read) == 2 * (1 + 1), "twice its own segment, and what is past the mark"
    read.clear()
    assert books.store.read(lambda connection: list_records_by_id(connection, "nobody")) == []
    assert len(read) == 1


def test_an_unknown_id_is_unknown(books: TestBooks) -> None:
    """No id file makes something of nothing."""
    books.post(chat("one"))
    Compactor(books.store).compact_all()
    for name in ("", " ", "0" * 32, "0" * 16, "nobody"):
        with pytest.raises(UnknownEvent):
            books.books.correct(Wish((name,), "ann", "why", NOW, customer_id="acme"))


_EDGES = [None, T0 - DAY_NANOS, T0, T0 + 5 * HOUR_NANOS, T0 + DAY_NANOS, T0 + 30 * HOUR_NANOS, T0 + 3 * DAY_NANOS]


def test_usage_of_one_customer_is_its_part_of_all(books: TestBooks) -> None:
    """Asking for one customer gives the rows that asking for all gives, over days, parts of days, and suspense."""
    for hour in range(0, 72, 5):
        at = T0 + hour * HOUR_NANOS
        books.post(
            *(chat(f"{name} {hour}", customer=name, ended=at) for name in ("acme", "globex", None)), now=at + SECOND
        )
    for fold in (False, True):
        books.usage(fold=fold)
        for start, end in product(_EDGES, _EDGES):
            for by in (("customer", "model"), ("customer", "day"), ("customer", "hour")):
                everything = books.usage(*by, from_nanos=start, to_nanos=end)
                for name in ("acme", "", "nobody"):
                    rows = books.usage(*by, where={"customer": name}, from_nanos=start, to_nanos=end)
                    assert rows == [row for row in everything if (row["customer"] or "") == name], (start, end, by)
