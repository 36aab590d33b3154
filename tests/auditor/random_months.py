"""Random cards, customers and usage of a few months, as plain data. Decides no amount."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

from tests.auditor.auditor import SECOND, Account, Usage, find_period
from tests.auditor.credit_auditor import QUARTER, Grant

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "America/Havana", "Africa/Cairo", "Asia/Kathmandu"),
    *("Australia/Lord_Howe", "Pacific/Chatham", "America/Sao_Paulo", "Asia/Beirut", "Pacific/Apia"),
)
CUSTOMERS = ("acme", "bolt", "cube")
MODELS = ("aud-s", "aud-l", "aud-l-2", "aux-1")
PATTERNS = ("aud-*", "aud-l*", "*-s", "aux-1", "aud-l")
PROVIDERS = ("openai", "anthropic")
STEPS = (None, "search", "draft")
TOKENS = ("input_tokens", "output_tokens")
CUSTOM = ("searches", "pages", "documents")
UNPRICED = "oddities"  # of which no card knows a price
MONTHS = 3


@dataclass(frozen=True)
class Month:
    """A scenario: the account, everybody's billing periods, and usage with the number of closings before it arrives."""

    account: Account
    digits: int
    periods: dict[str, list[tuple[int, int]]]
    labels: list[str]
    arrivals: list[tuple[int, Usage]]
    customers: dict[str, dict[str, Any]]

    def list_instants(self, random: Random) -> list[int]:
        """Instants to look at balances: the end of everything, and one between, on quarters of an hour."""
        first = min(periods[0][0] for periods in self.periods.values()) // QUARTER
        last = max(periods[-1][1] for periods in self.periods.values()) // QUARTER + 1
        return [random.randrange(first, last) * QUARTER, last * QUARTER]


def format_instant(at: int) -> str:
    """As a rate card has it."""
    return datetime.fromtimestamp(at // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_month(random: Random) -> Month:
    """One scenario; the same random numbers make the same one."""
    year, month = random.randint(2021, 2028), random.randint(1, 12)
    customers: dict[str, dict[str, Any]] = {
        name: {
            "time_zone": random.choice(ZONES),
            "anchor_day": random.choice([1, 1, 2, 15, 24, 28, 29, 30, 31]),
            **({"group": random.choice(["large", "small"])} if random.random() < 0.6 else {}),
            **({"contract": f"c-{name}"} if random.random() < 0.4 else {}),
        }
        for name in CUSTOMERS
    }
    periods = {
        name: [find_period(year, month + n, item["anchor_day"], item["time_zone"]) for n in range(MONTHS)]
        for name, item in customers.items()
    }
    labels = [f"{year + (month + n - 1) // 12}-{(month + n - 1) % 12 + 1:02}" for n in range(MONTHS)]
    instants = make_instants(random, periods)
    account = Account(make_card(random, instants), make_provider_prices(random, instants), customers)
    arrivals = make_arrivals(random, periods, instants)
    digits = {"JPY": 0}.get(account.card["currency"], 2)
    return Month(account, digits, periods, labels, arrivals, customers)


def make_instants(random: Random, periods: dict[str, list[tuple[int, int]]]) -> list[int]:
    """Instants at which something may change: ends of periods, and some between."""
    ends = [end for item in periods.values() for _, end in item[:-1]]
    first, last = min(item[0][0] for item in periods.values()), max(item[-1][1] for item in periods.values())
    between = [random.randrange(first // (900 * SECOND), last // (900 * SECOND)) * 900 * SECOND for _ in range(3)]
    return sorted({*random.sample(ends, 2), *between})


def make_selector(random: Random, names: Sequence[str]) -> dict[str, str]:
    """Some of the names that make an entry special."""
    choices = {
        "customer": CUSTOMERS,
        "contract": [f"c-{name}" for name in CUSTOMERS],
        "group": ["large", "small"],
        "step": [step for step in STEPS if step],
        "model": PATTERNS,
        "provider": PROVIDERS,
    }
    return {name: random.choice(choices[name]) for name in names if random.random() < 0.3}


ALL = ("customer", "contract", "group", "step", "model", "provider")
WHO = ("customer", "contract", "group")


def cut_times(random: Random, entry: dict[str, Any], instants: Sequence[int], change: Any) -> list[dict[str, Any]]:
    """An entry for good, or two versions of it that change at an instant."""
    if random.random() < 0.6:
        return [entry]
    at = format_instant(random.choice(instants))
    return [{**entry, "to": at}, {**entry, **change(), "from": at}]


def make_price(random: Random) -> dict[str, Any]:
    """A price of at most 12 decimals for one unit."""
    per = random.choice([1, 1000, 1_000_000])
    digits = random.choice([2, 4, 6])
    return {
        "price": str(random.randint(1, 10**4) / 10**digits) if digits < 4 else f"0.{random.randint(1, 9999):06}",
        "per": per,
    }


def make_prices(random: Random, instants: Sequence[int], units: Sequence[str], special: int) -> list[dict[str, Any]]:
    """A price for everybody for each unit, and some special ones."""
    entries = []
    for unit in units:
        entries += cut_times(random, {"unit": unit, **make_price(random)}, instants, lambda: make_price(random))
    for _ in range(special):
        selector = make_selector(random, ALL)
        if selector:
            entry = {"unit": random.choice(units), **selector, **make_price(random)}
            entries += cut_times(random, entry, instants, lambda: make_price(random))
    return drop_equal(entries)


def price_in_credits(random: Random, instants: Sequence[int], prices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of the prices as credits for a unit, and what a credit is worth."""
    found = []
    for entry in prices:
        rest = {name: value for name, value in entry.items() if name not in ("price", "per")}
        each = {"credits": str(random.choice([1, 5, "0.5"])), "per": random.choice([1, 10])}
        found.append({**rest, **each} if random.random() < 0.5 else entry)
    for who in ({}, make_selector(random, ALL)):
        worth = {"unit": "credits", "price": f"0.0{random.randint(1, 99):02}", **who}
        found += cut_times(random, worth, instants, lambda: {"price": f"0.{random.randint(1, 9)}"})
    return drop_equal(found)


def drop_equal(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without entries of names that another has: two such are refused. Versions of one entry stay."""
    seen: dict[tuple[Any, ...], Any] = {}
    found = []
    for entry in entries:
        names = tuple(str(entry.get(name)) for name in (*ALL, "unit", "name"))
        follows = "from" in entry and seen.get(names) == entry["from"]
        if names not in seen or follows:
            found.append(entry)
            seen[names] = entry.get("to")
    return found


def make_terms(random: Random, pricing: str) -> dict[str, Any]:
    """Parameters of a charge."""
    if pricing == "per_unit":
        return {**make_price(random), "included": random.choice([0, 10, 300])}
    if pricing == "package":
        return {"price": f"{random.randint(1, 50)}.5"}
    price = (lambda: {"flat": f"{random.randint(1, 90)}.01"}) if pricing == "stairstep" else (lambda: make_tier(random))
    ends = sorted(random.sample([5, 10, 50, 100, 250, 1000], random.randint(0, 3)))
    return {"tiers": [*({"up_to": end, **price()} for end in ends), price()]}


def make_tier(random: Random) -> dict[str, Any]:
    """A price, sometimes with a flat amount."""
    return {**make_price(random), **({"flat": f"{random.randint(1, 9)}.25"} if random.random() < 0.3 else {})}


def make_charges(random: Random, instants: Sequence[int], units: Sequence[str]) -> list[dict[str, Any]]:
    """A charge over the period for each of the units, sometimes with a customer's own version."""
    entries: list[dict[str, Any]] = []
    for unit in units:
        pricing = random.choice(["per_unit", "package", "graduated", "volume", "stairstep"])
        fixed: dict[str, Any] = {"name": unit.title(), "unit": unit, "pricing": pricing}
        if pricing == "package":
            fixed |= {"package_size": random.choice([7, 10, 100]), "rounding": random.choice(["up", "down", "nearest"])}
        if pricing != "per_unit" and random.random() < 0.4:
            fixed["included"] = random.choice([5, 40])
        for who in ({}, make_selector(random, WHO)):
            entry = {**fixed, **who, **make_terms(random, pricing)}
            entries += cut_times(random, entry, instants, lambda pricing=pricing: make_terms(random, pricing))
    return drop_equal(entries)


def make_card(random: Random, instants: Sequence[int]) -> dict[str, Any]:
    """A rate card on which everything but the odd unit has a price."""
    currency = random.choice(["USD", "USD", "EUR", "JPY"])
    charged = random.sample(CUSTOM, random.randint(0, 3))
    markups = currency == "USD" and random.random() < 0.7
    units = [unit for unit in (*TOKENS, *CUSTOM) if unit not in charged and not (markups and unit in TOKENS)]
    card: dict[str, Any] = {"currency": currency}
    if units:
        card["prices"] = make_prices(random, instants, units, random.randint(0, 6))
    if random.random() < 0.3:
        card.setdefault("prices", []).append({"unit": "reasoning_tokens", **make_price(random)})
    if "prices" in card and random.random() < 0.4:
        card["prices"] = price_in_credits(random, instants, card["prices"])
    if random.random() < 0.3:
        charged = [*charged, "requests"]
    card["charges"] = make_charges(random, instants, charged)
    if markups:
        entries = [{"percent": f"{random.randint(0, 80)}.{random.randint(0, 9999):04}"}]
        entries += [{**make_selector(random, ALL), "percent": str(random.randint(0, 50))} for _ in range(2)]
        card["markup"] = drop_equal(entries)
    fees = [make_amounts(random, instants, name, 90) for name in ("Platform", "Support")]
    card["fees"] = [{**fee, "prorate": prorate} for item in fees for prorate in [random.random() < 0.4] for fee in item]
    card["minimums"] = make_amounts(random, instants, "Minimum", 300)
    card["commitments"] = make_commitments(random, instants)
    card["discounts"] = make_discounts(random, instants)
    return {name: section for name, section in card.items() if section}


def make_amounts(random: Random, instants: Sequence[int], name: str, most: int) -> list[dict[str, Any]]:
    """None, or an amount for everybody and perhaps one for some."""
    if random.random() < 0.5:
        return []
    entries: list[dict[str, Any]] = []
    for who in ({}, make_selector(random, WHO)):
        entry = {"name": name, "amount": f"{random.randint(1, most)}.{random.randint(0, 999):03}", **who}
        entries += cut_times(random, entry, instants, lambda: {"amount": f"{random.randint(1, most)}"})
    return drop_equal(entries)


def make_commitments(random: Random, instants: Sequence[int]) -> list[dict[str, Any]]:
    """Sometimes one, for a term that begins and ends within the months."""
    if random.random() < 0.5:
        return []
    begins, ends = sorted(random.sample(list(instants), 2))
    amount = str(random.randint(10, 2_000))
    return [{"name": "Term", "amount": amount, "from": format_instant(begins), "to": format_instant(ends)}]


def make_discounts(random: Random, instants: Sequence[int]) -> list[dict[str, Any]]:
    """One off everything, one off something."""
    entries: list[dict[str, Any]] = []
    if random.random() < 0.4:
        percent = random.choice([f"{random.randint(0, 30)}.5", "66.6667", "100"])
        entry = {"name": "Partner", "percent": percent, **make_selector(random, WHO)}
        entries += cut_times(random, entry, instants, lambda: {"percent": "7"})
    if random.random() < 0.4:
        about: dict[str, str] = random.choice([{"model": "aud-*"}, {"step": "draft"}, {}])
        entries.append({"name": "Some", "percent": random.choice(["12", "80"]), **about})
    return entries


def make_provider_prices(random: Random, instants: Sequence[int]) -> list[dict[str, Any]]:
    """What providers take for tokens of the models, and sometimes for other units."""
    entries: list[dict[str, Any]] = []
    for unit in TOKENS:
        for model in ("aud-*", "aux-*"):
            entry = {"unit": unit, "model": model, **make_price(random)}
            entries += cut_times(random, entry, instants, lambda: make_price(random))
        entries.append({"unit": unit, "model": random.choice(MODELS), "provider": "openai", **make_price(random)})
    return entries


def make_arrivals(
    random: Random, periods: dict[str, list[tuple[int, int]]], instants: Sequence[int]
) -> list[tuple[int, Usage]]:
    """Usage of the first two months, each with the number of closings before it arrives: 0 to 2."""
    found = []
    for number in range(random.randint(3, 40)):
        customer = random.choice(CUSTOMERS)
        mine = periods[customer]
        which = random.randint(0, MONTHS - 1)
        start, end = mine[which]
        edges = [start, end - 1, *(at + by for at in instants for by in (-1, 0) if start <= at + by < end)]
        at = random.choice(edges) if random.random() < 0.25 else random.randrange(start, end)
        late = random.choice([0, 0, 0, 1, 2])
        found.append((min(max(late, which), MONTHS - 1), make_usage(random, f"u{number}", at, customer)))
    return found


def make_usage(random: Random, name: str, at: int, customer: str) -> Usage:
    """A call of a model, or something that the app counted."""
    step = random.choice(STEPS)
    project = random.choice([None, "p1"])
    if random.random() < 0.5:
        unit = random.choice(CUSTOM) if random.random() < 0.93 else UNPRICED
        quantities = {unit: random.choice([1, 7, random.randint(1, 300)])}
        return Usage(name, at, customer, quantities, project, step)
    outputs = random.randint(0, 3_000)
    quantities = {"requests": 1, "input_tokens": random.randint(1, 9_999), "output_tokens": outputs}
    if outputs and random.random() < 0.3:
        quantities["reasoning_tokens"] = random.randint(1, outputs)
    return Usage(name, at, customer, quantities, project, step, random.choice(PROVIDERS), random.choice(MODELS))


def make_grants(random: Random, month: Month) -> list[Grant]:
    """Credits of some customers: money and units, some that expire, roll over or are voided."""
    currency = month.account.card["currency"]
    found = []
    for number in range(random.randint(1, 6)):
        customer = random.choice(CUSTOMERS)
        first, last = (month.periods[customer][place][place and 1] // QUARTER for place in (0, -1))
        start, expires, until = (at * QUARTER for at in sorted(random.sample(range(first, last), 3)))
        is_units = random.random() < 0.4
        credits = [entry["unit"] for entry in month.account.card.get("prices", ()) if entry["unit"] == "credits"]
        unit = random.choice([*TOKENS, *CUSTOM, *credits])
        grant = Grant(
            f"grant {number}",
            customer,
            unit if is_units else currency,
            Fraction(random.choice([3, 50, 2_000])),
            is_units,
            start=start if random.random() < 0.5 else first * QUARTER,
            priority=random.choice([0, 0, 1]),
            paid=random.random() < 0.5,
            scope=make_scope(random, is_units=is_units),
        )
        if random.random() < 0.5:
            grant = replace(grant, expires=expires)
            if random.random() < 0.6:
                most = random.choice([None, Fraction(2)])
                percent = Fraction(random.choice([10, 50, 100]))
                grant = replace(grant, rollover_until=until, rollover_percent=percent, rollover_max=most)
        elif random.random() < 0.3:
            grant = replace(grant, voided=until)
        found.append(grant)
    return found


def make_scope(random: Random, *, is_units: bool) -> dict[str, str]:
    """What a grant is for."""
    choices: dict[str, Sequence[str]] = {"project": ["p1"], "step": ["search", "draft"], "model": ["aud-*", "aud-s"]}
    if not is_units:
        choices["unit"] = [*TOKENS, *CUSTOM]
    return {name: random.choice(values) for name, values in choices.items() if random.random() < 0.2}


def correct_prices(random: Random, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card with some prices as they should have been: by event, of period charges and their tiers, of markups."""

    def correct(entry: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(entry)
        if random.random() < 0.5:
            if "price" in entry and Decimal(entry["price"]):
                changed["price"] = str(Decimal(entry["price"]) + random.randint(0, 3))
            if "percent" in entry:
                changed["percent"] = str(random.randint(0, 60))
            if entry.get("included"):
                changed["included"] = entry["included"] + random.randint(1, 9)
            if "tiers" in entry:
                changed["tiers"] = [correct(tier) for tier in entry["tiers"]]
        return changed

    sections = ("prices", "charges", "markup")
    return {**card, **{name: [correct(entry) for entry in card[name]] for name in sections if name in card}}


def correct_terms(random: Random, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card with some other amounts of fees, minimums, commitments and discounts."""

    def correct(entry: Mapping[str, Any]) -> dict[str, Any]:
        name = "percent" if "percent" in entry else "amount"
        return {**entry, name: str(random.randint(1, 40))} if random.random() < 0.5 else dict(entry)

    sections = ("fees", "minimums", "commitments", "discounts")
    return {**card, **{name: [correct(entry) for entry in card[name]] for name in sections if name in card}}
