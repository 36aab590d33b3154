"""Rating: usage x prices in force at event time -> exact amounts. A pure function of card, book, names, usage, time.

Owns the arithmetic, the split of subsets, and the price version that explains both. Never rounds; a unit without a
price makes an event unpriced, never free. Lookups are kept per combination of names, so that an event is cheap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from otelbill_collector.domain import usage as units
from otelbill_collector.domain.charges import PeriodCharge
from otelbill_collector.domain.money import EXACT, InexactAmount, multiply_exact
from otelbill_collector.domain.prices import INSTANT_MAX, INSTANT_MIN, Bounds, PriceVersion, Timeline
from otelbill_collector.domain.provider_prices import PriceBook
from otelbill_collector.domain.quantities import multiply_credits, to_micros
from otelbill_collector.domain.ratecard import AT_COST, EventNames, RateCard
from otelbill_collector.domain.selectors import Membership
from otelbill_collector.domain.tariffs import PARENTS, PLANS_MAX, Levels, Plan, Tariff, UnitRate, create_route
from otelbill_collector.domain.usage import Quantities, Quantity, RatingState

_ROUTES_MAX = 16_384  # combinations of names; they come from outside
_FREE = (-1, -1)  # no price: a unit without a line of its own
Payer = tuple[str | None, str | None, str | None]  # customer, group, contract: those that the card mentions
Names = tuple[str | None, str | None, str | None, str | None]  # provider, model, request model, service tier
_NOBODY: Payer = (None, None, None)
_new_tuple = tuple.__new__  # makes a named tuple without its constructor's argument handling


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


class HeldPlan(NamedTuple):
    """A plan and what it holds for: instants, and sizes of requests in input tokens, above one and up to another.

    Without a plan each event is looked at, unless `priceless`: then all are unpriced, without amounts or version.
    """

    plan: Plan | None
    priceless: bool
    bounds: Bounds
    above_tokens: int
    upto_tokens: int


@dataclass(frozen=True, slots=True)
class Rater:
    """Rates events by a rate card and a price book. Without a card, the charge is the provider's cost.

    `members` says to which group and under which contract a customer is; who is not in it has neither.
    """

    card: RateCard = AT_COST
    book: PriceBook = field(default_factory=PriceBook)
    members: Mapping[str, Membership] = field(default_factory=dict, repr=False)
    _routes: dict[tuple[str | None, ...], Timeline[Levels]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _payers: Mapping[str | None, Payer] = field(init=False, repr=False, compare=False)
    _steps: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_payers", _list_payers(self.card, self.members))
        steps = frozenset(entry.step for entry in self.card.list_selectors() if entry.step is not None)
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
        customer, group, contract = self._payers.get(customer_id, _NOBODY)
        known_step = step if step in self._steps else None
        key = (provider, model, request_model, service_tier, customer, known_step, group, contract)
        route = self._routes.get(key) or self._add_route(EventNames(*key))
        levels = route.find_value(at_nanos)
        tariff = levels.find_tariff(quantities) if levels.thresholds else levels.tariffs[0]
        return _rate_quantities(tariff, quantities, self.card.currency)

    def complete_names(self, names: EventNames) -> EventNames:
        """The names with the customer's group and contract, and without names that no entry of the card mentions."""
        customer, group, contract = self._payers.get(names.customer_id, _NOBODY)
        step = names.step if names.step in self._steps else None
        return names._replace(customer_id=customer, group=group, contract=contract, step=step)

    def find_levels(self, names: EventNames, at_nanos: int) -> Levels:
        """All prices for events of these names at an instant, by size of the request."""
        return self.find_route(names).find_value(at_nanos)

    def list_covered(
        self, quantities: Quantities, at_nanos: int, names: EventNames
    ) -> list[tuple[PeriodCharge, Quantity]]:
        """What each period charge counts of an event. A part that has no price of its own counts in its whole, once."""
        tariff = self.find_levels(names, at_nanos).find_tariff(quantities)
        parts, problems = _split_subsets(tariff, quantities)
        covered: dict[PeriodCharge, Quantity] = {}
        for unit, quantity in parts.items() if not problems else ():
            rate = tariff.find_rate(unit)
            if rate is not None and quantity and isinstance(rate.entry, PeriodCharge):
                covered[rate.entry] = _add(covered.get(rate.entry, 0), quantity)
        return list(covered.items())

    def find_route(self, names: EventNames) -> Timeline[Levels]:
        """All tariffs for events of these names, by time and size of request."""
        names = self.complete_names(names)
        return self._routes.get(names) or self._add_route(names)

    def rate_sums(self, tariff: Tariff, quantities: Quantities) -> Rated:
        """Amounts of several events together that meet one tariff and have the same units: charges add up."""
        return _rate_quantities(tariff, quantities, self.card.currency)

    def sum_plain(
        self,
        quantities: Quantities,
        at_nanos: int,
        names: tuple[str | None, str | None, str | None, str | None],
        customer_id: str | None,
        step: str | None,
    ) -> tuple[int, int, PriceVersion] | None:
        """(cost, charge, version) of a rated event without its lines; None where `rate` must look closer.

        `names` are provider, model, request model and service tier.
        """
        customer, group, contract = self._payers.get(customer_id, _NOBODY)
        key = (*names, customer, step if step in self._steps else None, group, contract)
        route = self._routes.get(key) or self._add_route(EventNames(*key))
        levels = route.find_value(at_nanos)
        tariff = levels.find_tariff(quantities) if levels.thresholds else levels.tariffs[0]
        if 0 in quantities.values():
            quantities = {unit: quantity for unit, quantity in quantities.items() if quantity}
        used = tuple(quantities)
        plans = tariff.plans
        plan = plans[used] if used in plans else _add_plan(tariff, used, self.card.currency)
        if plan is None:
            return None
        cost = charge = 0
        for quantity, prices in zip(quantities.values(), plan.prices, strict=True):
            if quantity.__class__ is not int or quantity <= 0:
                return None
            cost += quantity * prices[0]
            charge += quantity * prices[1]
        return cost, charge, plan.version

    def find_payer(self, customer_id: str | None) -> Payer:
        """The customer as the card tells it apart from others."""
        return self._payers.get(customer_id, _NOBODY)

    def knows_step(self, step: str | None) -> bool:
        """Whether an entry of the card mentions a step."""
        return step in self._steps

    def find_held_plan(
        self,
        used: tuple[str, ...],
        at_nanos: int,
        input_tokens: int,
        *,
        template: Names,
        payer: Payer,
        step: str | None,
    ) -> HeldPlan:
        """How events are priced that use exactly these units, and which other events are priced the same.

        `step` is one that the card mentions, or None; `template` names provider, model, request model and tier.
        """
        customer, group, contract = payer
        key = (*template, customer, step, group, contract)
        route = self._routes.get(key) or self._add_route(EventNames(*key))
        levels = route.find_value(at_nanos)
        level = bisect_right(levels.thresholds, input_tokens - 1)
        tariff = levels.tariffs[level]
        plan = tariff.plans[used] if used in tariff.plans else _add_plan(tariff, used, self.card.currency)
        above = levels.thresholds[level - 1] if level else INSTANT_MIN
        upto = levels.thresholds[level] if level < len(levels.thresholds) else INSTANT_MAX
        priceless = bool(used) and plan is None and _is_priceless(tariff)
        return HeldPlan(plan, priceless, route.find_bounds(at_nanos), above, upto)

    def _add_route(self, names: EventNames) -> Timeline[Levels]:
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
        route = self._routes[names] = create_route(self.card, self.book, names)
        return route


def _is_priceless(tariff: Tariff) -> bool:
    """Whether nobody states a price for any standard unit: usage of them is unpriced, whatever it is."""
    rates = [rate for rate in map(tariff.find_rate, units.STANDARD_UNITS) if rate is not None]
    return tariff.cost is None and all(rate.charge_attos is None and rate.cost_attos is None for rate in rates)


def _list_payers(card: RateCard, members: Mapping[str, Membership]) -> dict[str | None, Payer]:
    """The customers that the card tells apart from others: by name, by group or by contract."""
    selectors = card.list_selectors()
    customers = {entry.customer_id for entry in selectors if entry.customer_id is not None}
    groups = {entry.group for entry in selectors}
    contracts = {entry.contract for entry in selectors}
    payers: dict[str | None, Payer] = {}
    for customer in customers | set(members):
        member = members.get(customer, Membership())
        group = member.group if member.group in groups else None
        contract = member.contract if member.contract in contracts else None
        payer = (customer if customer in customers else None, group, contract)
        if payer != _NOBODY:
            payers[customer] = payer
    return payers


def _add_plan(tariff: Tariff, names: tuple[str, ...], currency: str) -> Plan | None:
    """The plan for these units, if each is priced or free and no separately priced subset is among them."""
    parts = [_plan_part(tariff, unit) for unit in names]
    priced = tuple([unit for unit, part in zip(names, parts, strict=True) if part not in (None, _FREE)])
    plan = None
    if priced and None not in parts and not set(tariff.splits).intersection(names):
        version = tariff.find_version(priced, currency)
        prices = tuple([part if part is not None and part != _FREE else (0, 0) for part in parts])
        plan = None if version is None else Plan(prices, version)
    if len(tariff.plans) >= PLANS_MAX:
        tariff.plans.clear()
    tariff.plans[names] = plan
    return plan


def _plan_part(tariff: Tariff, unit: str) -> tuple[int, int] | None:
    """(cost, charge) of one; `_FREE` without a line: a subset goes with its parent, a request may have no price."""
    rate = tariff.find_rate(unit)
    if rate is None:
        return _FREE
    if rate.charge_attos is None and rate.cost_attos is None and unit == units.REQUESTS:
        return _FREE
    if rate.charge_attos is None or rate.cost_attos is None:
        return None
    return rate.cost_attos, rate.charge_attos


def _rate_quantities(tariff: Tariff, quantities: Quantities, currency: str) -> Rated:
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
        _, charge_price, cost_price, _, _ = rate
        if charge_price is None or cost_price is None or quantity.__class__ is not int or quantity < 0:
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


def _append_part(lines: list[Line], rate: UnitRate, quantity: Quantity, problems: list[str]) -> bool:
    """The uncommon part: decimal, or without a price. Returns False when the sums must be taken again.

    A request that nobody prices has no line; what keeps a part from a charge joins `problems`.
    """
    unit, charge_price, cost_price, entry, _ = rate
    charge = cost = None
    try:
        if not _is_countable(quantity):
            problems.append(f"impossible: {unit} is negative or not a number")
        else:
            charge = None if charge_price is None else multiply_exact(quantity, charge_price)
            if isinstance(entry, PeriodCharge):
                to_micros(quantity)  # inexact when the period's charge could not multiply it
            if rate.credits_micros:
                multiply_credits(to_micros(quantity), rate.credits_micros)
            cost = None if cost_price is None else multiply_exact(quantity, cost_price)
    except (InexactAmount, ArithmeticError):
        problems.append(f"inexact: {unit}")
        charge = cost = None
    if charge_price is None and unit != units.REQUESTS:
        problems.append(f"no_price: {unit}")
    elif charge_price is None and cost_price is None:
        return True
    lines.append(Line(unit, quantity, charge_price, cost_price, charge, cost))
    return False


def _is_countable(quantity: Quantity) -> bool:
    """False for what no meter may count: below zero, infinite, not a number."""
    return (isinstance(quantity, int) or quantity.is_finite()) and quantity >= 0


def _rate_parts(tariff: Tariff, quantities: Quantities, lines: list[Line], problems: list[str], currency: str) -> Rated:
    """The sums of parts of which some are unknown or absent."""
    charges = [line.charge_attos for line in lines if line.charge_attos is not None]
    if not charges and not problems:
        problems = _explain_nothing(quantities)
    version = tariff.find_version(tuple([line.unit for line in lines]) or tuple(quantities), currency)
    cost = _add_costs(tariff, lines)
    if problems:
        return Rated(RatingState.UNPRICED, version, cost, None, currency, tuple(lines), tuple(problems))
    return Rated(RatingState.RATED, version, cost, sum(charges), currency, tuple(lines))


def _add_costs(tariff: Tariff, lines: list[Line]) -> int | None:
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


def _split_subsets(tariff: Tariff, quantities: Quantities) -> tuple[dict[str, Quantity], list[str]]:
    """Take separately priced subsets out of their parents, so that no token is priced twice."""
    parts = dict(quantities)
    problems: list[str] = []
    for subset in tariff.splits:
        taken = parts.get(subset)
        if not taken:
            continue
        parent = PARENTS[subset]
        if not _is_countable(taken) or not _is_countable(parts.get(parent, 0)):
            continue  # refused where the lines are made
        rest = _subtract(parts.get(parent, 0), taken)
        if rest < 0:
            problems.append(f"impossible: {subset} exceeds {parent}")
            continue
        parts[parent] = rest
    return parts, problems


def _add(one: Quantity, other: Quantity) -> Quantity:
    if isinstance(one, int) and isinstance(other, int):
        return one + other
    return EXACT.add(Decimal(one), Decimal(other))


def _subtract(whole: Quantity, part: Quantity) -> Quantity:
    if isinstance(whole, int) and isinstance(part, int):
        return whole - part
    return EXACT.subtract(Decimal(whole), Decimal(part))
