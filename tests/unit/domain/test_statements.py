"""What a period comes to, by hand: usage, charges on both sides of a cut, fees, discounts, minimums, commitments."""

from __future__ import annotations

from fractions import Fraction

import pytest

from otelbill_collector.domain.charges import Commitment, Discount, Fee, Minimum, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.invoices import format_exact
from otelbill_collector.domain.money import ATTOS_PER_UNIT, parse_attos
from otelbill_collector.domain.periods import BillingCalendar
from otelbill_collector.domain.ratecard import RateCard
from otelbill_collector.domain.selectors import EventNames, Selector
from otelbill_collector.domain.statements import UnknownVersion, UsageSum, make_statement, read_charge
from otelbill_collector.domain.terms import read_term, render_term, resolve_terms

NOVEMBER = BillingCalendar().parse_label("2026-11")
VERSIONS = {
    "v1": {"prices": {"pages": {"charge": "0.5", "cost": None, "entry": None}}},
    "v2": {
        "prices": {
            "output_tokens": {"charge": "0.01", "cost": None, "entry": None},
            "reasoning_tokens": {"charge": "0.03", "cost": None, "entry": None},
            "requests": {"charge": None, "cost": "0.1", "entry": None},
        }
    },
}


def at(text: str) -> int:
    """An instant."""
    return parse_instant(text)


def state(
    card: RateCard, *sums: UsageSum, customer: str = "acme", spent: str = "0", group: str | None = None
) -> list[str]:
    """Lines as `kind label: how = amount`."""
    terms = resolve_terms(card, EventNames(customer_id=customer, group=group), NOVEMBER)
    assert [read_term(render_term(term)) for term in terms] == terms, "terms stay on the invoice as they are"
    earlier = Fraction(parse_attos(spent))
    entries = make_statement(sums, {**VERSIONS, **list_versions(card)}, terms, lambda _: earlier)
    return [f"{entry.kind} {entry.label}: {entry.arithmetic} -> {format_exact(entry.amount)}" for entry in entries]


def list_versions(card: RateCard) -> dict[str, object]:
    """Versions of the card's charges, and of records that they cover."""
    found: dict[str, object] = {}
    for number, charge in enumerate(card.charges):
        version = charge.version
        found[version.version_id] = version.read_body()
        covered = {"name": charge.name, "unit": charge.unit, "version": version.version_id}
        found[f"c{number}"] = {"prices": {charge.unit: {"charge": "period", "entry": {"period_charge": covered}}}}
        assert read_charge(version.read_body()).version == version, "a charge is read back from its version"
    return found


def pages(count: int, model: str = "m") -> UsageSum:
    """Usage at 0.5 a page."""
    return UsageSum(None, None, "p", model, "v1", "USD", {"pages": count}, count * ATTOS_PER_UNIT // 2, count)


def test_a_part_with_its_own_price_leaves_its_whole() -> None:
    """1,000 output tokens, 300 of them reasoning: 700 x 0.01 + 300 x 0.03 = 16; an unpriced request is no line."""
    quantities = {"output_tokens": 1_000, "reasoning_tokens": 300, "requests": 4}
    item = UsageSum(None, "s", "p", "m", "v2", "USD", quantities, 16 * ATTOS_PER_UNIT, 4)
    assert state(RateCard(), item) == ["usage : 700 x 0.01 = 7 -> 7", "usage : 300 x 0.03 = 9 -> 9"]


def test_amounts_that_no_price_makes_stand_as_they_were_rated() -> None:
    """A charge given by hand names no version: the records' own amounts are the line."""
    item = UsageSum(None, None, "p", "m", None, "USD", {"pages": 3}, parse_attos("1.23"), 2)
    assert state(RateCard(), item) == ["usage amounts of events: 2 events as rated = 1.23 -> 1.23"]


def test_a_version_that_is_not_there_is_an_error() -> None:
    """Nothing is invoiced at a guess."""
    with pytest.raises(UnknownVersion, match="gone"):
        state(RateCard(), UsageSum(None, None, None, None, "gone", "USD", {"pages": 1}, 1, 1))


def test_a_charge_that_changes_inside_the_period_is_cut_there() -> None:
    """80 units before the 15th, 40 after. The tier ends at 100: 80 x 1, then 20 x 2 and 20 x 1.5, the later prices."""
    cut, unit = at("2026-11-15"), ATTOS_PER_UNIT
    card = RateCard(
        charges=(
            PeriodCharge("X", "x", Pricing.GRADUATED, Selector(to_nanos=cut), tiers=(Tier(100, unit), Tier(None, 1))),
            PeriodCharge(
                "X",
                "x",
                Pricing.GRADUATED,
                Selector(from_nanos=cut),
                tiers=(Tier(100, 2 * unit), Tier(None, 3 * unit // 2)),
            ),
        )
    )
    before = UsageSum(None, None, None, None, "c0", "USD", {"x": 80}, 0, 8)
    after = UsageSum(None, None, None, None, "c1", "USD", {"x": 40}, 0, 4)
    wanted = [
        "charge X: tier 1: 0 to 100: 80 x 1 = 80 -> 80",
        "charge X: tier 1: 0 to 100: 20 x 2 = 40 -> 40",
        "charge X: tier 2: above 100: 20 x 1.5 = 30 -> 30",
    ]
    assert state(card, before, after) == state(card, after, before) == wanted


# entries in force from, to; prorated; what November (30 days) is charged of 30.00
FEES = """
-           -           no    30    the whole month
2026-11-16  -           no    30    in force at any time of it: the whole fee
-           2026-11-16  no    30    likewise
2026-12-01  -           no    -     begins with the next month
-           2026-11-01  no    -     ended with the last one
2026-11-16  -           yes   15    15 of 30 days
2026-11-10  2026-11-11  yes   1     a day
2026-11-30T23:59:59Z  - yes   1/86400  a second is a 2,592,000th: 30 x 1/2592000
-           -           yes   30    all of it
""".strip().splitlines()


@pytest.mark.parametrize("row", FEES, ids=[" ".join(row.split()[:3]) for row in FEES])
def test_fees_by_hand(row: str) -> None:
    """In full, or by the nanosecond."""
    start, end, prorate, amount, *_ = row.split()
    selector = Selector(from_nanos=None if start == "-" else at(start), to_nanos=None if end == "-" else at(end))
    card = RateCard(fees=(Fee("Base", 30 * ATTOS_PER_UNIT, selector, prorate=prorate == "yes"),))
    assert [text.split(" -> ")[1] for text in state(card)] == ([] if amount == "-" else [amount])


def test_two_versions_of_a_fee() -> None:
    """30.00 until the 11th, 60.00 from then on: in full the first one; prorated 10 and 40."""
    cut = at("2026-11-11")

    def create(prorate: bool) -> RateCard:
        old = Fee("Base", 30 * ATTOS_PER_UNIT, Selector(to_nanos=cut), prorate)
        return RateCard(fees=(old, Fee("Base", 60 * ATTOS_PER_UNIT, Selector(from_nanos=cut), prorate)))

    assert state(create(False)) == ["fee Base: 30 -> 30"]
    assert state(create(True)) == [
        "fee Base: 30 x 1/3 of the period = 10 -> 10",
        "fee Base: 60 x 2/3 of the period = 40 -> 40",
    ]


def test_the_closest_entry_of_a_name_counts() -> None:
    """A fee for the customer before one for its group before one for all; other names stand beside it."""
    fees = (
        Fee("Base", 1),
        Fee("Base", 2, Selector(group="big")),
        Fee("Base", 3, Selector(customer_id="acme")),
        Fee("Other", 4),
    )
    card = RateCard(fees=fees)

    def list_amounts(customer: str, group: str | None) -> list[int]:
        found = resolve_terms(card, EventNames(customer_id=customer, group=group), NOVEMBER)
        return [term.attos for term in found]

    assert list_amounts("acme", "big") == [3, 4]
    assert list_amounts("bolt", "big") == [2, 4]
    assert list_amounts("crow", None) == [1, 4]


def test_the_order_of_usage_fee_discount_minimum_and_commitment() -> None:
    """100 pages are 50, the fee 10: 60. Ten percent of it is 6, five percent of model a's 20 is 1: 53 are left.

    The minimum of 70 adds 17; of the 500 promised, 200 were spent before and 70 now: 230 are missing.
    """
    term = Selector(from_nanos=at("2026-01-01"), to_nanos=at("2026-12-01"))
    card = RateCard(
        fees=(Fee("Base", 10 * ATTOS_PER_UNIT),),
        discounts=(Discount("All", 100_000), Discount("Some", 50_000, Selector(model="a*"))),
        minimums=(Minimum("Least", 70 * ATTOS_PER_UNIT),),
        commitments=(Commitment("Promise", 500 * ATTOS_PER_UNIT, term),),
    )
    assert state(card, pages(60), pages(40, "A1"), spent="200") == [
        "usage : 40 x 0.5 = 20 -> 20",
        "usage : 60 x 0.5 = 30 -> 30",
        "fee Base: 10 -> 10",
        "discount All: 10 % of 60 -> -6",
        "discount Some: 5 % of 20 -> -1",
        "minimum Least: 70 less 53, which the period came to -> 17",
        "commitment Promise: 500 less 270, which the term came to -> 230",
    ]


def test_a_minimum_and_a_commitment_that_are_reached_are_no_lines() -> None:
    """To the last digit."""
    term = Selector(from_nanos=at("2026-01-01"), to_nanos=at("2026-12-01"))
    card = RateCard(
        minimums=(Minimum("Least", 50 * ATTOS_PER_UNIT),), commitments=(Commitment("P", 50 * ATTOS_PER_UNIT, term),)
    )
    assert state(card, pages(100)) == ["usage : 100 x 0.5 = 50 -> 50"]
    assert state(card, pages(99))[1:] == [
        "minimum Least: 50 less 49.5, which the period came to -> 0.5",
    ]


@pytest.mark.parametrize(
    ("end", "settled"), [("2026-11-01", 0), ("2026-11-01T00:00:01Z", 1), ("2026-12-01", 1), ("2026-12-02", 0)]
)
def test_a_commitment_is_settled_in_the_period_in_which_it_ends(end: str, settled: int) -> None:
    """Its end is the first instant after it: one that ends with November is settled with November."""
    term = Selector(from_nanos=at("2026-01-01"), to_nanos=at(end))
    assert len(state(RateCard(commitments=(Commitment("P", 1, term),)))) == settled
