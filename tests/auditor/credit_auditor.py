"""A second, slow burning of credits, written from docs/credits.md alone; usage is priced by `auditor`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from tests.auditor.auditor import SECOND, Account, Usage, fits_model, rate

QUARTER = 900 * SECOND


@dataclass(frozen=True)
class Grant:
    """What a customer has in advance: an amount of a currency, or of a unit. Instants are on quarters of an hour."""

    grant_id: str
    customer: str
    asset: str
    amount: Fraction
    is_units: bool
    start: int
    expires: int | None = None
    priority: int = 0
    paid: bool = False
    scope: Mapping[str, str] = field(default_factory=dict)  # any of project, step, model, unit
    rollover_until: int | None = None
    rollover_percent: Fraction = Fraction(100)
    rollover_max: Fraction | None = None
    voided: int | None = None


@dataclass(frozen=True)
class Demand:
    """Usage of one quarter of an hour, project, step, model, unit and price; or what no event carries of a period."""

    quarter: int
    project: str
    step: str
    model: str
    unit: str
    price: Fraction
    credits: Fraction  # how many of them one unit costs
    quantity: Fraction
    charge: Fraction


def list_demands(
    account: Account, customer: str, usage: Iterable[Usage], charges: Mapping[int, Fraction]
) -> list[Demand]:
    """What a customer's usage asks of its credits, in the order of burning. `charges` say what no event carries of the
    period that ends at an instant: one sum in its last quarter of an hour.
    """
    sums: dict[tuple[Any, ...], Fraction] = defaultdict(Fraction)
    for item in usage:
        if item.customer == customer:
            quarter, names = item.at // QUARTER * QUARTER, (item.project or "", item.step or "", item.model or "")
            for priced in rate(account, item) or ():
                sums[quarter, *names, priced.unit, priced.price, priced.credits] += priced.quantity
    demands = [Demand(*place, quantity, quantity * place[-2]) for place, quantity in sorted(sums.items())]
    for end, amount in sorted(charges.items()):
        quarter = (end - 1) // QUARTER * QUARTER
        if amount < 0:
            demands = take_back(demands, quarter, -amount)
        else:
            demands.append(Demand(quarter, "", "", "", "", Fraction(0), Fraction(0), Fraction(0), amount))
    return sorted(demands, key=lambda demand: (demand.quarter, *list_names(demand)))


def take_back(demands: Sequence[Demand], quarter: int, amount: Fraction) -> list[Demand]:
    """A discount that is more than charges and fees lowers what usage asks of credits, the latest first."""
    found: list[Demand] = []
    for demand in sorted(demands, key=lambda demand: (demand.quarter, *list_names(demand)), reverse=True):
        taken = min(amount, demand.charge) if demand.quarter <= quarter else Fraction(0)
        amount -= taken
        found.append(replace(demand, charge=demand.charge - taken))
    return found[::-1]


def list_names(demand: Demand) -> tuple[Any, ...]:
    """What demands of one quarter of an hour are ordered by."""
    return demand.project, demand.step, demand.model, demand.unit, demand.price, demand.credits


def covers(grant: Grant, demand: Demand) -> bool:
    """Whether a grant is in force and the demand in its scope."""
    ends = [end for end in (grant.expires, grant.voided) if end is not None]
    if not grant.start <= demand.quarter < min(ends, default=demand.quarter + 1):
        return False
    units = {demand.unit, "credits"} if demand.credits else {demand.unit}
    if grant.is_units and grant.asset not in units:
        return False
    scope = grant.scope
    return (
        scope.get("project") in (None, demand.project)
        and scope.get("step") in (None, demand.step)
        and scope.get("unit") in (None, *units)
        and ("model" not in scope or fits_model(scope["model"], demand.model))
    )


def name_kind(grant: Grant) -> str:
    """Grants of units pay before those of credits, and those before money."""
    return "money" if not grant.is_units else "credits" if grant.asset == "credits" else "units"


def order(grant: Grant) -> tuple[Any, ...]:
    """The order in which grants pay."""
    never = grant.expires is None
    kind = ("units", "credits", "money").index(name_kind(grant))
    return (kind, grant.priority, never, grant.expires or 0, grant.paid, grant.start, grant.grant_id)


def pay(demand: Demand, grants: Iterable[Grant], left: dict[str, Fraction]) -> Iterator[tuple[str, Fraction]]:
    """Take a demand from the grants that cover it, each down to zero; yields what each pays of the charge."""
    quantity, charge, credits = demand.quantity, demand.charge, Fraction(0)
    for grant in sorted(grants, key=order):
        if not covers(grant, demand):
            continue
        kind = name_kind(grant)
        wanted = quantity * demand.credits - credits if kind == "credits" else quantity if kind == "units" else charge
        taken = min(left[grant.grant_id], wanted)
        left[grant.grant_id] -= taken
        value = taken
        if kind == "credits":
            credits += taken
            value = min(charge, taken * demand.price / demand.credits)
        elif kind == "units":
            quantity -= taken
            value = min(charge, taken * demand.price)
        charge -= value
        yield grant.grant_id, value


def name_follower(grant_id: str) -> str:
    """The name here of what rolled over from a grant."""
    return f"{grant_id} rolled over"


def roll_over(grant: Grant, left: Fraction) -> Grant | None:
    """The grant that what is left becomes at the expiry."""
    if grant.rollover_until is None or grant.expires is None or not left:
        return None
    amount = left * grant.rollover_percent / 100
    if grant.rollover_max is not None:
        amount = min(amount, grant.rollover_max)
    successor = replace(grant, grant_id=name_follower(grant.grant_id), amount=amount, rollover_until=None)
    return replace(successor, start=grant.expires, expires=grant.rollover_until)


@dataclass(frozen=True)
class Burned:
    """What a customer has of each asset at an instant, and what each grant paid of the usage of a quarter."""

    balances: Mapping[str, Fraction]
    paid: Mapping[tuple[int, str], Fraction]

    def list_paid(self, start: int, end: int) -> dict[str, Fraction]:
        """What each grant paid of the usage of an interval."""
        found: dict[str, Fraction] = defaultdict(Fraction)
        for (quarter, grant_id), value in self.paid.items():
            if start <= quarter < end:
                found[grant_id] += value
        return {grant_id: value for grant_id, value in found.items() if value}


def burn(grants: Sequence[Grant], demands: Sequence[Demand], at: int) -> Burned:
    """What all usage of before an instant does to the grants of its customer."""
    known = {grant.grant_id: grant for grant in grants}
    left = {grant.grant_id: grant.amount for grant in grants}
    paid: dict[tuple[int, str], Fraction] = defaultdict(Fraction)
    waiting = [demand for demand in demands if demand.quarter < at]
    ends = [grant for grant in grants if grant.expires is not None]
    while waiting or ends:
        grant = min(ends, key=lambda item: item.expires or 0, default=None)
        if grant is not None and (not waiting or (grant.expires or 0) <= waiting[0].quarter):
            ends.remove(grant)
            if (grant.expires or 0) > at:
                continue
            is_void = grant.voided is not None and grant.voided <= (grant.expires or 0)
            follower = None if is_void else roll_over(grant, left[grant.grant_id])
            if follower is not None:
                known[follower.grant_id], left[follower.grant_id] = follower, follower.amount
                ends.append(follower)
        else:
            demand = waiting.pop(0)
            for grant_id, value in pay(demand, known.values(), left):
                paid[demand.quarter, grant_id] += value
    balances: dict[str, Fraction] = defaultdict(Fraction)
    for grant_id, grant in known.items():
        over = min((end for end in (grant.expires, grant.voided) if end is not None), default=at + 1)
        if grant.start <= at < over:
            balances[grant.asset] += left[grant_id]
    return Burned({asset: amount for asset, amount in balances.items() if amount}, paid)
