"""Billing periods: a table of first instants that can be checked against any calendar, and what holds for all zones."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS, format_instant, parse_instant
from otelbill_collector.domain.periods import BillingCalendar, InvalidPeriod

ZONES = sorted(available_timezones() - {"localtime"})

# zone, anchor day, label, first instant, first instant of the next period, length in hours
TABLE = """
UTC                  1   2026-11     2026-11-01T00:00:00Z  2026-12-01T00:00:00Z  720   thirty days
UTC                  1   2028-02     2028-02-01T00:00:00Z  2028-03-01T00:00:00Z  696   a leap year's February
UTC                  1   2026-02     2026-02-01T00:00:00Z  2026-03-01T00:00:00Z  672   February
UTC                  29  2026-02-28  2026-02-28T00:00:00Z  2026-03-29T00:00:00Z  696   last day of a short month
UTC                  29  2028-02-29  2028-02-29T00:00:00Z  2028-03-29T00:00:00Z  696   and of a leap year the 29th
UTC                  31  2026-01-31  2026-01-31T00:00:00Z  2026-02-28T00:00:00Z  672   from a 31st to a 28th
UTC                  31  2026-02-28  2026-02-28T00:00:00Z  2026-03-31T00:00:00Z  744   and back to a 31st
UTC                  31  2026-11-30  2026-11-30T00:00:00Z  2026-12-31T00:00:00Z  744   a month of thirty days
Europe/Berlin        1   2026-03     2026-02-28T23:00:00Z  2026-03-31T22:00:00Z  743   summer time begins: an hour less
Europe/Berlin        1   2026-10     2026-09-30T22:00:00Z  2026-10-31T23:00:00Z  745   and ends: an hour more
Europe/Berlin        15  2026-11-15  2026-11-14T23:00:00Z  2026-12-14T23:00:00Z  720   an anniversary
Europe/Berlin        29  2026-03-29  2026-03-28T23:00:00Z  2026-04-28T22:00:00Z  743   begins on the day of the change
America/New_York     1   2026-11     2026-11-01T04:00:00Z  2026-12-01T05:00:00Z  721   the change is on the first day
Asia/Kolkata         1   2026-11     2026-10-31T18:30:00Z  2026-11-30T18:30:00Z  720   half an hour off
Asia/Kathmandu       1   2026-11     2026-10-31T18:15:00Z  2026-11-30T18:15:00Z  720   45 minutes off
Australia/Lord_Howe  1   2026-10     2026-09-30T13:30:00Z  2026-10-31T13:00:00Z  743.5 clocks move by half an hour
Pacific/Chatham      1   2026-04     2026-03-31T10:15:00Z  2026-04-30T11:15:00Z  721   45 minutes, and a change
America/Havana       8   2026-03-08  2026-03-08T05:00:00Z  2026-04-08T04:00:00Z  743   clocks skip midnight
America/Havana       1   2026-11     2026-11-01T04:00:00Z  2026-12-01T05:00:00Z  721   midnight comes twice
Asia/Beirut          29  2026-03-29  2026-03-28T22:00:00Z  2026-04-28T21:00:00Z  743   skips midnight, too
Pacific/Apia         30  2011-12-30  2011-12-30T10:00:00Z  2012-01-29T10:00:00Z  720   a day that never was
""".strip().splitlines()


@pytest.mark.parametrize("row", TABLE, ids=[" ".join(row.split()[:3]) for row in TABLE])
def test_a_period_begins_and_ends_where_the_table_says(row: str) -> None:
    """Local midnights as instants, over changes of the clock, ends of months and leap days."""
    zone, anchor, label, start, end, hours, *_ = row.split()
    calendar = BillingCalendar(zone, int(anchor))
    period = calendar.parse_label(label)
    assert (period.label, format_instant(period.start_nanos), format_instant(period.end_nanos)) == (label, start, end)
    assert (period.end_nanos - period.start_nanos) * 10 == HOUR_NANOS * int(
        hours.replace(".", "") + "0" * ("." not in hours)
    )
    assert calendar.find_period(period.start_nanos) == calendar.find_period(period.end_nanos - 1) == period
    assert calendar.next_period(period).start_nanos == period.end_nanos


def test_labels_go_both_ways() -> None:
    """A calendar month has two names, and a month names the one period that begins in it."""
    month, anniversary = BillingCalendar(), BillingCalendar("UTC", 15)
    assert month.parse_label("2026-11") == month.parse_label("2026-11-01")
    assert anniversary.parse_label("2026-11") == anniversary.parse_label("2026-11-15")
    for wrong, says in (("2026-11-14", "called 2026-11-15"), ("2026-13", "no period"), ("November", "no period")):
        with pytest.raises(InvalidPeriod, match=says):
            anniversary.parse_label(wrong)


@pytest.mark.parametrize(
    ("zone", "day"), [("Europe/Atlantis", 1), ("../etc/passwd", 1), ("", 1), ("UTC", 0), ("UTC", 32)]
)
def test_a_calendar_that_cannot_be_is_refused(zone: str, day: int) -> None:
    """An unknown zone or day is an error with a remedy, never UTC by accident."""
    with pytest.raises(InvalidPeriod):
        BillingCalendar(zone, day)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ZONES), st.integers(1, 31), st.integers(0, 4_102_444_800))
def test_every_instant_belongs_to_exactly_one_period(zone: str, anchor: int, second: int) -> None:
    """Periods follow each other without gap or overlap in every zone, and a label names the period it came from."""
    calendar = BillingCalendar(zone, anchor)
    at = second * NANOS
    period = calendar.find_period(at)
    assert period.holds(at)
    assert 27 * 24 * HOUR_NANOS <= period.end_nanos - period.start_nanos <= 33 * 24 * HOUR_NANOS
    if datetime.fromtimestamp(second, UTC).year > 1971:
        assert calendar.parse_label(period.label) == period
    listed = list(calendar.list_periods(at, at + 100 * 24 * HOUR_NANOS))
    assert listed[0] == period
    assert all(before.end_nanos == after.start_nanos for before, after in pairwise(listed))


def test_a_fraction_of_a_second_belongs_to_its_period() -> None:
    """The last nanosecond is inside, the next one outside."""
    november = BillingCalendar().parse_label("2026-11")
    assert BillingCalendar().find_period(parse_instant("2026-11-30T23:59:59.999999999Z")) == november
    assert not november.holds(november.end_nanos)
