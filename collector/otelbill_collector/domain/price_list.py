"""Prices to be read by people: the entries of a card, and what applies to one kind of event. Owns their wording.

Does not decide what applies (see `tariffs`) and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from otelbill_collector.domain.charges import TIERED, Commitment, Fee, Minimum, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.price_overrides import COST_CURRENCY, ProviderPrice
from otelbill_collector.domain.prices import Json, create_price_version, render_percent
from otelbill_collector.domain.quantities import format_micros, format_quantity
from otelbill_collector.domain.ratecard import ChargePrice, Markup, RateCard
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.selectors import EventNames, Membership, Selector
from otelbill_collector.domain.tariffs import Tariff
from otelbill_collector.domain.usage import STANDARD_UNITS

_MILLION = 10**6


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """One entry: the list it stands in, its unit or name, for whom and when it holds, and what it says."""

    section: str
    name: str
    selector: Selector
    says: str
    version_id: str


@dataclass(frozen=True, slots=True)
class ListedRate:
    """What one unit is charged and costs at one time; None is unknown. `charge` is "period" for a period charge."""

    unit: str
    above_input_tokens: int | None
    charge: str | None
    cost: str | None
    says: str | None
    entry: Json
    version_id: str | None


def list_entries(
    card: RateCard, provider_prices: Sequence[ProviderPrice] = (), members: Mapping[str, Membership] | None = None
) -> Iterator[ListedEntry]:
    """Every entry of a card, in its order, then provider prices and what customers belong to."""
    for price in card.prices:
        yield _list_one("prices", price.unit, price.selector, _say_own(price), card.currency, price.render())
    for markup in card.markups:
        text = f"cost + {render_percent(markup.percent_scaled)} %"
        yield _list_one("markup", "", markup.selector, text, card.currency, markup.render())
    for charge in card.charges:
        text = f"{charge.unit}, {_say_charge(charge)}"
        yield ListedEntry("charges", charge.name, charge.selector, text, charge.version.version_id)
    yield from _list_amounts(card)
    for discount in card.discounts:
        text = f"{render_percent(discount.percent_scaled)} % off"
        yield _list_one("discounts", discount.name, discount.selector, text, card.currency, discount.render())
    for own in provider_prices:
        text = f"costs {_say_price(own.attos)}"
        yield _list_one("provider_prices", own.unit, own.selector, text, COST_CURRENCY, own.render())
    for customer, member in (members or {}).items():
        text = ", ".join(f"{key} {value}" for key, value in member._asdict().items() if value)
        yield _list_one("customers", "", Selector(customer_id=customer), text, "", {"member": text})


def _list_amounts(card: RateCard) -> Iterator[ListedEntry]:
    sections: tuple[tuple[str, str, Iterable[Fee | Minimum | Commitment]], ...] = (
        ("fees", "each period", card.fees),
        ("minimums", "at least, each period", card.minimums),
        ("commitments", "at least, over the term", card.commitments),
    )
    for section, meaning, entries in sections:
        for entry in entries:
            text = f"{format_attos(entry.attos)} {meaning}"
            text += ", by time in force" if isinstance(entry, Fee) and entry.prorate else ""
            yield _list_one(section, entry.name, entry.selector, text, card.currency, entry.render())


def _list_one(
    section: str, name: str, selector: Selector, says: str, currency: str, content: dict[str, Json]
) -> ListedEntry:
    version = create_price_version(section, {"currency": currency, "name": name, "entry": {**content}})
    return ListedEntry(section, name, selector, says, version.version_id)


def _say_own(price: ChargePrice) -> str:
    return (
        _say_price(price.attos)
        if price.credits_micros is None
        else f"{format_micros(price.credits_micros)} credits each"
    )


def _say_price(attos: int) -> str:
    """A price as people quote it: tiny ones for a million."""
    if attos and attos < 10**14:
        return f"{format_attos(attos * _MILLION)} per 1,000,000"
    return f"{format_attos(attos)} each"


def _say_charge(charge: PeriodCharge) -> str:
    included = f"{format_quantity(charge.included)} included, then " if charge.included else ""
    if charge.pricing in TIERED:
        return f"{included}{charge.pricing}: {'; '.join(_say_tiers(charge.tiers))}"
    if charge.pricing is Pricing.PACKAGE:
        size = format_quantity(charge.package_size)
        return f"{included}{format_attos(charge.attos)} per package of {size}, rounded {charge.rounding}"
    return f"{included}{_say_price(charge.attos)}"


def _say_tiers(tiers: Sequence[Tier]) -> Iterator[str]:
    for tier in tiers:
        reach = "beyond" if tier.up_to is None else f"up to {format_quantity(tier.up_to)}"
        amounts = [_say_price(tier.attos)] if tier.attos or not tier.flat_attos else []
        amounts += [f"{format_attos(tier.flat_attos)} flat"] if tier.flat_attos else []
        yield f"{reach} {' + '.join(amounts)}"


def list_rates(rater: Rater, names: EventNames, at_nanos: int) -> Iterator[ListedRate]:
    """What applies to an event of these names at an instant, unit by unit and by size of the request."""
    card = rater.card
    own = [*(price.unit for price in card.prices), *(charge.unit for charge in card.charges)]
    for tariff in rater.find_levels(names, at_nanos).tariffs:
        known = list(tariff.cost.prices) if tariff.cost else []
        for unit in dict.fromkeys([*STANDARD_UNITS, *known, *own]):
            rate = _list_rate(tariff, unit, card.currency)
            if rate is not None:
                yield rate


def _list_rate(tariff: Tariff, unit: str, currency: str) -> ListedRate | None:
    rate = tariff.find_rate(unit)
    if rate is None or (rate.charge_attos is None and rate.cost_attos is None):
        return None
    version = tariff.find_version((unit,), currency)
    return ListedRate(
        unit,
        tariff.level_tokens,
        "period" if isinstance(rate.entry, PeriodCharge) else _show_attos(rate.charge_attos),
        _show_attos(rate.cost_attos),
        _say_entry(rate.entry),
        None if rate.entry is None else rate.entry.render(),
        version.version_id if version else None,
    )


def _show_attos(attos: int | None) -> str | None:
    return None if attos is None else format_attos(attos)


def _say_entry(entry: ChargePrice | PeriodCharge | Markup | None) -> str | None:
    match entry:
        case None:
            return None
        case ChargePrice():
            text = _say_own(entry)
        case PeriodCharge():
            text = f"{entry.name}: {_say_charge(entry)}"
        case Markup():
            text = f"cost + {render_percent(entry.percent_scaled)} %"
    names = ", ".join(f"{key} {value}" for key, value in entry.selector.list_names().items())
    return f"{text} ({names})" if names else text
