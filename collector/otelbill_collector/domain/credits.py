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


class Place(NamedTuple):
    """Where usage happened: the start of its quarter of an hour, and its names ('' for none)."""

    at_nanos: int
    project_id: str
    step: str
    model: str
    unit: str


class Demand(NamedTuple):
    """Usage of one unit at one price. `charge_attos` is what is to be paid of it; unit '' is a charge of no unit."""

    place: Place
    currency: str
    price_attos: int = 0  # for one unit
    quantity_micros: int = 0
    charge_attos: int = 0


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
    """Sums by place and price, in order, none below zero: what takes back (an operator's lower charge) is taken from
    the other charges of the same names and time, in order.
    """
    sums: dict[tuple[Place, str, int], tuple[int, int]] = {}
    for place, currency, price, quantity, charge in demands:
        before = sums.get((place, currency, price), (0, 0))
        sums[place, currency, price] = (before[0] + quantity, before[1] + charge)
    groups: dict[tuple[object, ...], list[Demand]] = {}
    for (place, currency, price), (quantity, charge) in sorted(sums.items()):
        demand = Demand(place, currency, price, quantity, charge)
        groups.setdefault((*place[:4], currency), []).append(demand)
    netted = [demand for group in groups.values() for demand in _net_group(group)]
    return sorted(demand for demand in netted if demand.quantity_micros or demand.charge_attos)


def _net_group(group: list[Demand]) -> Iterable[Demand]:
    debt = -sum(min(0, demand.charge_attos) for demand in group)
    for demand in group:
        charge = max(0, demand.charge_attos)
        taken = min(debt, charge)
        debt -= taken
        yield demand._replace(charge_attos=charge - taken, quantity_micros=max(0, demand.quantity_micros))


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
        ends = [pot.end_nanos for pot in self._pots if pot.end_nanos is not None]
        changes = [*ends, *(() if future is None else (future,))]
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
        while True:
            ended = [pot for pot in self._pots if pot.end_nanos is not None and pot.end_nanos <= now_nanos]
            if not ended:
                return
            pot = min(ended, key=lambda pot: (pot.end_nanos, pot.grant.order))
            self._pots.remove(pot)
            self._end_pot(pot)

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
        """Units come before money in the order, so a money grant pays for what units left."""
        place, currency, price, quantity, charge = demand
        names = {"project_id": place.project_id, "step": place.step, "model": place.model, "unit": place.unit}
        for pot in self._pots:
            grant = pot.grant
            if not pot.left or grant.start_nanos > place.at_nanos or not grant.scope.covers(**names):
                continue
            if grant.measure is Measure.UNITS:
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
            self._overage.append(Demand(place, currency, price, quantity, charge))

    def _note(self, grant: Grant, place: Place, currency: str, amount: int, value: int) -> None:
        key = (grant.grant_id, place, currency)
        before = self._paid.get(key, (0, 0))
        self._paid[key] = (before[0] + amount, before[1] + value)


def _read_order(pot: _Pot) -> tuple[object, ...]:
    return pot.grant.order
