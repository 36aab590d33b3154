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


def format_micros(micros: int) -> str:
    """Decimal text of a quantity in millionths."""
    sign, digits = ("-", -micros) if micros < 0 else ("", micros)
    whole, fraction = divmod(digits, MICROS)
    text = f"{fraction:06d}".rstrip("0")
    return f"{sign}{whole}.{text}" if text else f"{sign}{whole}"


def multiply_credits(micros: int, credits_micros: int) -> int:
    """Millionths of credits for a quantity, at so many for one unit. Raises InexactAmount past 6 decimals."""
    product, rest = divmod(micros * credits_micros, MICROS)
    if rest:
        raise InexactAmount(f"{format_micros(micros)} x {format_micros(credits_micros)} credits has too many decimals")
    return product
