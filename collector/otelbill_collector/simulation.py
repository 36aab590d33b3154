"""What history would have earned under another rate card, and what a month will. Owns comparison and forecast.

Nothing is written. Amounts of a simulation are exact; a forecast is an estimate and says its range.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import DAY_NANOS, floor_slice, format_instant, parse_instant
from otelbill_collector.domain.money import format_attos, parse_attos
from otelbill_collector.domain.rating import Rater
from otelbill_collector.ledger.corrections import Aspect, list_standing
from otelbill_collector.ledger.repricing import Progress, Repriced, Scope, sum_repriced
from otelbill_collector.ledger.rollups import UsageQuery, load_usage

Json = dict[str, Any]  # answers are printed as JSON

_RATE_DAYS = 28  # whole weeks, since most usage has a weekly rhythm
GROUPS = ("light", "median", "heavy")


def simulate(
    connection: sqlite3.Connection, rater: Rater, scope: Scope, progress: Progress
) -> dict[str | None, Repriced]:
    """By customer, what is booked in the scope and what it would be under the rater's prices.

    A charge that an operator gave by hand stays what it is under any card.
    """
    given = frozenset(event_id for event_id, standing in list_standing(connection) if Aspect.CHARGE in standing)
    return sum_repriced(connection, rater, Scope(scope.from_nanos, scope.to_nanos, scope.where, given), progress)


def identify_prices(rater: Rater) -> str:
    """16 hex characters that two raters share only when they have the same rate card."""
    return digest_parts("rate-card", repr(rater.card), repr(sorted(rater.members.items()))).hex()[:16]


def render_simulation(sums: Mapping[str | None, Repriced], currency: str) -> Json:
    """Customers with the largest charge first, the whole, and light, median and heavy users apart."""
    ranked = sorted(sums.items(), key=lambda item: (-item[1].charge_attos, str(item[0])))
    return {
        "currency": currency,
        "customers": [{"customer": customer, **_render(found)} for customer, found in ranked],
        "groups": [
            {"group": name, "customers": len(members), **_render(_add_up(members))}
            for name, members in split_by_use(sums).items()
        ],
        "total": _render(_add_up(sums.values())),
    }


def split_by_use(sums: Mapping[str | None, Repriced]) -> dict[str, list[Repriced]]:
    """The quarter of customers that cost least, the half in the middle, and the quarter that cost most."""
    ranked = sorted(
        (item for item in sums.items() if item[0] is not None), key=lambda item: (item[1].cost_attos, item[0])
    )
    quarter = len(ranked) // 4
    cuts = (0, quarter, len(ranked) - quarter, len(ranked))
    return {name: [found for _, found in ranked[cuts[place] : cuts[place + 1]]] for place, name in enumerate(GROUPS)}


def _add_up(parts: Iterable[Repriced]) -> Repriced:
    total = Repriced()
    for part in parts:
        total.add(part)
    return total


def _render(found: Repriced) -> Json:
    booked, then = found.booked_charge_attos, found.charge_attos
    return {
        "events": found.events,
        "cost": format_attos(found.cost_attos),
        "charge_booked": format_attos(booked),
        "charge": format_attos(then),
        "difference": format_attos(then - booked),
        "margin_booked": format_attos(booked - found.booked_cost_attos),
        "margin": format_attos(then - found.cost_attos),
        "unpriced_booked": found.booked_uncharged,
        "unpriced": found.uncharged,
        "changed": found.changed,
    }


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a period will come to. Attos; `low` to `high` holds four times of five if days are independent."""

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


def render_forecast(customer: str | None, currency: str | None, found: Forecast, to_nanos: int) -> Json:
    """A forecast as JSON values."""
    return {
        "customer": customer,
        "currency": currency,
        "to": format_instant(to_nanos),
        "so_far": format_attos(found.so_far),
        "expected": format_attos(found.expected),
        "low": format_attos(found.low),
        "high": format_attos(found.high),
        "days": found.days,
    }


def list_forecasts(connection: sqlite3.Connection, now_nanos: int, customer: str | None = None) -> list[Json]:
    """One forecast of the current calendar month (UTC) for each customer and currency with a whole day of usage."""
    today = floor_slice(now_nanos, DAY_NANOS)
    month_start, month_end = _find_month(now_nanos)
    since = min(month_start, today - _RATE_DAYS * DAY_NANOS)
    where = {} if customer is None else {"customer": customer}
    rows = load_usage(connection, UsageQuery(("customer", "day"), from_nanos=since, where=where))
    series: dict[tuple[str, str], dict[int, int]] = {}
    for row in rows:
        if row["customer"] is not None and row["currency"] is not None:
            days = series.setdefault((row["customer"], row["currency"]), {})
            days[parse_instant(row["day"])] = parse_attos(row["charge"])
    found = []
    for (name, currency), days in sorted(series.items()):
        first = max(min(days), today - _RATE_DAYS * DAY_NANOS)
        daily = [days.get(day, 0) for day in range(first, today, DAY_NANOS)]
        so_far = sum(amount for day, amount in days.items() if day >= month_start)
        forecast = forecast_period(daily, so_far, now_nanos=now_nanos, to_nanos=month_end)
        if forecast is not None:
            found.append(render_forecast(name, currency, forecast, month_end))
    return found


def _find_month(now_nanos: int) -> tuple[int, int]:
    """The calendar month (UTC) of an instant, [start, end)."""
    year, month = (int(part) for part in format_instant(now_nanos)[:7].split("-"))
    following = f"{year + month // 12:04d}-{month % 12 + 1:02d}-01"
    return parse_instant(f"{year:04d}-{month:02d}-01"), parse_instant(following)
