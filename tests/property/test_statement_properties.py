"""What a period comes to holds for any usage and any terms: parts are the whole, and nothing is below zero."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.domain.charges import Discount, Fee, Minimum, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.invoices import Entry, LineKind
from otelbill_collector.domain.money import ATTOS_PER_UNIT
from otelbill_collector.domain.periods import BillingCalendar
from otelbill_collector.domain.ratecard import RateCard
from otelbill_collector.domain.selectors import EventNames, Selector
from otelbill_collector.domain.statements import UsageSum, make_statement
from otelbill_collector.domain.terms import resolve_terms

pytestmark = pytest.mark.money

NOVEMBER = BillingCalendar().parse_label("2026-11")
CENT = ATTOS_PER_UNIT // 100
SEARCHES = PeriodCharge("Searches", "searches", Pricing.GRADUATED, tiers=(Tier(50, CENT), Tier(None, CENT // 3)))
COVERED = {"name": "Searches", "unit": "searches", "version": SEARCHES.version.version_id}
VERSIONS = {
    "pages": {"prices": {"pages": {"charge": "0.5", "cost": None, "entry": None}}},
    "searches": {"prices": {"searches": {"charge": "period", "entry": {"period_charge": COVERED}}}},
    SEARCHES.version.version_id: SEARCHES.version.read_body(),
}

amounts = st.integers(0, 10**6).map(lambda cents: cents * CENT)
steps = st.sampled_from([None, "search", "draft"])
instants = st.sampled_from([None, *(NOVEMBER.start_nanos + day * 86_400 * 10**9 + 7 for day in (0, 9, 29))])


@st.composite
def terms(draw: st.DrawFn) -> RateCard:
    """A card with some fees, discounts and minimums, of which some are for a part of the time or of the usage."""
    percents = st.integers(0, 1_000_000)
    fees = [
        Fee(f"fee {number}", draw(amounts), Selector(from_nanos=draw(instants)), draw(st.booleans()))
        for number in range(draw(st.integers(0, 2)))
    ]
    discounts = [
        Discount(f"discount {number}", draw(percents), Selector(step=draw(steps), from_nanos=draw(instants)))
        for number in range(draw(st.integers(0, 3)))
    ]
    minimums = [Minimum("least", draw(amounts))] * draw(st.integers(0, 1))
    return RateCard(fees=tuple(fees), discounts=tuple(discounts), minimums=tuple(minimums))


uses = st.lists(st.tuples(st.sampled_from(["pages", "searches"]), steps, st.integers(1, 400)), max_size=6)


def make_sum(unit: str, step: str | None, quantity: int) -> UsageSum:
    """Usage at half a dollar a page, or of searches that the period's charge counts."""
    charge = quantity * ATTOS_PER_UNIT // 2 if unit == "pages" else 0
    return UsageSum(None, step, None, None, unit, "USD", {unit: quantity}, charge, 1)


def state(card: RateCard, sums: list[UsageSum]) -> list[Entry]:
    """The entries of November."""
    found = resolve_terms(card, EventNames(customer_id="acme"), NOVEMBER)
    return make_statement(sums, VERSIONS, found, lambda _: Fraction(0))


@given(terms(), uses)
def test_a_period_is_the_sum_of_its_lines_and_never_below_zero(
    card: RateCard, used: list[tuple[str, str | None, int]]
) -> None:
    """Discounts take off at most what there is; only they are negative; a minimum is reached, and not passed by what
    fills it up.
    """
    entries = state(card, [make_sum(*item) for item in used])
    assert all((entry.amount < 0) == (entry.kind is LineKind.DISCOUNT) or not entry.amount for entry in entries)
    before = sum((entry.amount for entry in entries if entry.kind is not LineKind.MINIMUM), Fraction(0))
    total = sum((entry.amount for entry in entries), Fraction(0))
    assert before >= 0
    assert total == max([before, *(minimum.attos for minimum in card.minimums)])


@given(terms(), uses)
def test_usage_in_parts_is_usage_in_one(card: RateCard, used: list[tuple[str, str | None, int]]) -> None:
    """However records are grouped, and in whatever order, each kind of line comes to the same."""

    def total(sums: list[UsageSum]) -> dict[LineKind, Fraction]:
        found: dict[LineKind, Fraction] = dict.fromkeys(LineKind, Fraction(0))
        for entry in state(card, sums):
            found[entry.kind] += entry.amount
        return found

    merged: dict[tuple[str, str | None], int] = {}
    for unit, step, quantity in used:
        merged[unit, step] = merged.get((unit, step), 0) + quantity
    whole = [make_sum(unit, step, quantity) for (unit, step), quantity in merged.items()]
    assert total([make_sum(*item) for item in reversed(used)]) == total(whole)
