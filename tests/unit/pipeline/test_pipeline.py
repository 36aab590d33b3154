"""Every span of every request ends as ignored, accepted, duplicate or dead-lettered, and one's fault is its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otelbill_collector.domain.records import InvariantViolation, Receipt, Rejection
from otelbill_collector.ledger.deadletters import list_dead_letters
from otelbill_collector.operations import Operations
from tests.books import LIMITS, NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, build_message, build_request, chat


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def test_plain_spans_are_ignored_and_counted(books: TestBooks) -> None:
    """A span that says nothing of usage is not an error and not a loss."""
    receipt = books.post(TestSpan("GET /", {"http.request.method": "GET"}), chat("a"))
    assert receipt == Receipt(spans=2, ignored=1, accepted=1, duplicate=0, dead_lettered=0)


def test_a_malformed_request_is_rejected_and_its_neighbours_are_booked(books: TestBooks) -> None:
    """Requests of one batch share a transaction, not a fate."""
    first, second, third = books.carry([build_request([chat("a")]), b"\xff\xff", build_request([chat("b")])])
    assert isinstance(first, Receipt)
    assert isinstance(third, Receipt)
    assert (first.accepted, third.accepted) == (1, 1)
    assert isinstance(second, Rejection)
    assert "protobuf" in second.reason


def test_too_many_spans_are_refused_whole(books: TestBooks) -> None:
    """The bound on one request names the number and the remedy."""
    small = TestBooks(books.folder / "small", limits=type(LIMITS)(1, 256, 0))
    (answer,) = small.carry([build_request([chat("a"), chat("b")])])
    assert isinstance(answer, Rejection)
    assert "2 spans" in answer.reason
    assert "smaller batches" in answer.reason
    small.close()


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("negative", {"gen_ai.usage.input_tokens": -5}, "gen_ai.usage.input_tokens"),
    ("a word", {"gen_ai.usage.input_tokens": "twelve"}, "gen_ai.usage.input_tokens"),
    ("past a double", {"gen_ai.usage.output_tokens": 2**60}, "gen_ai.usage.output_tokens"),
    ("past 64 bits", {"gen_ai.usage.output_tokens": str(2**63)}, "gen_ai.usage.output_tokens"),
    ("half a token", {"gen_ai.usage.output_tokens": 1.5}, "gen_ai.usage.output_tokens"),
]


@pytest.mark.parametrize(("case", "attributes", "field"), BROKEN, ids=[case for case, _, _ in BROKEN])
def test_a_broken_count_is_a_dead_letter_and_its_batch_goes_on(
    books: TestBooks, case: str, attributes: dict[str, Any], field: str
) -> None:
    """Never clamped, never guessed, never dropped: field, value and remedy are kept, the neighbour is booked."""
    receipt = books.post(chat("bad", attributes=attributes), chat("good"))
    assert (receipt.accepted, receipt.dead_lettered) == (1, 1), case
    (letter,) = books.store.read(list_dead_letters)
    assert letter.field == field
    assert letter.hint
    assert books.totals()["events"] == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ended": 0}, "event_time_missing"),
        ({"ended": 600_000_000 * SECOND}, "event_time_too_old"),
        ({"ended": NOW + 301 * SECOND}, "event_time_in_future"),
        ({"started": 2**64 - 1}, "start_time_out_of_range"),  # 64 bits without sign, which no column holds
    ],
)
def test_an_event_time_that_cannot_be_is_a_dead_letter(books: TestBooks, change: dict[str, int], code: str) -> None:
    """The event time chooses the price, so a broken clock must not book."""
    assert books.post(chat("a", **change)).dead_lettered == 1
    assert [letter.code for letter in books.store.read(list_dead_letters)] == [code]


@pytest.mark.parametrize("field", ["trace_id", "span_id"])
@pytest.mark.parametrize("value", [b"", b"\x01", bytes(16), bytes(8)])
def test_an_id_that_is_none_is_a_dead_letter(books: TestBooks, field: str, value: bytes) -> None:
    """Without ids a span cannot be told from its repetition."""
    message = build_message([chat("a")])
    setattr(message.resource_spans[0].scope_spans[0].spans[0], field, value)
    (answer,) = books.carry([message.SerializeToString()])
    assert isinstance(answer, Receipt)
    assert answer.dead_lettered == 1
    assert [letter.code for letter in books.store.read(list_dead_letters)] == [f"invalid_{field}"]


def test_a_span_from_the_future_is_booked_when_its_letter_is_replayed_in_time(books: TestBooks) -> None:
    """A dead letter is replayable: what was wrong then may be right now, and what is still wrong stays."""
    books.post(chat("early", ended=NOW + 400 * SECOND), chat("bad", attributes={"gen_ai.usage.input_tokens": "x"}))
    later = Operations(books.stages, None, lambda: NOW + 600 * SECOND)
    assert later.replay_dead_letters() == {"replayed": 1, "still_dead": 1}
    assert later.replay_dead_letters() == {"replayed": 0, "still_dead": 1}
    assert books.totals()["events"] == 1
    assert [letter.code for letter in books.store.read(list_dead_letters)] != []


def test_a_fault_of_the_rules_keeps_the_span(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in selection is a dead letter that can be replayed after the upgrade, not a lost or stuck request."""

    def fail(_: object) -> None:
        raise ZeroDivisionError

    object.__setattr__(books.stages, "select", fail)
    assert books.post(chat("a")).dead_lettered == 1
    (letter,) = books.store.read(list_dead_letters)
    assert (letter.code, letter.value) == ("internal_error", "ZeroDivisionError")
    books.reopen()
    assert Operations(books.stages, None, lambda: NOW).replay_dead_letters() == {"replayed": 1, "still_dead": 0}
    assert books.totals()["quantities"]["input_tokens"] == 100


def test_a_receipt_that_does_not_balance_cannot_exist() -> None:
    """There is no column for lost spans."""
    with pytest.raises(InvariantViolation, match="does not balance"):
        Receipt(spans=3, ignored=0, accepted=1, duplicate=1, dead_lettered=0)


span_lists = st.lists(
    st.builds(
        lambda name, customer, tokens, broken: chat(
            f"s{name}",
            customer=customer,
            tokens=(tokens, 1),
            ended=T0 + name * SECOND,
            started=T0,
            attributes={"gen_ai.usage.input_tokens": "x"} if broken else {},
        ),
        st.integers(0, 12),
        st.sampled_from(["acme", "globex"]),
        st.just(7),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(span_lists, max_size=4))
def test_counts_balance_whatever_arrives(tmp_path_factory: pytest.TempPathFactory, requests: list[Any]) -> None:
    """Spans sent = ignored + accepted + duplicate + dead-lettered; events booked = distinct accepted spans."""
    books = TestBooks(tmp_path_factory.mktemp("books"))
    answers = books.carry([build_request(spans) for spans in requests])
    receipts = [answer for answer in answers if isinstance(answer, Receipt)]
    assert sum(receipt.spans for receipt in receipts) == sum(map(len, requests))
    assert sum(row["events"] for row in books.usage()) == sum(receipt.accepted for receipt in receipts)
    books.close()


@pytest.mark.parametrize("started", [2**63, 2**64 - 1])
def test_a_start_that_no_clock_gives_is_a_dead_letter(books: TestBooks, started: int) -> None:
    """OTLP's times have 64 bits without a sign, the ledger's with one: such a span must not keep its neighbours out."""
    receipt = books.post(chat("a"), replace(chat("b"), started=started))
    assert (receipt.accepted, receipt.dead_lettered) == (1, 1)
    (letter,) = books.store.read(list_dead_letters)
    assert (letter.code, letter.field) == ("start_time_out_of_range", "start_time_unix_nano")


@pytest.mark.parametrize("parent", [b"\1", b"x" * 5_000])
def test_a_parent_id_that_is_none_is_a_dead_letter(books: TestBooks, parent: bytes) -> None:
    """Ids are bounded before they reach the disk; none at all and zeros are fine."""
    message = build_message([chat("a"), chat("b"), chat("c")])
    spans = [scope.spans[0] for scope in message.resource_spans[0].scope_spans]
    spans[0].parent_span_id, spans[1].parent_span_id = parent, bytes(8)
    (receipt,) = books.carry([message.SerializeToString()])
    assert isinstance(receipt, Receipt)
    assert (receipt.accepted, receipt.dead_lettered) == (2, 1)
    (letter,) = books.store.read(list_dead_letters)
    assert letter.code == "invalid_parent_span_id"
    assert len(letter.body) < 2_000


@pytest.mark.parametrize("meter", ["audio_output_tokens", "requests", "input_tokens"])
def test_a_fraction_of_a_token_beside_a_call_is_a_dead_letter(books: TestBooks, meter: str) -> None:
    """Standard units are whole numbers in the ledger: 1.5 must not be rated as 1.5 and kept as 1."""
    odd = chat("a", attributes={"otelbill.meter": meter, "otelbill.quantity": "1.5"})
    receipt = books.post(odd, chat("b"))
    assert (receipt.accepted, receipt.dead_lettered) == (1, 1)
    (letter,) = books.store.read(list_dead_letters)
    assert (letter.code, letter.field) == ("reserved_meter", "otelbill.meter")
