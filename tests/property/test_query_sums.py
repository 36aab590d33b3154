"""Whatever is booked, corrected and compacted when, SQL has the sums of `otelbill usage`."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.lineage import list_suspense
from otelbill_collector.ledger.queries import QueryLimits, open_query
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat

BY = ("customer", "model", "day")
_NAMES = {"customer": "customer_id", "model": "model", "day": "strftime(ended_at, '%Y-%m-%d')"}
_SUMS = "count(*), " + ", ".join(f"sum({unit})" for unit in STANDARD_UNITS) + ", sum(cost), sum(charge)"
_NETTED = "sum(sign), " + ", ".join(f"sum(sign * {name})" for name in (*STANDARD_UNITS, "cost", "charge"))

calls = st.tuples(
    st.integers(0, 30),  # the same number is the same call again
    st.sampled_from(["acme", "globex", None]),
    st.sampled_from(["gpt-4o-mini", "gpt-4o", "model-nobody-knows"]),
    st.integers(-3, 3),
    st.booleans(),
)
steps = st.one_of(
    st.lists(calls, min_size=1, max_size=6), st.sampled_from(["compact", "merge", "assign", "replay", "reopen"])
)


def build_span(number: int, customer: str | None, model: str, day: int, is_nested: bool) -> TestSpan:
    """A call, and for some numbers one whose twin tells more of it later."""
    attributes: dict[str, Any] = {"otelbill.run.id": f"run-{number % 3}"}
    trace = f"trace-{number % 4}" if is_nested else f"trace-{number}-{day}"
    return chat(
        f"{number}-{day}-{is_nested}",
        customer=customer,
        model=model,
        tokens=(number * 1_000_003, number),
        response=f"resp-{number}" if is_nested else None,
        trace=trace,
        ended=T0 + day * DAY_NANOS + number * SECOND,
        attributes=attributes,
    )


def ask(books: TestBooks, sums: str, view: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Sums by group, without groups of nothing."""
    names = ", ".join(_NAMES[name] for name in BY)
    with open_query(books.store, f"SELECT {names}, {sums} FROM {view} GROUP BY ALL", QueryLimits(None, None)) as answer:
        rows = {row[: len(BY)]: row[len(BY) :] for row in answer.rows}
    return {key: values for key, values in rows.items() if values[0]}


def list_expected(books: TestBooks) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The same from the read model behind `otelbill usage`."""
    return {
        tuple(row[name] for name in BY): (
            row["events"],
            *(row["quantities"].get(unit, 0) for unit in STANDARD_UNITS),
            Decimal(row["cost"] or 0),
            Decimal(row["charge"] or 0),
        )
        for row in books.usage(*BY)
    }


def fill(rows: dict[tuple[Any, ...], tuple[Any, ...]]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """None as nothing: SQL tells no quantity from the sum of none."""
    return {key: tuple(value or 0 for value in values) for key, values in rows.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=10))
def test_sums_in_sql_are_those_of_usage(history: list[Any]) -> None:
    """Over files and segments, with corrections and repeats, in `usage`, and in `records` by sign."""
    with tempfile.TemporaryDirectory() as folder:
        books = TestBooks(Path(folder) / "ledger")
        try:
            for step in history:
                carry_out(books, step)
            expected = list_expected(books)
            assert fill(ask(books, _SUMS, "usage")) == expected
            assert fill(ask(books, _NETTED, "records WHERE rating <> 'not_billable'")) == expected
        finally:
            books.close()


def carry_out(books: TestBooks, step: Any) -> None:
    """One thing that happens to a ledger."""
    compactor = Compactor(books.store)
    match step:
        case "compact":
            compactor.compact_all()
        case "merge":
            compactor.run(NOW + 40 * DAY_NANOS)
        case "replay":
            compactor.rebuild()
        case "reopen":
            books.reopen()
        case "assign":
            for waiting in books.store.read(list_suspense)[:1]:
                books.books.correct(Wish((waiting.event_id,), "ann", "her word", NOW, customer_id="initech"))
        case _:
            books.post(
                *(build_span(*call) for call in {call[0]: call for call in step}.values()), now=NOW + 4 * DAY_NANOS
            )
