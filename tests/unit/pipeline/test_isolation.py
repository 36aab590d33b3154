"""A span that trips a fault of ours becomes a dead letter by itself; its neighbours are booked and counts add up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbill_collector.decode.cut import cut_request
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.domain.alone import AmountsRow
from otelbill_collector.domain.records import DeadLetter, Receipt, Refused
from otelbill_collector.domain.span_columns import AmountColumns, Int32s, SpanColumns
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ingest import GroupCommitter, Pipeline
from otelbill_collector.isolation import Isolated, Isolator
from otelbill_collector.ledger.deadletters import list_dead_letters
from otelbill_collector.operations import Operations
from otelbill_collector.pipeline import Carried, Request, book_batch, carry_batch, read_batch
from tests.books import NOW, TestBooks
from tests.spans import build_message, build_request, chat

POISON = "poison"


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def _poison_rating(books: TestBooks, fault: type[Exception] = ZeroDivisionError) -> None:
    """From now on rating raises for every call of the model `poison`, until the books are opened again."""
    rate, alone = books.books._rules.rate, books.books._rules.alone
    assert alone is not None

    def fail(candidate: object, decision: object) -> object:
        if getattr(candidate, "model", None) == POISON:
            raise fault("a bug")
        return rate(candidate, decision)  # type: ignore[arg-type]

    def fail_alone(candidates: Sequence[Candidate]) -> tuple[Sequence[AmountsRow], Mapping[str, str]]:
        if any(candidate.model == POISON for candidate in candidates):
            raise fault("a bug")
        return alone.rate(candidates)

    columns = books.books._rules.columns
    if columns is not None:
        rate_columns = columns.rate

        def fail_columns(spans: SpanColumns, customer: Int32s, step: Int32s) -> AmountColumns:
            if any(spans.templates[code].model == POISON for code in spans.template.tolist()):
                raise fault("a bug")
            return rate_columns(spans, customer, step)

        columns = replace(columns, rate=fail_columns)
    books.books._rules = replace(
        books.books._rules,
        rate=fail,  # type: ignore[arg-type]
        alone=replace(alone, rate=fail_alone),
        columns=columns,
    )


def _start(books: TestBooks) -> GroupCommitter:
    stages = replace(books.stages, scanner=None)

    def carry(requests: Sequence[Request]) -> Carried:
        return carry_batch(requests, stages, NOW)

    def keep(letters: Sequence[DeadLetter]) -> Sequence[bool]:
        return books.books.post((), letters, NOW).kept

    def isolate(request: Request, fault: Exception) -> Isolated:
        return Isolator(carry, keep).isolate(request, fault)

    pipeline = Pipeline(
        lambda requests: read_batch(requests, books.stages), lambda batch: book_batch(batch, stages, NOW), carry
    )
    committer = GroupCommitter(
        pipeline, observe=lambda *_: None, isolate=isolate, batch_bytes_max=10**6, linger_seconds=0.001
    )
    committer.start()
    return committer


@pytest.mark.parametrize("bad", [{0}, {3}, {6}, {1, 2, 5}, set(range(7))], ids=str)
def test_the_neighbours_of_a_faulty_span_are_booked(books: TestBooks, bad: set[int]) -> None:
    """Every span of the request is accounted for: booked, or kept whole with the fault's name; nobody has to retry."""
    _poison_rating(books)
    spans = [chat(f"s{number}", model=POISON if number in bad else "gpt-4o-mini") for number in range(7)]
    committer = _start(books)
    answer = committer.submit(Request(build_request(spans), NOW)).result(30)
    again = committer.submit(Request(build_request(spans), NOW)).result(30)
    committer.stop()
    assert answer == Receipt(spans=7, ignored=0, accepted=7 - len(bad), duplicate=0, dead_lettered=len(bad))
    assert again == Receipt(spans=7, ignored=0, accepted=0, duplicate=7, dead_lettered=0)
    letters = books.store.read(list_dead_letters)
    assert {(letter.code, letter.value) for letter in letters} == {("internal_error", "ZeroDivisionError")}
    assert len(letters) == len(bad)
    assert sum(row["events"] for row in books.usage()) == 7 - len(bad)


def test_what_was_buried_is_booked_after_the_upgrade(books: TestBooks) -> None:
    """The letter holds all that billing needs; one that still trips the fault does not keep the others waiting."""
    _poison_rating(books)
    committer = _start(books)
    committer.submit(Request(build_request([chat("a", model=POISON), chat("b")]), NOW)).result(30)
    committer.stop()
    broken = Operations(books.stages, None, lambda: NOW)
    assert broken.replay_dead_letters() == {"replayed": 0, "still_dead": 1}
    books.reopen()
    mended = Operations(books.stages, None, lambda: NOW)
    assert mended.replay_dead_letters() == {"replayed": 1, "still_dead": 0}
    assert books.totals()["quantities"]["input_tokens"] == 200


@pytest.mark.parametrize("fault", [sqlite3.OperationalError, sqlite3.DatabaseError, MemoryError, OSError])
def test_a_fault_of_the_store_stays_retryable(books: TestBooks, fault: type[Exception]) -> None:
    """A full disk is no property of a span: nothing becomes a dead letter, the sender is asked to come again."""
    _poison_rating(books, fault)
    committer = _start(books)
    with pytest.raises(Refused, match="cannot be written now"):
        committer.submit(Request(build_request([chat("a", model=POISON), chat("b")]), NOW)).result(30)
    committer.stop()
    assert books.store.read(list_dead_letters) == []


def test_parts_of_a_request_are_the_spans_it_had() -> None:
    """Cut anywhere, the parts together hold each span once, in order, under its own resource and scope."""
    message = ExportTraceServiceRequest()
    for service in ("one", "two"):
        part = build_message([chat(f"{service}{number}") for number in range(3)], {"service.name": service})
        part.resource_spans[0].scope_spans[1].scope.name = "another"
        message.MergeFrom(part)
    body = message.SerializeToString()
    cut = cut_request(body)
    assert cut is not None
    for at in range(7):
        parts = [decode_request(cut.build_part(*bounds)) for bounds in ((0, at), (at, 6))]
        joined = [
            (span.span_id, span.scope_name, span.resource["service.name"], sorted(span.attributes))
            for part in parts
            for span in part
        ]
        whole = [
            (span.span_id, span.scope_name, span.resource["service.name"], sorted(span.attributes))
            for span in decode_request(body)
        ]
        assert joined == whole
    assert cut_request(b"\xff\xff") is None
