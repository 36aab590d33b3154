"""Billing calendars: which period an instant belongs to, and what a period is called. Owns local midnights as instants.

Knows time zones by their IANA names; does not know what is closed (see `ledger.periods`) nor what time it is.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from otelbill_collector.domain.instants import NANOS

ANCHOR_DAY_MAX = 31
_LABEL = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_YEARS = range(1971, 9_998)  # a year of room on both sides of what dates can hold


class InvalidPeriod(ValueError):
    """A period, time zone or anchor day that cannot be. The message names the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Period:
    """Half-open [start_nanos, end_nanos). `label`: local date of the first day, `2026-11` for a calendar month."""

    label: str
    start_nanos: int
    end_nanos: int

    def holds(self, nanos: int) -> bool:
        """Whether an instant belongs to this period."""
        return self.start_nanos <= nanos < self.end_nanos


@dataclass(frozen=True, slots=True)
class BillingCalendar:
    """Periods of one month from local midnight of `anchor_day` on, in `time_zone` (IANA name). Raises InvalidPeriod.

    29 to 31 mean the last day of months that are shorter.
    """

    time_zone: str = "UTC"
    anchor_day: int = 1

    def __post_init__(self) -> None:
        require_zone(self.time_zone)
        if not 1 <= self.anchor_day <= ANCHOR_DAY_MAX:
            raise InvalidPeriod(
                f"anchor day {self.anchor_day} is outside 1..{ANCHOR_DAY_MAX}; choose a day of the month"
            )

    def find_period(self, nanos: int) -> Period:
        """The period that holds an instant."""
        local = _locate(require_zone(self.time_zone), nanos // NANOS)
        for offset in (1, 0, -1):  # the latest one that has begun
            period = self._make_period(*_add_months(local.year, local.month, offset))
            if period.start_nanos <= nanos:
                return period
        raise AssertionError(f"no period of {self} has begun at {nanos}")

    def parse_label(self, label: str) -> Period:
        """The period of a label: `2026-11` is the one that begins in that month, `2026-11-15` on that day."""
        match = _LABEL.fullmatch(label.strip())
        if match is None or int(match[1]) not in _YEARS or not 1 <= int(match[2]) <= 12:
            raise InvalidPeriod(f"{label!r} is no period; write its first month or day, such as 2026-11 or 2026-11-15")
        period = self._make_period(int(match[1]), int(match[2]))
        if match[3] is not None and f"{match[1]}-{match[2]}-{match[3]}" != self._first_day(period).isoformat():
            raise InvalidPeriod(f"no period begins on {label}; the one of that month is called {period.label}")
        return period

    def next_period(self, period: Period) -> Period:
        """The period that begins where this one ends."""
        return self.find_period(period.end_nanos)

    def list_periods(self, from_nanos: int, to_nanos: int) -> Iterator[Period]:
        """The periods that touch [from, to), in order."""
        period = self.find_period(from_nanos)
        while period.start_nanos < to_nanos:
            yield period
            period = self.next_period(period)

    def name_start(self, nanos: int) -> str:
        """The local date of an instant."""
        return _locate(require_zone(self.time_zone), nanos // NANOS).date().isoformat()

    def _make_period(self, year: int, month: int) -> Period:
        first = self._find_anchor(year, month)
        following = self._find_anchor(*_add_months(year, month, 1))
        zone = require_zone(self.time_zone)
        label = first.isoformat()[:7] if self.anchor_day == 1 else first.isoformat()
        return Period(label, find_midnight(zone, first) * NANOS, find_midnight(zone, following) * NANOS)

    def _find_anchor(self, year: int, month: int) -> date:
        return date(year, month, min(self.anchor_day, monthrange(year, month)[1]))

    def _first_day(self, period: Period) -> date:
        """By the label, not by the clock: a zone may have skipped the day itself."""
        return date.fromisoformat(period.label if len(period.label) > 7 else f"{period.label}-01")


def require_zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name. Raises InvalidPeriod."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidPeriod(
            f"{name!r} is not a time zone; write an IANA name such as Europe/Berlin or America/New_York"
        ) from None


def find_midnight(zone: ZoneInfo, day: date) -> int:
    """Seconds since the epoch of the first instant of a local day.

    Where clocks skip midnight the day begins later; where midnight comes twice, the first one counts.
    """
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    instant = (midnight - _EPOCH) // _SECOND
    if _locate(zone, instant).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return instant
    # In a gap the two readings of the wall clock stand on both sides of the moment when the clocks were moved.
    earlier = (midnight.replace(fold=1) - _EPOCH) // _SECOND
    between = range(min(earlier, instant), max(earlier, instant) + 1)
    return between[bisect_left(between, day, key=lambda second: _locate(zone, second).date())]


def _locate(zone: ZoneInfo, seconds: int) -> datetime:
    return (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)


def _add_months(year: int, month: int, count: int) -> tuple[int, int]:
    years, zero_based = divmod(year * 12 + month - 1 + count, 12)
    return years, zero_based + 1
