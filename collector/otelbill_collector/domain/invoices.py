"""Invoices as values: lines, what is left to invoice of them, their rounding and their ids. Pure; owns no prices.

Amounts are exact fractions of attos until `round_amounts`. See docs/billing.md for what the lines mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Any

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import format_instant, parse_instant
from otelbill_collector.domain.money import ATTOS_DIGITS, ATTOS_PER_UNIT, EXACT, format_attos, parse_attos
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.usage import Quantity

Json = dict[str, Any]  # Any: JSON values
Key = tuple[str, ...]

_DIGITS_MAX = 30  # decimals of an exact amount; one that needs more is written as a fraction
_WITHOUT_CENTS = frozenset("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split())
_THREE_DIGITS = frozenset("BHD IQD JOD KWD LYD OMR TND".split())


class LineKind(StrEnum):
    """What a line stands for, in the order in which an invoice shows them."""

    USAGE = "usage"
    CHARGE = "charge"
    FEE = "fee"
    DISCOUNT = "discount"
    MINIMUM = "minimum"
    COMMITMENT = "commitment"
    CREDIT = "credit"


@dataclass(frozen=True, slots=True)
class Entry:
    """One amount of a period, before it stands on an invoice. `amount` is in attos; `unit_attos` for one `unit`."""

    kind: LineKind
    amount: Fraction
    label: str = ""
    project: str | None = None
    step: str | None = None
    provider: str | None = None
    model: str | None = None
    unit: str | None = None
    quantity: Quantity | None = None
    unit_attos: int | None = None
    version: str | None = None
    arithmetic: str = ""
    events: int = 0

    @property
    def key(self) -> Key:
        """What makes two entries the same line: everything but its numbers."""
        names = (self.label, self.project, self.step, self.provider, self.model, self.unit, self.version)
        return (self.kind.value, *(name or "" for name in names))


@dataclass(frozen=True, slots=True)
class Line:
    """An entry on an invoice. `period` is what it is for; on an adjustment, an earlier one. `minor` is what is paid."""

    line_id: str
    period: Period
    adjustment: bool
    entry: Entry
    minor: int


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency and the decimals that its invoices have."""

    code: str
    digits: int

    @property
    def minor_attos(self) -> int:
        """Attos of the smallest amount that can be paid."""
        return int(10 ** (ATTOS_DIGITS - self.digits))

    def format_minor(self, minor: int) -> str:
        """`12345` as "123.45"."""
        sign, digits = ("-", -minor) if minor < 0 else ("", minor)
        whole, rest = divmod(digits, 10**self.digits)
        return f"{sign}{whole}.{rest:0{self.digits}d}" if self.digits else f"{sign}{whole}"


def find_currency(code: str, digits: int | None = None) -> Currency:
    """The currency with its usual decimals (ISO 4217), or those that are given."""
    usual = 0 if code in _WITHOUT_CENTS else 3 if code in _THREE_DIGITS else 2
    return Currency(code, usual if digits is None else digits)


def sum_entries(entries: Iterable[Entry]) -> dict[Key, Entry]:
    """Entries of equal key added up, in the order of their first appearance."""
    sums: dict[Key, Entry] = {}
    for entry in entries:
        before = sums.get(entry.key)
        sums[entry.key] = entry if before is None else _add_entries(before, entry, 1)
    return sums


def _add_entries(before: Entry, entry: Entry, sign: int) -> Entry:
    quantity = _add_quantities(before.quantity, entry.quantity, sign)
    events, amount = before.events + sign * entry.events, before.amount + sign * entry.amount
    return replace(before, amount=amount, quantity=quantity, events=events)


def _add_quantities(left: Quantity | None, right: Quantity | None, sign: int) -> Quantity | None:
    if left is None and right is None:
        return None
    first, second = left or 0, sign * (right or 0)
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    return EXACT.add(Decimal(first), Decimal(second))


def list_differences(current: Sequence[Entry], invoiced: Mapping[Key, Entry]) -> list[Entry]:
    """What is left to invoice so that all that is invoiced adds up to `current`; equal entries are left out.

    Where nothing of a key was invoiced its entry is as it is; otherwise its numbers are differences.
    """
    left = dict(invoiced)
    found = []
    for entry in sum_entries(current).values():
        before = left.pop(entry.key, None)
        found.append(entry if before is None else _subtract_entry(entry, before))
    found += [
        _subtract_entry(replace(entry, amount=Fraction(0), quantity=None, events=0), entry) for entry in left.values()
    ]
    return [entry for entry in found if entry.amount or entry.quantity]


def _subtract_entry(entry: Entry, before: Entry) -> Entry:
    difference = _add_entries(entry, before, -1)
    if difference.unit_attos is not None and difference.quantity is not None:
        linear = Fraction(difference.quantity) * difference.unit_attos
        if linear == difference.amount:
            return replace(difference, arithmetic=spell_product(difference.quantity, difference.unit_attos))
    text = f"{format_exact(entry.amount)} now, {format_exact(before.amount)} invoiced"
    return replace(difference, unit_attos=None, arithmetic=f"{text} = {format_exact(difference.amount)}")


def round_amounts(amounts: Sequence[Fraction], minor_attos: int) -> list[int]:
    """Minor units of each amount: the total is rounded half up, and what is missing goes to the largest remainders.

    Every amount is rounded down first; of equal remainders the earlier one is served. No amount is off by a whole unit.
    """
    floors = [amount // minor_attos for amount in amounts]
    total = (2 * sum(amounts, Fraction(0)) + minor_attos) // (2 * minor_attos)
    order = sorted(range(len(amounts)), key=lambda index: (floors[index] * minor_attos - amounts[index], index))
    for index in order[: total - sum(floors)]:
        floors[index] += 1
    return floors


def spell_product(quantity: Quantity, unit_attos: int) -> str:
    """`1,000 x 0.002 = 2`."""
    amount = Fraction(quantity) * unit_attos
    return f"{quantity:,} x {format_attos(unit_attos)} = {format_exact(amount)}"


def spell_credits(quantity: Quantity, each: str, worth: str) -> str:
    """`40 x 5 credits = 200 credits; x 0.01 = 2`."""
    credits = Fraction(quantity) * Fraction(each)
    amount = parse_exact(str(credits * Fraction(worth)))
    count = format_exact(parse_exact(str(credits)))
    return f"{quantity:,} x {each} credits = {count} credits; x {worth} = {format_exact(amount)}"


def format_exact(amount: Fraction) -> str:
    """Exact text of attos in major units: a decimal where it ends ("0.15"), otherwise a fraction ("1/3")."""
    if amount.denominator == 1:
        return format_attos(amount.numerator)
    value: Fraction = amount * Fraction(1, ATTOS_PER_UNIT)
    scaled = value * 10**_DIGITS_MAX
    if scaled.denominator != 1:
        return str(value)
    sign, digits = ("-", -scaled.numerator) if scaled < 0 else ("", scaled.numerator)
    whole, rest = divmod(digits, 10**_DIGITS_MAX)
    return f"{sign}{whole}." + f"{rest:0{_DIGITS_MAX}d}".rstrip("0")


def parse_exact(text: str) -> Fraction:
    """The inverse of `format_exact`."""
    value: Fraction = Fraction(text) * ATTOS_PER_UNIT
    return value


def derive_line_id(customer_id: str, invoice_period: Period, origin: Period, entry: Entry) -> str:
    """`line1.` and 24 hex characters over what the line says and where it stands."""
    quantity = (
        "" if entry.quantity is None else format(entry.quantity, "f" if isinstance(entry.quantity, Decimal) else "d")
    )
    places = (invoice_period.start_nanos, origin.start_nanos)
    return f"line1.{digest_parts('line', customer_id, *places, *entry.key, quantity, str(entry.amount)).hex()[:24]}"


def derive_invoice_id(content: str) -> str:
    """`inv1.` and 24 hex characters over the canonical text of everything the invoice says."""
    return f"inv1.{digest_parts('invoice', content).hex()[:24]}"


def render_canonical(content: Json) -> str:
    """The one text of a JSON object that ids are digests of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def render_line(line: Line, currency: Currency) -> Json:
    """A line as JSON values: exact decimal text, quantities too, so that nothing depends on a reader's numbers."""
    entry = line.entry
    return {
        "line_id": line.line_id,
        "kind": entry.kind.value,
        "adjustment": line.adjustment,
        "period": line.period.label,
        "period_from": format_instant(line.period.start_nanos),
        "period_to": format_instant(line.period.end_nanos),
        "label": entry.label,
        "project": entry.project,
        "step": entry.step,
        "provider": entry.provider,
        "model": entry.model,
        "unit": entry.unit,
        "quantity": None if entry.quantity is None else _format_quantity(entry.quantity),
        "unit_price": None if entry.unit_attos is None else format_attos(entry.unit_attos),
        "price_version": entry.version,
        "arithmetic": entry.arithmetic,
        "events": entry.events,
        "exact": format_exact(entry.amount),
        "amount": currency.format_minor(line.minor),
    }


def read_line(body: Json, currency: Currency) -> Line:
    """The inverse of `render_line`."""
    quantity = body["quantity"]
    entry = Entry(
        LineKind(body["kind"]),
        parse_exact(body["exact"]),
        label=body["label"],
        project=body["project"],
        step=body["step"],
        provider=body["provider"],
        model=body["model"],
        unit=body["unit"],
        quantity=None if quantity is None else Decimal(quantity) if "." in quantity else int(quantity),
        unit_attos=None if body["unit_price"] is None else parse_attos(body["unit_price"]),
        version=body["price_version"],
        arithmetic=body["arithmetic"],
        events=body["events"],
    )
    period = Period(body["period"], parse_instant(body["period_from"]), parse_instant(body["period_to"]))
    minor = int(body["amount"].replace(".", "")) if currency.digits else int(body["amount"])
    return Line(body["line_id"], period, body["adjustment"], entry, minor)


def _format_quantity(value: Quantity) -> str:
    return str(value) if isinstance(value, int) else format(value, "f")
