"""Sums are exact, folded once, rebuildable, and what is not folded yet is seen all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.domain.instants import HOUR_NANOS
from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.usage import Candidate, Decision, RatingState, Role, UsageSource
from otelbill_collector.ledger.rollups import (
    UnknownDimension,
    count_events,
    prepare_fold,
    rebuild_rollups,
    save_fold,
)
from otelbill_collector.ledger.segments import decode_records, encode_segment
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, chat


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def test_what_is_not_folded_yet_is_counted_exactly_once(books: TestBooks) -> None:
    """A reader sees every acknowledged span, before, during and after folding."""
    books.post(chat("a"), chat("b", customer="globex"))
    before = books.usage("customer", "model", "day")
    folded = books.usage("customer", "model", "day", fold=True)
    books.post(chat("c"))
    mixed = books.usage("customer", "model", "day")
    assert before == folded
    assert [row["events"] for row in mixed] == [2, 1]
    assert books.usage("customer", "model", "day", fold=True) == mixed


def test_rollups_rebuilt_from_segments_are_the_same_rows(books: TestBooks) -> None:
    """A rollup is derived: deleting it loses nothing."""
    for index in range(20):
        books.post(chat(f"s{index}", customer=f"c{index % 3}", ended=T0 + index * 400 * SECOND))
    before = books.usage("customer", "hour", fold=True)
    rows = books.store.read(lambda connection: connection.execute("SELECT * FROM rollup").fetchall())
    books.store.transact(rebuild_rollups)
    assert books.store.read(lambda connection: connection.execute("SELECT * FROM rollup").fetchall()) == rows
    assert books.usage("customer", "hour") == before


def test_intervals_are_half_open_and_need_not_be_whole_hours(books: TestBooks) -> None:
    """An event at `from` is inside, one at `to` is not; bounds inside an hour are answered from the records."""
    for index in range(3):
        books.post(chat(f"s{index}", started=T0 - SECOND, ended=T0 + index * 600 * SECOND))
    books.usage(fold=True)

    def count(start: int, end: int) -> int:
        return sum(row["events"] for row in books.usage(from_nanos=start, to_nanos=end))

    assert count(T0, T0 + 600 * SECOND) == 1
    assert count(T0, T0 + 600 * SECOND + 1) == 2
    assert count(T0 + 1, T0 + HOUR_NANOS) == 2
    assert count(T0, T0 + HOUR_NANOS) == 3
    assert count(T0 + HOUR_NANOS, T0 + 2 * HOUR_NANOS) == 0


def test_unpriced_usage_is_counted_and_never_free(books: TestBooks) -> None:
    """No price is not a price of zero: the charge is unknown and the events are shown as unpriced."""
    books.post(chat("a", model="model-nobody-knows"))
    row = books.totals()
    assert (row["events"], row["unpriced"], row["cost"], row["charge"]) == (1, 1, None, None)
    books.usage(fold=True)
    assert books.store.read(count_events) == {"rated": 0, "unpriced": 1, "held": 0, "suspense": 0}


def test_usage_can_be_grouped_by_what_rollups_do_not_hold(books: TestBooks) -> None:
    """Runs and traces are answered from the records, filters apply to any dimension."""
    books.post(chat("a", attributes={"otelbill.run.id": "r1"}), chat("b", attributes={"otelbill.run.id": "r2"}))
    books.usage(fold=True)
    assert [(row["run"], row["events"]) for row in books.usage("run")] == [("r1", 1), ("r2", 1)]
    assert [row["events"] for row in books.usage("customer", where={"run": "r1"})] == [1]


def test_an_unknown_dimension_is_refused_with_the_known_ones(books: TestBooks) -> None:
    """A typing error must not silently give one big sum."""
    with pytest.raises(UnknownDimension, match="customer, project, step"):
        books.usage("costumer")


ids = st.binary(min_size=8, max_size=8)
texts = st.none() | st.text(max_size=20)
attos = st.none() | st.integers(0, 10**37)


@st.composite
def records(draw: st.DrawFn) -> UsageRecord:
    quantities = draw(
        st.dictionaries(
            st.sampled_from(["input_tokens", "output_tokens", "requests", "vector_queries"]), st.integers(0, 2**53)
        )
    )
    candidate = Candidate(
        trace_id=draw(st.binary(min_size=16, max_size=16)),
        span_id=draw(ids),
        parent_span_id=draw(st.just(b"") | ids),
        started_nanos=draw(st.integers(0, 2**62)),
        ended_nanos=draw(st.integers(0, 2**62)),
        dialect="d",
        role=draw(st.sampled_from(Role)),
        detail=3,
        provider=draw(texts),
        model=draw(texts),
        response_id=draw(texts),
        customer_id=draw(texts),
        failed=draw(st.booleans()),
        caveats=tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
        quantities=quantities,
    )
    decision = Decision(
        billable=draw(st.booleans()),
        reason="r",
        usage_source=draw(st.sampled_from(UsageSource)),
        quantities=quantities,
        customer_id=draw(texts),
        winner_span_id=draw(st.just(b"") | ids),
    )
    amounts = Amounts(draw(st.sampled_from(RatingState)), draw(texts), draw(attos), draw(attos), draw(texts))
    return UsageRecord(
        event_id=draw(st.text(max_size=8)),
        revision=draw(st.integers(0, 5)),
        sign=draw(st.sampled_from([1, -1])),
        content=draw(st.binary(min_size=16, max_size=16)),
        received_nanos=NOW,
        candidate=candidate,
        decision=decision,
        amounts=amounts,
        note=draw(texts),
    )


@settings(max_examples=60)
@given(st.lists(records(), min_size=1, max_size=5))
def test_a_segment_gives_back_every_field(batch: list[UsageRecord]) -> None:
    """What is booked is what is read again, money of any size included."""
    assert decode_records(encode_segment(batch)) == batch


def test_two_folds_prepared_at_once_count_once(books: TestBooks) -> None:
    """Guarantee: a fold that was prepared before another one was written writes nothing."""
    books.post(chat("a"))
    first, second = books.store.read(prepare_fold), books.store.read(prepare_fold)
    for fold in (first, second):
        assert books.store.transact(lambda connection, fold=fold: save_fold(connection, fold)) == 1
    assert books.store.read(count_events)["rated"] == 1
    assert books.totals()["events"] == 1


@pytest.mark.parametrize("fold", [False, True])
def test_an_interval_that_ends_at_the_epoch_holds_nothing(books: TestBooks, fold: bool) -> None:
    """Zero is an instant like any other: `--to 1970-01-01` is not the absence of a bound."""
    books.post(chat("a"))
    assert books.usage("customer", fold=fold, to_nanos=0) == []
