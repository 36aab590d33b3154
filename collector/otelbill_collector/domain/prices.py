"""Prices as values: what one unit costs, by size of the request and by time. Owns their form and their identity.

Does not know where a price comes from (see `provider_prices` and `ratecard`) nor how usage meets it (see `rating`).
All prices are integer attos of one currency for one unit.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.money import ATTOS_DIGITS, EXACT, format_attos
from otelbill_collector.domain.quantities import QUANTITY_DECIMALS_MAX

T = TypeVar("T")

PRICE_DECIMALS_MAX = 12  # per unit; x 6 decimals of a quantity or of a markup is still a whole number of attos
PER_MAX = 10**12
INSTANT_MIN, INSTANT_MAX = -(2**63), 2**63 - 1  # what 64 bits hold: the years 1677 to 2262
_PRICE_MAX = 10**9
_STEP: int = 10 ** (ATTOS_DIGITS - PRICE_DECIMALS_MAX)
_CREDIT_STEP: int = 10 ** (ATTOS_DIGITS - QUANTITY_DECIMALS_MAX)
_DIVISION = Context(prec=60)  # far past the 12th decimal, where the quotient is rounded

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]


class InvalidPrice(ValueError):
    """A price cannot be taken as written. The message says why, `remedy` what to write instead."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def parse_unit_price(price: str | int, per: int = 1) -> int:
    """Attos for one unit of a price written as decimal text for `per` units. Raises InvalidPrice.

    `parse_unit_price("0.60", 1_000_000)` is 6 * 10**11 attos (0.0000006). More than 12 decimals per unit are refused.
    """
    if not 1 <= per <= PER_MAX:
        raise InvalidPrice(f"per {per} is outside 1..{PER_MAX}", "write per as a count of units, such as 1000000")
    amount = _parse_decimal(price)
    if not 0 <= amount <= _PRICE_MAX:
        raise InvalidPrice(f"price {price} is outside 0..{_PRICE_MAX}", "write a price that is not negative")
    scaled = EXACT.scaleb(amount, ATTOS_DIGITS)
    attos, rest = divmod(scaled, per) if scaled == scaled.to_integral_value() else (Decimal(0), Decimal(1))
    if rest or int(attos) % _STEP:
        raise InvalidPrice(
            f"price {price} per {per} has more than {PRICE_DECIMALS_MAX} decimals for one unit",
            "use a price with fewer decimals, or a `per` that is a power of ten",
        )
    return int(attos)


def parse_unit_credits(credits: str | int, per: int = 1) -> int:
    """Millionths of credits for one unit, of credits written for `per` units. Raises InvalidPrice past 6 decimals.

    `parse_unit_credits("3", 1_000)` is 3,000: a unit costs 0.003 credits.
    """
    attos = parse_unit_price(credits, per)
    micros, rest = divmod(attos, _CREDIT_STEP)
    if rest:
        message = f"{credits} credits per {per} have more than {QUANTITY_DECIMALS_MAX} decimals for one unit"
        raise InvalidPrice(message, "use credits that are worth less, so that a unit costs more of them")
    return micros


def parse_percent(percent: str | int) -> int:
    """Ten-thousandths of a percent: "20" is 200_000. Raises InvalidPrice past 4 decimals or outside -100..100000."""
    amount = _parse_decimal(percent)
    scaled = EXACT.scaleb(amount, 4)
    if scaled != scaled.to_integral_value():
        raise InvalidPrice(f"percent {percent} has more than 4 decimals", "round it to 4 decimals")
    if not -100 <= amount <= 100_000:
        raise InvalidPrice(f"percent {percent} is outside -100..100000", 'write 20 percent as "20"')
    return int(scaled)


def render_percent(percent_scaled: int) -> str:
    """The text of ten-thousandths of a percent: 200_000 is "20"."""
    whole, fraction = divmod(abs(percent_scaled), 10_000)
    sign = "-" if percent_scaled < 0 else ""
    text = f"{whole}.{fraction:04d}".rstrip("0").rstrip(".")
    return f"{sign}{text}"


def _parse_decimal(value: str | int) -> Decimal:
    text = str(value).strip()
    digits = text.removeprefix("-").replace(".", "", 1)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 40):
        raise InvalidPrice(f"{text[:40]!r} is not a decimal number", 'write digits with a point, such as "0.60"')
    return Decimal(text)


@dataclass(frozen=True, slots=True)
class SizeTier:
    """Every unit of a request with more than `above_tokens` input tokens (cached ones included) has this price."""

    above_tokens: int
    attos: int


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """Attos for one unit; `tiers` are in ascending order and replace `attos` for the whole request once passed."""

    attos: int
    tiers: tuple[SizeTier, ...] = ()

    def select_attos(self, total_input_tokens: int) -> int:
        """The price for a request of that size: the last tier that it exceeds, else the base price."""
        attos = self.attos
        for tier in self.tiers:
            if total_input_tokens > tier.above_tokens:
                attos = tier.attos
        return attos

    def render(self) -> Json:
        """JSON-able form: "0.00000015", or an object with tiers."""
        if not self.tiers:
            return format_attos(self.attos)
        tiers: list[Json] = [
            {"above_input_tokens": tier.above_tokens, "price": format_attos(tier.attos)} for tier in self.tiers
        ]
        return {"price": format_attos(self.attos), "tiers": tiers}


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """An immutable statement of prices. `version_id` (16 hex characters) is a digest of `body`, canonical JSON text."""

    version_id: str
    body: str

    def read_body(self) -> dict[str, Json]:
        """The body as an object, e.g. to spell out the arithmetic of a record."""
        value: dict[str, Json] = json.loads(self.body)
        return value


def create_price_version(kind: str, content: Mapping[str, Json]) -> PriceVersion:
    """The version whose content this is: equal content has an equal id on every machine."""
    body = json.dumps({"kind": kind, **content}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return PriceVersion(digest_parts("price", body).hex()[:16], body)


@dataclass(frozen=True, slots=True)
class ProviderPrices:
    """What a provider charges for one model at one time, in USD. `prices` holds only what the price data states."""

    provider: str
    model: str
    prices: Mapping[str, UnitPrice]
    version: PriceVersion


class Bounds(NamedTuple):
    """Instants and, of each day among them, times of day (nanoseconds since midnight UTC); the last ones included."""

    first_nanos: int
    last_nanos: int
    day_first: int
    day_last: int


@dataclass(frozen=True, slots=True)
class Timeline(Generic[T]):
    """Values in force on half-open intervals [start, next start), the first one since ever.

    A value may itself depend on the time of day (UTC): a day is then cut at `day_starts`, of which the first is 0.
    """

    starts: tuple[int, ...]  # ascending instants; one fewer than there are days
    days: tuple[tuple[T, ...], ...]
    day_starts: tuple[int, ...] = (0,)  # nanoseconds since midnight UTC

    def find_value(self, at_nanos: int) -> T:
        """The value in force at an instant. A boundary belongs to the interval that it starts."""
        day = self.days[bisect_right(self.starts, at_nanos)] if self.starts else self.days[0]
        if len(day) == 1:
            return day[0]
        return day[bisect_right(self.day_starts, at_nanos % DAY_NANOS) - 1]

    def find_bounds(self, at_nanos: int) -> Bounds:
        """Where the value in force at an instant is in force."""
        place = bisect_right(self.starts, at_nanos)
        first = max(self.starts[place - 1], INSTANT_MIN) if place else INSTANT_MIN
        last = min(self.starts[place] - 1, INSTANT_MAX) if place < len(self.starts) else INSTANT_MAX
        if len(self.days[place]) == 1:
            return Bounds(first, last, 0, DAY_NANOS - 1)
        of_day = bisect_right(self.day_starts, at_nanos % DAY_NANOS)
        day_last = self.day_starts[of_day] - 1 if of_day < len(self.day_starts) else DAY_NANOS - 1
        return Bounds(first, last, self.day_starts[of_day - 1], day_last)


@lru_cache(maxsize=65_536)
def list_covering(body: str | None) -> tuple[tuple[str, str], ...]:
    """Which units of a price version, given as its text, a period charge covers, with the version of each charge."""
    prices = json.loads(body).get("prices", {}) if body else {}
    return tuple(
        (unit, price["entry"]["period_charge"]["version"])
        for unit, price in sorted(prices.items())
        if price["charge"] == "period"
    )


@lru_cache(maxsize=65_536)
def list_counted(body: str | None) -> tuple[tuple[str, str], ...]:
    """The same, and how many credits a unit costs: what an event is counted by that its money does not show."""
    prices = json.loads(body).get("prices", {}) if body else {}
    credits = ((unit, price["credits"]["each"]) for unit, price in sorted(prices.items()) if "credits" in price)
    return (*list_covering(body), *credits)


def multiply_markup(cost_attos: int, percent_scaled: int) -> int:
    """A unit price plus a markup of `parse_percent` form: exact, since unit prices end 6 decimals before attos do."""
    attos, rest = divmod(cost_attos * (1_000_000 + percent_scaled), 1_000_000)
    if rest:
        raise InvalidPrice(f"cost {format_attos(cost_attos)} has too many decimals to mark up", "round the cost price")
    return attos


def round_unit_price(price: Decimal, per: int) -> int:
    """Attos for one unit of a provider's price for `per` units, rounded half to even at the 12th decimal of a unit.

    Published prices end before that; what is cut is noise of a binary fraction in the price data (0.18000000000000002).
    """
    steps = _DIVISION.divide(EXACT.multiply(Decimal(10**PRICE_DECIMALS_MAX), price), Decimal(per))
    return _STEP * int(steps.to_integral_value(rounding=ROUND_HALF_EVEN))
