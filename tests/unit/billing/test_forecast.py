"""What a billing period will come to: an estimate with a range worked out by hand, from a sum so far that is exact."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.forecast import forecast_period
from tests.spans import chat
from tests.unit.billing.test_invoice_commands import Desk, searches

CARD = """
billing: {grace: 0s}
rate_card:
  currency: USD
  prices:
    - {unit: input_tokens, price: "1.00", per: 1000000}
    - {unit: output_tokens, price: "1.00", per: 1000000}
  charges:
    - name: Searches
      unit: searches
      pricing: graduated
      tiers:
        - {up_to: 200, price: "0.10"}
        - {price: "0.01"}
  fees:
    - {name: Platform, amount: "20"}
"""
MORE = """
  discounts:
    - {name: All, percent: "10"}
  minimums:
    - {name: Minimum, amount: "100"}
"""


def use_ten_days(desk: Desk) -> None:
    """On each of the first ten days of November, a million tokens and ten searches."""
    for day in range(10):
        noon = parse_instant("2026-11-01T12:00:00Z") + day * DAY_NANOS
        desk.post(chat(f"c{day}", tokens=(1_000_000, 0), ended=noon), searches(f"s{day}", 10, noon))


def test_a_forecast_prices_the_whole_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten equal days are behind and twenty to go, so that nothing speaks for another amount than the expected one.

    So far: 10 x 1.00, 100 searches at 0.10, the fee of 20: 40. In the end: 30 x 1.00; 300 searches are 200 x 0.10 and
    100 x 0.01 = 21; the fee: 71. The run rate alone, without tiers, would say 30 + 30 + 20.
    """
    desk = Desk(tmp_path, monkeypatch, CARD)
    use_ten_days(desk)
    row = desk.read("forecast", "acme", "--at", "2026-11-11")
    assert (row["period"], row["to"], row["days"]) == ("2026-11", "2026-12-01T00:00:00Z", 10)
    assert (row["so_far"], row["expected"], row["low"], row["high"]) == ("40", "71", "71", "71")


def test_terms_hold_for_what_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 % of 71 off is 63.90, below the minimum of 100; what it came to so far is filled up as well."""
    desk = Desk(tmp_path, monkeypatch, CARD + MORE)
    use_ten_days(desk)
    row = desk.read("forecast", "--at", "2026-11-11")
    assert (row["so_far"], row["expected"]) == ("100", "100")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_what_it_came_to_so_far_is_what_the_draft_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """To the last digit, over the customer's own period."""
    desk = Desk(tmp_path, monkeypatch, f"customers: {{acme: {{time_zone: {zone}, anchor_day: 3}}}}" + CARD + MORE)
    use_ten_days(desk)
    desk.post(chat("odd", tokens=(123_457, 7), ended=parse_instant("2026-11-10T13:00:00Z")))
    row = desk.read("forecast", "acme", "--at", "2026-11-11")
    draft = desk.read("invoice", "acme", "--period", "2026-11")
    assert Fraction(row["so_far"]) == Fraction(draft["exact_total"])
    assert (row["from"], row["to"]) == (draft["from"], draft["to"])


def test_a_period_that_has_just_begun_goes_on_as_the_last_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 11 November a period begins: nothing so far but the fee, and of 30 days 30 x 1.00 + 21 + 20 to come."""
    desk = Desk(tmp_path, monkeypatch, "customers: {acme: {anchor_day: 11}}" + CARD)
    use_ten_days(desk)
    row = desk.read("forecast", "acme", "--at", "2026-11-11")
    assert (row["so_far"], row["expected"], row["low"], row["high"]) == ("20", "71", "71", "71")


def test_no_forecast_without_a_whole_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run rate of some hours is a guess; the next day it is not."""
    desk = Desk(tmp_path, monkeypatch, CARD)
    desk.post(chat("c", tokens=(1_000_000, 0), ended=parse_instant("2026-11-01T12:00:00Z")))
    assert desk.run("forecast", "--at", "2026-11-01T18:00:00Z", "--json").stdout == ""
    row = desk.read("forecast", "--at", "2026-11-02T18:00:00Z")
    assert (row["customer"], row["so_far"], row["days"]) == ("acme", "21", 1)


def test_the_forecast_of_equal_days_has_no_range() -> None:
    """Ten days of 5 each and half a month to go: 50 so far, 50 + 15 x 5 in the end, and nothing speaks for others."""
    found = forecast_period([5] * 10, 50, now_nanos=0, to_nanos=15 * DAY_NANOS)
    assert found is not None
    assert (found.expected, found.low, found.high, found.days) == (125, 125, 125, 10)


def test_the_range_of_a_forecast_worked_by_hand() -> None:
    """Days of 0 and 10 in turn: mean 5, deviation 5. Four left, of eight known: 5 x sqrt(4 + 16/8) x 1.2816 = 15.69.

    So 20 +- 15, since the half width is cut to a whole number.
    """
    found = forecast_period([0, 10] * 4, 0, now_nanos=0, to_nanos=4 * DAY_NANOS)
    assert found is not None
    assert (found.low, found.expected, found.high) == (5, 20, 35)
