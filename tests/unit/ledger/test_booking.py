"""What is booked is a function of the set of spans: repeats, contradictions, corrections and restarts included."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.config import Config
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.prices import parse_percent
from otelbill_collector.domain.ratecard import ChargePrice, Markup, RateCard
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.domain.usage import Candidate, Decision
from otelbill_collector.ledger.books import UnknownEvent
from otelbill_collector.ledger.corrections import InvalidCorrection, Wish
from otelbill_collector.ledger.deadletters import list_dead_letters
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.lineage import list_records_by_id, list_suspense
from otelbill_collector.ledger.segments import build_record
from otelbill_collector.offline import list_groups
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, build_request, chat


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def _records(books: TestBooks) -> list[UsageRecord]:
    return books.store.read(
        lambda connection: [build_record(row) for _, table in list_tables(connection, 0) for row in table.to_pylist()]
    )


def test_a_call_is_booked_with_its_tokens_and_its_price(books: TestBooks) -> None:
    """100 input and 20 output tokens of gpt-4o-mini cost 100 x 0.15 + 20 x 0.60 USD per million = 0.000027."""
    receipt = books.post(chat("a"))
    assert (receipt.accepted, receipt.duplicate, receipt.dead_lettered, receipt.ignored) == (1, 0, 0, 0)
    row = books.totals()
    assert row["customer"] == "acme"
    assert row["quantities"] == {"input_tokens": 100, "output_tokens": 20, "requests": 1}
    assert (row["cost"], row["charge"], row["currency"]) == ("0.000027", "0.000027", "USD")


def test_a_span_sent_again_is_a_duplicate_also_after_a_restart(books: TestBooks) -> None:
    """The sender may repeat as often as it likes; the span is counted once."""
    books.post(chat("a"), chat("b"))
    assert books.post(chat("a"), chat("c")).duplicate == 1
    books.reopen()
    receipt = books.post(chat("a"), chat("b"), chat("c"), chat("c"))
    assert (receipt.accepted, receipt.duplicate) == (0, 4)
    assert books.totals()["events"] == 3


def test_the_same_id_with_other_content_is_a_loud_conflict(books: TestBooks) -> None:
    """Two senders that share an id must be found: the second span becomes a dead letter, the booked one stays."""
    books.post(chat("a"))
    receipt = books.post(chat("a", tokens=(999, 20)), chat("b"))
    assert (receipt.accepted, receipt.dead_lettered) == (1, 1)
    (letter,) = books.store.read(list_dead_letters)
    assert letter.code == "conflicting_replay"
    assert books.totals()["quantities"]["input_tokens"] == 200


def test_a_conflict_sent_again_is_one_dead_letter(books: TestBooks) -> None:
    """Dead letters are derived from content: repeating the fault does not multiply them."""
    books.post(chat("a"))
    for _ in range(3):
        books.post(chat("a", tokens=(999, 20)))
    assert len(books.store.read(list_dead_letters)) == 1


def test_one_event_id_on_two_spans_is_one_event(books: TestBooks) -> None:
    """record_usage with an event id may be retried in another span; other content under that id is a conflict."""

    def explicit(name: str, quantity: int) -> TestSpan:
        attributes: dict[str, Any] = {
            "otelbill.meter": "vector_queries",
            "otelbill.quantity": quantity,
            "otelbill.unit": "query",
            "otelbill.event.id": "order-7",
            "otelbill.customer.id": "acme",
        }
        return TestSpan(name, attributes, trace=name)

    assert books.post(explicit("first", 12)).accepted == 1
    assert books.post(explicit("second", 12)).duplicate == 1
    assert books.post(explicit("third", 13)).dead_lettered == 1
    assert books.totals()["quantities"] == {"vector_queries": 12}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_parent_that_repeats_its_children_bills_nothing_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    """An agent span with the sum of its calls, arriving before, between or after them, in requests of their own."""
    agent = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 300,
        "gen_ai.usage.output_tokens": 60,
        "otelbill.customer.id": "acme",
    }
    spans = [
        chat("one", trace="t", parent="agent", tokens=(100, 20), started=T0 + 1, ended=T0 + 2),
        chat("two", trace="t", parent="agent", tokens=(200, 40), started=T0 + 3, ended=T0 + 4),
        TestSpan("agent", agent, trace="t", started=T0, ended=T0 + 5),
    ]
    books = TestBooks(tmp_path / "ledger")
    for index in order:
        books.post(spans[index])
        books.reopen()
    books.books.post_due(NOW + 600 * SECOND)
    row = books.totals()
    assert (row["events"], row["quantities"]["input_tokens"], row["quantities"]["output_tokens"]) == (2, 300, 60)
    books.close()


def test_what_waited_for_a_price_is_rated_when_one_is_there_and_nothing_else_is(tmp_path: Path) -> None:
    """A new rate card settles unpriced usage by a reversal and a revision; what was priced keeps its price."""
    queries = {
        "otelbill.meter": "vector_queries",
        "otelbill.quantity": 12,
        "otelbill.unit": "query",
        "otelbill.customer.id": "acme",
    }
    books = TestBooks(tmp_path / "ledger")
    books.post(TestSpan("search", queries), chat("a"))
    assert books.books.price_waiting(NOW) == 0
    books.close()

    card = RateCard((ChargePrice("vector_queries", parse_attos("0.002")),), (Markup(parse_percent("100")),))
    books = TestBooks(tmp_path / "ledger", Config(rate_card=card))
    assert books.books.price_waiting(NOW) == 1
    assert books.books.price_waiting(NOW) == 0
    charges = {row["model"]: row["charge"] for row in books.usage("model")}
    assert charges == {None: "0.024", "gpt-4o-mini": "0.000027"}
    assert [record.note for record in _records(books)][-2:] == ["a price was found", "a price was found"]
    books.close()


def test_a_new_price_reaches_usage_behind_what_has_none_or_is_faulty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Older usage that nobody prices, and a fault in rating some, keep nothing behind them waiting."""
    books = TestBooks(tmp_path / "ledger")
    for number, meter in enumerate(("pages", "faulty", "pages", "queries", "queries")):
        attributes = {"otelbill.meter": meter, "otelbill.quantity": 12, "otelbill.customer.id": "acme"}
        ended = T0 + number * SECOND
        books.post(TestSpan(f"s{number}", attributes, trace=f"t{number}", started=ended, ended=ended))
    books.close()
    monkeypatch.setattr("otelbill_collector.ledger.books._WAITING_BATCH", 1)
    books = TestBooks(tmp_path / "ledger", Config(rate_card=RateCard((ChargePrice("queries", parse_attos("0.002")),))))
    rate = books.books._rules.rate

    def fail(candidate: Candidate, decision: Decision) -> Any:
        if "faulty" in decision.quantities:
            raise ZeroDivisionError
        return rate(candidate, decision)

    books.books._rules = replace(books.books._rules, rate=fail)
    assert books.books.price_waiting(NOW) == 2
    assert books.totals(books.usage(fold=True))["charge"] == "0.048"
    assert "could not be rated anew" in caplog.text
    books.close()


def test_equal_calls_of_one_emitter_are_no_group(tmp_path: Path) -> None:
    """A job that embeds equal chunks makes equal calls by the thousand: none of them has to do with another."""
    attributes = {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "text-embedding-3-small",
        "gen_ai.usage.input_tokens": 512,
        "otelbill.customer.id": "acme",
    }
    spans = [
        TestSpan(f"s{i}", attributes, trace=f"t{i}", started=T0 + i * 10**7, ended=T0 + (i + 1) * 10**7)
        for i in range(200)
    ]
    found = [candidate for span in decode_request(build_request(spans)) if (candidate := select_span(span))]
    assert {len(group) for group in list_groups(found)} == {1}
    books = TestBooks(tmp_path / "ledger")
    books.post(*spans[:100])
    books.reopen()
    books.post(*spans)
    assert books.totals()["quantities"] == {"input_tokens": 512 * 200, "requests": 200}
    books.close()


def test_a_correction_is_a_reversal_and_a_revision_and_never_an_edit(books: TestBooks) -> None:
    """Assigning suspense to a customer leaves the first record, its exact negation, and the new one, all linked."""
    books.post(chat("a", customer=None))
    (waiting,) = books.store.read(list_suspense)
    books.books.correct(Wish((waiting.event_id,), "ann", "job without customer()", NOW, customer_id="globex"))
    first, reversal, second = _records(books)
    assert (first.sign, reversal.sign, second.sign) == (1, -1, 1)
    assert reversal.corrects == first.record_id
    assert second.corrects == first.record_id
    assert reversal.amounts == first.amounts
    assert second.note == "customer assigned by ann: job without customer()"
    assert books.store.read(list_suspense) == []
    rows = {row["customer"]: row["events"] for row in books.usage()}
    assert rows == {"globex": 1}


def test_an_assignment_outlives_a_restart_and_a_repeat_changes_nothing(books: TestBooks) -> None:
    """Corrections are part of the ledger; giving the same one twice is refused and books nothing."""
    books.post(chat("a", customer=None))
    (waiting,) = books.store.read(list_suspense)
    given = Wish((waiting.record_id,), "ann", "why", NOW, customer_id="globex")
    books.books.correct(given)
    books.reopen()
    with pytest.raises(InvalidCorrection, match="already"):
        books.books.correct(given)
    assert books.post(chat("a", customer=None)).duplicate == 1
    assert len(_records(books)) == 3


def test_assigning_what_does_not_exist_is_refused_and_writes_nothing(books: TestBooks) -> None:
    """An unknown id is an error with a way to find the right one."""
    with pytest.raises(UnknownEvent, match="otelbill explain"):
        books.books.correct(Wish(("0" * 32,), "ann", "why", NOW, customer_id="globex"))
    assert _records(books) == []


def test_a_failed_transaction_leaves_nothing_behind_in_memory(
    books: TestBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the commit fails, the same spans sent again are accepted: they are no duplicates of what was never stored."""
    from otelbill_collector.ledger import booking

    def fail(*_: object) -> int:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(booking, "append_segment", fail)
        with pytest.raises(OSError, match="disk full"):
            books.post(chat("a"))
    assert books.post(chat("a")).accepted == 1
    assert books.totals()["events"] == 1


def test_members_of_one_trace_that_ends_after_midnight_are_one_group(books: TestBooks) -> None:
    """Claim keys are stored by day; a trace across midnight must not fall into two groups."""
    midnight = T0 + 86_400 * SECOND
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "otelbill.customer.id": "acme",
    }
    now = midnight + 3_600 * SECOND
    books.post(chat("one", trace="t", parent="agent", started=midnight - 20, ended=midnight - 10), now=now)
    books.reopen()
    books.post(TestSpan("agent", attributes, trace="t", started=midnight - 30, ended=midnight + 10), now=now)
    books.books.post_due(now + 600 * SECOND)
    assert books.totals()["quantities"]["input_tokens"] == 100


def test_records_are_found_by_every_id(books: TestBooks) -> None:
    """Record, event, trace, span and provider response id all lead to the same event."""
    books.post(chat("a"), chat("b"))
    (record,) = [item for item in _records(books) if item.candidate.response_id == "resp-a"]
    ids = (
        record.record_id,
        record.event_id,
        record.candidate.trace_id.hex(),
        record.candidate.span_id.hex(),
        "resp-a",
    )
    for identifier in ids:
        found = books.store.read(lambda connection, wanted=identifier: list_records_by_id(connection, wanted))
        assert [item.event_id for item in found] == [record.event_id], identifier


@pytest.mark.parametrize("kind", ["trace_id", "span_id", "response_id", "run_id"])
def test_an_instruction_about_more_than_one_event_is_refused(books: TestBooks, kind: str) -> None:
    """A trace, run or response id names many events: assigning whichever comes first would be a wrong bill."""
    books.post(
        *(chat(name, trace="t", response="resp-shared-1", attributes={"otelbill.run.id": "run-7"}) for name in "ab")
    )
    first = _records(books)[0].candidate
    names = {"trace_id": first.trace_id.hex(), "span_id": first.span_id.hex(), "response_id": "resp-shared-1"}
    identifier = names.get(kind, "run-7")
    with pytest.raises(UnknownEvent, match="explain"):
        books.books.correct(Wish((identifier,), "op", "test", NOW, customer_id="globex"))
    assert [row["customer"] for row in books.usage()] == ["acme"]


@pytest.mark.parametrize("kind", ["event_id", "record_id", "explicit"])
def test_an_instruction_names_its_event_by_any_of_its_own_ids(books: TestBooks, kind: str) -> None:
    """The event's id, the id of one of its records, or the id the application gave it."""
    books.post(TestSpan("u", {"otelbill.meter": "pages", "otelbill.quantity": 3, "otelbill.event.id": "job-17"}))
    record = _records(books)[0]
    identifier = {"event_id": record.event_id, "record_id": record.record_id, "explicit": "job-17"}[kind]
    books.books.correct(Wish((identifier,), "op", "test", NOW, customer_id="globex"))
    assert [row["customer"] for row in books.usage()] == ["globex"]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("days", [0, 1, 2, 40, -40])
def test_an_event_id_bills_once_however_late_the_retry(books: TestBooks, days: int, restart: bool) -> None:
    """A job that is run again next month under its event id is the same event, whatever is still in memory."""

    def record(name: str, day: int, pages: int = 3) -> TestSpan:
        at = T0 + day * 86_400 * SECOND
        given = {"otelbill.meter": "pages", "otelbill.quantity": pages, "otelbill.event.id": "job-17"}
        return TestSpan(name, given, trace=name, started=at, ended=at)

    later = T0 + 60 * 86_400 * SECOND
    books.post(record("first", 0), now=later)
    books.post(chat("between", started=T0 + 9 * 86_400 * SECOND, ended=T0 + 9 * 86_400 * SECOND), now=later)
    if restart:
        books.reopen()
    assert books.post(record("again", days), now=later).duplicate == 1
    assert books.post(record("other", days, pages=4), now=later).dead_lettered == 1
    assert [row["quantities"] for row in books.usage(where={"customer": ""})] == [{"pages": 3}]
