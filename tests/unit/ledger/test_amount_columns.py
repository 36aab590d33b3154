"""Amounts as columns of 128 bits, and sets of ids: exact, against plain Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.ledger.amount_columns import encode_attos, multiply_prices, read_amounts
from otelbill_collector.ledger.id_sets import IdSet, read_ids
from otelbill_collector.ledger.segments import to_attos

QUANTITIES = st.one_of(st.integers(0, 5), st.integers(0, 2**53), st.just(2**54 - 1))
PRICES = st.one_of(st.integers(0, 10**12), st.integers(0, 10**18), st.integers(0, 2**62))
ROWS = st.lists(st.tuples(QUANTITIES, QUANTITIES, st.integers(0, 2)), min_size=1, max_size=8)


@given(
    rows=ROWS, prices=st.tuples(*[st.tuples(PRICES, PRICES)] * 3), constants=st.tuples(*[st.integers(0, 10**37)] * 3)
)
def test_products_are_those_of_whole_numbers(
    rows: list[tuple[int, int, int]], prices: tuple[tuple[int, int], ...], constants: tuple[int, ...]
) -> None:
    """Quantity x price, added up over units, to the last of 128 bits."""
    form = np.array([row[2] for row in rows])
    units = {name: np.array([row[place] for row in rows], dtype=np.int64) for place, name in enumerate(("a", "b"))}
    listed = {name: [pair[place] for pair in prices] for place, name in enumerate(("a", "b"))}
    expected = [one * prices[kind][0] + two * prices[kind][1] for one, two, kind in rows]
    if max(expected) >= 10**37:
        return
    words = multiply_prices(listed, units, form, encode_attos(constants).words)
    found = [(int(high) << 64) + int(low) % 2**64 for low, high in words.tolist()]
    assert found == [amount + constants[kind] for amount, (*_, kind) in zip(expected, rows, strict=True)]


def test_an_amount_too_large_for_the_ledger_is_refused() -> None:
    """It is never cut."""
    for price in (2 * 10**22, 2**110):
        with pytest.raises(OverflowError):
            multiply_prices({"a": [price]}, {"a": np.array([2**53])}, np.array([0]), encode_attos([0]).words)


def test_amounts_are_read_from_the_middle_of_a_column() -> None:
    """A slice has its own beginning; what is not known is equal to nothing but what is not known."""
    column = encode_attos([5, None, -7, 10**37]).encode()
    found = read_amounts(pa.chunked_array([column.slice(1)]))
    assert found.match(encode_attos([None, -7, 10**37])).all()
    assert found.match(encode_attos([0, -7, 10**37 + 1])).tolist() == [False, True, False]
    assert [to_attos(value) for value in found.encode().to_pylist()] == [None, -7, 10**37]


def test_ids_are_found_by_all_their_bytes() -> None:
    """Ids that share their first half are told apart, whichever was added when."""
    names = [f"{number % 3:016x}{number:016x}" for number in range(60)]
    known = IdSet()
    for start in range(0, 30, 5):
        known.add(read_ids(pa.array(names[start : start + 5])))
    assert known.match(read_ids(pa.array(names))).tolist() == [number < 30 for number in range(60)]
    assert len(known) == 30
