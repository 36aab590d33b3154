"""Operators' corrections: what they book, what they refuse, and how a batch of them is taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.books import UnknownEvent
from otelbill_collector.ledger.corrections import InvalidCorrection, Wish
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.segments import build_record
from tests.books import NOW, TestBooks
from tests.spans import TestSpan, chat

MINUTE = 60 * 10**9


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def records(books: TestBooks) -> list[UsageRecord]:
    """Every record, in booking order."""
    tables = books.store.read(lambda connection: list(list_tables(connection, 0)))
    return [build_record(row) for _, table in tables for row in table.to_pylist()]


def event_ids(books: TestBooks) -> list[str]:
    """Events in the order of their first booking."""
    return list(dict.fromkeys(record.event_id for record in records(books)))


def correct(books: TestBooks, *ids: str, at: int = NOW, **wanted: Any) -> str:
    """Correct events; returns the batch."""
    wish = Wish(ids, "ann", "because", at, **wanted)
    books.books.correct(wish)
    return wish.derive_batch()


def take_back(books: TestBooks, batch: str) -> Sequence[UsageRecord]:
    """Take a batch back."""
    return books.books.take_back(batch, operator="bob", reason="mistake", now_nanos=NOW + MINUTE).records


def test_a_voided_event_bills_nothing_and_keeps_its_records(books: TestBooks) -> None:
    """The usage happened; that nobody pays for it is a booking of its own, with a name and a reason."""
    books.post(chat("a"))
    (event,) = event_ids(books)
    correct(books, event, void=True)
    first, reversal, second = records(books)
    assert (second.decision.billable, second.decision.reason) == (False, "voided")
    assert reversal.corrects == second.corrects == first.record_id
    assert second.note == reversal.note == "voided by ann: because"
    assert books.usage(fold=True) == []


def test_given_quantities_are_rated_at_the_events_own_price(books: TestBooks) -> None:
    """chat("a") used 100 + 20 tokens for 0.000027; at 0.15 and 0.60 a million, 100 + 120 cost 0.000015 + 0.000072."""
    books.post(chat("a"))
    assert books.totals(books.usage(fold=True))["charge"] == "0.000027"
    correct(books, event_ids(books)[0], quantities={"output_tokens": 120})
    row = books.totals(books.usage(fold=True))
    assert (row["events"], row["charge"]) == (1, "0.000087")
    assert row["quantities"] == {"input_tokens": 100, "output_tokens": 120, "requests": 1}


def test_a_given_charge_leaves_cost_and_quantities(books: TestBooks) -> None:
    """What was agreed with a customer is charged; the margin still knows what the provider took."""
    books.post(chat("a"))
    before = books.totals(books.usage(fold=True))
    correct(books, event_ids(books)[0], charge_attos=parse_attos("0.10"), currency="USD")
    after = books.totals(books.usage(fold=True))
    assert after["charge"] == "0.1"
    assert (after["cost"], after["quantities"]) == (before["cost"], before["quantities"])


def test_a_charge_in_another_currency_is_refused(books: TestBooks) -> None:
    """Nothing converts silently; nothing is written."""
    books.post(chat("a"))
    with pytest.raises(InvalidCorrection, match="charged in USD, not in EUR"):
        correct(books, event_ids(books)[0], charge_attos=1, currency="EUR")
    assert len(records(books)) == 1


@pytest.mark.parametrize(
    "wanted",
    [{"void": True}, {"customer_id": "globex"}, {"quantities": {"output_tokens": 9}}, {"customer_id": "acme"}],
)
def test_what_is_so_already_is_refused_also_after_a_restart(books: TestBooks, wanted: dict[str, Any]) -> None:
    """An operator who presses twice is told; one who states what is the case is, too."""
    books.post(chat("a"))
    (event,) = event_ids(books)
    if wanted != {"customer_id": "acme"}:
        correct(books, event, **wanted)
    count = len(records(books))
    books.reopen()
    with pytest.raises(InvalidCorrection, match="already"):
        correct(books, event, at=NOW + 1, **wanted)
    assert len(records(books)) == count


def test_one_event_that_does_not_exist_refuses_the_whole_batch(books: TestBooks) -> None:
    """A batch is one: half of it would be worse than none."""
    books.post(chat("a"))
    with pytest.raises(UnknownEvent):
        correct(books, event_ids(books)[0], "0" * 32, void=True)
    assert len(records(books)) == 1
    correct(books, event_ids(books)[0], void=True)


def test_a_part_larger_than_its_whole_is_refused(books: TestBooks) -> None:
    """Reasoning tokens are output tokens; more of them than of those cannot be."""
    books.post(chat("a"))
    with pytest.raises(InvalidCorrection, match="reasoning_tokens: is part of output_tokens"):
        correct(books, event_ids(books)[0], quantities={"reasoning_tokens": 21})


def test_a_batch_is_taken_back_as_one(books: TestBooks) -> None:
    """Amounts are as they were; the records say who took what back."""
    books.post(chat("a"), chat("b"), chat("c", customer="globex"))
    before = books.usage(fold=True)
    batch = correct(books, *event_ids(books), customer_id="initech")
    assert [row["customer"] for row in books.usage(fold=True)] == ["initech"]
    booked = take_back(books, batch)
    assert books.usage(fold=True) == before
    assert {record.note for record in booked} == {f"batch {batch} taken back by bob: mistake"}


def test_a_charge_is_taken_back_to_what_the_prices_say(books: TestBooks) -> None:
    """Taking back a charge rates the event again, though nothing else about it changed."""
    books.post(chat("a"))
    before = books.usage(fold=True)
    batch = correct(books, event_ids(books)[0], charge_attos=1, currency="USD")
    take_back(books, batch)
    assert books.usage(fold=True) == before


def test_taking_back_goes_to_what_stood_before_the_batch(books: TestBooks) -> None:
    """The first correction stands again after the second is taken back; then it can be taken back as well."""
    books.post(chat("a"))
    (event,) = event_ids(books)
    first = correct(books, event, customer_id="globex")
    second = correct(books, event, at=NOW + 1, customer_id="initech")
    with pytest.raises(InvalidCorrection, match=f"corrected again by batch {second}; take that back first"):
        take_back(books, first)
    take_back(books, second)
    assert books.totals(books.usage(fold=True))["customer"] == "globex"
    with pytest.raises(InvalidCorrection, match="taken back already"):
        take_back(books, second)


def test_an_unknown_batch_is_refused(books: TestBooks) -> None:
    """The message says where batches are listed."""
    with pytest.raises(InvalidCorrection, match="otelbill corrections"):
        take_back(books, "nothing")


def test_a_correction_stands_when_the_group_is_decided_again(books: TestBooks) -> None:
    """A second description of the call moves the claim; what an operator said of the event stays said."""
    books.post(chat("inner", response="resp-0123456789", trace="t", scope="two"))
    (event,) = event_ids(books)
    correct(books, event, customer_id="globex")
    attributes = {"otelbill.step": "plan"}
    books.post(TestSpan("root", attributes, trace="t"))
    assert books.totals(books.usage(fold=True))["customer"] == "globex"


WISHES = st.fixed_dictionaries(
    {},
    optional={
        "customer_id": st.sampled_from(["globex", "initech"]),
        "quantities": st.dictionaries(st.sampled_from(["input_tokens", "images"]), st.integers(0, 10**6), min_size=1),
        "charge_attos": st.integers(0, 10**20),
    },
) | st.just({"void": True})


@pytest.mark.slow
@given(wishes=st.lists(WISHES.filter(bool), min_size=1, max_size=4), data=st.data())
@settings(deadline=None)
def test_taking_everything_back_leaves_the_amounts_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, wishes: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Corrections and their reversals add up to nothing, whatever they were and over whichever events."""
    with closing(TestBooks(tmp_path_factory.mktemp("books"))) as books:
        books.post(chat("a"), chat("b"), chat("c", customer="globex"))
        before, events = books.usage(fold=True), event_ids(books)
        batches = []
        for number, wish in enumerate(wishes):
            chosen = data.draw(st.lists(st.sampled_from(events), min_size=1, unique=True))
            try:
                batches.append(correct(books, *chosen, at=NOW + number, currency="USD", **wish))
            except InvalidCorrection:
                continue
        for batch in reversed(batches):
            take_back(books, batch)
        assert books.usage(fold=True) == before
