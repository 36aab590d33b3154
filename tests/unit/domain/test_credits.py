"""Every rule of credits as a table that an accountant can follow; the amounts are worked out in the text."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from otelbill_collector.domain.credits import Burned, Demand, EndKind, Place, burn
from otelbill_collector.domain.grants import (
    Grant,
    InvalidGrant,
    Measure,
    Origin,
    Rollover,
    Scope,
    Void,
    derive_successor_id,
)
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import format_attos, parse_attos
from otelbill_collector.domain.quantities import MICROS, to_micros


def at(text: str) -> int:
    return parse_instant(f"2026-11-{text}")


def usd(name: str, amount: str, start: str = "01", **given: Any) -> Grant:
    """A grant of dollars whose reason is its name."""
    expires = given.pop("expires", None)
    return Grant(
        customer_id="acme",
        measure=Measure.MONEY,
        asset="USD",
        amount=parse_attos(amount),
        start_nanos=at(start),
        expiry_nanos=None if expires is None else at(expires),
        reason=name,
        operator="ann",
        given_nanos=at("01"),
        **given,
    )


def tokens(name: str, amount: int, start: str = "01", **given: Any) -> Grant:
    """A grant of output tokens."""
    template = usd(name, "1", start, **given)
    return replace(template, measure=Measure.UNITS, asset="output_tokens", amount=amount * MICROS)


def used(when: str, charge: str, unit: str = "input_tokens", **names: str) -> Demand:
    """Usage with a charge; how many units it was does not matter."""
    place = Place(at(when), names.get("project", ""), names.get("step", ""), names.get("model", "gpt"), unit)
    return Demand(place, names.get("currency", "USD"), charge_attos=parse_attos(charge))


def said(when: str, quantity: int, price: str) -> Demand:
    """Output tokens at a price for one."""
    place, attos = Place(at(when), "", "", "gpt", "output_tokens"), parse_attos(price)
    return Demand(place, "USD", attos, quantity * MICROS, quantity * attos)


def show(burned: Burned, *grants: Grant) -> dict[str, str]:
    """What each grant paid, by its name, and `overage`."""
    paid = {
        grant.reason: format_attos(
            sum(item.value_attos for item in burned.allocations if item.grant_id == grant.grant_id)
        )
        for grant in (*grants, *burned.successors.values())
    }
    overage = sum(item.charge_attos for item in burned.overage)
    return {name: amount for name, amount in {**paid, "overage": format_attos(overage)}.items() if amount != "0"}


# usage of $30 on 10 November in every row; grants as (name, amount, what else)
ORDER = [
    # The first in order gives all of its 20, the second the 10 that are missing.
    ("the lower priority first", [usd("b", "20", priority=2), usd("a", "20", priority=1)], {"a": "20", "b": "10"}),
    ("then the sooner expiry", [usd("late", "20", expires="30"), usd("soon", "20", expires="20")],
     {"soon": "20", "late": "10"}),
    ("an expiry before none", [usd("never", "20"), usd("soon", "20", expires="20")], {"soon": "20", "never": "10"}),
    ("then promotional before paid", [usd("paid", "20", origin=Origin.PAID), usd("gift", "20")],
     {"gift": "20", "paid": "10"}),
    ("then the earlier start", [usd("new", "20", "05"), usd("old", "20", "02")], {"old": "20", "new": "10"}),
    ("priority before expiry", [usd("soon", "20", expires="20", priority=1), usd("late", "20", expires="30")],
     {"late": "20", "soon": "10"}),
    # 5 + 5 = 10 of 30 are paid for; 20 remain.
    ("past zero nothing", [usd("a", "5"), usd("b", "5")], {"a": "5", "b": "5", "overage": "20"}),
    ("another currency pays nothing", [replace(usd("eur", "50"), asset="EUR")], {"overage": "30"}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "grants", "expected"), ORDER, ids=[row[0] for row in ORDER])
def test_grants_burn_in_one_order(rule: str, grants: list[Grant], expected: dict[str, str]) -> None:
    """Who reads the documentation can say which grant pays, whatever order they were given in."""
    for ordered in (grants, grants[::-1]):
        assert show(burn(ordered, (), [used("10", "30")], at("11")), *grants) == expected, rule


DATES = [
    # In force from the 5th until before the 9th: 1 on the 4th is too early, 2 on the 5th and 4 on the 8th are paid,
    # 8 on the 9th is too late. 2 + 4 = 6 are paid, 1 + 8 = 9 are not, and 50 - 6 = 44 expire.
    ("04T23:45:00Z", "1", {"overage": "1"}),
    ("05T00:00:00Z", "2", {"grant": "2"}),
    ("08T23:45:00Z", "4", {"grant": "4"}),
    ("09T00:00:00Z", "8", {"overage": "8"}),
]


@pytest.mark.parametrize(("when", "charge", "expected"), DATES)
def test_a_grant_pays_from_its_start_until_before_its_expiry(when: str, charge: str, expected: dict[str, str]) -> None:
    """Both ends are exact: the start is the first instant in force, the expiry the first out of it."""
    grant = usd("grant", "50", "05", expires="09")
    assert show(burn([grant], (), [used(when, charge)], at("10")), grant) == expected


def test_what_is_left_at_expiry_expires() -> None:
    """Nothing is left over: paid, expired and left add up to what was granted."""
    grant = usd("grant", "50", "05", expires="09")
    burned = burn([grant], (), [used(when, charge) for when, charge, _ in DATES], at("10"))
    assert show(burned, grant) == {"grant": "6", "overage": "9"}
    assert [(item.kind, format_attos(item.amount)) for item in burned.endings] == [(EndKind.EXPIRE, "44")]
    before = burn([grant], (), [used(when, charge) for when, charge, _ in DATES], at("08"))
    assert before.left == {grant.grant_id: parse_attos("48")}
    assert before.endings == ()


SCOPES = [
    (Scope(), {"grant": "15"}),
    (Scope(project_id="web"), {"grant": "5", "overage": "10"}),  # 1 + 4
    (Scope(step="plan"), {"grant": "3", "overage": "12"}),  # 1 + 2
    (Scope(model="gpt-4o*"), {"grant": "9", "overage": "6"}),  # 1 + 8
    (Scope(model="GPT-4o"), {"grant": "1", "overage": "14"}),
    (Scope(unit="output_tokens"), {"grant": "8", "overage": "7"}),
    (Scope(project_id="web", step="plan"), {"grant": "1", "overage": "14"}),
]


@pytest.mark.parametrize(("scope", "expected"), SCOPES, ids=[str(row[0].render()) for row in SCOPES])
def test_a_grant_pays_only_inside_its_scope(scope: Scope, expected: dict[str, str]) -> None:
    """Usage of 1, 2, 4 and 8 dollars: each sum says which of them were paid for."""
    usage = [
        used("10", "1", project="web", step="plan", model="gpt-4o"),
        used("10", "2", project="batch", step="plan", model="o3"),
        used("10", "4", project="web", step="write", model="o3"),
        used("10", "8", unit="output_tokens", project="batch", step="write", model="gpt-4o-mini"),
    ]
    grant = usd("grant", "100", scope=scope)
    assert show(burn([grant], (), usage, at("11")), grant) == expected


def test_units_burn_before_money_and_money_pays_the_rest() -> None:
    """1,000 tokens at $0.002 are $2. A grant of 400 tokens pays 400 x 0.002 = 0.80, one of $1 pays 1.00 of the 1.20
    that remain, and 0.20 is overage.
    """
    units, money = tokens("units", 400, priority=9), usd("money", "1", priority=1)
    burned = burn([money, units], (), [said("10", 1_000, "0.002")], at("11"))
    assert show(burned, units, money) == {"units": "0.8", "money": "1", "overage": "0.2"}
    amounts = {item.grant_id: item.amount for item in burned.allocations}
    assert amounts == {units.grant_id: 400 * MICROS, money.grant_id: parse_attos("1")}


def drawn(when: str, images: str, each: str, worth: str) -> Demand:
    """Images that cost so many credits each, where a credit is worth so much."""
    micros, price = to_micros(Decimal(images)), parse_attos(Decimal(each) * Decimal(worth))
    place = Place(at(when), "", "", "gpt", "images")
    return Demand(place, "USD", price, micros, micros * price // MICROS, to_micros(Decimal(each)))


def units(name: str, amount: str, unit: str, **given: Any) -> Grant:
    """A grant of a unit."""
    return replace(usd(name, "1", **given), measure=Measure.UNITS, asset=unit, amount=to_micros(Decimal(amount)))


# An image costs 5 credits, a credit is worth 0.01: an image is 0.05. What grants pay of 40 images = 200 credits = 2.00
IN_CREDITS: list[tuple[str, list[Grant], dict[str, str], dict[str, str]]] = [
    # what, grants, dollars of the usage that each pays, what each gives in its own measure
    ("enough credits", [units("c", "1000", "credits")], {"c": "2"}, {"c": "200"}),
    # 150 credits pay 30 images, 150 x 0.01 = 1.50; 10 images, 0.50, are invoiced.
    ("too few", [units("c", "150", "credits")], {"c": "1.5", "overage": "0.5"}, {"c": "150"}),
    # 3 credits are no whole image, and pay 0.03 of it.
    ("less than one image", [units("c", "3", "credits")], {"c": "0.03", "overage": "1.97"}, {"c": "3"}),
    # Images themselves come first, whatever the priority: 30 x 0.05 = 1.50; 10 are left, 50 credits, 0.50.
    ("images, then credits", [units("c", "1000", "credits", priority=-1), units("i", "30", "images")],
     {"i": "1.5", "c": "0.5"}, {"i": "30", "c": "50"}),
    # Credits come before money: 100 credits are 1.00, and the other 1.00 is paid in dollars.
    ("credits, then money", [usd("m", "9", priority=-1), units("c", "100", "credits")], {"c": "1", "m": "1"},
     {"c": "100", "m": "1"}),
    # Of two grants of credits the lower priority burns first.
    ("two grants", [units("a", "120", "credits", priority=2), units("b", "120", "credits", priority=1)],
     {"b": "1.2", "a": "0.8"}, {"b": "120", "a": "80"}),
    ("credits for another step", [units("c", "1000", "credits", scope=Scope(step="draw"))], {"overage": "2"}, {}),
    # Money for the unit `credits` pays for whatever costs credits.
    ("money for credits", [usd("m", "9", scope=Scope(unit="credits"))], {"m": "2"}, {"m": "2"}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "grants", "paid", "given"), IN_CREDITS, ids=[row[0] for row in IN_CREDITS])
def test_credits_burn_at_so_many_for_a_unit(
    rule: str, grants: list[Grant], paid: dict[str, str], given: dict[str, str]
) -> None:
    """Grants of credits are counted in credits, and pay what those are worth."""
    burned = burn(grants, (), [drawn("10", "40", "5", "0.01")], at("11"))
    assert show(burned, *grants) == paid, rule
    names = {grant.grant_id: grant for grant in grants}
    amounts = {item.grant_id: item.amount for item in burned.allocations}
    assert {names[key].reason: names[key].format_amount(amount) for key, amount in amounts.items()} == given


def test_what_costs_money_is_not_paid_in_credits() -> None:
    """A price in money says nothing of credits: 1,000 tokens at 0.002 stay 2.00."""
    grant = units("c", "1000", "credits")
    assert show(burn([grant], (), [said("10", 1_000, "0.002")], at("11")), grant) == {"overage": "2"}


def test_a_change_of_the_rate_counts_from_its_instant() -> None:
    """10 images at 5 credits and, later, 10 at 4: 50 + 40 = 90 credits, at 0.01 together 0.90."""
    grant = units("c", "100", "credits")
    burned = burn([grant], (), [drawn("10", "10", "5", "0.01"), drawn("12", "10", "4", "0.01")], at("13"))
    assert show(burned, grant) == {"c": "0.9"}
    assert burned.left == {grant.grant_id: 10 * MICROS}


def test_a_void_grant_pays_nothing_from_then_on() -> None:
    """$10 a day from the 2nd; void on the 4th: two days are paid, 100 - 20 = 80 are void, two days are overage."""
    grant = usd("grant", "100", expires="20")
    void = Void(grant.grant_id, at("04"), "cancelled", "ann", at("04"))
    usage = [used(f"0{day}", "10") for day in (2, 3, 4, 5)]
    burned = burn([grant], [void], usage, at("06"))
    assert show(burned, grant) == {"grant": "20", "overage": "20"}
    assert [(item.kind, format_attos(item.amount)) for item in burned.endings] == [(EndKind.VOID, "80")]
    assert burned.left == {}


ROLLOVERS = [
    # 100 granted until the 10th, 40 used: 60 are left. On the 12th 50 are used, and what rolled over ends on the 20th.
    ("all of it", Rollover(at("20")), "60", {"first": "40", "second": "50"}, "10"),  # 60 - 50 = 10 expire
    ("half of it", Rollover(at("20"), percent_scaled=500_000), "30", {"first": "40", "second": "30", "overage": "20"},
     "30"),  # 60 / 2 = 30 go on, 30 expire
    ("at most 20", Rollover(at("20"), maximum=parse_attos("20")), "20",
     {"first": "40", "second": "20", "overage": "30"}, "40"),
    ("the smaller of both", Rollover(at("20"), 500_000, parse_attos("45")), "30",
     {"first": "40", "second": "30", "overage": "20"}, "30"),
    ("none", None, "0", {"first": "40", "overage": "50"}, "60"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "rollover", "carried", "expected", "expired"), ROLLOVERS, ids=lambda value: value
                         if isinstance(value, str) else "")  # fmt: skip
def test_what_is_left_rolls_over_once(
    rule: str, rollover: Rollover | None, carried: str, expected: dict[str, str], expired: str
) -> None:
    """The successor pays for usage after the expiry, ends when the rule says, and never rolls over again."""
    grant = usd("first", "100", expires="10", rollover=rollover)
    burned = burn([grant], (), [used("05", "40"), used("12", "50")], at("21"))
    names = {item.grant_id: "second" for item in burned.successors.values()}
    shown = {("second" if name.startswith("rolled over") else name): paid for name, paid in show(burned, grant).items()}
    assert shown == expected, rule
    rolled = sum(item.amount for item in burned.endings if item.kind is EndKind.ROLL)
    ended = sum(item.amount for item in burned.endings if item.kind is EndKind.EXPIRE)
    assert (format_attos(rolled), format_attos(ended)) == (carried, expired)
    assert list(names) == ([derive_successor_id(grant.grant_id)] if rollover else [])
    assert all(item.rollover is None for item in burned.successors.values())


def test_late_usage_before_the_expiry_shrinks_what_rolled_over() -> None:
    """40 are used in time and 25 of the same days arrive late: 100 - 65 = 35 go on instead of 60. Of the 50 used on the
    12th the successor now pays 35, and 15 become overage.
    """
    grant = usd("first", "100", expires="10", rollover=Rollover(at("20")))
    usage = [used("05", "40"), used("12", "50")]
    burned = burn([grant], (), [*usage, used("06", "25")], at("15"))
    assert [format_attos(item.amount) for item in burned.successors.values()] == ["35"]
    assert format_attos(sum(item.charge_attos for item in burned.overage)) == "15"
    assert format_attos(sum(item.charge_attos for item in burn([grant], (), usage, at("15")).overage)) == "0"


def test_the_worked_example_of_the_documentation() -> None:
    """docs/credits.md works these amounts out: before the late event of the 10th, and with it."""
    a = usd("A", "10", expires="15", rollover=Rollover(parse_instant("2026-12-01"), percent_scaled=500_000))
    b = replace(usd("B", "20", origin=Origin.PAID), expiry_nanos=parse_instant("2026-12-01"))
    usage, late = [used("03", "4"), used("20", "25")], used("10", "2")
    for told, expected in (
        (usage, {"A": "4", "C": "3", "B": "20", "overage": "2"}),
        ([*usage, late], {"A": "6", "C": "2", "B": "20", "overage": "3"}),
    ):
        burned = burn([a, b], (), told, at("25"))
        paid = {name if len(name) == 1 or name == "overage" else "C": item for name, item in show(burned, a, b).items()}
        assert paid == expected


def test_a_charge_lowered_by_an_operator_takes_from_the_same_hour() -> None:
    """Tokens for $2 whose charge was corrected to $0.50: the correction is -1.50 of no unit, and 0.50 is to be paid."""
    lowered = Demand(Place(at("10"), "", "", "gpt", ""), "USD", charge_attos=-parse_attos("1.50"))
    grant = usd("grant", "10")
    assert show(burn([grant], (), [said("10", 1_000, "0.002"), lowered], at("11")), grant) == {"grant": "0.5"}


def test_usage_and_its_reversal_burn_nothing() -> None:
    """What was booked and taken back leaves every grant whole."""
    grant = usd("grant", "10")
    back = used("10", "3")._replace(charge_attos=-parse_attos("3"))
    burned = burn([grant], (), [used("10", "3"), back], at("11"))
    assert (burned.allocations, burned.overage) == ((), ())
    assert burned.left == {grant.grant_id: grant.amount}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"amount": 0}, "amount: 0 is not more than zero"),
    ({"amount": -5}, "not more than zero"),
    ({"expiry_nanos": at("01")}, "expires: 2026-11-01T00:00:00Z is not after the start"),
    ({"start_nanos": at("01") + 1}, "from: .* is not on a quarter of an hour"),
    ({"expiry_nanos": at("05T10:20:00Z")}, "expires: .* give 2026-11-05T10:15:00Z"),
    ({"rollover": Rollover(at("20"))}, "rollover: a grant without --expires"),
    ({"expiry_nanos": at("20"), "rollover": Rollover(at("20"))}, "rollover-until: .* is not after the expiry"),
    ({"expiry_nanos": at("10"), "rollover": Rollover(at("20"), 0)}, "rollover-percent"),
    ({"expiry_nanos": at("10"), "rollover": Rollover(at("20"), 1_000_001)}, "rollover-percent"),
    ({"expiry_nanos": at("10"), "rollover": Rollover(at("20"), maximum=0)}, "rollover-max"),
    ({"customer_id": " "}, "customer: is empty"),
    ({"reason": ""}, "reason: is empty"),
    (
        {"measure": Measure.UNITS, "asset": "requests", "scope": Scope(unit="output_tokens")},
        "unit: a grant of requests",
    ),
]


@pytest.mark.parametrize(("changes", "problem"), REFUSED)
def test_a_grant_that_cannot_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    """The message names the field, its value and what to do."""
    with pytest.raises(InvalidGrant, match=problem):
        replace(usd("grant", "10"), **changes)


def test_the_same_grant_has_the_same_id_whoever_gives_it_when() -> None:
    """A command that is sent twice is found to be the same; any other term makes another grant."""
    grant = usd("grant", "10")
    assert replace(grant, operator="bob", given_nanos=at("03")).grant_id == grant.grant_id
    others: list[dict[str, Any]] = [
        {"customer_id": "globex"},
        {"amount": 11},
        {"priority": 1},
        {"reason": "again"},
        {"expiry_nanos": at("30")},
        {"scope": Scope(project_id="web")},
        {"scope": Scope(step="web")},
        {"origin": Origin.PAID},
    ]
    assert len({grant.grant_id, *(replace(grant, **changes).grant_id for changes in others)}) == len(others) + 1
