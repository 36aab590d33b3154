"""What a customer owes for one period: sums of its records, priced to entries, with the period's terms applied.

A pure function of sums, price versions and terms. Does not know what was invoiced before (see `invoices`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

from otelbill_collector.domain.charges import TIERED, ChargeLine, Part, PeriodCharge, Pricing, Tier, price_parts
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.invoices import Entry, LineKind, format_exact, spell_credits, spell_product
from otelbill_collector.domain.money import EXACT, format_attos, parse_attos
from otelbill_collector.domain.prices import render_percent
from otelbill_collector.domain.selectors import EventNames, Selector
from otelbill_collector.domain.tariffs import PARENTS
from otelbill_collector.domain.terms import COMMITMENT, DISCOUNT, FEE, MINIMUM, Term
from otelbill_collector.domain.usage import Quantity

Versions = Mapping[str, Mapping[str, Any]]  # price version id -> its content
_SELECTOR_NAMES = ("customer", "step", "model", "provider", "group", "contract", "service_tier")
_PERCENT = 1_000_000  # ten-thousandths of a percent in a whole


class UnknownVersion(LookupError):
    """Records name a price version or period charge whose content is not there. The message says which."""


@dataclass(slots=True)
class UsageSum:
    """Exact sums of a customer's rated records of equal names. `charge_attos` is what their rating adds up to."""

    project: str | None
    step: str | None
    provider: str | None
    model: str | None
    version: str | None
    currency: str | None
    quantities: dict[str, Quantity] = field(default_factory=dict)
    charge_attos: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True)
class _Covered:
    """What a version of a period charge counts, and of how many events."""

    charge: PeriodCharge
    quantity: Quantity
    events: int


def make_statement(
    sums: Sequence[UsageSum],
    versions: Versions,
    terms: Sequence[Term],
    count_spent: Callable[[Term], Fraction],
) -> list[Entry]:
    """Every entry of a period, in the order: usage, period charges, fees, discounts, minimums, commitments.

    `count_spent` says what the earlier periods of a commitment's term came to. Raises UnknownVersion.
    """
    entries = [*price_events(sums, versions), *price_charges(sums, versions)]
    entries += [_charge_fee(term) for term in terms if term.section == FEE]
    entries += _list_discounts([term for term in terms if term.section == DISCOUNT], list(entries))
    for term in terms:
        if term.section == MINIMUM:
            entries += _fill_up(term, LineKind.MINIMUM, _total(entries), "the period came to")
    spent = _total(entries)
    for term in terms:
        if term.section == COMMITMENT:
            entries += _fill_up(term, LineKind.COMMITMENT, spent + count_spent(term), "the term came to")
    return entries


def count_committed(entries: Iterable[Entry]) -> Fraction:
    """What counts towards a commitment: everything but commitments themselves and credits."""
    return _total(entry for entry in entries if entry.kind not in (LineKind.COMMITMENT, LineKind.CREDIT))


def _total(entries: Iterable[Entry]) -> Fraction:
    return sum((entry.amount for entry in entries), Fraction(0))


def price_events(sums: Sequence[UsageSum], versions: Versions) -> Iterator[Entry]:
    """One entry for each unit and price of each group of records: quantity x price."""
    for item in sorted(sums, key=_order):
        entries = [
            _price_unit(item, unit, quantity, price)
            for unit, quantity, price in _list_priced(item, versions)
            if price["charge"] not in (None, "period")
        ]
        if _total(entries) == item.charge_attos:
            yield from entries
        else:  # rated by rules of an older version: the records' own amounts stand
            yield _sum_amounts(item)


def _order(item: UsageSum) -> tuple[str, ...]:
    names = (item.project, item.step, item.provider, item.model, item.version)
    return tuple(name or "" for name in names)


def _price_unit(item: UsageSum, unit: str, quantity: Quantity, price: Mapping[str, Any]) -> Entry:
    attos = parse_attos(price["charge"])
    credits = price.get("credits")
    return Entry(
        LineKind.USAGE,
        Fraction(quantity) * attos,
        project=item.project,
        step=item.step,
        provider=item.provider,
        model=item.model,
        unit=unit,
        quantity=quantity,
        unit_attos=attos,
        version=item.version,
        arithmetic=spell_product(quantity, attos)
        if credits is None
        else spell_credits(quantity, credits["each"], credits["worth"]["price"]),
        events=item.events,
    )


def _sum_amounts(item: UsageSum) -> Entry:
    return Entry(
        LineKind.USAGE,
        Fraction(item.charge_attos),
        label="amounts of events",
        project=item.project,
        step=item.step,
        provider=item.provider,
        model=item.model,
        version=item.version,
        arithmetic=f"{item.events:,} events as rated = {format_attos(item.charge_attos)}",
        events=item.events,
    )


def _list_priced(item: UsageSum, versions: Versions) -> Iterator[tuple[str, Quantity, Mapping[str, Any]]]:
    """Units of a group with what they count and their price. Parts that are priced by themselves leave their whole.

    The records of one price version have the same units, so that the sum of the parts is the part of the sums.
    """
    if item.version is None:
        return
    prices = _require_version(versions, item.version)["prices"]
    for unit, price in prices.items():
        quantity = item.quantities.get(unit, 0)
        for part, whole in PARENTS.items():
            if whole == unit and part in prices:
                quantity = _subtract(quantity, item.quantities.get(part, 0))
        if quantity:
            yield unit, quantity, price


def _require_version(versions: Versions, version: str) -> Mapping[str, Any]:
    content = versions.get(version)
    if content is None:
        raise UnknownVersion(
            f"records name the price version {version}, whose content is not in the ledger; for a period charge, put"
            " its entry back into rate_card.charges as it was and give it an end with `to`"
        )
    return content


def price_charges(sums: Sequence[UsageSum], versions: Versions) -> Iterator[Entry]:
    """The entries of period charges: each counts the whole period, its versions in order of their first instant."""
    counted: dict[str, _Covered] = {}
    for item in sums:
        for _, quantity, price in _list_priced(item, versions):
            if price["charge"] == "period":
                version = price["entry"]["period_charge"]["version"]
                before = counted.get(version)
                charge = before.charge if before else read_charge(_require_version(versions, version))
                total = _add(before.quantity, quantity) if before else quantity
                counted[version] = _Covered(charge, total, (before.events if before else 0) + item.events)
    names = sorted({(item.charge.name, item.charge.unit) for item in counted.values()})
    for name in names:
        parts = [item for item in counted.values() if (item.charge.name, item.charge.unit) == name and item.quantity]
        parts.sort(key=lambda item: (item.charge.selector.from_nanos or 0, item.charge.version.version_id))
        events = {item.charge.version.version_id: item.events for item in parts}
        for line in price_parts([Part(item.charge, item.quantity) for item in parts]):
            yield _create_charge(line, events[line.version_id])


def _create_charge(line: ChargeLine, events: int) -> Entry:
    return Entry(
        LineKind.CHARGE,
        Fraction(line.amount_attos),
        label=f"{line.name}: {line.label}",
        unit=line.unit,
        quantity=line.quantity,
        unit_attos=None if line.flat_attos else line.unit_attos,
        version=line.version_id,
        arithmetic=line.arithmetic,
        events=events,
    )


def read_charge(content: Mapping[str, Any]) -> PeriodCharge:
    """The period charge that a price version states."""
    body = content["charge"]
    pricing = Pricing(body["pricing"])
    names = {key: body[key] for key in _SELECTOR_NAMES if key in body}
    selector = Selector(
        names.pop("customer", None), from_nanos=parse_instant(body["from"]) if "from" in body else None, **names
    )
    tiers = tuple(
        Tier(tier["up_to"], parse_attos(tier["price"]), parse_attos(tier["flat"])) for tier in body.get("tiers", ())
    )
    return PeriodCharge(
        body["name"],
        body["unit"],
        pricing,
        selector,
        attos=0 if pricing in TIERED else parse_attos(body["price"]),
        package_size=body.get("package_size", 1),
        rounding=body.get("rounding", "up"),
        tiers=tiers,
        included=body.get("included", 0),
        currency=content["currency"],
    )


def _charge_fee(term: Term) -> Entry:
    amount = term.share * term.attos
    whole = format_attos(term.attos)
    text = whole if term.share == 1 else f"{whole} x {term.share} of the period = {format_exact(amount)}"
    return Entry(LineKind.FEE, amount, label=term.name, version=term.version_id, arithmetic=text)


def _list_discounts(terms: Iterable[Term], entries: Sequence[Entry]) -> Iterator[Entry]:
    """Percentages off what usage, charges and fees come to, before other discounts; together at most all of it."""
    left = _total(entries)
    for term in terms:
        base = _total(entry for entry in entries if _is_discounted(term, entry))
        wanted = base * Fraction(term.percent_scaled, _PERCENT)
        taken = min(wanted, left)
        left -= taken
        if taken:
            text = f"{render_percent(term.percent_scaled)} % of {format_exact(base)}"
            text += "" if taken == wanted else f", at most the {format_exact(taken)} that is left"
            yield Entry(LineKind.DISCOUNT, -taken, label=term.name, version=term.version_id, arithmetic=text)


def _is_discounted(term: Term, entry: Entry) -> bool:
    if not term.usage:
        return True
    names = EventNames(provider=entry.provider, model=entry.model, step=entry.step)
    return entry.kind is LineKind.USAGE and term.matches_usage(names)


def _fill_up(term: Term, kind: LineKind, reached: Fraction, what: str) -> Iterator[Entry]:
    missing = term.attos - reached
    if missing > 0:
        text = f"{format_attos(term.attos)} less {format_exact(reached)}, which {what}"
        yield Entry(kind, missing, label=term.name, version=term.version_id, arithmetic=text)


def _add(one: Quantity, other: Quantity) -> Quantity:
    if isinstance(one, int) and isinstance(other, int):
        return one + other
    return EXACT.add(Decimal(one), Decimal(other))


def _subtract(one: Quantity, other: Quantity) -> Quantity:
    return _add(one, -other)
