"""Rating: usage x prices in force at event time -> exact amounts. A pure function of card, book, names, usage, time.

Owns the arithmetic, the split of subsets, and the price version that explains both. Never rounds; a unit without a
price makes an event unpriced, never free. Lookups are kept per combination of names, so that an event is cheap.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from otelbill_collector.domain import usage as units
from otelbill_collector.domain.money import InexactAmount, format_attos, multiply_exact
from otelbill_collector.domain.prices import (
    Json,
    PriceVersion,
    ProviderPrices,
    Timeline,
    create_price_version,
    multiply_markup,
)
from otelbill_collector.domain.provider_prices import COST_CURRENCY, PriceBook
from otelbill_collector.domain.ratecard import AT_COST, ChargePrice, Markup, RateCard, Usage, find_entry
from otelbill_collector.domain.usage import Quantities, Quantity, RatingState

_ROUTES_MAX = 16_384  # combinations of names; they come from outside
_UNITS_MAX = 1_024  # units seen per tariff
_VERSIONS_MAX = 1_024  # combinations of units seen per tariff

_new_tuple = tuple.__new__  # makes a named tuple without its constructor's argument handling

# A subset is priced on its own where it has its own price, and the rest of its parent at the parent's price.
_PARENTS = {
    units.CACHE_WRITE_1H_TOKENS: units.CACHE_WRITE_TOKENS,
    units.AUDIO_INPUT_TOKENS: units.INPUT_TOKENS,
    units.AUDIO_OUTPUT_TOKENS: units.OUTPUT_TOKENS,
    units.REASONING_TOKENS: units.OUTPUT_TOKENS,
}
# Where a provider states no cache price, cached tokens cost what the price data's own arithmetic says: input tokens.
_COST_FALLBACKS = {units.CACHE_READ_TOKENS: units.INPUT_TOKENS, units.CACHE_WRITE_TOKENS: units.INPUT_TOKENS}
_TOTAL_INPUT = (units.INPUT_TOKENS, units.CACHE_READ_TOKENS, units.CACHE_WRITE_TOKENS)


class Line(NamedTuple):
    """One priced part of an event; the parts are disjoint and their amounts add up to the event's. Money in attos."""

    unit: str
    quantity: Quantity
    charge_price_attos: int | None  # for one unit
    cost_price_attos: int | None
    charge_attos: int | None
    cost_attos: int | None


class Rated(NamedTuple):
    """What an event costs and is charged. `charge_attos` is in `currency`, `cost_attos` in USD; None is unknown.

    `version` holds every price used; `problems` say why an event is unpriced ("no_price: vector_queries").
    A tuple rather than a dataclass, because one is made for every event.
    """

    state: RatingState
    version: PriceVersion | None
    cost_attos: int | None
    charge_attos: int | None
    currency: str
    lines: tuple[Line, ...]
    problems: tuple[str, ...] = ()

    @property
    def price_version(self) -> str | None:
        """Id of the version, or None when no price was used."""
        return self.version.version_id if self.version else None


class _UnitRate(NamedTuple):
    unit: str
    charge_attos: int | None
    cost_attos: int | None
    entry: ChargePrice | Markup | None  # where the charge comes from


@dataclass(slots=True)
class _Tariff:
    """All prices for one combination of names, interval of time and size of request, resolved unit by unit."""

    card: RateCard
    usage: Usage
    at_nanos: int  # any instant of the interval
    cost: ProviderPrices | None
    level_tokens: int | None  # the size tier that the request exceeds
    rates: dict[str, _UnitRate | None] = field(default_factory=dict)  # None: a subset priced with its parent
    splits: tuple[str, ...] = ()
    versions: dict[tuple[str, ...], PriceVersion | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for unit in units.STANDARD_UNITS:
            self.rates[unit] = self._resolve(unit)
        self.splits = tuple(unit for unit in _PARENTS if self.rates[unit] is not None)

    def find_rate(self, unit: str) -> _UnitRate | None:
        """The rate of any unit, custom ones included; None for a subset that has no price of its own."""
        try:
            return self.rates[unit]
        except KeyError:
            rate = self._resolve(unit)
            if len(self.rates) < _UNITS_MAX:
                self.rates[unit] = rate
            return rate

    def _resolve(self, unit: str) -> _UnitRate | None:
        own_cost = self.cost is not None and unit in self.cost.prices
        if unit in _PARENTS and not own_cost and self._find_price(unit) is None:
            return None
        cost = self._find_cost(unit)
        entry = self._find_charge(unit)
        charge = entry.attos if isinstance(entry, ChargePrice) else None
        if isinstance(entry, Markup) and cost is not None:
            charge = multiply_markup(cost, entry.percent_scaled)
        return _UnitRate(unit, charge, cost, entry if charge is not None else None)

    def _find_price(self, unit: str) -> ChargePrice | None:
        return find_entry((price for price in self.card.prices if price.unit == unit), self.usage, self.at_nanos)

    def _find_charge(self, unit: str) -> ChargePrice | Markup | None:
        """The unit's own price, else its parent's, else a markup."""
        own = self._find_price(unit)
        if own is None and unit in _PARENTS:
            return self._find_charge(_PARENTS[unit])
        return own or find_entry(self.card.markups, self.usage, self.at_nanos)

    def _find_cost(self, unit: str) -> int | None:
        if self.cost is None:
            return None
        name: str | None = unit
        while name is not None:
            price = self.cost.prices.get(name)
            if price is not None:
                # Tiers apply above their threshold, so one token more than the level stands for all of it.
                return price.select_attos(self.level_tokens + 1 if self.level_tokens is not None else 0)
            name = _PARENTS.get(name) or _COST_FALLBACKS.get(name)
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


def _render_rate(rate: _UnitRate) -> Json:
    entry: Json = rate.entry.render() if rate.entry else None
    return {
        "charge": None if rate.charge_attos is None else format_attos(rate.charge_attos),
        "cost": None if rate.cost_attos is None else format_attos(rate.cost_attos),
        "entry": entry,
    }


@dataclass(frozen=True, slots=True)
class _Levels:
    """Tariffs by size of request; `thresholds` are ascending, the n-th tariff is for requests above n of them."""

    thresholds: tuple[int, ...]
    tariffs: tuple[_Tariff, ...]

    def find_tariff(self, quantities: Quantities) -> _Tariff:
        """The tariff for a request of this size: a threshold must be exceeded, and cached input counts."""
        if not self.thresholds:
            return self.tariffs[0]
        total = sum(quantities.get(unit, 0) for unit in _TOTAL_INPUT)
        return self.tariffs[bisect_right(self.thresholds, total - 1)]


@dataclass(frozen=True, slots=True)
class Rater:
    """Rates events by a rate card and a price book. Without a card, the charge is the provider's cost."""

    card: RateCard = AT_COST
    book: PriceBook = field(default_factory=PriceBook)
    _routes: dict[tuple[str | None, ...], Timeline[_Levels]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _customers: frozenset[str] = field(init=False, repr=False, compare=False)
    _steps: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        selectors = self.card.list_selectors()
        names = frozenset(selector.customer_id for selector in selectors if selector.customer_id is not None)
        object.__setattr__(self, "_customers", names)
        steps = frozenset(selector.step for selector in selectors if selector.step is not None)
        object.__setattr__(self, "_steps", steps)

    def rate(
        self,
        quantities: Quantities,
        at_nanos: int,
        *,
        provider: str | None = None,
        model: str | None = None,
        request_model: str | None = None,
        service_tier: str | None = None,
        customer_id: str | None = None,
        step: str | None = None,
    ) -> Rated:
        """Amounts of one event at its event time. Never raises for what an event says: see `Rated.problems`."""
        # Names that no entry mentions cannot matter; leaving them out keeps the cache as small as the card.
        customer = customer_id if customer_id in self._customers else None
        key = (provider, model, request_model, service_tier, customer, step if step in self._steps else None)
        route = self._routes.get(key) or self._add_route(Usage(*key))
        levels = route.find_value(at_nanos)
        tariff = levels.find_tariff(quantities) if levels.thresholds else levels.tariffs[0]
        return _rate_quantities(tariff, quantities, self.card.currency)

    def _add_route(self, usage: Usage) -> Timeline[_Levels]:
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
        route = self._routes[usage] = _create_route(self.card, self.book, usage)
        return route


def _rate_quantities(tariff: _Tariff, quantities: Quantities, currency: str) -> Rated:
    """One line per priced part; the whole is known only when every part is."""
    problems: list[str] = []
    for subset in tariff.splits:
        if quantities.get(subset):
            quantities, problems = _split_subsets(tariff, quantities)
            break
    lines: list[Line] = []
    charge = cost = 0
    whole = True  # every part so far has both amounts
    rates = tariff.rates
    for unit, quantity in quantities.items():
        if not quantity:
            continue
        rate = rates[unit] if unit in rates else tariff.find_rate(unit)
        if rate is None:
            continue
        _, charge_price, cost_price, _ = rate
        if charge_price is None or cost_price is None or quantity.__class__ is not int:
            whole = _append_part(lines, rate, quantity, problems) and whole
            continue
        line_charge, line_cost = quantity * charge_price, quantity * cost_price
        charge += line_charge
        cost += line_cost
        lines.append(_new_tuple(Line, (unit, quantity, charge_price, cost_price, line_charge, line_cost)))
    if not whole or not lines or problems:
        return _rate_parts(tariff, quantities, lines, problems, currency)
    version = tariff.find_version(tuple([line[0] for line in lines]), currency)
    return Rated(RatingState.RATED, version, cost, charge, currency, tuple(lines))


def _append_part(lines: list[Line], rate: _UnitRate, quantity: Quantity, problems: list[str]) -> bool:
    """The uncommon part: decimal, or without a price. Returns False when the sums must be taken again.

    A request that nobody prices has no line; what keeps a part from a charge joins `problems`.
    """
    unit, charge_price, cost_price, _ = rate
    try:
        charge = None if charge_price is None else multiply_exact(quantity, charge_price)
        cost = None if cost_price is None else multiply_exact(quantity, cost_price)
    except InexactAmount:
        problems.append(f"inexact: {unit}")
        charge = cost = None
    else:
        if charge is None and unit != units.REQUESTS:
            problems.append(f"no_price: {unit}")
        elif charge is None and cost is None:
            return True
    lines.append(Line(unit, quantity, charge_price, cost_price, charge, cost))
    return False


def _rate_parts(
    tariff: _Tariff, quantities: Quantities, lines: list[Line], problems: list[str], currency: str
) -> Rated:
    """The sums of parts of which some are unknown or absent."""
    charges = [line.charge_attos for line in lines if line.charge_attos is not None]
    if not charges and not problems:
        problems = _explain_nothing(quantities)
    version = tariff.find_version(tuple([line.unit for line in lines]) or tuple(quantities), currency)
    cost = _add_costs(tariff, lines)
    if problems:
        return Rated(RatingState.UNPRICED, version, cost, None, currency, tuple(lines), tuple(problems))
    return Rated(RatingState.RATED, version, cost, sum(charges), currency, tuple(lines))


def _add_costs(tariff: _Tariff, lines: list[Line]) -> int | None:
    """The sum, or None when a part's cost is unknown. A request without a price of its own costs nothing extra."""
    costs = [line.cost_attos for line in lines if line.cost_attos is not None]
    if len(costs) != len(lines):
        unknown = [line for line in lines if line.cost_attos is None and line.unit != units.REQUESTS]
        if unknown or not costs:
            return None
    return sum(costs) if costs or tariff.cost is not None else None


def _explain_nothing(quantities: Quantities) -> list[str]:
    """No part has a charge: usage of zero is worth zero, but a bare request, or no quantity at all, is unpriced."""
    if not quantities:
        return ["no_quantities"]
    return [f"no_price: {unit}" for unit, quantity in quantities.items() if quantity]


def _split_subsets(tariff: _Tariff, quantities: Quantities) -> tuple[dict[str, Quantity], list[str]]:
    """Take separately priced subsets out of their parents, so that no token is priced twice."""
    parts = dict(quantities)
    problems: list[str] = []
    for subset in tariff.splits:
        taken = parts.get(subset)
        if not taken:
            continue
        parent = _PARENTS[subset]
        rest = parts.get(parent, 0) - taken
        if rest < 0:
            problems.append(f"impossible: {subset} exceeds {parent}")
            continue
        parts[parent] = rest
    return parts, problems


def _create_route(card: RateCard, book: PriceBook, usage: Usage) -> Timeline[_Levels]:
    """Tariffs on every interval on which neither a provider price nor an entry of the card changes."""
    costs = book.find_timeline(provider=usage.provider, model=usage.model, service_tier=usage.service_tier)
    if costs is None and usage.request_model:
        costs = book.find_timeline(provider=usage.provider, model=usage.request_model, service_tier=usage.service_tier)
    timeline: Timeline[ProviderPrices | None] = costs or Timeline((), ((None,),))
    edges = {
        edge
        for selector in card.list_selectors()
        if selector.rank_match(usage) is not None
        for edge in (selector.from_nanos, selector.to_nanos)
        if edge is not None
    }
    starts = sorted({*timeline.starts, *edges})
    samples = [starts[0] - 1 if starts else 0, *starts]

    def create_day(sample: int) -> tuple[_Levels, ...]:
        day = timeline.days[bisect_right(timeline.starts, sample)]
        return tuple(_create_levels(card, usage, sample, cost) for cost in day)

    return Timeline(tuple(starts), tuple(create_day(sample) for sample in samples), timeline.day_starts)


def _create_levels(card: RateCard, usage: Usage, at_nanos: int, cost: ProviderPrices | None) -> _Levels:
    prices = cost.prices.values() if cost else ()
    thresholds = sorted({tier.above_tokens for price in prices for tier in price.tiers})
    levels = [None, *thresholds]
    return _Levels(tuple(thresholds), tuple(_Tariff(card, usage, at_nanos, cost, level) for level in levels))
