"""Windows of a lane: cutting, closing, quantising, splitting, stamping and naming, as pure arithmetic.

Owns no storage and no sending. Amounts are integers in sub-units; `quantum` sub-units make one whole unit of a meter.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from decimal import Decimal

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS
from otelbill_collector.domain.money import ATTOS_PER_MICRO, EXACT

WINDOW_MIN_NANOS = MINUTE_NANOS
WINDOW_MAX_NANOS = HOUR_NANOS

# Quantities carry up to 6 decimals, so millionths hold every one of them exactly.
QUANTITY_QUANTUM = 10**6
CHARGE_QUANTUM = ATTOS_PER_MICRO

VALUE_MAX = 10**15 - 1  # Stripe refuses values of more than 15 significant digits
STAMP_AGE_MAX_NANOS = 34 * DAY_NANOS  # Stripe refuses 35 days; one day is left for retries
FUTURE_MAX_NANOS = 4 * MINUTE_NANOS  # Stripe refuses 5 minutes ahead; one minute is left for clock skew

IDENTIFIER_PREFIX = "ob1."


@dataclass(frozen=True, slots=True)
class MeterDelta:
    """One booked amount for a meter: what the fold job hands to the outbox. A reversal is a negative amount.

    `amount` is in sub-units: attos of the currency for charges, millionths of a unit for quantities; `quantum` says
    how many of them make one whole unit of the meter. `event_nanos` is when the usage happened.
    """

    meter: str
    customer_id: str
    event_nanos: int
    amount: int
    quantum: int

    @classmethod
    def of_charge(cls, *, meter: str, customer_id: str, event_nanos: int, attos: int) -> MeterDelta:
        """A charge in attos for a meter that counts whole micro-units of the currency."""
        return cls(meter, customer_id, event_nanos, attos, CHARGE_QUANTUM)

    @classmethod
    def of_quantity(cls, *, meter: str, customer_id: str, event_nanos: int, quantity: int | Decimal) -> MeterDelta:
        """A quantity for a meter that counts whole units. Raises ValueError past 6 decimals."""
        return cls(meter, customer_id, event_nanos, scale_quantity(quantity), QUANTITY_QUANTUM)


@dataclass(frozen=True, slots=True)
class Stamp:
    """The second Stripe is told, and whether it lies outside the window because that is too old to be billed."""

    seconds: int
    carried_forward: bool


def scale_quantity(quantity: int | Decimal) -> int:
    """Millionths of a quantity. Raises ValueError past 6 decimals, never rounds."""
    if isinstance(quantity, int):
        return quantity * QUANTITY_QUANTUM
    scaled = EXACT.multiply(quantity, Decimal(QUANTITY_QUANTUM))
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise ValueError(f"quantity {quantity} has more than 6 decimals; round it where it is recorded")
    return int(scaled)


def require_window_length(length_nanos: int) -> int:
    """The length, if it is whole seconds, between 1 minute and 1 hour, and divides the hour. Raises ValueError."""
    if not WINDOW_MIN_NANOS <= length_nanos <= WINDOW_MAX_NANOS or length_nanos % NANOS or HOUR_NANOS % length_nanos:
        raise ValueError(
            f"window length {length_nanos // NANOS} s must divide the hour and lie between 60 s and 3600 s, "
            "because hourly sums are what Stripe lets us compare"
        )
    return length_nanos


def is_closed(start_nanos: int, length_nanos: int, *, grace_nanos: int, now_nanos: int) -> bool:
    """Whether the window [start, start + length) has ended at least `grace_nanos` ago."""
    return now_nanos >= start_nanos + length_nanos + grace_nanos


def quantise(amount: int, *, carry: int, quantum: int) -> tuple[int, int]:
    """Whole units to send, and the remainder the lane carries on: the one rounding on the way to Stripe.

    amount + carry == units * quantum + new carry, with 0 <= new carry < quantum. So all units ever sent for a lane
    are the floor of its exact total, whatever the windows, their order, or the signs of their amounts.
    """
    return divmod(amount + carry, quantum)


def split_value(value: int) -> tuple[int, ...]:
    """Parts of a value that each have at most 15 digits and add up to it; none for zero."""
    sign, rest = (-1, -value) if value < 0 else (1, value)
    whole, last = divmod(rest, VALUE_MAX)
    parts = [sign * VALUE_MAX] * whole
    return (*parts, sign * last) if last else tuple(parts)


def choose_stamp(*, start_nanos: int, last_event_nanos: int, now_nanos: int) -> Stamp:
    """The second of the latest event in the window, so that no subscription boundary inside the window is crossed.

    Never later than `now` where `now` is inside the window (a window closed early); past 34 days the amount moves to
    the open period, which the stamp records.
    """
    if now_nanos - last_event_nanos >= STAMP_AGE_MAX_NANOS:
        return Stamp(now_nanos // NANOS, carried_forward=True)
    return Stamp(max(start_nanos, min(last_event_nanos, now_nanos)) // NANOS, carried_forward=False)


@dataclass(frozen=True, slots=True)
class WindowKey:
    """What names a value of a window, and all that does: the value itself is left out on purpose.

    A window computed again with another value must collide with what was sent, not be billed beside it.
    """

    account: str
    livemode: bool
    meter: str
    customer_id: str
    start_nanos: int
    length_nanos: int
    revision: int


def derive_identifier(key: WindowKey) -> str:
    """44 characters for Stripe: `ob1.` and 40 of base32, the same on every machine; no customer data in clear."""
    digest = digest_parts(
        "stripe-intent",
        key.account,
        "live" if key.livemode else "test",
        key.meter,
        key.customer_id,
        "",  # dimension values: none on meters that are generally available
        key.start_nanos,
        key.length_nanos,
        key.revision,
    )
    return IDENTIFIER_PREFIX + base64.b32encode(digest).decode("ascii").lower()[:40]
