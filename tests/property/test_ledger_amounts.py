"""Amounts of a whole ledger depend on what was used and what operators said of it, and on nothing else.

Each example is a ledger of its own; what is looked at is all that an accountant sees: the drafts of all customers with
period charges, terms and credits, the amounts of usage, and balances.
"""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otelbill_collector.billing import build_billing_rules, load_invoice
from otelbill_collector.config import Config
from otelbill_collector.crediting import render_balance
from otelbill_collector.domain.charges import Discount, Fee, Minimum, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.grants import Grant, Measure
from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.domain.money import ATTOS_PER_UNIT
from otelbill_collector.domain.prices import parse_unit_price
from otelbill_collector.domain.quantities import MICROS
from otelbill_collector.domain.ratecard import CREDITS, ChargePrice, Markup, RateCard
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.selectors import Selector
from otelbill_collector.ledger.corrections import InvalidCorrection, Wish
from otelbill_collector.ledger.credits import save_grant
from otelbill_collector.ledger.journal import find_last_segment
from otelbill_collector.ledger.lineage import list_records_by_id
from otelbill_collector.ledger.repricing import Scope
from otelbill_collector.ledger.rollups import UsageQuery, load_usage
from tests.books import TestBooks
from tests.spans import TestSpan, build_request, chat, trace_id

pytestmark = pytest.mark.money
# A ledger for each example is dear: a few of them, unless many are asked for.
FEW = settings(
    max_examples=20 if "OTELBILL_EXAMPLES" not in os.environ else settings.default.max_examples,  # type: ignore[union-attr]
    suppress_health_check=[HealthCheck.too_slow],
)

CUSTOMERS = ("acme", "bolt")
MONTH = "2026-01"
START, TURN, NOW = (parse_instant(text) for text in ("2026-01-01T09:00:00Z", "2026-01-20", "2026-06-01"))
UNIT = ATTOS_PER_UNIT
CARD = RateCard(
    prices=(
        ChargePrice("calls", parse_unit_price("0.013"), Selector(to_nanos=TURN)),
        ChargePrice("calls", parse_unit_price("0.017"), Selector(from_nanos=TURN)),
        ChargePrice("images", 0, credits_micros=5 * MICROS),
        ChargePrice(CREDITS, parse_unit_price("0.01")),
    ),
    markups=(Markup(200_000),),
    charges=(
        PeriodCharge("Packs", "packs", Pricing.PACKAGE, attos=3 * UNIT, package_size=7),
        PeriodCharge("Pages", "pages", Pricing.GRADUATED, tiers=(Tier(20, UNIT // 5), Tier(None, UNIT // 9, UNIT))),
        PeriodCharge("Seats", "seats", Pricing.VOLUME, tiers=(Tier(15, UNIT), Tier(None, UNIT // 3)), included=3),
    ),
    fees=(Fee("Platform", 7 * UNIT, Selector(from_nanos=TURN), prorate=True),),
    discounts=(Discount("Friends", 333_333, Selector(customer_id="acme")),),
    minimums=(Minimum("Least", 9 * UNIT, Selector(customer_id="bolt")),),
)
CONFIG = Config(rate_card=CARD)
RULES = build_billing_rules(CONFIG)
GRANTS = (
    Grant("acme", Measure.MONEY, "USD", 5 * UNIT, parse_instant("2026-01-05"), "welcome", "ann", NOW),
    Grant("acme", Measure.UNITS, CREDITS, 120 * MICROS, parse_instant("2026-01-05"), "plan", "ann", NOW),
    Grant("bolt", Measure.UNITS, "calls", 50 * MICROS, parse_instant("2026-01-05"), "trial", "ann", NOW),
)


class Use(NamedTuple):
    """Something used: a model call, or an event of the customer's own unit."""

    unit: str
    customer: str
    hour: int
    quantity: int


class Fix(NamedTuple):
    """What an operator says of some event."""

    number: int
    how: str


USES = st.lists(
    st.builds(
        Use,
        st.sampled_from(["chat", "calls", "images", "packs", "pages", "seats"]),
        st.sampled_from(CUSTOMERS),
        st.integers(0, 30 * 24),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=8,
)
FIXES = st.lists(
    st.builds(Fix, st.integers(0, 30), st.sampled_from(["void", "acme", "bolt", "quantity", "charge"])),
    min_size=1,
    max_size=4,
)


def list_spans(uses: Sequence[Use]) -> list[TestSpan]:
    """The spans of the events, each in a trace of its own."""
    spans = []
    for number, use in enumerate(uses):
        name, ended = f"e{number}", START + use.hour * DAY_NANOS // 24 + number
        if use.unit == "chat":
            spans.append(chat(name, customer=use.customer, tokens=(use.quantity * 1_000, use.quantity), ended=ended))
            continue
        named = {"otelbill.meter": use.unit, "otelbill.unit": use.unit, "otelbill.quantity": use.quantity}
        spans.append(TestSpan(name, {**named, "otelbill.customer.id": use.customer}, trace=name, ended=ended))
    return spans


@contextmanager
def open_books() -> Iterator[TestBooks]:
    """An empty ledger with the card and some credits."""
    with tempfile.TemporaryDirectory() as folder:
        books = TestBooks(Path(folder), CONFIG)
        try:
            for grant in GRANTS:
                books.store.transact(lambda connection, grant=grant: save_grant(connection, grant))
            yield books
        finally:
            books.close()


def observe(books: TestBooks) -> dict[str, Any]:
    """Everything that shows an amount; the mark of a draft only says how much was looked at."""

    def look(connection: sqlite3.Connection) -> dict[str, Any]:
        found: dict[str, Any] = {"usage": load_usage(connection, UsageQuery(("customer", "model", "day")))}
        for customer in CUSTOMERS:
            invoice = load_invoice(connection, RULES, customer, MONTH)
            found[customer] = render_balance(connection, customer, NOW), {**invoice, "mark_segment": None}
        return found

    return books.store.read(look)


def count_segments(books: TestBooks) -> int:
    return books.store.read(find_last_segment)


@FEW
@given(USES, st.randoms(use_true_random=False))
def test_order_and_batching_of_events_change_no_amount(uses: list[Use], chance: random.Random) -> None:
    """All at once in order, or shuffled and cut into requests and commits in any way: every line is the same."""
    spans = list_spans(uses)
    with open_books() as books:
        books.post(*spans, now=NOW)
        expected = observe(books)
    shuffled = chance.sample(spans, len(spans))
    with open_books() as books:
        while shuffled:
            requests = []
            for _ in range(chance.randint(1, 3)):
                size = chance.randint(1, 3)
                requests.append(build_request(shuffled[:size]))
                del shuffled[:size]
            books.carry([body for body in requests if body], now=NOW)
        assert observe(books) == expected


@FEW
@given(USES, st.randoms(use_true_random=False))
def test_duplicates_change_no_amount(uses: list[Use], chance: random.Random) -> None:
    """Whatever is sent again, in the same request or later, after a restart or not, books nothing."""
    spans = list_spans(uses)
    with open_books() as books:
        first = books.post(*spans, *chance.choices(spans, k=2), now=NOW)
        assert (first.accepted, first.duplicate) == (len(spans), 2)
        expected, once = observe(books), count_segments(books)
        if chance.random() < 0.1:
            books.reopen()
        receipt = books.post(*chance.choices(spans, k=4), now=NOW)
        assert receipt.duplicate == receipt.spans == 4
        assert count_segments(books) == once
        assert observe(books) == expected


@FEW
@given(USES)
def test_rating_again_with_the_same_card_changes_no_amount(uses: list[Use]) -> None:
    """`otelbill rerate` with the card that rated everything finds nothing to change and writes nothing."""
    with open_books() as books:
        books.post(*list_spans(uses), now=NOW)
        expected, before = observe(books), count_segments(books)
        rater = Rater(CARD)
        said = {"operator": "ann", "reason": "again", "now_nanos": NOW}
        changed = books.books.rerate(rater, Scope(), **said, progress=lambda _done, _total: None)  # type: ignore[arg-type]
        assert changed == 0
        assert count_segments(books) == before
        assert observe(books) == expected


@FEW
@given(USES, FIXES)
def test_corrections_and_their_reversals_change_no_amount(uses: list[Use], fixes: list[Fix]) -> None:
    """Whatever operators said, once all of it is taken back every line and balance is as it was."""
    with open_books() as books:
        books.post(*list_spans(uses), now=NOW)
        expected = observe(books)
        batches = [batch for number, fix in enumerate(fixes) if (batch := correct(books, uses, number, fix))]
        for number, batch in enumerate(reversed(batches)):
            said = {"operator": "bob", "reason": "no", "now_nanos": NOW + len(fixes) + number}
            books.books.take_back(batch, **said)  # type: ignore[arg-type]
        assert observe(books) == expected


def correct(books: TestBooks, uses: Sequence[Use], number: int, fix: Fix) -> str | None:
    """Correct an event; the batch, or None where it is like that already."""
    place = fix.number % len(uses)
    found = books.store.read(lambda connection: list_records_by_id(connection, trace_id(f"e{place}").hex()))
    unit = "output_tokens" if uses[place].unit == "chat" else uses[place].unit
    said: dict[str, Any] = {"void": True} if fix.how == "void" else {"customer_id": fix.how}
    if fix.how == "quantity":
        said = {"quantities": {unit: fix.number}}
    elif fix.how == "charge":
        said = {"charge_attos": fix.number * UNIT // 7, "currency": "USD"}
    wish = Wish((found[0].event_id,), "ann", "why", NOW + number, **said)
    try:
        books.books.correct(wish)
    except InvalidCorrection:
        return None
    return wish.derive_batch()
