"""A second, slow burning of credits, written from docs/credits.md alone; usage is priced by `auditor`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
    """Usage of one quarter of an hour, project, step, model and unit."""

    quarter: int
    project: str
    step: str
    model: str
    unit: str
    quantity: Fraction
    charge: Fraction


def list_demands(account: Account, customer: str, usage: Iterable[Usage]) -> list[Demand]:
    """What a customer's usage asks of its credits, in the order of burning."""
    sums: dict[tuple[Any, ...], list[Fraction]] = defaultdict(lambda: [Fraction(0), Fraction(0)])
    for item in usage:
        if item.customer == customer:
            for priced in rate(account, item) or ():
                quarter = item.at // QUARTER * QUARTER
                found = sums[quarter, item.project or "", item.step or "", item.model or "", priced.unit]
                found[0] += priced.quantity
                found[1] += priced.quantity * priced.price
    return [Demand(*place, *found) for place, found in sorted(sums.items(), key=lambda row: row[0])]


def covers(grant: Grant, demand: Demand) -> bool:
    """Whether a grant is in force and the demand in its scope."""
    ends = [end for end in (grant.expires, grant.voided) if end is not None]
    if not grant.start <= demand.quarter < min(ends, default=demand.quarter + 1):
        return False
    if grant.is_units and grant.asset != demand.unit:
        return False
    scope = grant.scope
    return (
        scope.get("project") in (None, demand.project)
        and scope.get("step") in (None, demand.step)
        and scope.get("unit") in (None, demand.unit)
        and ("model" not in scope or fits_model(scope["model"], demand.model))
    )


def order(grant: Grant) -> tuple[Any, ...]:
    """The order in which grants pay."""
    never = grant.expires is None
    return (not grant.is_units, grant.priority, never, grant.expires or 0, grant.paid, grant.start, grant.grant_id)


def pay(demand: Demand, grants: Iterable[Grant], left: dict[str, Fraction]) -> None:
    """Take a demand from the grants that cover it, each down to zero."""
    quantity, charge = demand.quantity, demand.charge
    for grant in sorted(grants, key=order):
        if not covers(grant, demand):
            continue
        taken = min(left[grant.grant_id], quantity if grant.is_units else charge)
        left[grant.grant_id] -= taken
        if grant.is_units and quantity:
            charge -= charge * taken / quantity
            quantity -= taken
        else:
            charge -= taken


def roll_over(grant: Grant, left: Fraction) -> Grant | None:
    """The grant that what is left becomes at the expiry."""
    if grant.rollover_until is None or grant.expires is None or not left:
        return None
    amount = left * grant.rollover_percent / 100
    if grant.rollover_max is not None:
        amount = min(amount, grant.rollover_max)
    successor = replace(grant, grant_id=f"{grant.grant_id} rolled over", amount=amount, rollover_until=None)
    return replace(successor, start=grant.expires, expires=grant.rollover_until)


def find_balances(grants: Sequence[Grant], demands: Sequence[Demand], at: int) -> dict[str, Fraction]:
    """What a customer has of each asset at an instant."""
    known = {grant.grant_id: grant for grant in grants}
    left = {grant.grant_id: grant.amount for grant in grants}
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
            pay(waiting.pop(0), known.values(), left)
    balances: dict[str, Fraction] = defaultdict(Fraction)
    for grant_id, grant in known.items():
        over = min((end for end in (grant.expires, grant.voided) if end is not None), default=at + 1)
        if grant.start <= at < over:
            balances[grant.asset] += left[grant_id]
    return balances
