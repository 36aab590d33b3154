"""Window arithmetic: lengths, stamps, and identifiers that other machines and later versions must reproduce."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS
from otelbill_collector.domain.windows import (
    Stamp,
    WindowKey,
    choose_stamp,
    derive_identifier,
    require_window_length,
    scale_quantity,
)

KEY = WindowKey("default", False, "otelbill_charge_usd_micro", "acme", 1_795_262_400 * NANOS, 300 * NANOS, 0)


def test_identifiers_are_the_same_on_every_machine() -> None:
    """A known input has a known identifier: changing the derivation would bill every open window twice."""
    assert derive_identifier(KEY) == "ob1.l4e6xsndn64acbgkvv5jz35hwhxvqs7tom46ghfa"


def test_identifiers_fit_stripe_and_hide_the_customer() -> None:
    """At most 100 characters, the prefix of this scheme, and no customer data in clear."""
    identifier = derive_identifier(KEY)
    assert identifier.startswith("ob1.")
    assert len(identifier) == 44
    assert "acme" not in identifier


@pytest.mark.parametrize(
    "change",
    [
        {"account": "other"},
        {"livemode": True},
        {"meter": "m"},
        {"customer_id": "b"},
        {"start_nanos": 0},
        {"length_nanos": 60 * NANOS},
        {"revision": 1},
    ],
)
def test_everything_that_names_a_window_is_in_its_identifier(change: dict[str, object]) -> None:
    """Two windows, accounts, modes or revisions never share an identifier."""
    assert derive_identifier(replace(KEY, **change)) != derive_identifier(KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("minutes", [1, 2, 3, 5, 10, 15, 20, 30, 60])
def test_window_lengths_that_divide_the_hour_are_taken(minutes: int) -> None:
    """Hourly sums of Stripe can be compared only with windows that never cross an hour."""
    assert require_window_length(minutes * MINUTE_NANOS) == minutes * MINUTE_NANOS


@pytest.mark.parametrize("length", [0, 30 * NANOS, 7 * MINUTE_NANOS, 2 * HOUR_NANOS, MINUTE_NANOS + 1])
def test_other_window_lengths_are_refused(length: int) -> None:
    """A length that crosses hours, or is too short or long, is a configuration error with its remedy."""
    with pytest.raises(ValueError, match="divide the hour"):
        require_window_length(length)


def test_stamps_lie_at_the_last_event_and_never_ahead_of_now() -> None:
    """No subscription boundary inside a window is crossed, and Stripe never sees the future."""
    start, now = 1000 * DAY_NANOS, 1000 * DAY_NANOS + 100 * NANOS
    assert choose_stamp(start_nanos=start, last_event_nanos=start + 7 * NANOS, now_nanos=now) == Stamp(
        start // NANOS + 7, carried_forward=False
    )
    ahead = choose_stamp(start_nanos=start, last_event_nanos=start + 200 * NANOS, now_nanos=now)
    assert ahead == Stamp(now // NANOS, carried_forward=False)
    future = choose_stamp(start_nanos=start, last_event_nanos=start + NANOS, now_nanos=start - HOUR_NANOS)
    assert future == Stamp(start // NANOS, carried_forward=False)


def test_quantities_keep_six_decimals_and_refuse_a_seventh() -> None:
    """Units are held in millionths; what would need rounding is refused, not rounded."""
    assert scale_quantity(7) == 7_000_000
    assert scale_quantity(Decimal("0.000001")) == 1
    with pytest.raises(ValueError, match="6 decimals"):
        scale_quantity(Decimal("0.0000001"))
