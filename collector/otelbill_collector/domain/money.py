"""Exact money. Owns the fixed scale and its text form; does not own prices or currencies' minor units.

An amount is an integer count of *attos*: 10^-18 of the currency's major unit (1 USD = 10^18 attos). Python integers do
not overflow and do not round, so sums are exact in any order. A price of up to 12 decimals times a quantity of up to
6 decimals, and a provider price of up to 12 decimals times a markup of up to 6, are whole numbers of attos.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact

ATTOS_DIGITS = 18
ATTOS_PER_UNIT = 10**ATTOS_DIGITS
MICROS_PER_UNIT = 10**6
ATTOS_PER_MICRO = ATTOS_PER_UNIT // MICROS_PER_UNIT

# Wide enough for any sum of amounts this ledger can hold; an inexact result is an error, never a silent rounding.
EXACT = Context(prec=200, traps=[Inexact])


class InexactAmount(ValueError):
    """An amount has no exact representation in attos. The message names the value."""


def parse_attos(amount: Decimal | int | str) -> int:
    """Attos of an amount in major units ("0.15" -> 15 * 10**16). Raises InexactAmount past 18 decimals."""
    value = Decimal(amount)
    if not value.is_finite():
        raise InexactAmount(f"{amount} is not a finite amount")
    scaled = EXACT.scaleb(value, ATTOS_DIGITS)
    if scaled != scaled.to_integral_value():
        raise InexactAmount(f"{amount} has more than {ATTOS_DIGITS} decimals")
    return int(scaled)


def format_attos(attos: int) -> str:
    """Decimal text of an amount in major units, without exponent and without trailing zeros ("0.15", "-2", "0")."""
    sign, digits = ("-", -attos) if attos < 0 else ("", attos)
    whole, fraction = divmod(digits, ATTOS_PER_UNIT)
    text = f"{fraction:0{ATTOS_DIGITS}d}".rstrip("0")
    return f"{sign}{whole}.{text}" if text else f"{sign}{whole}"


def multiply_exact(quantity: int | Decimal, attos_per_unit: int) -> int:
    """Attos of quantity x price. Raises InexactAmount where the product is not a whole number of attos."""
    if isinstance(quantity, int):
        return quantity * attos_per_unit
    product = EXACT.multiply(quantity, Decimal(attos_per_unit))
    if product != product.to_integral_value():
        raise InexactAmount(f"{quantity} x {format_attos(attos_per_unit)} needs more than {ATTOS_DIGITS} decimals")
    return int(product)
