"""All lines ever invoiced for a period add up to what its records say, whatever came late, was moved or voided."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otelbill_collector.billing import Billing, CloseRequest
from otelbill_collector.config import Billing as BillingSettings
from otelbill_collector.config import Config, Customer
from otelbill_collector.domain.charges import Commitment, Discount, Fee, Minimum, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.domain.invoices import LineKind
from otelbill_collector.domain.money import ATTOS_PER_UNIT
from otelbill_collector.domain.prices import parse_unit_price
from otelbill_collector.domain.ratecard import ChargePrice, RateCard
from otelbill_collector.domain.selectors import Selector
from otelbill_collector.ledger.corrections import InvalidCorrection, Wish
from otelbill_collector.ledger.line_records import list_period_records
from otelbill_collector.ledger.lineage import list_records_by_id
from otelbill_collector.ledger.periods import list_invoices
from tests.books import TestBooks
from tests.spans import TestSpan, trace_id

CUSTOMERS = ("acme", "bolt")
MONTHS = ("2026-01", "2026-02", "2026-03")
NOW = parse_instant("2026-06-01")
UNIT, HALF = ATTOS_PER_UNIT, parse_instant("2026-02-11")
CARD = RateCard(
    prices=(
        ChargePrice("calls", parse_unit_price("0.013"), Selector(to_nanos=HALF)),
        ChargePrice("calls", parse_unit_price("0.017"), Selector(from_nanos=HALF)),
    ),
    charges=(
        PeriodCharge("Packs", "packs", Pricing.PACKAGE, attos=3 * UNIT, package_size=7),
        PeriodCharge("Pages", "pages", Pricing.GRADUATED, tiers=(Tier(20, UNIT // 5), Tier(None, UNIT // 9, UNIT))),
        PeriodCharge(
            "Seats", "seats", Pricing.VOLUME, tiers=(Tier(15, UNIT, 2 * UNIT), Tier(None, UNIT // 3)), included=3
        ),
    ),
    fees=(Fee("Platform", 7 * UNIT, Selector(from_nanos=HALF), prorate=True),),
    discounts=(Discount("Friends", 33_333, Selector(customer_id="acme")),),
    minimums=(Minimum("Least", 9 * UNIT, Selector(customer_id="bolt")),),
    commitments=(
        Commitment(
            "Promise", 60 * UNIT, Selector(from_nanos=parse_instant("2026-01-01"), to_nanos=parse_instant("2026-03-01"))
        ),
    ),
)
CONFIG = replace(
    Config(),
    rate_card=CARD,
    billing=BillingSettings(grace_nanos=0),
    customers={"acme": Customer(), "bolt": Customer(time_zone="Asia/Kathmandu")},
)


@dataclass(frozen=True)
class Use:
    """An event arrives."""

    customer: str
    unit: str
    quantity: int
    day: int


@dataclass(frozen=True)
class Fix:
    """The n-th event so far is corrected."""

    number: int
    how: str


@dataclass(frozen=True)
class Close:
    """The next period of a customer is closed; its invoice is voided at once, or not."""

    customer: str
    void: bool


USES = st.builds(
    Use,
    st.sampled_from(CUSTOMERS),
    st.sampled_from(("calls", "packs", "pages", "seats")),
    st.integers(0, 40),
    st.integers(0, 88),
)
STEPS = st.lists(
    st.one_of(
        USES,
        USES,
        st.builds(Fix, st.integers(0, 30), st.sampled_from(("void", "acme", "bolt", "quantity", "charge"))),
        st.builds(Close, st.sampled_from(CUSTOMERS), st.booleans()),
    ),
    max_size=14,
)


class Story:
    """Steps, carried out on a ledger."""

    def __init__(self, folder: Path) -> None:
        self.books = TestBooks(folder, CONFIG)
        self.billing = Billing(self.books.store, CONFIG, lambda: NOW)
        self.events: list[tuple[str, Use]] = []
        self.closed: dict[str, int] = defaultdict(int)

    def take(self, step: Use | Fix | Close) -> None:
        """Carry out a step."""
        if isinstance(step, Use):
            self.use(step)
        elif isinstance(step, Fix):
            self.fix(step)
        else:
            self.close(step)

    def use(self, step: Use) -> None:
        """Post an event of a unit of the customer's own."""
        name = f"e{len(self.events)}"
        attributes = {"otelbill.meter": step.unit, "otelbill.unit": step.unit, "otelbill.quantity": step.quantity}
        ended = parse_instant("2026-01-01T12:00:00Z") + step.day * DAY_NANOS + len(self.events)
        span = TestSpan(name, {**attributes, "otelbill.customer.id": step.customer}, trace=name, ended=ended)
        self.books.post(span, now=NOW)
        self.events.append((name, step))

    def fix(self, step: Fix) -> None:
        """Correct an event, unless it is like that already."""
        if not self.events:
            return
        name, use = self.events[step.number % len(self.events)]
        found = self.books.store.read(lambda connection: list_records_by_id(connection, trace_id(name).hex()))
        said: dict[str, Any] = {"void": True} if step.how == "void" else {"customer_id": step.how}
        if step.how == "quantity":
            said = {"quantities": {use.unit: step.number}}
        elif step.how == "charge":
            said = {"charge_attos": step.number * UNIT // 7, "currency": "USD"}
        wish = Wish((found[0].event_id,), "ann", "why", NOW + step.number, **said)
        try:
            self.books.books.correct(wish)
        except InvalidCorrection:
            return

    def close(self, step: Close) -> None:
        """Close the customer's next month."""
        if self.closed[step.customer] == len(MONTHS):
            return
        request = CloseRequest(step.customer, MONTHS[self.closed[step.customer]], "ann")
        answer = self.billing.close(request)
        assert answer["refused"] == [], answer["refused"]
        if step.void:
            self.billing.void(answer["closed"][0]["invoice_id"], operator="ann", reason="again")
        else:
            self.closed[step.customer] += 1


def list_invoiced(story: Story, customer: str) -> dict[tuple[str, str], Fraction]:
    """(period, kind) -> all that was ever invoiced and stands."""
    sums: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for invoice in story.books.store.read(lambda connection: list_invoices(connection, customer_id=customer)):
        for line in invoice.lines if invoice.stands else ():
            sums[line.period.label, line.entry.kind.value] += line.entry.amount
    return {key: amount for key, amount in sums.items() if amount}


def close_rest(story: Story) -> None:
    """Close what is open, and one month more, so that everything late is invoiced."""
    for customer in CUSTOMERS:
        while story.closed[customer] < len(MONTHS):
            story.close(Close(customer, False))
        answer = story.billing.close(CloseRequest(customer, "2026-04", "ann"))
        assert answer["refused"] == []


def list_charged(story: Story, customer: str) -> dict[str, Fraction]:
    """Period -> the sum of its records' own charges, which is what all usage priced by event must come to."""
    sums: dict[str, Fraction] = {}
    for label in (*MONTHS, "2026-04"):
        period = CONFIG.find_calendar(customer).parse_label(label)
        records = story.books.store.read(
            lambda connection, period=period: list(list_period_records(connection, customer, period, upto=2**62))
        )
        total = sum(record.sign * (record.amounts.charge_attos or 0) for record in records)
        if total:
            sums[label] = Fraction(total)
    return sums


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_everything_invoiced_adds_up_to_the_records(steps: list[Use | Fix | Close]) -> None:
    """The steps with closings in between come to the same, kind by kind, as closing everything at the very end."""
    with tempfile.TemporaryDirectory() as folder:
        story, plain = Story(Path(folder) / "a"), Story(Path(folder) / "b")
        for step in steps:
            story.take(step)
            if not isinstance(step, Close):
                plain.take(step)
        for item in (story, plain):
            close_rest(item)
        for customer in CUSTOMERS:
            assert list_invoiced(story, customer) == list_invoiced(plain, customer)
            usage = {
                key[0]: amount for key, amount in list_invoiced(story, customer).items() if key[1] == LineKind.USAGE
            }
            assert usage == list_charged(story, customer)
            adjusted = [
                line
                for invoice in plain.books.store.read(lambda connection: list_invoices(connection))
                for line in invoice.lines
                if line.adjustment
            ]
            assert adjusted == [], "what is never late is never adjusted"
        story.books.close()
        plain.books.close()
