"""What billing periods under way will come to, from the run rate of the last weeks. Owns the estimate and its range.

The one figure that is not exact; nothing is billed by it. What a period comes to so far is exact, as its draft has it.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import accumulate, pairwise
from math import isqrt
from typing import Any

from otelbill_collector.domain.instants import DAY_NANOS, floor_slice, format_instant, parse_instant
from otelbill_collector.domain.invoices import format_exact
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.quantities import from_micros, to_micros
from otelbill_collector.domain.statements import UsageSum, count_committed, make_statement
from otelbill_collector.domain.terms import Term, resolve_terms
from otelbill_collector.invoicing import BillingRules
from otelbill_collector.ledger.periods import Invoice, list_invoices
from otelbill_collector.ledger.rollups import UsageQuery, load_usage
from otelbill_collector.ledger.usage_sums import load_usage_sums
from otelbill_collector.simulation import PriceContents

Json = dict[str, Any]  # answers are printed as JSON
Sums = Sequence[UsageSum]

_RATE_DAYS = 28  # whole weeks, since most usage has a weekly rhythm
_CASES = ("expected", "low", "high")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a sum will be at the end of a period. `low` to `high` holds four times of five if days are independent."""

    so_far: int
    expected: int
    low: int
    high: int
    days: int  # whole days that the run rate was taken from


def forecast_period(daily: Sequence[int], so_far: int, *, now_nanos: int, to_nanos: int) -> Forecast | None:
    """From the charges of the last whole days (oldest first) to those of a period that ends at `to_nanos`.

    The run rate is their mean. The range is 1.2816 standard deviations of the sum of the days that are left, whose mean
    is known from those days only. None without a whole day. Integers throughout, so the same history has one forecast.
    """
    if not daily:
        return None
    left, days = max(0, to_nanos - now_nanos), len(daily)
    total = sum(daily)
    expected = so_far + total * left // (days * DAY_NANOS)
    spread = sum((days * amount - total) ** 2 for amount in daily)  # days^3 x variance
    reach = left * DAY_NANOS * days + left * left  # (days left + their square / days) x days x DAY_NANOS^2
    half = isqrt(spread * reach * 12_816**2 // (days**4 * DAY_NANOS**2)) // 10_000
    return Forecast(so_far, expected, max(so_far, expected - half), expected + half, days)


@dataclass(slots=True)
class _Days:
    """A customer's days in one currency: charges by event in attos, and quantities in millionths by unit."""

    charges: dict[int, int] = field(default_factory=dict)
    units: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))

    def list_days(self, today: int) -> range:
        """The whole days that the run rate is taken from."""
        return range(max(min(self.charges), today - _RATE_DAYS * DAY_NANOS), today, DAY_NANOS)


@dataclass(frozen=True, slots=True)
class _Usage:
    """Sums of one customer: of the period so far, and of the days that the run rate is taken from."""

    so_far: Sums
    recent: Sums
    days: _Days

    def estimate(
        self, contents: PriceContents, now_nanos: int, period: Period, today: int
    ) -> dict[str, list[UsageSum]]:
        """The sums at the end of the period, in each case. Charges by event and quantities of charges go on alike."""
        forecast = partial(forecast_period, now_nanos=now_nanos, to_nanos=period.end_nanos)
        days = self.days.list_days(today)
        daily = [self.days.charges.get(day, 0) for day in days]
        charged = forecast(daily, sum(item.charge_attos for item in self.so_far))
        assert charged is not None, "a run rate needs a day"
        cases = {case: _scale_charges(self.so_far or self.recent, getattr(charged, case)) for case in _CASES}
        for unit in sorted(_list_counted(self.so_far, contents) | _list_counted(self.recent, contents)):
            now, before = (_find_counted(sums, contents, unit) for sums in (self.so_far, self.recent))
            series, whole = self.days.units.get(unit, {}), sum(before.values())
            total = sum(series.get(day, 0) for day in days) or 1  # not all of a unit need be counted by a charge
            counted = forecast([series.get(day, 0) * whole // total for day in days], sum(now.values()))
            assert counted is not None
            for case, sums in cases.items():
                more = getattr(counted, case) - counted.so_far
                shares = dict(zip(before, _share(more, list(before.values())), strict=True))
                for version in sorted({*now, *before}):
                    micros = now.get(version, 0) + shares.get(version, 0)
                    sums.append(UsageSum(None, None, None, None, version, None, {unit: from_micros(micros)}))
        return cases


def _scale_charges(sums: Sums, total: int) -> list[UsageSum]:
    """Charges by event of equal names, as they are now, as parts of another total."""
    amounts = _share(total, [item.charge_attos for item in sums]) if sums else []
    scaled = [
        UsageSum(None, item.step, item.provider, item.model, None, None, charge_attos=amount)
        for item, amount in zip(sums, amounts, strict=True)
    ]
    rest = total - sum(amounts)  # where nothing is charged so far there are no names to share it by
    return [*scaled, UsageSum(None, None, None, None, None, None, charge_attos=rest)] if rest else scaled


def _share(total: int, weights: Sequence[int]) -> list[int]:
    """The total in parts as large as the weights, which add up to it unless all are zero."""
    whole = sum(weights)
    if whole <= 0 or min(weights) < 0:
        return [0] * len(weights)
    ends = [total * end // whole for end in accumulate(weights, initial=0)]
    return [end - start for start, end in pairwise(ends)]


def _list_covering(item: UsageSum, contents: PriceContents) -> Iterator[str]:
    """The units of a sum that a period charge counts."""
    prices = contents.get(item.version, {}).get("prices", {}) if item.version else {}
    return (unit for unit, price in prices.items() if price["charge"] == "period")


def _list_counted(sums: Sums, contents: PriceContents) -> set[str]:
    return {unit for item in sums for unit in _list_covering(item, contents) if item.quantities.get(unit)}


def _find_counted(sums: Sums, contents: PriceContents, unit: str) -> dict[str, int]:
    """What period charges count of a unit, in millionths, by the price version that says so."""
    counted: dict[str, int] = {}
    for item in sums:
        if item.version is not None and unit in _list_covering(item, contents):
            counted[item.version] = counted.get(item.version, 0) + to_micros(item.quantities.get(unit, 0))
    return {version: micros for version, micros in counted.items() if micros > 0}


def list_forecasts(
    connection: sqlite3.Connection, rules: BillingRules, now_nanos: int, customer: str | None = None
) -> list[Json]:
    """One forecast of the billing period under way for each customer that has a whole day of usage. Raises
    UnknownVersion.
    """
    today = floor_slice(now_nanos, DAY_NANOS)
    found = _load_days(connection, today, customer, rules.currency.code)
    contents = PriceContents(rules, {}, connection)
    recent = load_usage_sums(
        connection, from_nanos=today - _RATE_DAYS * DAY_NANOS, to_nanos=today, customer_id=customer
    )
    so_far: dict[Period, dict[str, list[UsageSum]]] = {}
    rows = []
    for name, days in sorted(found.items()):
        if not days.list_days(today):
            continue
        period = rules.find_calendar(name).find_period(now_nanos)
        if period not in so_far:
            until = min(now_nanos + 1, period.end_nanos)
            so_far[period] = load_usage_sums(
                connection, from_nanos=period.start_nanos, to_nanos=until, customer_id=customer
            )
        usage = _Usage(_choose(so_far[period].get(name, []), rules), _choose(recent.get(name, []), rules), days)
        cases = {"so_far": list(usage.so_far), **usage.estimate(contents, now_nanos, period, today)}
        invoices = [item for item in list_invoices(connection, customer_id=name) if item.stands]
        stated = {case: _state(rules, contents, name, period, items, invoices) for case, items in cases.items()}
        rows.append(_render(name, rules.currency.code, period, stated, len(days.list_days(today))))
    return rows


def _choose(sums: Sums, rules: BillingRules) -> list[UsageSum]:
    return [item for item in sums if item.currency in (None, rules.currency.code)]


def _load_days(connection: sqlite3.Connection, today: int, customer: str | None, currency: str) -> dict[str, _Days]:
    """By customer, the days since the run rate begins, today's among them."""
    where = {} if customer is None else {"customer": customer}
    query = UsageQuery(("customer", "day"), from_nanos=today - _RATE_DAYS * DAY_NANOS, where=where)
    found: dict[str, _Days] = defaultdict(_Days)
    for row in load_usage(connection, query):
        if row["customer"] is not None and row["currency"] == currency:
            day, days = parse_instant(row["day"]), found[row["customer"]]
            days.charges[day] = parse_attos(row["charge"] or "0")
            for unit, quantity in row["quantities"].items():
                days.units[unit][day] = to_micros(quantity if isinstance(quantity, int) else Decimal(quantity))
    return found


def _state(
    rules: BillingRules,
    contents: Mapping[str, Mapping[str, Any]],
    customer: str,
    period: Period,
    sums: Sums,
    invoices: Sequence[Invoice],
) -> Fraction:
    """What the period comes to with these sums, before adjustments of others and credits."""

    def count(term: Term) -> Fraction:
        lines = (line for invoice in invoices for line in invoice.lines)
        earlier = (
            line.entry for line in lines if line.period.start_nanos < period.start_nanos and term.counts(line.period)
        )
        return count_committed(earlier)

    terms = resolve_terms(rules.card, rules.find_names(customer), period)
    entries = make_statement(sums, contents, terms, count)
    return sum((entry.amount for entry in entries), Fraction(0))


def _render(customer: str, currency: str, period: Period, stated: Mapping[str, Fraction], days: int) -> Json:
    estimates = [Fraction(stated[case] // 1) for case in _CASES]
    return {
        "customer": customer,
        "currency": currency,
        "period": period.label,
        "from": format_instant(period.start_nanos),
        "to": format_instant(period.end_nanos),
        "so_far": format_exact(stated["so_far"]),
        "expected": format_exact(estimates[0]),
        "low": format_exact(min(estimates)),
        "high": format_exact(max(estimates)),
        "days": days,
    }
