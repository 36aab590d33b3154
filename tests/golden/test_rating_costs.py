"""Costs equal those of the price data's own calculator, to the last digit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.provider_prices import PriceBook
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.usage import RatingState

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RATER = Rater()

SPREAD = [
    ("openai", "gpt-4o-mini", None),
    ("openai", "gpt-4o-2024-08-06", "default"),
    ("openai", "gpt-5.6-sol", None),
    ("openai", "gpt-5-2025-08-07", "priority"),
    ("openai", "gpt-5-2025-08-07", "flex"),
    ("openai", "o3", None),
    ("openai", "text-embedding-3-small", None),
    ("azure", "gpt-4.1-mini-2025-04-14", None),
    ("azure", "gpt-4.1-mini-2025-04-14", "priority"),
    ("anthropic", "claude-haiku-4-5-20251001", "standard"),
    ("anthropic", "claude-sonnet-4-5-20250929", None),
    ("anthropic", "claude-haiku-5-5", "batch"),
    ("anthropic", "claude-opus-4-6", None),
    ("google", "gemini-2.5-pro", None),
    ("google", "gemini-3-pro-preview", None),
    ("google", "gemini-2.5-flash", None),
    ("aws", "amazon.nova-micro-v1:0", None),
    ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", None),
    ("mistral", "mistral-small-latest", None),
    ("cohere", "command-r7b-12-2024", None),
    ("deepseek", "deepseek-v4-pro", None),
    ("deepseek", "deepseek-chat", None),
    ("x-ai", "grok-4.20", None),
    ("groq", "llama-3.3-70b-versatile", None),
    ("perplexity", "sonar-pro", None),
    ("perplexity", "sonar-deep-research", None),
]
QUANTITIES = [
    {"input_tokens": 1, "output_tokens": 1},
    {"input_tokens": 1_234, "output_tokens": 567, "cache_read_tokens": 1_024},
    {"input_tokens": 7, "output_tokens": 333, "cache_read_tokens": 90_001, "cache_write_tokens": 9_992},
    {"input_tokens": 100_000, "cache_read_tokens": 100_000, "output_tokens": 5},
    {"input_tokens": 100_000, "cache_read_tokens": 100_001, "output_tokens": 5},
    {"input_tokens": 272_001, "output_tokens": 10_000},
    {"cache_write_tokens": 1_000, "cache_write_1h_tokens": 400, "input_tokens": 3, "output_tokens": 9},
    {"cache_write_tokens": 1_000_003, "cache_write_1h_tokens": 1_000_003, "output_tokens": 12},
    {"input_tokens": 99, "output_tokens": 5_000, "reasoning_tokens": 4_321},
    {"output_tokens": 2**40, "input_tokens": 2**40},
]
INSTANTS = [
    "2025-06-09T23:59:59.999999Z",
    "2025-06-10T00:00:00Z",
    "2026-03-13T00:00:00Z",
    "2026-08-20T23:59:59Z",
    "2026-08-21T00:00:00Z",
    "2026-11-20T00:29:59Z",
    "2026-11-20T01:00:00Z",
    "2026-11-20T03:59:59Z",
    "2026-11-20T16:30:00Z",
]


def calculate(provider: str, model: str, tier: str | None, quantities: dict[str, int], moment: datetime) -> Decimal:
    """The same usage in the terms of the calculator: its input and output include their parts."""
    get = quantities.get
    cached = get("cache_read_tokens", 0) + get("cache_write_tokens", 0)
    usage = Usage(
        input_tokens=get("input_tokens", 0) + cached,
        cache_read_tokens=get("cache_read_tokens", 0),
        cache_write_tokens=get("cache_write_tokens", 0),
        cache_write_1h_tokens=get("cache_write_1h_tokens", 0),
        output_tokens=get("output_tokens", 0),
        output_reasoning_tokens=get("reasoning_tokens", 0),
        input_audio_tokens=get("audio_input_tokens", 0),
        output_audio_tokens=get("audio_output_tokens", 0),
        cache_audio_read_tokens=0,
        cache_image_read_tokens=0,
    )
    context = {} if tier is None else {"processing": "batch"} if tier == "batch" else {"service_tier": tier}
    return calc_price(
        usage, model, provider_id=provider, genai_request_timestamp=moment, price_context=context
    ).total_price


def to_datetime(at_nanos: int) -> datetime:
    return EPOCH + timedelta(microseconds=at_nanos // 1000)


def is_tier_known(provider: str, model: str, tier: str | None, at_nanos: int) -> bool:
    """Whether the price data says anything of this tier then; the calculator takes the standard price where not."""
    if tier in (None, "default", "standard"):
        return True
    wanted = {"service_tier": tier, **({"processing": "batch"} if tier == "batch" else {})}
    owner = next(item for item in providers if item.id == provider)
    own = next((item for item in owner.models if item.match is not None and item.match.is_match(model)), None)
    variants = [] if own is None else own.price_variants or []
    moment = to_datetime(at_nanos)
    return any(
        variant.when.items() <= wanted.items() and (variant.constraint is None or variant.constraint.active(moment))
        for variant in variants
    )


@pytest.mark.parametrize(("provider", "model", "tier"), SPREAD)
def test_costs_equal_the_calculator(provider: str, model: str, tier: str | None) -> None:
    """For every kind of quantity, on both sides of tiers, dates and times of day, the cost is the calculator's."""
    compared = 0
    for text in INSTANTS:
        at_nanos = parse_instant(text)
        for quantities in QUANTITIES:
            # The calculator counts one request for each call, and skips usage that it has no price for.
            rated = RATER.rate(
                {**quantities, "requests": 1}, at_nanos, provider=provider, model=model, service_tier=tier
            )
            if rated.cost_attos is None:
                assert model == "text-embedding-3-small" or not is_tier_known(provider, model, tier, at_nanos)
                continue
            assert is_tier_known(provider, model, tier, at_nanos)
            expected = calculate(provider, model, tier, quantities, to_datetime(at_nanos))
            assert rated.cost_attos == parse_attos(expected), (model, text, quantities)
            assert rated.charge_attos == rated.cost_attos
            compared += 1
    known = sum(is_tier_known(provider, model, tier, parse_instant(text)) for text in INSTANTS)
    assert compared >= known * len(QUANTITIES) or model == "text-embedding-3-small"


@pytest.mark.parametrize("model", ["gpt-audio", "gpt-audio-mini", "gpt-realtime-2"])
def test_audio_costs_equal_the_calculator(model: str) -> None:
    """Audio parts of input and output are taken out of the text, as the calculator does it."""
    at_nanos = parse_instant("2026-11-20")
    quantities = {"input_tokens": 500, "audio_input_tokens": 321, "output_tokens": 77, "audio_output_tokens": 70}
    rated = RATER.rate(quantities, at_nanos, provider="openai", model=model)
    assert rated.cost_attos == parse_attos(calculate("openai", model, None, quantities, to_datetime(at_nanos)))


def _list_plain_models() -> Iterator[tuple[Provider, ModelInfo]]:
    """Models whose price keys all have a quantity here, with prices as published (no binary noise)."""
    known = {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok"}
    for provider in providers:
        for model in provider.models:
            stated = (
                [model.prices] if isinstance(model.prices, ModelPrice) else [price.prices for price in model.prices]
            )
            keys = {key for prices in stated for key, value in prices.__dict__.items() if value is not None}
            amounts = [value for prices in stated for value in prices.__dict__.values() if value is not None]
            if {"input_mtok", "output_mtok"} <= keys <= known and all(map(_is_published, amounts)):
                yield provider, model


def _is_published(price: Decimal | TieredPrices) -> bool:
    decimals = [price] if isinstance(price, Decimal) else [price.base, *(tier.price for tier in price.tiers)]
    return all(int(value.as_tuple().exponent) >= -6 for value in decimals)


def test_every_model_of_the_data_costs_what_the_calculator_says() -> None:
    """All plain models of the price data, each with seeded random quantities at a random time."""
    seeded = random.Random(20261120)
    compared = 0
    for provider, model in _list_plain_models():
        quantities = {
            "input_tokens": seeded.randrange(400_000),
            "cache_read_tokens": seeded.randrange(100_000),
            "cache_write_tokens": seeded.randrange(1_000, 2_000),
            "cache_write_1h_tokens": seeded.randrange(1_000),
            "output_tokens": seeded.randrange(1, 100_000),
        }
        at_nanos = parse_instant("2025-01-01") + seeded.randrange(2 * 365 * 86_400) * 10**9
        prices = PriceBook().find_prices(provider=provider.id, model=model.id, at_nanos=at_nanos)
        if prices is None or (prices.provider, prices.model) != (provider.id, model.id):
            continue  # an id that another model matches first
        rated = RATER.rate(quantities, at_nanos, provider=provider.id, model=model.id)
        if rated.cost_attos is None:
            continue  # at that time one of the prices was not stated
        assert rated.state is RatingState.RATED
        expected = calculate(provider.id, model.id, None, quantities, to_datetime(at_nanos))
        assert rated.cost_attos == parse_attos(expected), (provider.id, model.id)
        compared += 1
    assert compared > 1_000
