"""Period charges hold for any tariff and any quantity: parts add up to the whole, and a slow oracle agrees."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from otelbill_collector.domain.charges import Part, PeriodCharge, Pricing, Rounding, Tier, price_parts
from otelbill_collector.domain.money import multiply_exact
from otelbill_collector.domain.quantities import MICROS, to_micros
from otelbill_collector.domain.selectors import Selector
from otelbill_collector.domain.usage import Quantity

pytestmark = pytest.mark.money

STEP = 10**6  # attos of a price with 12 decimals

prices = st.integers(0, 10**12).map(lambda steps: steps * STEP)
whole = st.integers(0, 3_000)
fine = st.integers(0, 3 * 10**9).map(lambda micros: Decimal(micros).scaleb(-6))
quantities = st.one_of(whole, fine, st.integers(0, 2**53))
included = st.sampled_from([0, 0, 1, 7, 1_000])


@st.composite
def tier_lists(draw: st.DrawFn, *, flat: bool) -> tuple[Tier, ...]:
    """Ascending tiers of which the last has no end."""
    ends: list[int | None] = [*sorted(draw(st.sets(st.integers(1, 2_500), max_size=4))), None]
    return tuple(Tier(end, draw(prices), draw(prices) if flat else 0) for end in ends)


@st.composite
def charges(draw: st.DrawFn, pricing: Pricing | None = None, *, flat: bool = True) -> PeriodCharge:
    """Any valid charge."""
    chosen = pricing or draw(st.sampled_from(list(Pricing)))
    rounding: Rounding = draw(st.sampled_from(["up", "down", "nearest"]))
    return PeriodCharge(
        "charge",
        "unit",
        chosen,
        attos=draw(prices),
        package_size=draw(st.sampled_from([1, 2, 3, 10, 1_000])),
        rounding=rounding,
        tiers=draw(tier_lists(flat=flat)),
        included=draw(included),
    )


def price(charge: PeriodCharge, *sizes: Quantity) -> int:
    """Attos of all lines."""
    return sum(line.amount_attos for line in price_parts([Part(charge, size) for size in sizes]))


def price_slowly(charge: PeriodCharge, quantity: Quantity) -> Fraction:
    """The same from the words of docs/pricing.md, with fractions and one tier at a time."""
    used = max(Fraction(0), Fraction(quantity) - charge.included)
    if not used:
        return Fraction(0)
    if charge.pricing is Pricing.PER_UNIT:
        return used * charge.attos
    if charge.pricing is Pricing.PACKAGE:
        exact = used / charge.package_size
        full = exact.numerator // exact.denominator
        more = (
            exact > full if charge.rounding == "up" else charge.rounding == "nearest" and exact - full >= Fraction(1, 2)
        )
        return Fraction((full + more) * charge.attos)
    bounds = [0, *(tier.up_to for tier in charge.tiers)]
    amount = Fraction(0)
    for (low, high), tier in zip(pairwise(bounds), charge.tiers, strict=True):
        assert low is not None
        inside = (used if high is None else min(used, Fraction(high))) - low
        if charge.pricing is Pricing.GRADUATED:
            amount += inside * tier.attos + tier.flat_attos if inside > 0 else 0
        elif inside > 0 and (high is None or used <= high):
            amount = used * tier.attos * (charge.pricing is Pricing.VOLUME) + tier.flat_attos
    return amount


@given(charges(), quantities)
def test_every_model_agrees_with_a_slow_oracle(charge: PeriodCharge, quantity: Quantity) -> None:
    """For any tariff and quantity the amount is exactly what the definition says."""
    if charge.pricing is Pricing.STAIRSTEP:
        charge = PeriodCharge(
            charge.name,
            charge.unit,
            charge.pricing,
            tiers=tuple(Tier(tier.up_to, 0, tier.flat_attos) for tier in charge.tiers),
            included=charge.included,
        )
    assert price(charge, quantity) == price_slowly(charge, quantity)


@given(charges(), quantities)
def test_lines_are_their_own_arithmetic(charge: PeriodCharge, quantity: Quantity) -> None:
    """Each line is quantity x price + flat amount, and the quantities of the lines are the usage."""
    lines = price_parts([Part(charge, quantity)])
    assert sum((Decimal(line.quantity) for line in lines), Decimal(0)) == quantity
    for line in lines:
        each = 0 if line.unit_attos is None else multiply_exact(line.quantity, line.unit_attos)
        assert line.amount_attos == each + line.flat_attos


@given(charges(), st.lists(quantities, max_size=5))
def test_the_sum_of_parts_is_the_whole(charge: PeriodCharge, sizes: list[Quantity]) -> None:
    """A period cut anywhere, under terms that do not change, costs what it costs uncut, for every model."""
    total = sum((Decimal(size) for size in sizes), Decimal(0))
    assert price(charge, *sizes) == price(charge, total)


@given(charges(), st.lists(quantities, max_size=5), st.data())
def test_the_order_of_usage_changes_nothing(charge: PeriodCharge, sizes: list[Quantity], data: st.DataObject) -> None:
    """The same usage in another order comes to the same amount."""
    assert price(charge, *data.draw(st.permutations(sizes))) == price(charge, *sizes)


@given(charges(Pricing.GRADUATED, flat=False), fine, fine)
def test_graduated_prices_are_monotone_and_continuous(charge: PeriodCharge, one: Decimal, other: Decimal) -> None:
    """More usage never costs less, and no step is higher than the dearest tier's price for what was added."""
    low, high = sorted((one, other))
    dearest = max(tier.attos for tier in charge.tiers)
    difference = price(charge, high) - price(charge, low)
    assert 0 <= difference <= Fraction(high - low) * dearest


@given(charges(), st.tuples(quantities, quantities).map(sorted))
def test_more_usage_never_costs_less(charge: PeriodCharge, pair: list[Quantity]) -> None:
    """Per unit, by package, in graduated tiers with flat amounts, and on stairs that ascend. Volume may: that is its
    point, and only where a tier begins that is cheaper.
    """
    low, high = pair
    if charge.pricing is Pricing.STAIRSTEP:
        flats = sorted(tier.flat_attos for tier in charge.tiers)
        steps = tuple(Tier(tier.up_to, 0, flat) for tier, flat in zip(charge.tiers, flats, strict=True))
        charge = replace(charge, tiers=steps)
    elif charge.pricing is Pricing.VOLUME:
        used = [max(0, to_micros(quantity) - charge.included * MICROS) for quantity in pair]
        ends = [tier.up_to * MICROS for tier in charge.tiers if tier.up_to is not None]
        assume(not any(used[0] <= end < used[1] for end in ends) or not used[0])
    assert price(charge, low) <= price(charge, high)


@given(charges(Pricing.GRADUATED, flat=False))
def test_graduated_prices_do_not_jump_where_tiers_meet(charge: PeriodCharge) -> None:
    """A millionth of a unit on either side of a tier's end costs a millionth of that side's price."""
    tick = Decimal("0.000001")
    for tier, after in pairwise(charge.tiers):
        assert tier.up_to is not None
        end = Decimal(tier.up_to + charge.included)
        assert price(charge, end) - price(charge, end - tick) == tier.attos // 10**6
        assert price(charge, end + tick) - price(charge, end) == after.attos // 10**6


@given(charges(), charges(), quantities, quantities)
def test_a_change_of_terms_counts_on(before: PeriodCharge, after: PeriodCharge, one: Quantity, other: Quantity) -> None:
    """Under two versions no unit is lost or counted twice, each line names its version, and a version with nothing
    to pay changes no amount.
    """
    later = PeriodCharge(
        after.name,
        after.unit,
        after.pricing,
        Selector(from_nanos=1),
        after.attos,
        after.package_size,
        after.rounding,
        after.tiers,
        after.included,
    )
    lines = price_parts([Part(before, one), Part(later, other)])
    for charge, size in ((before, one), (later, other)):
        own = [line.quantity for line in lines if line.version_id == charge.version.version_id]
        assert sum(map(Decimal, own), Decimal(0)) == size
    assert price_parts([Part(before, one), Part(later, 0)]) == price_parts([Part(before, one)])
    assert all(line.amount_attos >= 0 for line in lines)
