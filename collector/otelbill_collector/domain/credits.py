"""Burning credits: which grant pays for which usage. A pure function of grants, voids and usage as sets; see
docs/credits.md for the order. Owns the arithmetic; knows no storage and no prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from otelbill_collector.domain.grants import Grant, Measure, Void, create_successor
from otelbill_collector.domain.quantities import MICROS
from otelbill_collector.domain.ratecard import CREDITS


class Place(NamedTuple):
    """Where usage happened: the start of its quarter of an hour, and its names ('' for none)."""

    at_nanos: int
    project_id: str
    step: str
    model: str
    unit: str


class Demand(NamedTuple):
    """Usage of one unit at one price. `charge_attos` is what is to be paid of it; unit '' is a charge of no unit.

    `credits_micros` are millionths of a credit that one unit costs; 0 where its price is money.
    """

    place: Place
    currency: str
    price_attos: int = 0  # for one unit
    quantity_micros: int = 0
    charge_attos: int = 0
    credits_micros: int = 0


class Allocation(NamedTuple):
    """A grant pays: `amount` in the grant's measure, worth `value_attos` of `currency`."""

    grant_id: str
    place: Place
    currency: str
    amount: int
    value_attos: int


class EndKind(StrEnum):
    """What becomes of what is left of a grant."""

    EXPIRE = "expire"
    VOID = "void"
    ROLL = "rollover"


class Ending(NamedTuple):
    """What was left of a grant when it ended, or a part of it."""

    grant_id: str
    kind: EndKind
    at_nanos: int
    amount: int
    successor_id: str | None = None


@dataclass(frozen=True, slots=True)
class Burned:
    """What became of all usage before an instant. Values of allocations and charges of `overage` add up to the demand.

    `left` is what grants that have begun and not ended still hold; `successors` are grants made by rollover.
    `next_nanos` is when time alone changes any of it; None is never.
    """

    allocations: tuple[Allocation, ...]
    overage: tuple[Demand, ...]
    endings: tuple[Ending, ...]
    successors: Mapping[str, Grant]
    left: Mapping[str, int]
    next_nanos: int | None


@dataclass(slots=True)
class _Pot:
    """A grant while it burns."""

    grant: Grant
    end_nanos: int | None
    voided: bool
    left: int


def net_demands(demands: Iterable[Demand]) -> list[Demand]:
    """Sums by place and price, in order, none below zero.

    What a whole period takes back at its end, because its discounts are more than its charges and fees, is taken from
    the charges before, the latest first, so that credits never pay more than there is to pay. Whatever else is below
    zero is taken from charges of the same names and time, in order, and only its rest from those before.
    """
    sums: dict[tuple[Place, str, int, int], tuple[int, int]] = {}
    for place, currency, price, quantity, charge, credits in demands:
        before = sums.get((place, currency, price, credits), (0, 0))
        sums[place, currency, price, credits] = (before[0] + quantity, before[1] + charge)
    groups: dict[tuple[object, ...], list[Demand]] = {}
    debts: list[tuple[int, str, int]] = []
    for (place, currency, price, credits), (quantity, charge) in sorted(sums.items()):
        if charge < 0 and not any(place[1:]):
            debts.append((place.at_nanos, currency, -charge))
            continue
        demand = Demand(place, currency, price, quantity, charge, credits)
        groups.setdefault((*place[:4], currency), []).append(demand)
    netted: list[Demand] = []
    for group in groups.values():
        debt = -sum(min(0, demand.charge_attos) for demand in group)
        for demand in group:
            charge = max(0, demand.charge_attos)
            taken = min(debt, charge)
            debt -= taken
            netted.append(demand._replace(charge_attos=charge - taken, quantity_micros=max(0, demand.quantity_micros)))
        if debt:
            debts.append((group[0].place.at_nanos, group[0].currency, debt))
    netted.sort()
    for at_nanos, currency, debt in sorted(debts):
        _take_back(netted, at_nanos, currency, debt)
    return [demand for demand in netted if demand.quantity_micros or demand.charge_attos]


def _take_back(demands: list[Demand], at_nanos: int, currency: str, debt: int) -> None:
    """Lower the charges up to an instant, from the last one backwards; their units stay as they are."""
    for index in reversed(range(len(demands))):
        demand = demands[index]
        if not debt:
            return
        if demand.place.at_nanos <= at_nanos and demand.currency == currency:
            taken = min(debt, demand.charge_attos)
            debt -= taken
            demands[index] = demand._replace(charge_attos=demand.charge_attos - taken)


def burn(grants: Iterable[Grant], voids: Iterable[Void], demands: Iterable[Demand], until_nanos: int) -> Burned:
    """Pay for all usage before `until_nanos` from one customer's grants, in the order of docs/credits.md."""
    return _Burning(grants, voids).run(net_demands(demands), until_nanos)


class _Burning:
    def __init__(self, grants: Iterable[Grant], voids: Iterable[Void]) -> None:
        self._voids = {void.grant_id: void.at_nanos for void in voids}
        self._pots = sorted((self._open_pot(grant) for grant in set(grants)), key=_read_order)
        self._paid: dict[tuple[str, Place, str], tuple[int, int]] = {}
        self._overage: list[Demand] = []
        self._endings: list[Ending] = []
        self._successors: dict[str, Grant] = {}
        self._covered: dict[tuple[object, ...], list[_Pot]] = {}  # names of usage -> the pots that may pay for it
        self._next_end = self._find_next_end()

    def _open_pot(self, grant: Grant) -> _Pot:
        end, void = grant.expiry_nanos, self._voids.get(grant.grant_id)
        voided = void is not None and (end is None or void < end)
        return _Pot(grant, void if voided else end, voided, grant.amount)

    def run(self, demands: list[Demand], until_nanos: int) -> Burned:
        future = None
        for demand in demands:
            at = demand.place.at_nanos
            if at >= until_nanos:
                future = at + 1
                break
            self._end_pots(at)
            self._pay(demand)
        self._end_pots(until_nanos)
        changes = [moment for moment in (self._next_end, future) if moment is not None]
        return Burned(
            tuple(Allocation(*key, *amounts) for key, amounts in sorted(self._paid.items())),
            tuple(self._overage),
            tuple(self._endings),
            self._successors,
            {pot.grant.grant_id: pot.left for pot in self._pots if pot.grant.start_nanos <= until_nanos},
            min(changes, default=None),
        )

    def _end_pots(self, now_nanos: int) -> None:
        """Close what has ended by now, the earliest first; what rolls over may end by now as well."""
        while self._next_end is not None and self._next_end <= now_nanos:
            ended = [pot for pot in self._pots if pot.end_nanos == self._next_end]
            pot = min(ended, key=_read_order)
            self._pots.remove(pot)
            self._end_pot(pot)
            self._covered.clear()
            self._next_end = self._find_next_end()

    def _find_next_end(self) -> int | None:
        return min((pot.end_nanos for pot in self._pots if pot.end_nanos is not None), default=None)

    def _list_covering(self, place: Place, *, in_credits: bool) -> list[_Pot]:
        """In the order of burning; grants that have not begun are among them."""
        key = (*place[1:], in_credits)
        if key not in self._covered:
            names = {"project_id": place.project_id, "step": place.step, "model": place.model, "unit": place.unit}
            self._covered[key] = [pot for pot in self._pots if pot.grant.scope.covers(**names, in_credits=in_credits)]
        return self._covered[key]

    def _end_pot(self, pot: _Pot) -> None:
        grant, end, left = pot.grant, pot.end_nanos, pot.left
        assert end is not None
        carried = 0 if pot.voided or grant.rollover is None else grant.rollover.find_amount(left)
        if carried:
            successor = create_successor(grant, carried)
            self._successors[successor.grant_id] = successor
            self._pots.append(self._open_pot(successor))
            self._pots.sort(key=_read_order)
            self._endings.append(Ending(grant.grant_id, EndKind.ROLL, end, carried, successor.grant_id))
        if left > carried:
            kind = EndKind.VOID if pot.voided else EndKind.EXPIRE
            self._endings.append(Ending(grant.grant_id, kind, end, left - carried))

    def _pay(self, demand: Demand) -> None:
        """Units come before credits and those before money in the order: each pays for what the ones before left."""
        place, currency, price, quantity, charge, each = demand
        credits: int | None = None  # millionths still to be paid; counted when units have paid
        for pot in self._list_covering(place, in_credits=bool(each)):
            grant = pot.grant
            if not pot.left or grant.start_nanos > place.at_nanos:
                continue
            if grant.measure is Measure.UNITS and each and grant.asset == CREDITS:
                credits = quantity * each // MICROS if credits is None else credits
                amount = min(pot.left, credits)
                credits -= amount
                value = min(charge, amount * price // each) if credits else charge
            elif grant.measure is Measure.UNITS:
                amount = min(pot.left, quantity)
                value = min(charge, amount * price // MICROS)  # a price has at most 12 decimals: nothing is cut
                quantity -= amount
            else:
                amount = value = min(pot.left, charge) if grant.asset == currency else 0
            if amount:
                pot.left -= amount
                charge -= value
                self._note(grant, place, currency, amount, value)
        if quantity or charge:
            self._overage.append(Demand(place, currency, price, quantity, charge, each))

    def _note(self, grant: Grant, place: Place, currency: str, amount: int, value: int) -> None:
        key = (grant.grant_id, place, currency)
        before = self._paid.get(key, (0, 0))
        self._paid[key] = (before[0] + amount, before[1] + value)


def _read_order(pot: _Pot) -> tuple[object, ...]:
    return pot.grant.order
