"""Prices keep the digits that were written, or are refused."""

from __future__ import annotations

from decimal import Decimal

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS
from otelbill_collector.domain.prices import (
    InvalidPrice,
    SizeTier,
    Timeline,
    UnitPrice,
    create_price_version,
    multiply_markup,
    parse_percent,
    parse_unit_price,
    round_unit_price,
)


@pytest.mark.parametrize(
    ("price", "per", "attos"),
    [
        ("0.60", 1_000_000, 6 * 10**11),
        ("2", 1, 2 * 10**18),
        (3, 1_000, 3 * 10**15),
        ("0.000001", 1_000_000, 10**6),
        ("0.75", 3, 25 * 10**16),
        ("0", 1, 0),
    ],
)
def test_price_per_unit_is_exact(price: str | int, per: int, attos: int) -> None:
    """A price for `per` units is the same money for one unit, to the last digit."""
    assert parse_unit_price(price, per) == attos


@pytest.mark.parametrize(
    ("price", "per", "words"),
    [
        ("0.50", 3, "more than 12 decimals"),
        ("0.0000000000001", 1, "more than 12 decimals"),
        ("0.0000001", 1_000_000, "more than 12 decimals"),
        ("0.0000000000000000001", 1, "more than 12 decimals"),
        ("-1", 1, "outside"),
        ("1e3", 1, "not a decimal"),
        ("NaN", 1, "not a decimal"),
        ("1,5", 1, "not a decimal"),
        ("", 1, "not a decimal"),
        ("1", 0, "per 0 is outside"),
    ],
)
def test_price_that_would_be_rounded_or_guessed_is_refused(price: str, per: int, words: str) -> None:
    """No price is rounded silently, and every refusal says what to write instead."""
    with pytest.raises(InvalidPrice, match=words) as caught:
        parse_unit_price(price, per)
    assert caught.value.remedy


def test_percent_has_four_decimals() -> None:
    """A markup keeps up to four decimals of a percent and refuses more."""
    assert parse_percent("20") == 200_000
    assert parse_percent("0.0001") == 1
    assert parse_percent("-100") == -1_000_000
    for wrong in ("0.00001", "-101", "1e2"):
        with pytest.raises(InvalidPrice):
            parse_percent(wrong)


def test_markup_is_exact() -> None:
    """A marked-up unit price is a whole number of attos for every price of 12 decimals and percent of 4."""
    assert multiply_markup(parse_unit_price("0.000000000001"), parse_percent("0.0001")) == 1_000_001
    assert multiply_markup(parse_unit_price("0.15", 10**6), parse_percent("20")) == parse_unit_price("0.18", 10**6)
    with pytest.raises(InvalidPrice):
        multiply_markup(1, 1)


def test_size_tier_starts_above_its_threshold() -> None:
    """A request at the threshold pays the base price, one token more pays the tier for all tokens."""
    price = UnitPrice(1, (SizeTier(200, 2), SizeTier(300, 3)))
    assert [price.select_attos(size) for size in (0, 200, 201, 300, 301)] == [1, 1, 2, 2, 3]


def test_noise_of_binary_fractions_is_cut() -> None:
    """A price that was computed in floating point upstream becomes the price that was meant."""
    assert round_unit_price(Decimal("0.18000000000000002"), 10**6) == parse_unit_price("0.18", 10**6)
    assert round_unit_price(Decimal("1.0399999999999998"), 10**6) == parse_unit_price("1.04", 10**6)


def test_boundary_instant_belongs_to_the_new_price() -> None:
    """Intervals are half-open, for dates and for times of day."""
    timeline = Timeline((10 * DAY_NANOS,), (("old", "old noon"), ("new", "new noon")), (0, 12 * HOUR_NANOS))
    boundary, noon = 10 * DAY_NANOS, 12 * HOUR_NANOS
    assert timeline.find_value(boundary - 1) == "old noon"
    assert timeline.find_value(boundary) == "new"
    assert timeline.find_value(boundary + noon - 1) == "new"
    assert timeline.find_value(boundary + noon) == "new noon"
    assert timeline.find_value(-1) == "old noon"


def test_version_id_is_its_content() -> None:
    """Equal prices have an equal id whatever the order of their keys, other prices another one."""
    first = create_price_version("t", {"a": "1", "b": "2"})
    assert first == create_price_version("t", {"b": "2", "a": "1"})
    assert first.version_id != create_price_version("t", {"a": "1", "b": "3"}).version_id
    assert first.read_body() == {"kind": "t", "a": "1", "b": "2"}
