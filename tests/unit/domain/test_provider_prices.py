"""The price book finds the price that was in force, under any name telemetry uses, or says that it does not know."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, time, timedelta

import pytest
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, StartDateConstraint, TimeOfDateConstraint

from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.provider_prices import PriceBook, _create_timeline
from otelbill_collector.domain.providers import find_provider_id

AT = parse_instant("2026-11-20T12:00:00Z")
DATED = [(p, m) for p in providers for m in p.models if not isinstance(m.prices, ModelPrice)]


@pytest.mark.parametrize(
    ("spelling", "provider_id"),
    [
        ("openai", "openai"),
        ("OpenAI", "openai"),
        ("openai.chat", "openai"),
        ("azure.ai.openai", "azure"),
        ("az.ai.openai", "azure"),
        ("Azure", "azure"),
        ("aws.bedrock", "aws"),
        ("AWS", "aws"),
        ("gcp.gemini", "google"),
        ("gcp.vertex_ai", "google"),
        ("gcp.gen_ai", "google"),
        ("vertex_ai", "google"),
        ("google", "google"),
        ("Google", "google"),
        ("anthropic.messages", "anthropic"),
        ("mistral_ai", "mistral"),
        ("MistralAI", "mistral"),
        ("x_ai", "x-ai"),
        ("deepseek", "deepseek"),
        ("groq", "groq"),
        ("Cohere", "cohere"),
        ("langchain", None),
        ("strands-agents", None),
        ("gcp.vertex.agent", None),
        ("", None),
        (None, None),
    ],
)
def test_provider_spellings(spelling: str | None, provider_id: str | None) -> None:
    """Every spelling met in telemetry names one provider; frameworks name none."""
    assert find_provider_id(spelling) == provider_id


@pytest.mark.parametrize(
    ("provider", "model", "found"),
    [
        ("OpenAI", "gpt-4o-mini-2024-07-18", ("openai", "gpt-4o-mini")),
        ("azure.ai.openai", "gpt-4.1-mini-2025-04-14", ("azure", "gpt-4.1-mini")),
        ("aws.bedrock", "amazon.nova-micro-v1:0", ("aws", "amazon.nova-micro-v1:0")),
        ("aws.bedrock", "nova-micro-v1:0", ("aws", "amazon.nova-micro-v1:0")),
        ("gcp.vertex_ai", "claude-sonnet-4-5@20250929", ("google", "claude-sonnet-4-5")),
        ("google", "models/gemini-2.5-pro", ("google", "gemini-2.5-pro")),
        (None, "gpt-4o-mini", ("openai", "gpt-4o-mini")),
        ("strands-agents", "claude-sonnet-4-5", ("anthropic", "claude-sonnet-4-5")),
        # An OpenAI-compatible client says openai whatever it talks to.
        ("openai", "deepseek-chat", ("deepseek", "deepseek-chat")),
        # A host has prices of its own, so another's price for a model would be a guess.
        ("groq", "gpt-4o", None),
        ("aws", "gemini-2.5-pro", None),
        # Claimed by nobody, or by no one alone.
        (None, "llama-3.3-70b", None),
        ("openai", "this-model-does-not-exist", None),
        ("openai", "ft:gpt-4o-mini:acme::1", None),
        ("openai", None, None),
    ],
)
def test_models_by_the_names_of_telemetry(
    provider: str | None, model: str | None, found: tuple[str, str] | None
) -> None:
    """A model is found by its provider, else by its name where that is unambiguous, else not at all."""
    prices = PriceBook().find_prices(provider=provider, model=model, at_nanos=AT)
    assert (None if prices is None else (prices.provider, prices.model)) == found


def _probe_instants(model: ModelInfo) -> list[datetime]:
    """Both sides of every date and time of day that the data names for a model."""
    days = [datetime(2024, 1, 1, tzinfo=UTC), datetime(2028, 2, 29, tzinfo=UTC)]
    times = [time(0), time(12)]
    constraints = [price.constraint for price in model.prices if price.constraint]  # type: ignore[union-attr]
    constraints += [variant.constraint for variant in model.price_variants or [] if variant.constraint]
    for constraint in constraints:
        if isinstance(constraint, StartDateConstraint):
            days.append(datetime.combine(constraint.start_date, time(0), UTC))
        elif isinstance(constraint, TimeOfDateConstraint):
            times += [constraint.start_time, constraint.end_time]
    moments = [datetime.combine(day.date(), moment.replace(tzinfo=UTC)) for day in days for moment in times]
    return [moment + step for moment in moments for step in (timedelta(microseconds=-1), timedelta(0))]


def test_the_data_has_dated_changes_to_test() -> None:
    """The next test would prove nothing on data without changes."""
    assert len(DATED) > 50


@pytest.mark.parametrize("service_tier", [None, "priority", "batch"])
def test_both_sides_of_every_dated_change(service_tier: str | None) -> None:
    """Just before and just at each change, the timeline has the price the data has at that moment."""
    context = {None: {}, "priority": {"service_tier": "priority"}, "batch": {"processing": "batch"}}[service_tier]
    for provider, model in DATED:
        timeline = _create_timeline(provider, model, service_tier)
        for moment in _probe_instants(model):
            at_nanos = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
            found = timeline.find_value(at_nanos)
            if context and not _has_variant(model, context, moment):
                assert found is None, (model.id, moment)
                continue
            assert _show(found) == _show_model(provider, model, model.get_prices(moment, context)), (model.id, moment)


def _has_variant(model: ModelInfo, context: dict[str, str], moment: datetime) -> bool:
    return any(
        variant.when.items() <= context.items() and (variant.constraint is None or variant.constraint.active(moment))
        for variant in model.price_variants or []
    )


def _show(prices: object) -> object:
    return getattr(getattr(prices, "version", None), "body", None)


def _show_model(provider: Provider, model: ModelInfo, prices: ModelPrice) -> object:
    """The same content from a model that has only this price."""
    constant = ModelInfo(id=model.id, match=model.match, prices=prices)
    return _show(_create_timeline(provider, constant, None).find_value(0))


def test_service_tier_changes_the_price_where_the_data_has_it() -> None:
    """Priority and batch calls have their own prices, and an ordinary tier the ordinary one."""
    book = PriceBook()

    def find_input(tier: str | None) -> int:
        prices = book.find_prices(provider="openai", model="gpt-4o-mini", at_nanos=AT, service_tier=tier)
        assert prices is not None
        return prices.prices["input_tokens"].attos

    assert [find_input(tier) for tier in (None, "default", "auto", "priority", "batch")] == [
        15 * 10**10,
        15 * 10**10,
        15 * 10**10,
        25 * 10**10,
        75 * 10**9,
    ]


def test_model_without_stated_prices_is_unknown() -> None:
    """A model that is part of a subscription has no price; that is not a price of zero."""
    assert PriceBook().find_prices(provider="github-copilot", model="gpt-4o", at_nanos=AT) is None


def test_price_book_never_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices come from the installed package; nothing is fetched, even for unknown models."""

    def refuse(*args: object) -> None:
        raise AssertionError("the price book opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    PriceBook().find_prices(provider="openai", model="gpt-4o", at_nanos=AT)
    PriceBook().find_prices(provider="nobody", model="nothing", at_nanos=AT)


def test_prices_of_one_content_have_one_id() -> None:
    """A tier that changes nothing is the same version; a changed price is another."""
    book = PriceBook()
    standard = book.find_prices(provider="openai", model="gpt-4o-mini", at_nanos=AT)
    default = book.find_prices(provider="OpenAI", model="gpt-4o-mini", at_nanos=AT, service_tier="default")
    batch = book.find_prices(provider="openai", model="gpt-4o-mini", at_nanos=AT, service_tier="batch")
    assert standard is not None
    assert default is not None
    assert batch is not None
    assert standard.version == default.version != batch.version
