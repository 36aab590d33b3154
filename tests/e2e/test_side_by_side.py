"""Recorded calls priced by otelbill, by genai-prices and by litellm, side by side; docs/pricing.md says what differs.

litellm runs in an environment of its own (tests/e2e/programs/litellm.txt) and is called, not imitated.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from otelbill_collector.decode.select import select_span
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.rating import Rater
from otelbill_collector.offline import rate_spans, read_spans
from otelbill_collector.rules import RuleSet
from tests.corpus import load_cases
from tests.golden.test_rating_costs import calculate, to_datetime

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).parent / "programs" / "litellm_costs.py"
# Our provider -> litellm's name of it; others are the same.
NAMES = {"google": "gemini", "aws": "bedrock", "cohere": "cohere_chat", "x-ai": "xai"}
NOISE = 1e-12  # litellm adds binary fractions
ROW = re.compile(r"^\| `([^`|]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


class Call(NamedTuple):
    """One recorded call: its names, quantities, when it ended, and what we say it cost in USD."""

    provider: str
    model: str
    tier: str | None
    quantities: dict[str, int]
    ended_at: str
    cost: str


def list_calls(shared: Path) -> Iterator[tuple[str, Call]]:
    """The rated model calls of the recorded spans, with the case that each is from."""
    rules = RuleSet(Rater(), grace_seconds=60)
    for case in load_cases(shared):
        spans = read_spans(case.body)
        candidates = [candidate for span in spans if (candidate := select_span(span)) is not None]
        tiers = {candidate.span_id.hex(): candidate.service_tier for candidate in candidates}
        for row in rate_spans(spans, rules):
            if row["rating"] == "rated" and row["cost"] is not None and row["provider"]:
                quantities = {unit: int(count) for unit, count in row["quantities"].items()}
                tier = tiers.get(row["span_id"])
                names = (row["provider"], row["model"], tier)
                yield case.name, Call(*names, quantities, row["ended_at"], row["cost"])


def ask_litellm(python: Path, calls: list[Call]) -> list[float | None]:
    """What litellm says of each; None where it does not know the model."""
    asked = [
        {
            "model": call.model,
            "provider": NAMES.get(call.provider, call.provider),
            "quantities": call.quantities,
            "service_tier": call.tier,
        }
        for call in calls
    ]
    text = "".join(json.dumps(item) + "\n" for item in asked)
    found = subprocess.run([python, SCRIPT], input=text, capture_output=True, text=True, check=True, timeout=300)
    answers: list[float | None] = [json.loads(line) for line in found.stdout.splitlines()]
    return answers


def read_explained(repository: Path) -> dict[str, str]:
    """Model -> why its costs differ, from the documentation."""
    text = (repository / "docs/pricing.md").read_text(encoding="utf-8").partition("### Compared with litellm")[2]
    return {model: why for model, _, why in ROW.findall(text.partition("\n## ")[0])}


def test_recorded_calls_cost_what_litellm_says_or_the_difference_is_explained(
    litellm: Path, shared_data: Path, repository: Path
) -> None:
    """At least nine of ten calls have the same cost; the models that differ are those that the text explains."""
    calls = [call for _, call in list_calls(shared_data)]
    verdicts: Counter[str] = Counter()
    different: dict[str, Any] = {}
    for call, theirs in zip(calls, ask_litellm(litellm, calls), strict=True):
        if theirs is not None and abs(float(call.cost) - theirs) < NOISE:
            verdicts["equal"] += 1
        else:
            verdicts["different"] += 1
            different[call.model] = (call, theirs)
    explained = read_explained(repository)
    assert different.keys() == explained.keys(), different
    assert verdicts["equal"] >= 9 * verdicts["different"]
    assert len(calls) > 250


def test_recorded_calls_cost_what_genai_prices_says(shared_data: Path) -> None:
    """Called directly, for calls of more than 180 recorded cases, to the last digit; web searches are counted apart."""
    cases = set()
    for name, call in list_calls(shared_data):
        tokens = {unit: count for unit, count in call.quantities.items() if unit.endswith("_tokens")}
        moment = to_datetime(parse_instant(call.ended_at))
        theirs = parse_attos(calculate(call.provider, call.model, call.tier, tokens, moment))
        searches = call.quantities.get("web_search_requests", 0) * Decimal("0.01")
        assert parse_attos(Decimal(call.cost)) == theirs + parse_attos(searches), call
        cases.add(name)
    assert len(cases) > 180
