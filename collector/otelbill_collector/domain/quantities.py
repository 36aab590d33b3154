"""Quantities as whole millionths, and their text. Owns the 6 decimals that a quantity may have; knows no prices."""

from __future__ import annotations

from decimal import Decimal

from otelbill_collector.domain.money import EXACT, InexactAmount
from otelbill_collector.domain.usage import Quantity

QUANTITY_DECIMALS_MAX = 6
MICROS: int = 10**QUANTITY_DECIMALS_MAX


def to_micros(quantity: Quantity) -> int:
    """Millionths of a quantity. Raises InexactAmount past 6 decimals, or for what is not a number."""
    if isinstance(quantity, int):
        return quantity * MICROS
    scaled = EXACT.scaleb(quantity, QUANTITY_DECIMALS_MAX) if quantity.is_finite() else quantity
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise InexactAmount(f"{quantity} is not a number of at most {QUANTITY_DECIMALS_MAX} decimals")
    return int(scaled)


def from_micros(micros: int) -> Quantity:
    """The quantity of so many millionths: an int where it is whole."""
    whole, rest = divmod(micros, MICROS)
    return EXACT.scaleb(Decimal(micros), -QUANTITY_DECIMALS_MAX).normalize(EXACT) if rest else whole


def format_quantity(quantity: Quantity) -> str:
    """Decimal text with commas between thousands: "1,234,567.5"."""
    return f"{quantity:,}" if isinstance(quantity, int) else f"{quantity:,f}"
