"""Rounding, differences and exact texts of invoice lines, by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.domain.invoices import (
    Entry,
    LineKind,
    find_currency,
    format_exact,
    list_differences,
    parse_exact,
    round_amounts,
    sum_entries,
)
from otelbill_collector.domain.money import ATTOS_PER_UNIT, parse_attos

CENT = ATTOS_PER_UNIT // 100

# exact lines -> cents of each, in order
ROUNDING = """
0.005 0.005 0.009         -> 1 0 1        total 0.019: two cents; the largest remainder, then the earlier of equals
0.004                     -> 0            rounds down
0.005                     -> 1            half rounds up
1.00 2.00                 -> 100 200      nothing to share
10.333 10.333 10.334      -> 1033 1033 1034
0.335 0.335 0.330         -> 34 33 33
-0.005                    -> 0            half rounds up, towards zero here
-0.006                    -> -1
20.00 -1.5075             -> 2000 -151    total 18.4925
-0.195 0.75 0.25          -> -19 75 25    total 0.805, half up 0.81
""".strip().splitlines()


@pytest.mark.parametrize("row", ROUNDING, ids=[row.split("->")[0].strip() for row in ROUNDING])
def test_rounding_by_hand(row: str) -> None:
    """The total half up; every line down, and what is missing to the largest remainders."""
    left, right = row.split("->")
    wanted = [int(word) for word in right.split() if word.lstrip("-").isdigit()][: len(left.split())]
    assert round_amounts([Fraction(parse_attos(word)) for word in left.split()], CENT) == wanted


@pytest.mark.money
@given(st.lists(st.fractions(min_value=-(10**24), max_value=10**24, max_denominator=10**6), max_size=20))
def test_rounded_lines_add_up_and_are_never_off_by_a_unit(amounts: list[Fraction]) -> None:
    """For any lines, fractions of fees and credits included."""
    rounded = round_amounts(amounts, CENT)
    total = sum(amounts, Fraction(0)) / CENT
    assert sum(rounded) == (2 * total + 1) // 2
    assert all(abs(minor - amount / CENT) < 1 for minor, amount in zip(rounded, amounts, strict=True))


@pytest.mark.parametrize(
    ("code", "digits", "minor", "text"),
    [
        ("USD", None, 12_345, "123.45"),
        ("JPY", None, 12_345, "12345"),
        ("KWD", None, -5, "-0.005"),
        ("EUR", 4, 1, "0.0001"),
    ],
)
def test_a_currency_has_its_decimals(code: str, digits: int | None, minor: int, text: str) -> None:
    """Two unless ISO 4217 or the configuration says otherwise."""
    assert find_currency(code, digits).format_minor(minor) == text


@pytest.mark.money
@given(st.fractions(max_denominator=10**40))
def test_exact_texts_go_both_ways(amount: Fraction) -> None:
    """What is written in an invoice is the exact amount, whether it ends as a decimal or not."""
    assert parse_exact(format_exact(amount)) == amount


def test_exact_texts_read_like_amounts() -> None:
    """A decimal where there is one."""
    assert format_exact(Fraction(ATTOS_PER_UNIT, 8)) == "0.125"
    assert format_exact(Fraction(-1, 4)) == "-0.00000000000000000025"
    assert format_exact(Fraction(10 * ATTOS_PER_UNIT, 3)) == "10/3"


def line(quantity: int, price: str = "0.5", label: str = "") -> Entry:
    """A usage line."""
    attos = parse_attos(price)
    amount = Fraction(quantity * attos)
    return Entry(LineKind.USAGE, amount, label=label, unit="pages", quantity=quantity, unit_attos=attos, version=price)


def test_differences_by_hand() -> None:
    """100 pages invoiced, 120 now: 20 more. A line that is gone is taken back; an equal one is not mentioned."""
    invoiced = sum_entries([line(100), line(7, "2"), line(1, "9")])
    found = list_differences([line(120), line(1, "9"), line(3, "4")], invoiced)
    assert [(entry.quantity, entry.amount // ATTOS_PER_UNIT, entry.arithmetic) for entry in found] == [
        (20, 10, "20 x 0.5 = 10"),
        (3, 12, ""),
        (-7, -14, "-7 x 2 = -14"),
    ]


@pytest.mark.money
@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(("1", "2", "0.5")), st.sampled_from("ab")), max_size=8),
    st.data(),
)
def test_differences_make_whole(current: list[tuple[int, str, str]], data: st.DataObject) -> None:
    """Whatever was invoiced before, with the differences it adds up to what is so now."""
    before = data.draw(st.lists(st.sampled_from([line(3), line(9, "2", "a"), line(1, "1", "b")]), max_size=5))
    now = [line(*item) for item in current]
    after = sum_entries([*before, *list_differences(now, sum_entries(before))])
    wanted = sum_entries(now)
    for key in {*after, *wanted}:
        left, right = after.get(key), wanted.get(key)
        assert (left.amount if left else 0) == (right.amount if right else 0)
        assert (left.quantity if left else 0) == (right.quantity if right else 0)
