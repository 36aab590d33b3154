"""The rate card picks one price for an event, and refuses cards on which it could not."""

from __future__ import annotations

import pytest

from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.prices import parse_percent
from otelbill_collector.domain.ratecard import (
    ChargePrice,
    EventNames,
    InvalidRateCard,
    Markup,
    RateCard,
    Selector,
    find_entry,
)

USAGE = EventNames(
    provider="openai",
    model="gpt-4o-mini-2024-07-18",
    request_model="gpt-4o-mini",
    service_tier="Batch",
    customer_id="acme",
    step="research",
    group="enterprise",
    contract="c-17",
)

# From the most specific to the least; each must win over all that follow.
BY_RANK = [
    Selector(customer_id="acme", step="research", model="gpt-4o-mini-2024-07-18", provider="openai"),
    Selector(customer_id="acme", step="research"),
    Selector(customer_id="acme", model="gpt-4o-mini-2024-07-18"),
    Selector(customer_id="acme"),
    Selector(contract="c-17", group="enterprise"),
    Selector(contract="c-17"),
    Selector(group="enterprise", step="research"),
    Selector(group="enterprise"),
    Selector(step="research", model="gpt-4o*"),
    Selector(step="research"),
    Selector(model="GPT-4o-mini-2024-07-18", provider="OpenAI"),
    Selector(model="gpt-4o-mini-2024-07-18"),
    Selector(model="gpt-4o-mini"),
    Selector(model="gpt-4o-mini*", provider="openai"),
    Selector(model="gpt-4o-mini*", service_tier="batch"),
    Selector(model="gpt-4o-mini*"),
    Selector(model="gpt-*-mini*"),  # 9 characters, where the one before has 11
    Selector(model="*4o-mini*"),
    Selector(model="gpt*", provider="openai"),
    Selector(model="gpt*"),
    Selector(provider="openai", service_tier="batch"),
    Selector(provider="openai"),
    Selector(service_tier="batch"),
    Selector(),
]


def test_most_specific_price_wins() -> None:
    """Customer counts before contract, group, step, model, provider, service tier; an exact model before a pattern, the
    longer pattern before the shorter.
    """
    for rank in range(len(BY_RANK)):
        prices = [ChargePrice("u", index, selector) for index, selector in enumerate(BY_RANK) if index >= rank]
        found = find_entry(reversed(prices), USAGE, 0)
        assert found is not None
        assert found.attos == rank


@pytest.mark.parametrize(
    "selector",
    [
        Selector(customer_id="other"),
        Selector(step="other"),
        Selector(model="gpt-4o"),
        Selector(model="gpt-5*"),
        Selector(provider="azure"),
    ],
)
def test_price_for_others_does_not_apply(selector: Selector) -> None:
    """An entry that names something else never prices this event."""
    assert find_entry([ChargePrice("u", 1, selector)], USAGE, 0) is None


def test_provider_spellings_are_one_provider() -> None:
    """A card that says azure prices what telemetry calls az.ai.openai."""
    usage = EventNames(provider="az.ai.openai", model="m")
    assert find_entry([ChargePrice("u", 1, Selector(provider="azure"))], usage, 0) is not None


def test_dated_prices_are_half_open() -> None:
    """The first instant of `to` belongs to the next price."""
    turn = parse_instant("2026-07-01")
    prices = [ChargePrice("u", 1, Selector(to_nanos=turn)), ChargePrice("u", 2, Selector(from_nanos=turn))]
    RateCard(tuple(prices))
    assert [found.attos for at in (turn - 1, turn) if (found := find_entry(prices, USAGE, at))] == [1, 2]
    gap = [ChargePrice("u", 1, Selector(from_nanos=turn))]
    assert find_entry(gap, USAGE, turn - 1) is None


def test_overlap_of_equally_specific_prices_is_refused() -> None:
    """Two prices that would apply to one event at one time are an error that names both entries."""
    prices = (
        ChargePrice("a", 1, Selector(model="m", from_nanos=0, to_nanos=10)),
        ChargePrice("b", 1, Selector(model="m", from_nanos=0, to_nanos=10)),
        ChargePrice("a", 2, Selector(model="M", from_nanos=9)),
    )
    with pytest.raises(InvalidRateCard) as caught:
        RateCard(prices)
    (problem,) = caught.value.problems
    assert problem.path == ("prices", 2)
    assert "prices[0]" in problem.message


def test_provider_spellings_do_not_hide_an_overlap() -> None:
    """Two spellings of one provider overlap."""
    markups = (Markup(1, Selector(provider="azure")), Markup(2, Selector(provider="az.ai.openai")))
    with pytest.raises(InvalidRateCard, match="overlaps markup"):
        RateCard(markups=markups)


def test_interval_without_time_is_refused() -> None:
    """A price that ends before it starts is a mistake."""
    with pytest.raises(InvalidRateCard, match="not after"):
        RateCard((ChargePrice("a", 1, Selector(from_nanos=5, to_nanos=5)),))


def test_markup_needs_the_currency_of_the_cost() -> None:
    """No amount is ever converted between currencies by pretending they are equal."""
    with pytest.raises(InvalidRateCard, match="EUR"):
        RateCard(markups=(Markup(0),), currency="EUR")
    RateCard((ChargePrice("a", 1),), currency="EUR")


@pytest.mark.parametrize("percent", ["20", "-2.5", "0.0001", "-0.5", "0"])
def test_markup_is_shown_as_written(percent: str) -> None:
    """The price version shows the percent of the card."""
    assert Markup(parse_percent(percent)).render() == {"markup_percent": percent}
