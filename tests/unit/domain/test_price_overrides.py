"""What the operator states of a provider's prices beats the price data from its instant on, and nothing else."""

from __future__ import annotations

import pytest

from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.provider_prices import PriceBook, ProviderPrice
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.selectors import Selector
from otelbill_collector.domain.usage import RatingState

AT = parse_instant("2026-11-20T12:00:00Z")
CHANGE = parse_instant("2026-12-01")


def override(attos: int, unit: str = "input_tokens", **names: object) -> ProviderPrice:
    """A price of gpt-4o-mini, unless told otherwise."""
    return ProviderPrice(unit, attos, Selector(**{"model": "gpt-4o-mini", "provider": "openai", **names}))  # type: ignore[arg-type]


def find_cost(book: PriceBook, unit: str = "input_tokens", at_nanos: int = AT, **names: str) -> int | None:
    given = {"provider": "openai", "model": "gpt-4o-mini", **names}
    return Rater(book=book).rate({unit: 1}, at_nanos, **given).cost_attos  # type: ignore[arg-type]


def test_an_override_beats_the_book_from_its_instant() -> None:
    """One nanosecond earlier the price data's 0.15 per million holds; other units keep their price throughout."""
    book = PriceBook(overrides=(override(7, from_nanos=CHANGE),))
    assert find_cost(book, at_nanos=CHANGE - 1) == 15 * 10**10
    assert find_cost(book, at_nanos=CHANGE) == 7
    assert find_cost(book, "output_tokens", CHANGE) == 60 * 10**10


def test_an_override_ends() -> None:
    """`to` is the first instant at which the price data holds again."""
    book = PriceBook(overrides=(override(7, to_nanos=CHANGE),))
    assert find_cost(book, at_nanos=CHANGE - 1) == 7
    assert find_cost(book, at_nanos=CHANGE) == 15 * 10**10


def test_a_model_that_the_data_does_not_have() -> None:
    """Its prices are what is stated; a unit that is not stated stays unknown, except cached input, which is input."""
    book = PriceBook(overrides=(override(9, model="our-llama*", provider="vllm"),))
    assert find_cost(book, provider="vllm", model="our-llama-3") == 9
    assert find_cost(book, "cache_read_tokens", provider="vllm", model="our-llama-3") == 9
    assert find_cost(book, "output_tokens", provider="vllm", model="our-llama-3") is None
    assert find_cost(book, provider="vllm", model="other") is None


def test_an_extension_does_not_hide_the_model_that_was_asked_for() -> None:
    """A price for one more unit of all models leaves the look-up of tokens as it was."""
    book = PriceBook(overrides=(override(5, "files", model="*"),))
    names = {"model": "a-deployment", "request_model": "gpt-4o-mini"}
    assert find_cost(book, **names) == 15 * 10**10
    assert find_cost(book, "files", **names) == 5


def test_the_more_specific_override_wins() -> None:
    """As in a rate card: an exact model before a pattern."""
    book = PriceBook(overrides=(override(1, model="gpt-4o*"), override(2)))
    assert find_cost(book) == 2
    assert find_cost(book, model="gpt-4o") == 1


@pytest.mark.parametrize("tier", ["scale", "provisioned", "reserved"])
def test_a_service_tier_that_nobody_prices_has_no_known_cost(tier: str) -> None:
    """The standard price would be a guess: the event waits, unless the rate card has a price of its own."""
    rated = Rater().rate({"input_tokens": 1}, AT, provider="openai", model="gpt-4o-mini", service_tier=tier)
    assert (rated.state, rated.cost_attos) == (RatingState.UNPRICED, None)
    book = PriceBook(overrides=(override(3, service_tier=tier),))
    assert find_cost(book, service_tier=tier.upper()) == 3
    assert find_cost(book) == 15 * 10**10


def test_an_override_without_a_tier_is_the_standard_one() -> None:
    """It says nothing of batch or priority, whose prices the data keeps."""
    book = PriceBook(overrides=(override(7),))
    assert [find_cost(book, service_tier=tier) for tier in ("default", "auto", "batch")] == [7, 7, 75 * 10**9]


def test_prices_of_another_providers_list_are_for_the_standard_tier() -> None:
    """Azure's prices for models that only the maker lists are known; those of its priority tier are not."""
    names = {"provider": "azure", "model": "gpt-4.1-mini-2025-04-14"}
    assert find_cost(PriceBook(), **names) is not None
    assert find_cost(PriceBook(), **names, service_tier="priority") is None


def test_web_searches_have_the_price_of_the_data() -> None:
    """Anthropic charges 10 for 1,000 searches, under the name that its usage has for them."""
    names = {"provider": "anthropic", "model": "claude-sonnet-4-5"}
    assert find_cost(PriceBook(), "web_search_requests", **names) == 10**16


def test_cache_writes_of_five_minutes_and_an_hour_have_their_own_prices() -> None:
    """Of 1,000 written tokens 400 are kept for an hour: 600 x 3.75 and 400 x 6 per million."""
    rated = Rater().rate(
        {"cache_write_tokens": 1_000, "cache_write_1h_tokens": 400}, AT, provider="anthropic", model="claude-sonnet-4-5"
    )
    assert rated.cost_attos == 600 * 375 * 10**10 + 400 * 6 * 10**12


def test_the_book_has_an_id_of_its_content() -> None:
    """Equal prices have an equal id; an override, or another release of the data, gives another."""
    assert PriceBook().book_id == PriceBook().book_id
    assert len({PriceBook().book_id, PriceBook(overrides=(override(7),)).book_id, PriceBook(()).book_id}) == 3
    one, two = override(1), override(2, "output_tokens")
    assert PriceBook(overrides=(one, two)).book_id == PriceBook(overrides=(two, one)).book_id
