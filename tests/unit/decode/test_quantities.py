"""Counts become disjoint quantities or are refused; nothing is repaired."""

from __future__ import annotations

from decimal import Decimal

import pytest

from otelbill_collector.decode.quantities import Counts, parse_count, parse_quantity, split_counts
from otelbill_collector.domain.usage import Problem


@pytest.mark.parametrize(
    ("value", "count"),
    [(0, 0), (12, 12), (88.0, 88), ("12", 12), (" 7 ", 7), ("7.0", 7), (2**53, 2**53), (None, None), ("", None)],
)
def test_counts_are_read_from_every_plain_form(value: object, count: int | None) -> None:
    """An int, a whole double and a decimal string say the same; an absent value says nothing."""
    assert parse_count(value, "k") == count


def test_nan_is_not_reported_rather_than_broken() -> None:
    """A NaN is how one emitter writes that it does not know."""
    assert parse_count(float("nan"), "k") is None


@pytest.mark.parametrize("value", [-1, True, 1.5, "many", "1e3", 2**63, float("inf"), ("1",), "-3", 2**53 + 1])
def test_values_that_are_no_count_are_problems(value: object) -> None:
    """A value that cannot be a count names its field and a remedy instead of becoming a number."""
    problem = parse_count(value, "gen_ai.usage.input_tokens")
    assert isinstance(problem, Problem)
    assert problem.field == "gen_ai.usage.input_tokens"
    assert problem.hint


def test_a_problem_does_not_quote_long_text() -> None:
    """The value of a broken count may be prompt content and is described, not copied."""
    problem = parse_count("tell me about my account 4711 and what I owe you, please", "k")
    assert isinstance(problem, Problem)
    assert "account" not in problem.value


def test_quantities_are_exact_decimals() -> None:
    """A decimal string keeps every digit; a fraction as a double is refused because it has already lost some."""
    assert parse_quantity("12.50", "q") == Decimal("12.50")
    assert parse_quantity("3.0", "q") == 3
    assert isinstance(parse_quantity(0.1, "q"), Problem)
    assert isinstance(parse_quantity("-1", "q"), Problem)


def test_input_that_includes_cache_is_made_disjoint() -> None:
    """Uncached, read and written input add up to the whole input, each counted once."""
    split = split_counts(Counts(input=1532, output=33, cache_read=1111, cache_write=418))
    assert split.quantities == {
        "input_tokens": 3,
        "cache_read_tokens": 1111,
        "cache_write_tokens": 418,
        "output_tokens": 33,
    }


def test_input_that_excludes_cache_is_left_as_it_is() -> None:
    """An emitter that reports uncached input is not reduced again."""
    split = split_counts(Counts(input=3, output=33, cache_read=1111, cache_write=418, includes_cache=False))
    assert split.quantities["input_tokens"] == 3


def test_parts_of_a_write_are_a_write() -> None:
    """5-minute and 1-hour writes are written tokens even where the sum is reported as zero."""
    split = split_counts(
        Counts(input=1532, output=33, cache_read=1111, cache_write=0, cache_write_5m=118, cache_write_1h=300)
    )
    assert split.quantities["cache_write_tokens"] == 418
    assert split.quantities["cache_write_1h_tokens"] == 300
    assert split.quantities["input_tokens"] == 3


@pytest.mark.parametrize(
    ("counts", "conflict"),
    [
        (Counts(input=10, output=1, cache_read=11), "cache > input"),
        (Counts(input=10, output=1, reasoning=2), "reasoning > output"),
        (Counts(input=10, output=1, audio_input=11), "audio > input"),
    ],
)
def test_impossible_sums_are_held(counts: Counts, conflict: str) -> None:
    """Counts that contradict each other give no quantities at all."""
    split = split_counts(counts)
    assert split.conflict == conflict
    assert split.quantities == {}


def test_sizes_decide_only_where_no_dialect_does() -> None:
    """For unknown emitters, more cache than input or a total that adds the cache means that input excludes it."""
    apart = split_counts(Counts(input=3, output=5, cache_read=1111, includes_cache=None))
    by_total = split_counts(Counts(input=2000, output=5, cache_read=1111, total=3116, includes_cache=None))
    inside = split_counts(Counts(input=2000, output=5, cache_read=1111, total=2005, includes_cache=None))
    assert (apart.quantities["input_tokens"], by_total.quantities["input_tokens"]) == (3, 2000)
    assert inside.quantities["input_tokens"] == 889
