"""Credits under random grants, voids and usage: what must hold whatever happens and in whatever order it is told."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.domain.credits import Burned, Demand, Place, burn
from otelbill_collector.domain.grants import SLICE_NANOS, Grant, Measure, Origin, Rollover, Scope, Void
from otelbill_collector.domain.quantities import MICROS
from otelbill_collector.domain.ratecard import CREDITS
from otelbill_collector.domain.transfers import (
    Key,
    Transfer,
    find_imbalance,
    list_flows,
    list_transfers,
    sum_accounts,
    sum_posted,
)

pytestmark = pytest.mark.money

SLICES = st.integers(0, 12).map(lambda number: number * SLICE_NANOS)
NAMES = st.sampled_from(["", "a", "b"])
UNITS = ["output_tokens", "requests"]
EACH = st.sampled_from([0, 0, MICROS // 2, 5 * MICROS])  # millionths of a credit for one unit
PRICES = st.sampled_from([0, MICROS, 3 * MICROS, 7_000 * MICROS])


@st.composite
def grants(draw: st.DrawFn) -> Grant:
    """A grant of dollars or units somewhere in the first three hours."""
    measure = draw(st.sampled_from(Measure))
    unit = draw(st.sampled_from([*UNITS, CREDITS]))
    start = draw(SLICES)
    expiry = draw(st.none() | st.integers(1, 6).map(lambda number: start + number * SLICE_NANOS))
    rollover = None
    if expiry is not None and draw(st.booleans()):
        until = expiry + draw(st.integers(1, 5)) * SLICE_NANOS
        rollover = Rollover(until, draw(st.integers(1, 1_000_000)), draw(st.none() | st.integers(1, 50 * MICROS)))
    return Grant(
        customer_id="acme",
        measure=measure,
        asset="USD" if measure is Measure.MONEY else unit,
        amount=draw(st.integers(1, 200)) * MICROS,
        start_nanos=start,
        expiry_nanos=expiry,
        reason=draw(st.sampled_from(["x", "y", "z"])),
        operator="ann",
        given_nanos=draw(SLICES),
        priority=draw(st.integers(0, 2)),
        origin=draw(st.sampled_from(Origin)),
        scope=Scope(
            draw(st.sampled_from([None, "a"])),
            model=draw(st.sampled_from([None, "a*"])),
            unit=None if measure is Measure.UNITS else draw(st.sampled_from([None, *UNITS, CREDITS])),
        ),
        rollover=rollover,
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """Some units at a price."""
    each, quantity = draw(EACH), draw(st.integers(1, 60))
    price = 6 * each if each else draw(PRICES)
    place = Place(draw(SLICES), draw(NAMES), "", draw(NAMES), draw(st.sampled_from(UNITS)))
    return Demand(place, "USD", price, quantity * MICROS, quantity * price, each)


GRANTS = st.lists(grants(), max_size=5, unique_by=lambda grant: grant.grant_id)
DEMANDS = st.lists(demands(), max_size=12)
UNTIL = st.integers(0, 30).map(lambda number: number * SLICE_NANOS + 1)


@st.composite
def books(draw: st.DrawFn) -> tuple[list[Grant], list[Void]]:
    """Grants, some of them void."""
    given_grants = draw(GRANTS)
    voids = [Void(grant.grant_id, draw(SLICES), "r", "o", 0) for grant in given_grants if draw(st.integers(0, 4)) == 0]
    return given_grants, voids


def negate(demand: Demand) -> Demand:
    return demand._replace(quantity_micros=-demand.quantity_micros, charge_attos=-demand.charge_attos)


def list_all(given_grants: list[Grant], burned: Burned) -> dict[str, Grant]:
    return {grant.grant_id: grant for grant in (*given_grants, *burned.successors.values())}


@given(books(), DEMANDS, UNTIL)
def test_credits_pay_in_time_in_scope_and_never_past_zero(
    book: tuple[list[Grant], list[Void]], usage: list[Demand], until: int
) -> None:
    """No grant pays more than it holds, nor before its start, from its expiry or its void on, nor outside its scope;
    what it paid, what ended and what is left are together what was granted.
    """
    given_grants, voids = book
    burned = burn(given_grants, voids, usage, until)
    known = list_all(given_grants, burned)
    ends = {void.grant_id: void.at_nanos for void in voids}
    paid: dict[str, int] = defaultdict(int)
    for item in burned.allocations:
        grant, place = known[item.grant_id], item.place
        assert grant.start_nanos <= place.at_nanos < min(until, ends.get(grant.grant_id, until))
        assert grant.expiry_nanos is None or place.at_nanos < grant.expiry_nanos
        names = {"project_id": place.project_id, "step": place.step, "model": place.model, "unit": place.unit}
        in_credits = any(demand.place == place and demand.credits_micros for demand in usage)
        assert grant.scope.covers(**names, in_credits=in_credits)
        assert item.amount > 0
        paid[item.grant_id] += item.amount
    for ending in burned.endings:
        assert ending.amount > 0
        assert ending.at_nanos <= until
        paid[ending.grant_id] += ending.amount
    for grant_id, grant in known.items():
        left = burned.left.get(grant_id, grant.amount - paid[grant_id])
        assert left >= 0
        assert paid[grant_id] + left == grant.amount
        if grant_id not in burned.left:
            assert left in (0, grant.amount)  # ended, or not begun


@given(books(), DEMANDS, UNTIL)
def test_what_is_paid_and_what_is_not_are_the_usage(
    book: tuple[list[Grant], list[Void]], usage: list[Demand], until: int
) -> None:
    """Values of allocations and overage are the charges, to the last atto and at every place."""
    burned = burn(*book, usage, until)
    sums: dict[Place, int] = defaultdict(int)
    for demand in usage:
        if demand.place.at_nanos < until:
            sums[demand.place] += demand.charge_attos
    for item in burned.allocations:
        sums[item.place] -= item.value_attos
    for demand in burned.overage:
        assert demand.charge_attos >= 0
        sums[demand.place] -= demand.charge_attos
    assert set(sums.values()) <= {0}


@given(books(), DEMANDS, st.integers(0, 100))
def test_credits_never_pay_more_than_a_discount_leaves(
    book: tuple[list[Grant], list[Void]], usage: list[Demand], percent: int
) -> None:
    """Whatever a discount at the end of a period takes off, credits and overage together are the rest, and neither is
    below zero. Nothing is paid out of it before usage: a discount of nothing changes nothing.
    """
    end = 13 * SLICE_NANOS
    total = sum(demand.charge_attos for demand in usage)
    taken = total * percent // 100
    discount = Demand(Place(end - SLICE_NANOS, "", "", "", ""), "USD", charge_attos=-taken)
    burned = burn(*book, [*usage, discount], end)
    assert all(item.value_attos >= 0 for item in burned.allocations)
    assert all(demand.charge_attos >= 0 for demand in burned.overage)
    paid = sum(item.value_attos for item in burned.allocations)
    assert paid + sum(demand.charge_attos for demand in burned.overage) == total - taken
    if not taken:
        assert burned == burn(*book, usage, end)


@given(books(), DEMANDS, UNTIL, st.randoms(use_true_random=False))
def test_order_and_batching_change_nothing(
    book: tuple[list[Grant], list[Void]], usage: list[Demand], until: int, chance: random.Random
) -> None:
    """Whoever shuffles grants, voids and usage, or cuts usage into parts, gets the same to the last entry."""
    given_grants, voids = book
    expected = burn(given_grants, voids, usage, until)
    parts: list[Demand] = []
    for demand in usage:
        cut = chance.randrange(demand.quantity_micros // MICROS + 1) * MICROS
        one = demand._replace(quantity_micros=cut, charge_attos=cut // MICROS * demand.price_attos)
        rest = demand._replace(
            quantity_micros=demand.quantity_micros - cut, charge_attos=demand.charge_attos - one.charge_attos
        )
        parts += [one, rest]
    for items in (given_grants, voids, parts):
        chance.shuffle(items)  # type: ignore[arg-type]
    assert burn([*given_grants, *given_grants], voids, parts, until) == expected


@given(books(), DEMANDS, UNTIL, demands())
def test_late_usage_and_its_reversal_leave_everything_as_it_was(
    book: tuple[list[Grant], list[Void]], usage: list[Demand], until: int, late: Demand
) -> None:
    """Balances, overage and rollovers are the same after something late came and was taken back."""
    assert burn(*book, [late, *usage, negate(late)], until) == burn(*book, usage, until)


class Posting:
    """The transfers of one customer, posted by difference again and again."""

    def __init__(self) -> None:
        self.transfers: list[Transfer] = []

    def post(self, given_grants: list[Grant], voids: list[Void], usage: list[Demand], until: int) -> list[Transfer]:
        flows = list_flows(given_grants, burn(given_grants, voids, usage, until))
        posted = sum_posted(self.transfers)
        made = list_transfers(flows, posted, customer_id="acme", booked_nanos=until, next_id=len(self.transfers) + 1)
        self.transfers += made
        assert {key: item.flow for key, item in sum_posted(self.transfers).items() if item.flow.amount} == flows
        return made


@given(books(), DEMANDS, st.lists(UNTIL, min_size=1, max_size=4), demands())
def test_transfers_balance_and_follow_whatever_changes(
    book: tuple[list[Grant], list[Void]], usage: list[Demand], times: list[int], late: Demand
) -> None:
    """At every posting accounts of an asset add up to zero, no grant is below zero, a correction names an earlier
    transfer of the same flow; posting again without news writes nothing.
    """
    given_grants, voids = book
    posting = Posting()
    now = 0
    for number, until in enumerate(sorted(times)):
        now = until
        posting.post(given_grants, voids[:number], usage[: number * 4], now)
    before = posting.transfers[:]
    for told in ([*usage[: len(times) * 4 - 4], late], usage, usage):
        posting.post(given_grants, voids, told, now)
    assert posting.transfers[: len(before)] == before
    assert posting.post(given_grants, voids, usage, now) == []
    keys: dict[int, Key] = {}
    for item in posting.transfers:
        assert find_imbalance(item) is None
        assert item.corrects is None or keys[item.corrects] == item.key
        keys[item.transfer_id] = item.key
    totals: dict[str, int] = defaultdict(int)
    for (account, asset), balance in sum_accounts(posting.transfers).items():
        totals[asset] += balance
        assert balance >= 0 or account == "issued"
    assert set(totals.values()) <= {0}


@given(books(), DEMANDS, UNTIL, demands())
def test_a_late_event_and_its_reversal_leave_balances_as_they_were(
    book: tuple[list[Grant], list[Void]], usage: list[Demand], until: int, late: Demand
) -> None:
    """Credits that moved for it move back, by transfers."""
    posting = Posting()
    posting.post(*book, usage, until)
    before = sum_accounts(posting.transfers)
    posting.post(*book, [*usage, late], until)
    posting.post(*book, [*usage, late, negate(late)], until)
    after = sum_accounts(posting.transfers)
    assert {key: value for key, value in after.items() if value} == {
        key: value for key, value in before.items() if value
    }
