"""What recorded calls cost, worked out apart from the price data: prices typed from the providers' own pages."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from otelbill_collector.domain.rating import Rater
from otelbill_collector.offline import rate_spans, read_spans
from otelbill_collector.rules import RuleSet
from tests.corpus import load_cases


class Listed(NamedTuple):
    """USD for a million tokens, as the provider's price page says it in November 2026."""

    input: str
    output: str = "0"
    cached: str = "0"
    write: str = "0"
    write_hour: str = "0"


SONNET = Listed("3", "15", "0.30", "3.75", "6")
PAGES = {
    "gpt-4o-mini-2024-07-18": Listed("0.15", "0.60", "0.075"),
    "gpt-4o-mini": Listed("0.15", "0.60", "0.075"),
    "gpt-4o-2024-08-06": Listed("2.50", "10", "1.25"),
    "gpt-4.1-2025-04-14": Listed("2", "8", "0.50"),
    "gpt-4-0613": Listed("30", "60"),
    "gpt-5-nano-2025-08-07": Listed("0.05", "0.40", "0.005"),
    "text-embedding-3-small": Listed("0.02"),
    "claude-sonnet-4-5": SONNET,
    "claude-sonnet-4-5-20250929": SONNET,
    "claude-sonnet-4-6": SONNET,
    "claude-sonnet-4-20250514": SONNET,
    "claude-3-5-sonnet-20240620": SONNET,
    "claude-haiku-4-5-20251001": Listed("1", "5", "0.10", "1.25", "2"),
    "claude-3-opus-20240229": Listed("15", "75", "1.50", "18.75", "30"),
    "claude-3-haiku-20240307": Listed("0.25", "1.25", "0.03", "0.30", "0.50"),
}
SEARCH = Fraction("0.01")  # Anthropic: 10 USD for 1,000 web searches


def price_by_hand(listed: Listed, quantities: dict[str, Any]) -> Fraction:
    """Each kind of token at its own price; what was written for an hour is inside what was written."""

    def count(unit: str) -> Fraction:
        return Fraction(quantities.get(unit, 0))

    hour = count("cache_write_1h_tokens")
    millions = (
        count("input_tokens") * Fraction(listed.input)
        + count("output_tokens") * Fraction(listed.output)
        + count("cache_read_tokens") * Fraction(listed.cached)
        + (count("cache_write_tokens") - hour) * Fraction(listed.write)
        + hour * Fraction(listed.write_hour)
    )
    return millions / 10**6 + count("web_search_requests") * SEARCH


def test_recorded_calls_cost_what_the_providers_pages_say(shared_data: Path) -> None:
    """More than 200 calls of 15 models, cached and searching ones among them, to the last digit."""
    rules = RuleSet(Rater(), grace_seconds=60)
    rows = [row for case in load_cases(shared_data) for row in rate_spans(read_spans(case.body), rules)]
    compared = [row for row in rows if row["rating"] == "rated" and row["model"] in PAGES]
    wrong = [
        (row["model"], row["quantities"], row["cost"])
        for row in compared
        if Fraction(row["cost"]) != price_by_hand(PAGES[row["model"]], row["quantities"])
    ]
    assert wrong == []
    assert len(compared) > 200
    assert {row["model"] for row in compared} == set(PAGES)
    assert sum(bool(row["quantities"].get("cache_read_tokens")) for row in compared) > 10
