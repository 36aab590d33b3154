"""Amounts of many records as columns: attos of 128 bits in two words, exactly. Owns their products and comparison.

A product of a quantity and a price may need 128 bits. It is taken in limbs of 27 bits, whose products and sums stay
within 64-bit integers, and put together at the end; where all amounts of a batch fit 64 bits it is taken at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.ledger.segment_schema import SCHEMA
from otelbill_collector.ledger.segments import encode_amounts

Int64s = NDArray[np.int64]
Flags = NDArray[np.bool_]
Words = NDArray[np.int64]  # rows of (low, high) words of a two's complement of 128 bits

QUANTITY_LIMIT = 1 << 54  # two limbs
_LIMB_BITS = 27
_LIMB = (1 << _LIMB_BITS) - 1
_FITS = 1 << 62
_AMOUNT = SCHEMA.field("charge").type
_HIGH_MAX = (10**38 - 1) >> 64
_TOO_LARGE = "an amount of 10^20 or more does not fit the ledger"


@dataclass(frozen=True, slots=True)
class Amounts:
    """A column of amounts; those that are not `known` have words of zero."""

    words: Words
    known: Flags

    def match(self, other: Amounts) -> Flags:
        """Rows in which both are the same amount, or both are not known."""
        found: Flags = (self.words == other.words).all(axis=1) & (self.known == other.known)
        return found

    def choose(self, rows: Flags | Int64s | slice) -> Amounts:
        """The amounts of some rows."""
        return Amounts(self.words[rows], self.known[rows])

    def encode(self) -> pa.Array:
        """As a column of a segment."""
        validity = None if self.known.all() else pa.array(self.known).buffers()[1]
        return pa.Array.from_buffers(
            _AMOUNT, len(self.words), [validity, pa.py_buffer(np.ascontiguousarray(self.words))]
        )


def read_amounts(column: pa.ChunkedArray) -> Amounts:
    """The amounts of a segment's column."""
    array = column.combine_chunks()
    known: Flags = array.is_valid().to_numpy(zero_copy_only=False)
    words = np.frombuffer(array.buffers()[1], dtype="<i8").reshape(-1, 2)[array.offset : array.offset + len(array)]
    return Amounts(words if known.all() else np.where(known[:, None], words, 0), known)


def encode_attos(amounts: Sequence[int | None]) -> Amounts:
    """A few amounts, given as integers. Raises OverflowError for what does not fit the ledger."""
    return read_amounts(pa.chunked_array([encode_amounts(amounts)]))


def multiply_prices(
    prices: Mapping[str, Sequence[int]], units: Mapping[str, Int64s], form: Int64s, constants: Words
) -> Words:
    """For each row the sum over units of quantity x price, and a constant; rows of one `form` have these in common.

    Prices are not negative, quantities are from 0 to below `QUANTITY_LIMIT`. Raises OverflowError.
    """
    used = {unit: values for unit, values in prices.items() if unit in units and any(values)}
    if sum(max(values) * int(units[unit].max(initial=0)) for unit, values in used.items()) < _FITS:
        total = np.zeros(len(form), dtype=np.int64)
        for unit, values in used.items():
            total += units[unit] * np.array(values, dtype=np.int64)[form]
        words = np.zeros((len(form), 2), dtype=np.int64)
        words[:, 0] = total
    else:
        words = _join_limbs(_multiply_limbs(used, units, form))
    return _add_words(words, constants[form]) if constants.any() else words


def _multiply_limbs(prices: Mapping[str, Sequence[int]], units: Mapping[str, Int64s], form: Int64s) -> list[Int64s]:
    """Sums by power of 2^27: at most 9 units x 2 products of 54 bits each, so none passes 60 bits."""
    places = max(price.bit_length() for values in prices.values() for price in values) // _LIMB_BITS + 1
    sums = [np.zeros(len(form), dtype=np.int64) for _ in range(places + 2)]
    for unit, values in prices.items():
        low, high = units[unit] & _LIMB, units[unit] >> _LIMB_BITS
        for place in range(places):
            limbs = np.array([(price >> (_LIMB_BITS * place)) & _LIMB for price in values], dtype=np.int64)[form]
            sums[place] += low * limbs
            sums[place + 1] += high * limbs
    return sums


def _join_limbs(sums: Sequence[Int64s]) -> Words:
    low = np.zeros(len(sums[0]), dtype=np.uint64)
    high = np.zeros(len(sums[0]), dtype=np.uint64)
    carry = np.zeros(len(sums[0]), dtype=np.int64)
    for place, value in enumerate(sums):
        whole = value + carry
        limb, carry, shift = (whole & _LIMB).astype(np.uint64), whole >> _LIMB_BITS, place * _LIMB_BITS
        if shift < 64:
            low |= limb << np.uint64(shift)
            high |= limb >> np.uint64(64 - shift) if shift else np.uint64(0)
        elif shift >= 127:
            _require((limb == 0).all())
        else:
            _require((limb >> np.uint64(127 - shift) == 0).all())
            high |= limb << np.uint64(shift - 64)
    _require((carry == 0).all() and (high < _HIGH_MAX).all())
    return np.stack([low.view(np.int64), high.view(np.int64)], axis=1)


def _add_words(one: Words, other: Words) -> Words:
    low, added = one[:, 0].view(np.uint64), other[:, 0].view(np.uint64)
    total = low + added
    high = one[:, 1] + other[:, 1] + (total < low)
    return np.stack([total.view(np.int64), high], axis=1)


def _require(fits: bool | np.bool_) -> None:
    if not fits:
        raise OverflowError(_TOO_LARGE)
