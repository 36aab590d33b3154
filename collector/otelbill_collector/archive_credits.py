"""What credits pay of an invoice, once more: handed to strangers beside `archive_check`, with nothing but Python.

Owns a slow burning of grants with fractions; shares no code with otelbill.
"""

from __future__ import annotations

import re
from collections import defaultdict
from fractions import Fraction
from math import floor

QUARTER = 900 * 10**9
ATTOS = 10**18


def sum_charges(invoices):
    """End of a period -> what no event carries of it: of each invoice one sum, rounded down to 18 decimals."""
    charges = defaultdict(Fraction)
    for invoice in invoices:
        sums = defaultdict(Fraction)
        for line in invoice["lines"]:
            if line["kind"] not in ("usage", "credit"):
                sums[line["period_to"]] += Fraction(line["exact"])
        for end, amount in sums.items():
            charges[end] += Fraction(floor(amount * ATTOS), ATTOS)
    return charges


def list_demands(usage, charges):
    """Usage and period charges in the order of burning, with discounts taken back from the latest usage."""
    demands = []
    for at, project, step, model, unit, price, credits, quantity, charge in usage:
        numbers = [Fraction(price), Fraction(credits), Fraction(quantity), Fraction(charge)]
        demands.append([at, project, step, model, unit, *numbers])
    for end, amount in charges.items():
        if amount > 0:
            demands.append([(end - 1) // QUARTER * QUARTER, "", "", "", "", *[Fraction(0)] * 3, amount])
    demands.sort()
    for end, amount in sorted(charges.items()):
        debt = max(-amount, 0)
        for demand in reversed(demands):
            if demand[0] < end:
                taken = min(debt, demand[8])
                demand[8] -= taken
                debt -= taken
    return demands


def covers(grant, demand):
    """Whether a demand is inside a grant's scope."""
    _, project, step, model, unit, _, credits, _, _ = demand
    scope = grant["scope"]
    units = {unit, "credits"} if credits else {unit}
    pattern = re.escape(scope.get("model", "*").lower()).replace(r"\*", ".*")
    return (
        scope.get("project", project) == project
        and scope.get("step", step) == step
        and ("unit" not in scope or scope["unit"] in units)
        and re.fullmatch(pattern, model.lower()) is not None
    )


def name_kind(grant):
    """0 for units, 1 for credits, 2 for money: the order in which they pay."""
    return 2 if grant["measure"] == "money" else 1 if grant["asset"] == "credits" else 0


def order(grant):
    """What grants are sorted by."""
    expiry = 2**62 if grant["expires"] is None else grant["expires"]
    return (name_kind(grant), grant["priority"], expiry, grant["origin"] == "paid", grant["from"], grant["grant_id"])


def pay(demand, grants, left, currency):
    """Take a demand from the grants; yields (grant, what it pays)."""
    at, price, each, quantity, charge = demand[0], *demand[5:]
    credits = None
    for grant in sorted(grants, key=order):
        kind, had = name_kind(grant), left[grant["grant_id"]]
        if not (grant["from"] <= at < find_end(grant)) or not covers(grant, demand) or not had:
            continue
        if kind == 1 and each:
            credits = quantity * each if credits is None else credits
            amount = min(had, credits)
            credits -= amount
            value = min(charge, amount * price / each)
        elif kind < 2:
            amount = min(had, quantity)
            quantity -= amount
            value = min(charge, amount * price)
        else:
            amount = value = min(had, charge) if grant["asset"] == currency else Fraction(0)
        left[grant["grant_id"]] -= amount
        charge -= value
        yield grant["grant_id"], value


def find_end(grant):
    """The first instant at which a grant pays nothing any more."""
    return min(2**62 if end is None else end for end in (grant["expires"], grant["void"]))


def roll_over(grant, left):
    """The grant that takes over what is left at the expiry, or None."""
    rollover = grant["rollover"]
    if rollover is None or not left or find_end(grant) != grant["expires"]:
        return None
    unit = Fraction(1, ATTOS if grant["measure"] == "money" else 10**6)
    amount = floor(left * Fraction(rollover["percent"]) / 100 / unit) * unit
    amount = amount if rollover["max"] is None else min(amount, Fraction(rollover["max"]))
    names = {"grant_id": rollover["successor"], "from": grant["expires"], "expires": rollover["until"]}
    return {**grant, **names, "rollover": None, "amount": str(amount), "void": rollover["void"]}


def burn(grants, demands, currency, until):
    """(grant, quarter) -> what it pays of the usage before an instant."""
    known = {grant["grant_id"]: grant for grant in grants}
    left = {name: Fraction(grant["amount"]) for name, grant in known.items()}
    ends = [grant for grant in grants if grant["rollover"] is not None]
    paid = defaultdict(Fraction)
    for demand in [demand for demand in demands if demand[0] < until]:
        while ends and min(map(find_end, ends)) <= demand[0]:
            grant = min(ends, key=lambda item: (find_end(item), order(item)))
            ends.remove(grant)
            follower = roll_over(grant, left[grant["grant_id"]])
            if follower is not None:
                known[follower["grant_id"]] = follower
                left[follower["grant_id"]] = Fraction(follower["amount"])
        for name, value in pay(demand, known.values(), left, currency):
            paid[name, demand[0]] += value
    return paid
