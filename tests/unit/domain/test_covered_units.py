"""A unit that a period charge covers is priced by the period and not by its event, and counted once."""

from __future__ import annotations

from decimal import Decimal

import pytest

from otelbill_collector.domain.charges import Discount, Fee, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.ratecard import (
    ChargePrice,
    EventNames,
    InvalidRateCard,
    Markup,
    RateCard,
    Selector,
    find_charge,
    find_named,
)
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.selectors import Membership
from otelbill_collector.domain.usage import RatingState

AT = parse_instant("2026-11-20")
SEARCH = PeriodCharge("Search", "queries", Pricing.PER_UNIT, attos=parse_attos("0.002"))
OUTPUT = PeriodCharge("Output", "output_tokens", Pricing.PER_UNIT, attos=parse_attos("0.000002"))
OPENAI = EventNames(provider="openai", model="o3", customer_id="acme")


def test_a_covered_unit_adds_nothing_and_is_not_unpriced() -> None:
    """The record has the line at zero, and its price version names the charge and its version."""
    rated = Rater(RateCard(charges=(SEARCH,))).rate({"queries": 5}, AT)
    assert (rated.state, rated.charge_attos, rated.cost_attos) == (RatingState.RATED, 0, None)
    assert rated.version is not None
    prices = rated.version.read_body()["prices"]
    named = {"name": "Search", "unit": "queries", "version": SEARCH.version.version_id}
    assert prices == {"queries": {"charge": "period", "cost": None, "entry": {"period_charge": named}}}


def test_cost_is_not_affected() -> None:
    """What the provider charges stands in the record as without the charge."""
    usage = {"input_tokens": 1_000, "output_tokens": 500}
    plain = Rater().rate(usage, AT, provider="openai", model="o3")
    covered = Rater(RateCard(markups=(Markup(0),), charges=(OUTPUT,))).rate(usage, AT, provider="openai", model="o3")
    assert covered.cost_attos == plain.cost_attos
    assert covered.charge_attos == 1_000 * parse_attos("0.000002")  # o3 input at cost; output waits for the period


def test_a_more_specific_price_takes_a_unit_out_of_the_charge() -> None:
    """Prices and charges are compared together: this customer's price by event wins, the others pay by period."""
    card = RateCard((ChargePrice("queries", 10**15, Selector(customer_id="acme")),), charges=(SEARCH,))
    rater = Rater(card)
    assert rater.rate({"queries": 2}, AT, customer_id="acme").charge_attos == 2 * 10**15
    assert rater.rate({"queries": 2}, AT, customer_id="bolt").charge_attos == 0
    assert find_charge(card, "queries", EventNames(customer_id="acme"), AT) is None
    assert find_charge(card, "queries", EventNames(customer_id="bolt"), AT) == SEARCH
    assert rater.list_covered({"queries": 2}, AT, EventNames(customer_id="bolt")) == [(SEARCH, 2)]


@pytest.mark.parametrize(
    ("price", "counted"),
    [
        (None, 500),  # reasoning is output
        (ChargePrice("reasoning_tokens", 10**12), 200),  # 500 - 300 that have a price by event
    ],
)
def test_parts_inside_a_covered_whole(price: ChargePrice | None, counted: int) -> None:
    """A part without a price of its own counts in its whole, once; one with a price does not count there."""
    rater = Rater(RateCard(() if price is None else (price,), charges=(OUTPUT,)))
    usage = {"output_tokens": 500, "reasoning_tokens": 300}
    assert rater.list_covered(usage, AT, OPENAI) == [(OUTPUT, counted)]


def test_a_part_that_costs_more_still_counts_in_its_whole() -> None:
    """Where the provider prices audio by itself, the record has two lines, and the period's charge both."""
    usage = {"output_tokens": 500, "audio_output_tokens": 300}
    names = EventNames(provider="openai", model="gpt-audio")
    rater = Rater(RateCard(charges=(OUTPUT,)))
    assert rater.list_covered(usage, AT, names) == [(OUTPUT, 500)]
    assert rater.rate(usage, AT, provider="openai", model="gpt-audio").cost_attos is not None


def test_a_quantity_too_fine_for_the_period_leaves_the_event_unpriced() -> None:
    """What the period's charge could not multiply exactly is shown where it enters, not when the invoice is due."""
    rater = Rater(RateCard(charges=(SEARCH,)))
    assert rater.rate({"queries": Decimal("0.000001")}, AT).state is RatingState.RATED
    assert rater.rate({"queries": Decimal("0.0000001")}, AT).problems == ("inexact: queries",)


def test_groups_and_contracts_come_from_the_configuration() -> None:
    """An event names its customer only; which group and contract that is, the rater looks up."""
    card = RateCard(
        (
            ChargePrice("queries", 5),
            ChargePrice("queries", 4, Selector(group="enterprise")),
            ChargePrice("queries", 3, Selector(contract="c-17")),
        )
    )
    members = {"acme": Membership("enterprise"), "bolt": Membership("enterprise", "c-17"), "crow": Membership("other")}
    rater = Rater(card, members=members)
    charged = {name: rater.rate({"queries": 1}, AT, customer_id=name).charge_attos for name in [*members, "dove", None]}
    assert charged == {"acme": 4, "bolt": 3, "crow": 5, "dove": 5, None: 5}


def test_of_one_name_the_most_specific_fee_applies() -> None:
    """Fees of different names add up; of one name a customer pays the one that is closest, while it is in force."""
    base, enterprise = Fee("Platform", 49), Fee("Platform", 499, Selector(group="enterprise", from_nanos=AT))
    support = Fee("Support", 10)
    card = RateCard(fees=(base, support, enterprise))
    member = EventNames(customer_id="acme", group="enterprise")
    assert find_named(card.fees, member, AT) == [enterprise, support]
    assert find_named(card.fees, member, AT - 1) == [base, support]
    assert find_named(card.fees, EventNames(customer_id="bolt"), AT) == [base, support]


def charge(name: str = "X", unit: str = "u", **given: object) -> PeriodCharge:
    """A charge per unit, unless told otherwise."""
    return PeriodCharge(name, unit, **{"pricing": Pricing.PER_UNIT, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("card", "path", "message"),
    [
        (
            {"prices": (ChargePrice("u", 1),), "charges": (charge(),)},
            ("charges", 0),
            "overlaps prices[0]: the same unit u",
        ),
        ({"charges": (charge(), charge("Y"))}, ("charges", 1), "overlaps charges[0]"),
        (
            {"charges": (charge(), charge(unit="v"))},
            ("charges", 1, "name"),
            "is the name of charges[0], which counts other usage",
        ),
        (
            {"charges": (charge(), charge(selector=Selector(model="m")))},
            ("charges", 1, "name"),
            "is the name of charges[0], which counts other usage",
        ),
        ({"charges": (charge(pricing=Pricing.VOLUME),)}, ("charges", 0, "tiers"), "is missing for volume"),
        ({"charges": (charge(tiers=(Tier(None),)),)}, ("charges", 0, "tiers"), "has no meaning for per_unit"),
        (
            {"charges": (charge(pricing=Pricing.GRADUATED, tiers=(Tier(None), Tier(None))),)},
            ("charges", 0, "tiers", 0),
            "never ends",
        ),
        (
            {"charges": (charge(pricing=Pricing.GRADUATED, tiers=(Tier(5), Tier(9))),)},
            ("charges", 0, "tiers", 1, "up_to"),
            "is the last tier and ends",
        ),
        (
            {"charges": (charge(pricing=Pricing.GRADUATED, tiers=(Tier(5), Tier(5), Tier(None))),)},
            ("charges", 0, "tiers", 1, "up_to"),
            "has already ended",
        ),
        ({"fees": (Fee("F", 1), Fee("F", 2))}, ("fees", 1), "overlaps fees[0]: the same name F"),
        ({"discounts": (Discount("D", 1), Discount("D", 2))}, ("discounts", 1), "overlaps discounts[0]"),
        (
            {"prices": (ChargePrice("u", 1, Selector(model="*mini")), ChargePrice("u", 2, Selector(model="gpt4*")))},
            ("prices", 1, "model"),
            "can match one model",
        ),
    ],
)
def test_contradictions_are_refused(card: dict[str, object], path: tuple[object, ...], message: str) -> None:
    """A card on which two amounts, or none, could be meant is refused with the place of the mistake."""
    with pytest.raises(InvalidRateCard) as caught:
        RateCard(**card)  # type: ignore[arg-type]
    assert [problem.path for problem in caught.value.problems] == [path]
    assert message in caught.value.problems[0].message


def test_versions_of_a_charge_follow_one_another() -> None:
    """The same name at another time, or for another customer, is no contradiction."""
    RateCard(
        charges=(
            charge(selector=Selector(to_nanos=AT)),
            charge(selector=Selector(from_nanos=AT), attos=1),
            charge(selector=Selector(customer_id="acme"), attos=2),
            charge(selector=Selector(group="enterprise"), attos=3),
        )
    )
