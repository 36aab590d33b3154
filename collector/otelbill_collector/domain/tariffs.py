"""Tariffs: all prices that meet one kind of event, resolved once. Owns which price a unit has, from card and book.

Does not multiply (see `rating`). A tariff holds for one combination of names, an interval of time, a size of request.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from otelbill_collector.domain import usage as units
from otelbill_collector.domain.charges import PeriodCharge
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.prices import (
    Json,
    PriceVersion,
    ProviderPrices,
    Timeline,
    create_price_version,
    multiply_markup,
)
from otelbill_collector.domain.provider_prices import COST_CURRENCY, PriceBook
from otelbill_collector.domain.quantities import MICROS, format_micros
from otelbill_collector.domain.ratecard import CREDITS, ChargePrice, EventNames, Markup, RateCard, find_entry
from otelbill_collector.domain.usage import Quantities

_UNITS_MAX = 1_024  # units seen per tariff
_VERSIONS_MAX = 1_024  # combinations of units seen per tariff
PLANS_MAX = 1_024

# A subset is priced on its own where it has its own price, and the rest of its parent at the parent's price.
PARENTS = {
    units.CACHE_WRITE_1H_TOKENS: units.CACHE_WRITE_TOKENS,
    units.AUDIO_INPUT_TOKENS: units.INPUT_TOKENS,
    units.AUDIO_OUTPUT_TOKENS: units.OUTPUT_TOKENS,
    units.REASONING_TOKENS: units.OUTPUT_TOKENS,
}
# Where a provider states no cache price, cached tokens cost what the price data's own arithmetic says: input tokens.
_COST_FALLBACKS = {units.CACHE_READ_TOKENS: units.INPUT_TOKENS, units.CACHE_WRITE_TOKENS: units.INPUT_TOKENS}
_TOTAL_INPUT = (units.INPUT_TOKENS, units.CACHE_READ_TOKENS, units.CACHE_WRITE_TOKENS)


class UnitRate(NamedTuple):
    """What one unit is charged and costs, in attos for one unit; None is unknown.

    What a period charge covers adds nothing to its event, and so is charged 0 here.
    """

    unit: str
    charge_attos: int | None
    cost_attos: int | None
    entry: ChargePrice | PeriodCharge | Markup | None  # where the charge comes from
    worth: ChargePrice | None = None  # of a credit, where the entry says how many of them one unit costs

    @property
    def credits_micros(self) -> int:
        """Millionths of a credit that one unit costs; 0 where its price is money."""
        return 0 if self.worth is None or not isinstance(self.entry, ChargePrice) else self.entry.credits_micros or 0


class Plan(NamedTuple):
    """How events with one combination of units are priced that need no closer look."""

    prices: tuple[tuple[int, int], ...]  # (cost, charge) in attos for one of each unit, in the order of the units
    version: PriceVersion


@dataclass(slots=True)
class Tariff:
    """All prices for one combination of names, interval of time and size of request, resolved unit by unit."""

    card: RateCard
    names: EventNames
    at_nanos: int  # any instant of the interval
    cost: ProviderPrices | None
    level_tokens: int | None  # the size tier that the request exceeds
    rates: dict[str, UnitRate | None] = field(default_factory=dict)  # None: a subset priced with its parent
    splits: tuple[str, ...] = ()
    versions: dict[tuple[str, ...], PriceVersion | None] = field(default_factory=dict)
    plans: dict[tuple[str, ...], Plan | None] = field(default_factory=dict)  # None: look closer

    def __post_init__(self) -> None:
        for unit in units.STANDARD_UNITS:
            self.rates[unit] = self._resolve(unit)
        self.splits = tuple(unit for unit in PARENTS if self.rates[unit] is not None)

    def find_rate(self, unit: str) -> UnitRate | None:
        """The rate of any unit, custom ones included; None for a subset that has no price of its own."""
        try:
            return self.rates[unit]
        except KeyError:
            rate = self._resolve(unit)
            if len(self.rates) < _UNITS_MAX:
                self.rates[unit] = rate
            return rate

    def _resolve(self, unit: str) -> UnitRate | None:
        own_cost = self.cost is not None and unit in self.cost.prices
        if unit in PARENTS and not own_cost and self._find_price(unit) is None:
            return None
        cost = self._find_cost(unit)
        entry = self._find_charge(unit)
        charge = entry.attos if isinstance(entry, ChargePrice) else 0 if isinstance(entry, PeriodCharge) else None
        if isinstance(entry, Markup) and cost is not None:
            charge = multiply_markup(cost, entry.percent_scaled)
        worth = None
        if isinstance(entry, ChargePrice) and entry.credits_micros is not None:
            worth = self._find_worth()
            charge = None if worth is None else entry.credits_micros * worth.attos // MICROS  # exact: the card checks
        return UnitRate(unit, charge, cost, entry if charge is not None else None, worth)

    def _find_worth(self) -> ChargePrice | None:
        """The price of a credit for these names."""
        found = self._find_price(CREDITS)
        return found if isinstance(found, ChargePrice) else None

    def _find_price(self, unit: str) -> ChargePrice | PeriodCharge | None:
        return find_entry(self.card.list_unit_entries(unit), self.names, self.at_nanos)

    def _find_charge(self, unit: str) -> ChargePrice | PeriodCharge | Markup | None:
        """The unit's own price, else its parent's, else a markup."""
        own = self._find_price(unit)
        if own is None and unit in PARENTS:
            return self._find_charge(PARENTS[unit])
        return own or find_entry(self.card.markups, self.names, self.at_nanos)

    def _find_cost(self, unit: str) -> int | None:
        if self.cost is None:
            return None
        name: str | None = unit
        while name is not None:
            price = self.cost.prices.get(name)
            if price is not None:
                # Tiers apply above their threshold, so one token more than the level stands for all of it.
                return price.select_attos(self.level_tokens + 1 if self.level_tokens is not None else 0)
            name = PARENTS.get(name) or _COST_FALLBACKS.get(name)
        return None

    def find_version(self, used: tuple[str, ...], currency: str) -> PriceVersion | None:
        """The version that states every price used for these units; equal prices give an equal id."""
        if used not in self.versions:
            if len(self.versions) >= _VERSIONS_MAX:
                self.versions.clear()
            self.versions[used] = self._create_version(used, currency)
        return self.versions[used]

    def _create_version(self, used: tuple[str, ...], currency: str) -> PriceVersion | None:
        rates = [rate for unit in sorted(set(used)) if (rate := self.find_rate(unit)) is not None]
        prices: dict[str, Json] = {
            rate.unit: _render_rate(rate)
            for rate in rates
            if rate.charge_attos is not None or rate.cost_attos is not None
        }
        if not prices:
            return None
        content: dict[str, Json] = {"currency": currency, "cost_currency": COST_CURRENCY, "prices": prices}
        if self.cost is not None and any(rate.cost_attos is not None for rate in rates):
            content |= {"provider": self.cost.provider, "model": self.cost.model}
            if self.level_tokens is not None:
                content["above_input_tokens"] = self.level_tokens
        return create_price_version("rating", content)


def _render_rate(rate: UnitRate) -> Json:
    cost = None if rate.cost_attos is None else format_attos(rate.cost_attos)
    if isinstance(rate.entry, PeriodCharge):
        covered = {"name": rate.entry.name, "unit": rate.entry.unit, "version": rate.entry.version.version_id}
        return {"charge": "period", "cost": cost, "entry": {"period_charge": {**covered}}}
    content: dict[str, Json] = {
        "charge": None if rate.charge_attos is None else format_attos(rate.charge_attos),
        "cost": cost,
        "entry": rate.entry.render() if rate.entry else None,
    }
    if rate.worth is not None:
        content["credits"] = {"each": format_micros(rate.credits_micros), "worth": rate.worth.render()}
    return content


@dataclass(frozen=True, slots=True)
class Levels:
    """Tariffs by size of request; `thresholds` are ascending, the n-th tariff is for requests above n of them."""

    thresholds: tuple[int, ...]
    tariffs: tuple[Tariff, ...]

    def find_tariff(self, quantities: Quantities) -> Tariff:
        """The tariff for a request of this size: a threshold must be exceeded, and cached input counts."""
        if not self.thresholds:
            return self.tariffs[0]
        try:
            total = sum(quantities.get(unit, 0) for unit in _TOTAL_INPUT)
            return self.tariffs[bisect_right(self.thresholds, total - 1)]
        except ArithmeticError:  # not a number; the line that has it is refused where lines are made
            return self.tariffs[0]


def create_route(card: RateCard, book: PriceBook, names: EventNames) -> Timeline[Levels]:
    """Tariffs on every interval on which neither a provider price nor an entry of the card changes."""
    costs = book.find_timeline(
        provider=names.provider,
        model=names.model,
        request_model=names.request_model,
        service_tier=names.service_tier,
    )
    timeline: Timeline[ProviderPrices | None] = costs or Timeline((), ((None,),))
    edges = {
        edge
        for selector in card.list_selectors()
        if selector.rank_match(names) is not None
        for edge in (selector.from_nanos, selector.to_nanos)
        if edge is not None
    }
    starts = sorted({*timeline.starts, *edges})
    samples = [starts[0] - 1 if starts else 0, *starts]

    def create_day(sample: int) -> tuple[Levels, ...]:
        day = timeline.days[bisect_right(timeline.starts, sample)]
        return tuple(_create_levels(card, names, sample, cost) for cost in day)

    return Timeline(tuple(starts), tuple(create_day(sample) for sample in samples), timeline.day_starts)


def _create_levels(card: RateCard, names: EventNames, at_nanos: int, cost: ProviderPrices | None) -> Levels:
    prices = cost.prices.values() if cost else ()
    thresholds = sorted({tier.above_tokens for price in prices for tier in price.tiers})
    levels = [None, *thresholds]
    return Levels(tuple(thresholds), tuple(Tariff(card, names, at_nanos, cost, level) for level in levels))
