"""A second, slow implementation of what a customer owes, written from docs/pricing.md and docs/billing.md alone.

It takes raw usage and the rate card as plain data and shares no code with the product. Amounts are exact fractions,
instants are whole nanoseconds UTC. An accountant should be able to read it beside the text.
"""

from __future__ import annotations

import calendar
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Any
from zoneinfo import ZoneInfo

Entry = Mapping[str, Any]  # one entry of the rate card, as in the file
Key = tuple[Any, ...]  # what an invoice line is for
SECOND = 10**9
PARTS = {"reasoning_tokens": "output_tokens"}  # a part, and the whole that it is counted in


@dataclass(frozen=True)
class Usage:
    """One thing that happened. `charge` is what an operator said it costs, in place of its price."""

    name: str
    at: int
    customer: str
    quantities: Mapping[str, int]
    project: str | None = None
    step: str | None = None
    provider: str | None = None
    model: str | None = None
    charge: Fraction | None = None


@dataclass(frozen=True)
class Priced:
    """One unit of one event: its price for one unit, also where that is in credits, or the charge that covers it."""

    unit: str
    quantity: int
    price: Fraction
    charge_name: str | None = None
    credits: Fraction = Fraction(0)  # how many of them one unit costs


@dataclass(frozen=True)
class Account:
    """Everything that is agreed with all customers: the card, the providers' prices and who is in which group."""

    card: Mapping[str, Any]
    provider_prices: Sequence[Entry] = ()
    customers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_instant(text: str) -> int:
    """Nanoseconds of a date (its midnight UTC) or of an instant."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return int(found.replace(tzinfo=found.tzinfo or UTC).timestamp()) * SECOND


# --- Which entry applies ------------------------------------------------------------------------------------------


def is_in_force(entry: Entry, at: int) -> bool:
    """From `from` on, until just before `to`."""
    begun = "from" not in entry or read_instant(entry["from"]) <= at
    return begun and ("to" not in entry or at < read_instant(entry["to"]))


def is_for(entry: Entry, account: Account, customer: str) -> bool:
    """Whether an entry is for a customer: by name, contract or group, or for everybody."""
    member = account.customers.get(customer, {})
    return (
        entry.get("customer") in (None, customer)
        and entry.get("contract") in (None, member.get("contract"))
        and entry.get("group") in (None, member.get("group"))
    )


def fits_model(pattern: str, model: str | None) -> bool:
    """`*` stands for any characters."""
    return model is not None and re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), model) is not None


def is_about(entry: Entry, usage: Usage) -> bool:
    """Whether step, model and provider of an entry are those of the usage."""
    return (
        entry.get("step") in (None, usage.step)
        and entry.get("provider") in (None, usage.provider)
        and ("model" not in entry or fits_model(entry["model"], usage.model))
    )


def rank(entry: Entry) -> tuple[Any, ...]:
    """How specific an entry is; the first difference decides."""
    model = entry.get("model")
    exactness = (0, 0) if model is None else (1, len(model.replace("*", ""))) if "*" in model else (2, 0)
    return (
        "customer" in entry,
        "contract" in entry,
        "group" in entry,
        "step" in entry,
        exactness,
        "provider" in entry,
    )


def choose(entries: Iterable[Entry], account: Account, usage: Usage) -> Entry | None:
    """The most specific of the entries that match an event at its own time."""
    fitting = [
        entry
        for entry in entries
        if is_in_force(entry, usage.at) and is_for(entry, account, usage.customer) and is_about(entry, usage)
    ]
    return max(fitting, key=rank, default=None)


# --- One event ----------------------------------------------------------------------------------------------------


def price_of(entry: Entry) -> Fraction:
    """The price for one unit."""
    return Fraction(str(entry.get("price", "0"))) / int(entry.get("per", 1))


def find_cost_price(account: Account, usage: Usage, unit: str) -> Fraction | None:
    """What the provider takes for one unit; None when it is not known."""
    entry = choose([item for item in account.provider_prices if item["unit"] == unit], account, usage)
    return None if entry is None else price_of(entry)


def find_price(account: Account, usage: Usage, unit: str) -> tuple[Fraction, str | None, Fraction] | None:
    """What the customer pays for one unit, the name of the period charge that covers it, and credits for one unit;
    None without a price.
    """
    card = account.card
    entries = [item for section in ("prices", "charges") for item in card.get(section, ()) if item["unit"] == unit]
    entry = choose(entries, account, usage)
    if entry is not None and "credits" in entry:
        worth = choose([item for item in card["prices"] if item["unit"] == "credits"], account, usage)
        each = Fraction(entry["credits"]) / int(entry.get("per", 1))
        return None if worth is None else (each * price_of(worth), None, each)
    if entry is not None:
        covered = "pricing" in entry
        return (Fraction(0), entry["name"], Fraction(0)) if covered else (price_of(entry), None, Fraction(0))
    markup, cost = choose(card.get("markup", ()), account, usage), find_cost_price(account, usage, unit)
    if markup is None or cost is None:
        return None
    return cost * (1 + Fraction(str(markup["percent"])) / 100), None, Fraction(0)


def split_parts(quantities: Mapping[str, int], has_price: Mapping[str, bool]) -> dict[str, int]:
    """Quantities as they are priced: a part with its own price comes off its whole, one without is in it."""
    found = {unit: quantity for unit, quantity in quantities.items() if quantity}
    for part, whole in PARTS.items():
        if part in found:
            if has_price[part]:
                found[whole] = found.get(whole, 0) - found[part]
            else:
                del found[part]
    return {unit: quantity for unit, quantity in found.items() if quantity}


def rate(account: Account, usage: Usage) -> list[Priced] | None:
    """The priced units of an event; None when it is unpriced, because a unit has no price."""
    prices = {unit: find_price(account, usage, unit) for unit in usage.quantities}
    quantities = split_parts(usage.quantities, {unit: found is not None for unit, found in prices.items()})
    lines = []
    for unit, quantity in sorted(quantities.items()):
        found = prices[unit]
        if found is not None:
            lines.append(Priced(unit, quantity, *found))
        elif unit != "requests" or len(quantities) == 1:
            return None
    return lines


def find_charge(account: Account, usage: Usage) -> Fraction | None:
    """What an event adds to the bill by itself; None when it is unpriced."""
    if usage.charge is not None:
        return usage.charge
    lines = rate(account, usage)
    return None if lines is None else sum((line.quantity * line.price for line in lines), Fraction(0))


def find_cost(account: Account, usage: Usage) -> Fraction | None:
    """What the provider takes for an event; None when a unit of it has no known cost."""
    prices = {unit: find_cost_price(account, usage, unit) for unit in usage.quantities}
    quantities = split_parts(usage.quantities, {unit: found is not None for unit, found in prices.items()})
    total = Fraction(0)
    for unit, quantity in quantities.items():
        price = prices[unit]
        if price is not None:
            total += quantity * price
        elif unit != "requests" or len(quantities) == 1:
            return None
    return total


# --- Billing periods ----------------------------------------------------------------------------------------------


def find_midnight(day: date, zone: str) -> int:
    """The first instant that a day has in a zone. Zones change at quarters of an hour, so those are tried in turn."""
    at = datetime.combine(day, time(), UTC) - timedelta(hours=18)
    while at.astimezone(ZoneInfo(zone)).date() < day:
        at += timedelta(minutes=15)
    return int(at.timestamp()) * SECOND


def find_first_day(year: int, month: int, anchor: int) -> date:
    """The anchor day of a month, or its last day in a shorter one."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    return date(year, month, min(anchor, calendar.monthrange(year, month)[1]))


def find_period(year: int, month: int, anchor: int, zone: str) -> tuple[int, int]:
    """First instant of the period that begins in a month, and of the next one."""
    start, end = (find_midnight(find_first_day(year, month + later, anchor), zone) for later in (0, 1))
    return start, end


# --- Charges that count a whole period ----------------------------------------------------------------------------


def list_cuts(entries: Sequence[Entry]) -> list[int]:
    """All instants at which a version begins or ends."""
    return sorted({read_instant(entry[side]) for entry in entries for side in ("from", "to") if side in entry})


def count_packages(entry: Entry, quantity: int) -> int:
    """Packages of a quantity, by the rounding rule."""
    packages = Fraction(quantity, entry["package_size"])
    rule = entry.get("rounding", "up")
    return ceil(packages) if rule == "up" else floor(packages) if rule == "down" else floor(packages + Fraction(1, 2))


def find_tier(entry: Entry, quantity: int) -> Entry:
    """The tier that a quantity reaches."""
    return next(tier for tier in entry["tiers"] if "up_to" not in tier or quantity <= tier["up_to"])


def price_graduated(entry: Entry, quantity: int) -> Fraction:
    """Each unit at the price of its tier; a tier's flat amount with its first unit."""
    total, reached = Fraction(0), 0
    for tier in entry["tiers"]:
        taken = min(quantity, tier.get("up_to", quantity)) - reached
        if taken > 0:
            total += taken * price_of(tier) + Fraction(str(tier.get("flat", "0")))
            reached += taken
    return total


def cut(amount: Fraction) -> Fraction:
    """Down to 18 decimals, where a flat amount is shared."""
    return Fraction(floor(amount * 10**18), 10**18)


def price_part(entry: Entry, before: int, after: int, whole: int) -> Fraction:
    """One part of a period, in which usage went from `before` to `after` out of `whole`, by its own version."""
    free = entry.get("included", 0)
    before, after, whole = (max(0, quantity - free) for quantity in (before, after, whole))
    pricing = entry["pricing"]
    if after == before:
        return Fraction(0)
    if pricing == "per_unit":
        return (after - before) * price_of(entry)
    if pricing == "package":
        return (count_packages(entry, after) - count_packages(entry, before)) * price_of(entry)
    if pricing == "graduated":
        return price_graduated(entry, after) - price_graduated(entry, before)
    tier = find_tier(entry, whole)
    flat = Fraction(str(tier.get("flat", "0")))
    share = cut(flat * Fraction(after, whole)) - cut(flat * Fraction(before, whole))
    return share + ((after - before) * price_of(tier) if pricing == "volume" else 0)


def price_charge(account: Account, name: str, counted: Sequence[tuple[Usage, int]]) -> Fraction:
    """A charge over all usage of one period that it covers."""
    versions = [entry for entry in account.card["charges"] if entry["name"] == name]
    cuts = list_cuts(versions)
    parts: dict[int, list[tuple[Usage, int]]] = defaultdict(list)
    for usage, quantity in counted:
        parts[sum(cut <= usage.at for cut in cuts)].append((usage, quantity))
    whole = sum(quantity for _, quantity in counted)
    total, before = Fraction(0), 0
    for _, part in sorted(parts.items()):
        version = choose(versions, account, part[0][0])
        assert version is not None
        after = before + sum(quantity for _, quantity in part)
        total += price_part(version, before, after, whole)
        before = after
    return total


# --- What a period comes to ---------------------------------------------------------------------------------------


def list_terms(account: Account, section: str, customer: str, start: int, end: int) -> list[tuple[Entry, int, int]]:
    """Of each name, the versions in force in the period, in order, each with its time as the most specific one."""
    names: dict[str, list[Entry]] = defaultdict(list)
    for entry in account.card.get(section, ()):
        if is_for(entry, account, customer):
            names[entry["name"]].append(entry)
    found = []
    for entries in names.values():
        instants = [start, *(cut for cut in list_cuts(entries) if start < cut < end), end]
        for since, until in pairwise(instants):
            fitting = [entry for entry in entries if is_in_force(entry, since)]
            if fitting:
                found.append((max(fitting, key=rank), since, until))
    return found


def list_first(terms: Iterable[tuple[Entry, int, int]]) -> list[Entry]:
    """Of each name, the version in force first."""
    return list({entry["name"]: entry for entry, _, _ in reversed(list(terms))}.values())


def add_fees(account: Account, customer: str, start: int, end: int) -> dict[Key, Fraction]:
    """A fee in full by its first version; prorated, each version for its own time."""
    terms = list_terms(account, "fees", customer, start, end)
    lines: dict[Key, Fraction] = defaultdict(Fraction)
    for fee in list_first(term for term in terms if not term[0].get("prorate")):
        lines["fee", fee["name"]] = Fraction(str(fee["amount"]))
    for fee, since, until in terms:
        if fee.get("prorate"):
            lines["fee", fee["name"]] += Fraction(str(fee["amount"])) * Fraction(until - since, end - start)
    return lines


def sum_usage(account: Account, usage: Iterable[Usage]) -> tuple[dict[Key, Fraction], dict[str, Any]]:
    """Usage lines by what they are for, and what each charge counts."""
    lines: dict[Key, Fraction] = defaultdict(Fraction)
    counted: dict[str, list[tuple[Usage, int]]] = defaultdict(list)
    for item in usage:
        place = (item.project, item.step, item.provider, item.model)
        if item.charge is not None:
            lines["usage", *place, None, None] += item.charge
            continue
        for priced in rate(account, item) or ():
            if priced.charge_name is None:
                lines["usage", *place, priced.unit, priced.price] += priced.quantity * priced.price
            else:
                counted[priced.charge_name].append((item, priced.quantity))
    return lines, counted


def add_up_period(
    account: Account, customer: str, usage: Iterable[Usage], period: tuple[int, int]
) -> dict[Key, Fraction]:
    """Exact lines of a period up to its minimum; commitments come after."""
    start, end = period
    within = [item for item in usage if item.customer == customer and start <= item.at < end]
    lines, counted = sum_usage(account, within)
    priced_by_event = [(item, find_charge(account, item) or Fraction(0)) for item in within]
    for name, quantities in counted.items():
        lines["charge", name] = price_charge(account, name, quantities)
    lines |= add_fees(account, customer, start, end)
    base = left = sum(lines.values(), Fraction(0))
    discounts = {}
    entries = list_first(list_terms(account, "discounts", customer, start, end))
    for entry in sorted(entries, key=lambda entry: entry["name"]):
        of = base
        if {"step", "model", "provider"} & set(entry):
            of = sum((amount for item, amount in priced_by_event if is_about(entry, item)), Fraction(0))
        taken = min(of * Fraction(str(entry["percent"])) / 100, left)
        left -= taken
        discounts["discount", entry["name"]] = -taken
    lines |= discounts
    for entry in list_first(list_terms(account, "minimums", customer, start, end)):
        missing = Fraction(str(entry["amount"])) - sum(lines.values(), Fraction(0))
        if missing > 0:
            lines["minimum", entry["name"]] = missing
    return {key: amount for key, amount in lines.items() if amount}


def bill_period(
    account: Account, customer: str, usage: Sequence[Usage], periods: Sequence[tuple[int, int]]
) -> dict[Key, Fraction]:
    """Exact lines of the last of a customer's periods, of which all since the first that was invoiced are given."""
    start, end = periods[-1]
    lines = add_up_period(account, customer, usage, (start, end))
    for entry in account.card.get("commitments", ()):
        begins, ends = read_instant(entry["from"]), read_instant(entry["to"])
        if is_for(entry, account, customer) and start < ends <= end:
            term = [period for period in periods if begins <= period[0] < ends or period == (start, end)]
            came_to = sum((sum(add_up_period(account, customer, usage, item).values()) for item in term), Fraction(0))
            if came_to < Fraction(str(entry["amount"])):
                lines["commitment", entry["name"]] = Fraction(str(entry["amount"])) - came_to
    return lines


def subtract(now: Mapping[Key, Fraction], invoiced: Mapping[Key, Fraction]) -> dict[Key, Fraction]:
    """The difference, line by line; what did not change is left out."""
    found = {key: now.get(key, Fraction(0)) - invoiced.get(key, Fraction(0)) for key in {*now, *invoiced}}
    return {key: amount for key, amount in found.items() if amount}


# --- Rounding -----------------------------------------------------------------------------------------------------


def round_total(exact: Fraction, digits: int) -> Fraction:
    """Half up, to the smallest unit of the currency."""
    return Fraction(floor(exact * 10**digits + Fraction(1, 2)), 10**digits)


def round_lines(exact: Sequence[Fraction], digits: int) -> list[Fraction]:
    """Each line down; the units missing from the total go to the largest remainders, the earlier line first."""
    scale = 10**digits
    units = [floor(amount * scale) for amount in exact]
    missing = int(round_total(sum(exact, Fraction(0)), digits) * scale) - sum(units)
    by_remainder = sorted(range(len(exact)), key=lambda place: (units[place] - exact[place] * scale, place))
    for place in by_remainder[:missing]:
        units[place] += 1
    return [Fraction(unit, scale) for unit in units]
