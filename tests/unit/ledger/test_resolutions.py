"""Held usage can be given its numbers by hand, on the record, and only where none of its own is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.config import Config, ConfigError, load_config
from otelbill_collector.config.values import Claims
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.books import UnknownEvent
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.lineage import list_unsettled
from otelbill_collector.ledger.resolutions import InvalidResolution, NotHeld, Resolution
from otelbill_collector.ledger.segments import build_record
from tests.books import NOW, TestBooks
from tests.spans import TestSpan, chat

GIVEN = {"input_tokens": 100, "output_tokens": 20}


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def silent(name: str, **changes: Any) -> TestSpan:
    """A chat call that succeeded and reported no usage."""
    span = chat(name, **changes)
    usage = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    return TestSpan(
        name, {k: v for k, v in span.attributes.items() if k not in usage}, trace=span.trace, scope=span.scope
    )


def resolve(books: TestBooks, event_id: str, quantities: Mapping[str, int] = GIVEN) -> list[UsageRecord]:
    return books.books.resolve_usage(Resolution(event_id, quantities, "ann", "provider console", NOW)).records


def held(books: TestBooks) -> UsageRecord:
    (record,) = books.store.read(list_unsettled)
    return record


def records(books: TestBooks) -> list[UsageRecord]:
    return books.store.read(
        lambda connection: [build_record(row) for _, table in list_tables(connection, 0) for row in table.to_pylist()]
    )


def test_given_usage_is_a_reversal_and_a_priced_revision_with_the_note(books: TestBooks) -> None:
    """100 and 20 tokens of gpt-4o-mini cost 0.000027 USD, exactly as if the span had said so."""
    books.post(silent("a"))
    assert [item.sign for item in resolve(books, held(books).event_id)] == [-1, 1]
    first, reversal, second = records(books)
    assert reversal.corrects == second.corrects == first.record_id
    assert second.note == reversal.note == "usage given by ann: provider console"
    assert second.decision.usage_source == "reported"
    assert second.decision.reason == "no_usage_reported"
    row = books.totals(books.usage(fold=True))
    assert (row["events"], row["held"], row["charge"]) == (1, 0, "0.000027")
    assert row["quantities"] == {**GIVEN, "requests": 1}
    assert books.store.read(list_unsettled) == []


def test_the_same_resolution_books_nothing_also_after_a_restart(books: TestBooks) -> None:
    """An operator who presses twice changes the bill once; the span sent again is a duplicate."""
    books.post(silent("a"))
    event_id = held(books).event_id
    resolve(books, event_id)
    assert resolve(books, event_id) == []
    books.reopen()
    assert resolve(books, event_id) == []
    assert books.post(silent("a")).duplicate == 1
    assert len(records(books)) == 3


def test_other_numbers_correct_the_first_ones(books: TestBooks) -> None:
    """A mistake in a resolution is corrected by another one; both stay on record."""
    books.post(silent("a"))
    event_id = held(books).event_id
    resolve(books, event_id, {"input_tokens": 1, "output_tokens": 1})
    resolve(books, event_id)
    assert [item.sign for item in records(books)] == [1, -1, 1, -1, 1]
    assert books.totals(books.usage(fold=True))["charge"] == "0.000027"


def test_what_a_span_reports_later_takes_its_place(books: TestBooks) -> None:
    """The call is billed once: when another layer's description with usage arrives, the given numbers go."""
    attributes = {**silent("a").attributes, "gen_ai.response.id": "resp-0123456789"}
    books.post(TestSpan("outer", attributes, scope="one"))
    resolve(books, held(books).event_id, {"input_tokens": 7, "output_tokens": 7})
    books.post(chat("inner", response="resp-0123456789", trace="trace", scope="two"))
    row = books.totals(books.usage(fold=True))
    assert (row["events"], row["quantities"]) == (1, {**GIVEN, "requests": 1})


def test_a_resolution_and_an_assignment_go_together(books: TestBooks) -> None:
    """Usage without customer and without numbers can be given both, in either order."""
    books.post(silent("a", customer=None))
    event_id = held(books).event_id
    resolve(books, event_id)
    books.books.correct(Wish((event_id,), "bob", "nightly job", NOW, customer_id="globex"))
    last = records(books)[-1]
    assert (last.decision.customer_id, last.decision.quantities["output_tokens"]) == ("globex", 20)
    assert last.note == "customer assigned by bob: nightly job; usage given by ann: provider console"


def test_an_unknown_id_is_refused_and_writes_nothing(books: TestBooks) -> None:
    """The message says where ids are found."""
    with pytest.raises(UnknownEvent, match="otelbill explain"):
        resolve(books, "0" * 32)
    assert records(books) == []


def test_usage_that_is_known_cannot_be_overwritten(books: TestBooks) -> None:
    """Only holes are filled; a reported count is corrected at its source."""
    books.post(chat("a"))
    event_id = records(books)[0].event_id
    with pytest.raises(NotHeld, match="otelbill held"):
        resolve(books, event_id)
    assert len(records(books)) == 1


@pytest.mark.parametrize(
    ("quantities", "named"),
    [
        ({}, "no quantity"),
        ({"input_tokens": -1}, "input_tokens"),
        ({"input_tokens": 1.5}, "input_tokens"),
        ({"input_tokens": True}, "input_tokens"),
        ({"input_tokens": 2**60}, "input_tokens"),
        ({"images": 1}, "images"),
        ({"output_tokens": 1, "reasoning_tokens": 2}, "reasoning_tokens"),
    ],
)
def test_what_cannot_be_usage_is_refused(quantities: dict[str, Any], named: str) -> None:
    """Negative, fractional, too large, unknown or contradicting quantities name the unit."""
    with pytest.raises(InvalidResolution, match=named):
        Resolution("0" * 32, quantities, "ann", "why", NOW)


def estimated(name: str) -> TestSpan:
    """A stream whose tokens OpenLIT counted itself."""
    span = chat(name, attributes={"gen_ai.request.is_stream": True})
    return TestSpan(name, span.attributes, trace=name, scope="openlit.instrumentation.openai")


def test_estimates_are_held_unless_the_operator_accepts_those_of_the_dialect(tmp_path: Path) -> None:
    """`claims.accept_estimates: [openlit]` rates them; they stay marked as estimated."""
    books = TestBooks(tmp_path / "strict")
    books.post(estimated("a"))
    assert held(books).amounts.state == "held"
    books.close()
    accepting = TestBooks(tmp_path / "accepting", Config(claims=Claims(accept_estimates=("openlit",))))
    accepting.post(estimated("a"), silent("b"))
    states = {item.decision.usage_source.value: item.amounts.state.value for item in records(accepting)}
    assert states == {"estimated": "rated", "unknown": "held"}
    accepting.close()


def test_a_dialect_that_is_not_known_is_a_configuration_error(tmp_path: Path) -> None:
    """A typing error must not leave estimates held without a word."""
    path = tmp_path / "otelbill.yaml"
    path.write_text("claims:\n  accept_estimates: [openlit, openlitt]\n")
    with pytest.raises(ConfigError, match="openlitt"):
        load_config(path, {})
