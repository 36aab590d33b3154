"""Spans in columns come to what each comes to by itself, whatever the prices, the instants and the payers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector import span_rating
from otelbill_collector.domain.alone import AmountsRow
from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS
from otelbill_collector.domain.prices import (
    ProviderPrices,
    SizeTier,
    Timeline,
    UnitPrice,
    create_price_version,
)
from otelbill_collector.domain.provider_prices import PriceBook
from otelbill_collector.domain.ratecard import AT_COST, ChargePrice, RateCard, Selector
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.span_columns import COUNTED_UNITS, RATINGS, AmountColumns, SpanColumns
from otelbill_collector.domain.usage import Candidate, RatingState, Role, UsageSource
from otelbill_collector.rules import RuleSet
from tests.property.test_rating_properties import AT, MEMBERS, cards
from tests.span_columns import build_columns

EDGES = [AT - DAY_NANOS, AT, AT + 1, AT + DAY_NANOS, AT + 8 * HOUR_NANOS, AT + 16 * HOUR_NANOS, 0, -1]
INSTANTS = [edge + offset for edge in EDGES for offset in (-1, 0, 1)]
MODELS = ("gpt-4o-mini", "gpt-4o", "tiered", "by-night", "nobody-prices-it", None)
THRESHOLDS = (200_000, 500_000)


class Book(PriceBook):
    """Two models of its own beside the price data: one whose prices grow with the request, one with a night rate."""

    def find_timeline(self, **names: str | None) -> Timeline[ProviderPrices | None] | None:
        if names["model"] == "tiered":
            tiers = tuple(SizeTier(above, 3 * 10**11 * place) for place, above in enumerate(THRESHOLDS, start=2))
            return Timeline((), ((_state("tiered", UnitPrice(10**11, tiers)),),))
        if names["model"] == "by-night":
            day = tuple(_state("by-night", UnitPrice(price * 10**11)) for price in (1, 2, 3))
            return Timeline((AT,), (day[:1], day), (0, 8 * HOUR_NANOS, 16 * HOUR_NANOS))
        return super().find_timeline(**names)


def _state(model: str, price: UnitPrice) -> ProviderPrices:
    return ProviderPrices("own", model, {"input_tokens": price, "output_tokens": price}, create_price_version("t", {}))


def build_rules(card: RateCard, accept: Sequence[str] = ()) -> RuleSet:
    """Rules over the card and the prices above."""
    return RuleSet(Rater(card, Book(), MEMBERS), grace_seconds=30, accept_estimates=accept)


def draw_span(rng: Random) -> Candidate:
    """A span that stands alone: mostly a call with a plain price, now and then anything else."""
    role = rng.choice([Role.CALL] * 8 + [Role.TOOL, Role.AGGREGATE])
    counts = [rng.choice([0, 1, rng.randrange(2**53)]) for _ in COUNTED_UNITS]
    if rng.random() < 0.5:  # at both sides of a size
        counts[:3] = [rng.choice(THRESHOLDS) - rng.randrange(3), rng.randrange(3), rng.choice([0, 1])]
    always = {"input_tokens", "output_tokens"}
    quantities = {unit: n for unit, n in zip(COUNTED_UNITS, counts, strict=True) if n or unit in always}
    if role is Role.TOOL or rng.random() < 0.1:
        quantities = {}
    if role is Role.CALL:
        quantities["requests"] = 1
    ended = rng.choice(INSTANTS)
    return Candidate(
        trace_id=rng.randbytes(16),
        span_id=rng.randbytes(8),
        parent_span_id=b"",
        started_nanos=ended - 5,
        ended_nanos=ended,
        dialect=rng.choice(["otel", "guesses"]),
        role=role,
        detail=1,
        provider=rng.choice(["openai", "openai", None]),
        model=rng.choice(MODELS),
        request_model=rng.choice([None, "gpt-4o-mini"]),
        service_tier=rng.choice([None, None, "batch"]),
        customer_id=rng.choice([None, "acme", "other", "anybody"]),
        step=rng.choice([None, "research", "anything"]),
        billable=role is not Role.TOOL and rng.random() < 0.95,
        usage_source=rng.choice([UsageSource.REPORTED] * 6 + [UsageSource.ESTIMATED, UsageSource.UNKNOWN]),
        quantities=quantities,
    )


def list_rows(amounts: AmountColumns) -> list[AmountsRow]:
    """The amounts in the form of `rate_alone`."""
    rows: list[AmountsRow] = []
    for row in range(len(amounts.rating)):
        version = int(amounts.price_version[row])
        rows.append(
            (
                RATINGS[amounts.rating[row]],
                amounts.versions[version] if version >= 0 else None,
                join_words(amounts.cost_attos[row]) if amounts.has_cost[row] else None,
                join_words(amounts.charge_attos[row]) if amounts.has_charge[row] else None,
                amounts.currency if amounts.has_currency[row] else None,
            )
        )
    return rows


def join_words(words: np.ndarray) -> int:
    """The integer of a low and a high word."""
    return int.from_bytes(words.tobytes(), "little", signed=True)


def compare(rules: RuleSet, spans: SpanColumns) -> AmountColumns:
    """Rate both ways; the content of the versions must be the same too."""
    found = rules.rate_columns(spans)
    rows, bodies = rules.rate_alone([spans.build_candidate(row) for row in range(len(spans))])
    assert list_rows(found) == rows
    assert found.price_bodies == bodies
    return found


@given(cards(), st.integers(0, 2**32), st.integers(1, 60))
def test_columns_come_to_what_each_span_comes_to(card: RateCard, seed: int, count: int) -> None:
    """Guarantee: amounts, versions and states are those of spans rated one by one, at both sides of every change of a
    price, of every size of request, and however often the same prices are met again.
    """
    rng = Random(seed)
    rules = build_rules(card, rng.choice([(), ("guesses",)]))
    templates: list = []
    names: list[str] = []
    for _ in range(3):
        spans = build_columns([draw_span(rng) for _ in range(count)], None, templates, names)
        compare(rules, spans)
        compare(rules, spans.take(np.flatnonzero(spans.template >= 0)[::-1]))


@given(st.integers(0, 2**32))
def test_who_was_decided_to_pay_pays(seed: int) -> None:
    """A span whose payer and step were inherited is rated as if it had named them itself."""
    rng = Random(seed)
    selector = Selector(customer_id="acme", step="research")
    rules = build_rules(RateCard(prices=(ChargePrice("input_tokens", 5 * 10**9, selector),)))
    candidates = [draw_span(rng) for _ in range(20)]
    spans = build_columns(candidates, None, None, ["acme", "research"])
    given_to = [rng.choice([-1, 0]) for _ in candidates]
    in_step = [rng.choice([-1, 1]) for _ in candidates]
    found = rules.rate_columns(spans, np.array(given_to, dtype=np.int32), np.array(in_step, dtype=np.int32))
    for candidate, payer, step in zip(candidates, given_to, in_step, strict=True):
        candidate.customer_id = "acme" if payer == 0 else None
        candidate.step = "research" if step == 1 else None
    assert list_rows(found) == rules.rate_alone(candidates)[0]


@pytest.mark.parametrize("price", [2**62, 2**63, 10**27])
def test_no_sum_wraps(price: int) -> None:
    """Prices and sums past 64 bits are exact; what 128 bits cannot hold is an error, never another number."""
    rules = build_rules(RateCard(prices=(ChargePrice("input_tokens", price, Selector()),)))
    span = draw_span(Random(1))
    span = replace(span, role=Role.CALL, billable=True, usage_source=UsageSource.REPORTED, model="gpt-4o-mini")
    for count in (1, 2**33, 2**53):
        quantities = {"input_tokens": count, "output_tokens": 0, "requests": 1}
        spans = build_columns([replace(span, provider="openai", service_tier=None, quantities=quantities)])
        if count * price < 2**127:
            assert list_rows(compare(rules, spans))[0][3] == count * price
        else:
            with pytest.raises(OverflowError):
                rules.rate_columns(spans)


def test_a_large_count_overflows_nothing() -> None:
    """Counts as large as 64 bits hold, which no decoder lets through, are multiplied exactly or one by one."""
    rules = build_rules(RateCard(prices=(ChargePrice("input_tokens", 2**62, Selector()),)))
    span = replace(draw_span(Random(1)), role=Role.CALL, billable=True, usage_source=UsageSource.REPORTED)
    spans = build_columns([replace(span, model="x", quantities={"input_tokens": 2, "output_tokens": 2, "requests": 1})])
    spans.counts[:, 0] = 2**63 - 1
    compare(rules, spans)
    spans.counts[:, 0] = [-5, 7, 0, 1, 0]
    compare(rules, spans)


def test_spans_without_a_plan_are_few() -> None:
    """Plain calls do not go one by one: what is looked up for one serves all like it."""
    rules = build_rules(AT_COST)
    span = replace(draw_span(Random(1)), role=Role.CALL, billable=True, usage_source=UsageSource.REPORTED)
    span = replace(span, provider="openai", service_tier=None, ended_nanos=AT)
    counts = [{"input_tokens": 10 + number, "output_tokens": number % 2, "requests": 1} for number in range(50)]
    for model in ("gpt-4o-mini", "nobody-prices-it"):
        spans = build_columns([replace(span, model=model, request_model=None, quantities=item) for item in counts])
        rules.rate_alone = lambda candidates: pytest.fail("went one by one")  # type: ignore[method-assign]
        found = rules.rate_columns(spans)
        del rules.rate_alone
        expected = RatingState.UNPRICED if model.startswith("nobody") else RatingState.RATED
        assert set(found.rating.tolist()) == {RATINGS.index(expected)}
        compare(rules, spans)


def test_plans_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and payers come from outside: what is remembered of them is bounded, and the amounts stay the same."""
    monkeypatch.setattr(span_rating, "_PLANS_MAX", 20)
    rules = build_rules(AT_COST)
    rng = Random(7)
    templates: list = []
    names: list[str] = []
    for _ in range(10):
        compare(rules, build_columns([draw_span(rng) for _ in range(30)], None, templates, names))


def test_without_the_library_each_span_is_rated_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The amounts do not depend on whether there was a compiler."""
    monkeypatch.setattr(span_rating, "find_library", lambda: None)
    rng = Random(3)
    compare(build_rules(AT_COST), build_columns([draw_span(rng) for _ in range(40)]))
