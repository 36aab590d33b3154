"""Provider prices agree with an independent list, that of litellm 1.109, or the difference is known and explained.

The list is one JSON file of that package. It is read, not imported: from an installed litellm, or from the path in
OTELBILL_LITELLM_PRICES (`pip install --no-deps --target DIR litellm`). Without either there is nothing to compare.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.provider_prices import PriceBook

AT = parse_instant("2026-11-20T12:00:00Z")
PEAK = parse_instant("2026-11-20T02:00:00Z")
FILE = "model_prices_and_context_window_backup.json"
FIELDS = {
    "input_tokens": "input_cost_per_token",
    "output_tokens": "output_cost_per_token",
    "cache_read_tokens": "cache_read_input_token_cost",
    "cache_write_tokens": "cache_creation_input_token_cost",
    "cache_write_1h_tokens": "cache_creation_input_token_cost_above_1hr",
}
PROVIDERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "cohere_chat": "cohere",
    "perplexity": "perplexity",
    "xai": "x-ai",
    "groq": "groq",
    "mistral": "mistral",
    "deepseek": "deepseek",
}
# Where the lists differ, by the model of our price data, and why. Everything else must be equal to the last digit.
EXPLAINED = {
    "grok-code-fast-1": "litellm has the price of the model that the name leads to now",
    "openai/gpt-oss-safeguard-20b": "litellm has cut 0.0375 per million to 0.037",
    "magistral-medium": "the alias -latest: litellm has the price of the model that it leads to now",
    "magistral-small": "the alias -latest: litellm has the price of the model that it leads to now",
    "mistral-large": "the alias -latest: litellm has the price of the model that it leads to now",
    "mistral-large-4": "litellm has another price; ours is that of genai-prices",
    "mistral-medium-3-1": "the alias mistral-medium: litellm has the price of the model that it leads to now",
    "mistral-nemo": "litellm has the price of before a reduction",
    "deepseek-chat": "litellm has the price of the model that the name leads to now",
    "deepseek-reasoner": "litellm has the price of the model that the name leads to now",
    "deepseek-v3.2": "litellm has another price; ours is that of genai-prices",
}
BY_HOUR = {"deepseek-flash", "deepseek-v4-flash", "deepseek-v4-pro"}  # litellm has one price, that of the busy hours


class Compared(NamedTuple):
    """One price for one unit, in attos, by both lists."""

    provider: str
    model: str
    unit: str
    ours: int
    theirs: int


@pytest.fixture(scope="module")
def prices() -> Mapping[str, Any]:
    """litellm's list."""
    path = os.environ.get("OTELBILL_LITELLM_PRICES")
    spec = None if path else find_spec("litellm")
    if spec is not None and spec.submodule_search_locations:
        path = str(Path(spec.submodule_search_locations[0]) / FILE)
    if not path:
        pytest.skip("litellm's list is not here; see this file's first lines")
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"), parse_float=Decimal)
    return content


def compare(prices: Mapping[str, Any], at_nanos: int) -> Iterator[Compared]:
    """Every price that both lists have."""
    book = PriceBook()
    for name, entry in prices.items():
        provider = PROVIDERS.get(entry.get("litellm_provider"))
        if provider is None or entry.get("mode") not in ("chat", "responses", "embedding"):
            continue
        found = book.find_prices(provider=provider, model=name.partition("/")[2] or name, at_nanos=at_nanos)
        for unit, field in FIELDS.items():
            if found is not None and field in entry and unit in found.prices:
                theirs = parse_attos(round(Decimal(entry[field]), 12))
                yield Compared(provider, found.model, unit, found.prices[unit].attos, theirs)


def test_prices_agree_with_litellm(prices: Mapping[str, Any]) -> None:
    """Of several hundred prices of nine providers none differs that is not explained above."""
    compared = list(compare(prices, AT))
    assert len(compared) > 500
    different = {item for item in compared if item.ours != item.theirs}
    unexplained = {item for item in different if item.model not in EXPLAINED and item.model not in BY_HOUR}
    assert unexplained == set()
    assert {item.provider for item in different} <= {"x-ai", "groq", "mistral", "deepseek"}


def test_prices_by_hour_agree_in_the_busy_hours(prices: Mapping[str, Any]) -> None:
    """DeepSeek charges double at some hours; the list without hours has that price."""
    busy = [item for item in compare(prices, PEAK) if item.model in BY_HOUR]
    assert busy
    assert [item for item in busy if item.ours != item.theirs] == []
