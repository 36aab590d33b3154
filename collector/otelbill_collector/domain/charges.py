"""Period charges: prices that depend on how much a customer used in a billing period. Owns them and their arithmetic.

Does not know periods, invoices or records (see decision 0008): a quantity, or quantities on both sides of a change of
price, goes in; priced lines come out. Exact: a quantity has at most 6 decimals, a price at most 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from otelbill_collector.domain.money import format_attos, multiply_exact
from otelbill_collector.domain.prices import Json, PriceVersion, create_price_version, render_percent
from otelbill_collector.domain.quantities import MICROS, format_quantity, from_micros, to_micros
from otelbill_collector.domain.selectors import Selector
from otelbill_collector.domain.usage import Quantity

Rounding = Literal["up", "down", "nearest"]


class Pricing(StrEnum):
    """How the quantity of a period becomes an amount."""

    PER_UNIT = "per_unit"
    PACKAGE = "package"
    GRADUATED = "graduated"
    VOLUME = "volume"
    STAIRSTEP = "stairstep"


TIERED = frozenset({Pricing.GRADUATED, Pricing.VOLUME, Pricing.STAIRSTEP})


@dataclass(frozen=True, slots=True)
class Tier:
    """The units after the `up_to` of the tier before, up to and including the unit number `up_to` (None: all others).

    As positions on the line of all units that is [previous up_to, up_to). `attos` for one unit, `flat_attos` once.
    """

    up_to: int | None
    attos: int = 0
    flat_attos: int = 0


@dataclass(frozen=True, slots=True)
class PeriodCharge:
    """A price of one unit that counts a customer's whole period. `included` units are free and come off first.

    `attos` are for one unit, or for one package of `package_size`. `tiers` ascend and the last has no end (the rate
    card checks that). Entries of one `name` are versions of one charge, for other times or other customers.
    """

    name: str
    unit: str
    pricing: Pricing
    selector: Selector = field(default_factory=Selector)
    attos: int = 0
    package_size: int = 1
    rounding: Rounding = "up"
    tiers: tuple[Tier, ...] = ()
    included: int = 0
    currency: str = "USD"  # the card's

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version: everything that makes its amounts."""
        content: dict[str, Json] = {"name": self.name, "unit": self.unit, "pricing": self.pricing.value}
        content |= {"included": self.included} if self.included else {}
        if self.pricing in TIERED:
            content["tiers"] = [_render_tier(tier) for tier in self.tiers]
        else:
            content["price"] = format_attos(self.attos)
        if self.pricing is Pricing.PACKAGE:
            content |= {"package_size": self.package_size, "rounding": self.rounding}
        return {**content, **self.selector.render()}

    @property
    def version(self) -> PriceVersion:
        """What this charge says, under a digest of it."""
        return _create_version(self)


def _render_tier(tier: Tier) -> Json:
    return {"up_to": tier.up_to, "price": format_attos(tier.attos), "flat": format_attos(tier.flat_attos)}


@lru_cache(maxsize=1_024)
def _create_version(charge: PeriodCharge) -> PriceVersion:
    return create_price_version("period_charge", {"currency": charge.currency, "charge": charge.render()})


@dataclass(frozen=True, slots=True)
class Fee:
    """An amount for every period, used or not; `prorate` by time when only a part of the period is in force."""

    name: str
    attos: int
    selector: Selector = field(default_factory=Selector)
    prorate: bool = False

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        amount: dict[str, Json] = {"name": self.name, "amount": format_attos(self.attos), "prorate": self.prorate}
        return {**amount, **self.selector.render()}


@dataclass(frozen=True, slots=True)
class Minimum:
    """The least that a period comes to; what is missing is charged under this name."""

    name: str
    attos: int
    selector: Selector = field(default_factory=Selector)

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        return {"name": self.name, "amount": format_attos(self.attos), **self.selector.render()}


@dataclass(frozen=True, slots=True)
class Commitment:
    """What a customer has promised to spend in the whole term [from, to) of the selector."""

    name: str
    attos: int
    selector: Selector = field(default_factory=Selector)

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        return {"name": self.name, "amount": format_attos(self.attos), **self.selector.render()}


@dataclass(frozen=True, slots=True)
class Discount:
    """A percentage off usage and fees: `percent_scaled` ten-thousandths of a percent."""

    name: str
    percent_scaled: int
    selector: Selector = field(default_factory=Selector)

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        return {"name": self.name, "percent": render_percent(self.percent_scaled), **self.selector.render()}


@dataclass(frozen=True, slots=True)
class Part:
    """Usage of a period under the one version of a charge that was in force."""

    charge: PeriodCharge
    quantity: Quantity


@dataclass(frozen=True, slots=True)
class ChargeLine:
    """One priced line. `amount_attos` is quantity x `unit_attos` (None: nothing for each unit) + `flat_attos`."""

    name: str
    unit: str
    label: str
    quantity: Quantity
    unit_attos: int | None
    flat_attos: int
    amount_attos: int
    version_id: str
    arithmetic: str


@dataclass(frozen=True, slots=True)
class _Span:
    """A part as positions on the line of the period's units, in millionths: [start, end), after what is included.

    `total` is where the whole period ends under this part's version.
    """

    charge: PeriodCharge
    start: int
    end: int
    total: int

    @property
    def quantity(self) -> int:
        return self.end - self.start


def price_parts(parts: Sequence[Part]) -> list[ChargeLine]:
    """The lines of one charge of a customer's period; `parts` are in order of time and differ in version.

    The quantities of the lines add up to those of the parts. No usage makes no line. Raises ValueError for a quantity
    below zero or parts of several charges, InexactAmount past 6 decimals of a quantity.
    """
    if len({(part.charge.name, part.charge.unit) for part in parts}) > 1:
        raise ValueError("the parts of one charge have one name and one unit")
    sizes = [to_micros(part.quantity) for part in parts]
    if any(size < 0 for size in sizes):
        raise ValueError("the usage of a period is less than zero")
    whole, position = sum(sizes), 0
    lines: list[ChargeLine] = []
    for part, size in zip(parts, sizes, strict=True):
        free = part.charge.included * MICROS
        start, end = max(0, position - free), max(0, position + size - free)
        span = _Span(part.charge, start, end, max(0, whole - free))
        if size > span.quantity:
            lines.append(_create_included(part.charge, size - span.quantity))
        if span.quantity:
            lines += _PRICERS[part.charge.pricing](span)
        position += size
    return lines


def _create_included(charge: PeriodCharge, micros: int) -> ChargeLine:
    quantity = from_micros(micros)
    text = f"{format_quantity(quantity)} of {format_quantity(charge.included)} included"
    return _create_line(charge, f"included: first {format_quantity(charge.included)}", quantity, 0, 0, text)


def _price_per_unit(span: _Span) -> Iterator[ChargeLine]:
    label = f"above {format_quantity(span.charge.included)} included" if span.charge.included else "each"
    yield _price_units(span.charge, label, span.quantity, span.charge.attos)


def _price_packages(span: _Span) -> Iterator[ChargeLine]:
    """The packages of the period so far, less those that earlier parts have paid: rounded over the whole period."""
    charge = span.charge
    before, after = (_count_packages(charge, micros) for micros in (span.start, span.end))
    size, count = format_quantity(charge.package_size), after - before
    text = f"{format_quantity(from_micros(span.end))} / {size} = {format_quantity(after)}, rounded {charge.rounding}"
    text += f"; less {format_quantity(before)} before" if before else ""
    text += f"; {format_quantity(count)} x {format_attos(charge.attos)} = {format_attos(count * charge.attos)}"
    quantity = from_micros(span.quantity)
    yield _create_line(charge, f"packages of {size}", quantity, None, count * charge.attos, text)


def _count_packages(charge: PeriodCharge, micros: int) -> int:
    size = charge.package_size * MICROS
    extra = {"up": size - 1, "down": 0, "nearest": size // 2}[charge.rounding]  # size is even: half is rounded up
    return (micros + extra) // size


def _price_graduated(span: _Span) -> Iterator[ChargeLine]:
    """Each unit at the price of its own tier; a tier's flat amount with the first unit in it."""
    for number, tier, start, end in _list_tiers(span.charge):
        low, high = max(span.start, start), span.end if end is None else min(span.end, end)
        if low < high:
            flat = tier.flat_attos if low == start else 0
            yield _price_units(span.charge, _label_tier(number, start, end), high - low, tier.attos, flat)


def _price_volume(span: _Span) -> Iterator[ChargeLine]:
    """All units at the price of the tier that the whole period reaches, and that tier's flat amount."""
    number, tier, start, end = _find_tier(span.charge, span.total)
    label = f"all at {_label_tier(number, start, end)}"
    yield _price_units(span.charge, label, span.quantity, tier.attos, _share(tier.flat_attos, span))


def _price_stairs(span: _Span) -> Iterator[ChargeLine]:
    """The flat amount of the tier that the whole period reaches, however much of the tier is used."""
    number, tier, start, end = _find_tier(span.charge, span.total)
    share, total = _share(tier.flat_attos, span), format_quantity(from_micros(span.total))
    text = f"{total} in the period = {format_attos(tier.flat_attos)}"
    quantity = from_micros(span.quantity)
    if share != tier.flat_attos:
        text += f"; {format_quantity(quantity)} of {total} of it = {format_attos(share)}"
    yield _create_line(span.charge, _label_tier(number, start, end), quantity, None, share, text)


def _share(flat_attos: int, span: _Span) -> int:
    """A part's share, by quantity, of what is paid once. Cut so that shares of equal amounts add up to it exactly."""
    return flat_attos * span.end // span.total - flat_attos * span.start // span.total


_PRICERS: dict[Pricing, Callable[[_Span], Iterator[ChargeLine]]] = {
    Pricing.PER_UNIT: _price_per_unit,
    Pricing.PACKAGE: _price_packages,
    Pricing.GRADUATED: _price_graduated,
    Pricing.VOLUME: _price_volume,
    Pricing.STAIRSTEP: _price_stairs,
}


def _list_tiers(charge: PeriodCharge) -> Iterator[tuple[int, Tier, int, int | None]]:
    """Number, tier, start and end in millionths."""
    ends = [0, *(None if tier.up_to is None else tier.up_to * MICROS for tier in charge.tiers)]
    for number, (tier, (start, end)) in enumerate(zip(charge.tiers, pairwise(ends), strict=True), 1):
        yield number, tier, start or 0, end


def _find_tier(charge: PeriodCharge, total: int) -> tuple[int, Tier, int, int | None]:
    """The tier of the last unit."""
    for found in _list_tiers(charge):
        if found[3] is None or total <= found[3]:
            return found
    raise ValueError(f"the last tier of {charge.name} has an end")


def _label_tier(number: int, start: int, end: int | None) -> str:
    low = format_quantity(from_micros(start))
    return (
        f"tier {number}: above {low}" if end is None else f"tier {number}: {low} to {format_quantity(from_micros(end))}"
    )


def _price_units(charge: PeriodCharge, label: str, micros: int, attos: int, flat_attos: int = 0) -> ChargeLine:
    quantity = from_micros(micros)
    text = f"{format_quantity(quantity)} x {format_attos(attos)}"
    text += f" + {format_attos(flat_attos)}" if flat_attos else ""
    amount = multiply_exact(quantity, attos) + flat_attos
    return _create_line(charge, label, quantity, attos, flat_attos, f"{text} = {format_attos(amount)}")


def _create_line(
    charge: PeriodCharge, label: str, quantity: Quantity, unit_attos: int | None, flat_attos: int, arithmetic: str
) -> ChargeLine:
    amount = flat_attos + (multiply_exact(quantity, unit_attos) if unit_attos else 0)
    return ChargeLine(
        charge.name, charge.unit, label, quantity, unit_attos, flat_attos, amount, charge.version.version_id, arithmetic
    )
