"""Rating gives exact amounts or says which price is missing; nothing is ever free by accident."""

from __future__ import annotations

from decimal import Decimal

import pytest

from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.prices import parse_percent, parse_unit_price
from otelbill_collector.domain.ratecard import ChargePrice, Markup, RateCard, Selector
from otelbill_collector.domain.rating import Rated, Rater
from otelbill_collector.domain.usage import Quantities, RatingState

AT = parse_instant("2026-11-20T12:00:00Z")
MILLION = 1_000_000


def price(unit: str, text: str, per: int = MILLION, selector: Selector | None = None) -> ChargePrice:
    return ChargePrice(unit, parse_unit_price(text, per), selector or Selector())


def show(rated: Rated) -> list[tuple[str, str, str, str]]:
    """unit, quantity, charge, cost"""
    return [
        (
            line.unit,
            str(line.quantity),
            "-" if line.charge_attos is None else format_attos(line.charge_attos),
            "-" if line.cost_attos is None else format_attos(line.cost_attos),
        )
        for line in rated.lines
    ]


def test_without_a_card_the_charge_is_the_cost() -> None:
    """The built-in default charges exactly what the provider does."""
    rated = Rater().rate({"input_tokens": 1000, "output_tokens": 500}, AT, provider="openai", model="gpt-4o-mini")
    assert rated.state is RatingState.RATED
    assert show(rated) == [
        ("input_tokens", "1000", "0.00015", "0.00015"),
        ("output_tokens", "500", "0.0003", "0.0003"),
    ]
    assert rated.cost_attos == rated.charge_attos == 45 * 10**13
    assert rated.currency == "USD"


@pytest.mark.parametrize("unit", ["vector_queries", "input_tokens", "cache_write_1h_tokens"])
def test_unknown_model_is_unpriced_and_not_zero(unit: str) -> None:
    """Usage without any price has no charge and no cost, and names the unit. An orphaned subset has no price either."""
    rated = Rater().rate({unit: 3}, AT, provider="openai", model="no-such-model")
    assert rated.state is RatingState.UNPRICED
    assert (rated.charge_attos, rated.cost_attos, rated.price_version) == (None, None, None)
    assert rated.problems == (f"no_price: {unit}",)


def test_one_missing_price_makes_the_event_unpriced() -> None:
    """A part without a price is not left out of the sum: there is no sum. The cost stays known."""
    card = RateCard((price("input_tokens", "1"), price("output_tokens", "2")))
    quantities = {"input_tokens": 10, "cache_read_tokens": 10, "output_tokens": 10}
    rated = Rater(card).rate(quantities, AT, provider="openai", model="gpt-4o-mini")
    assert rated.state is RatingState.UNPRICED
    assert rated.charge_attos is None
    assert rated.problems == ("no_price: cache_read_tokens",)
    assert rated.cost_attos == 10 * (15 * 10**10 + 75 * 10**9 + 60 * 10**10)


def test_charge_known_and_cost_unknown() -> None:
    """A price of the card charges a model that the price book does not have; its cost is unknown, not zero."""
    rated = Rater(RateCard((price("vector_queries", "0.002", 1),))).rate({"vector_queries": 3}, AT)
    assert rated.state is RatingState.RATED
    assert rated.charge_attos == 6 * 10**15
    assert rated.cost_attos is None


def test_markup_covers_what_no_price_does() -> None:
    """Cost-plus applies unit by unit, and only under the entry that matches."""
    card = RateCard(
        (price("output_tokens", "2.40"),),
        (Markup(parse_percent("20"), Selector(provider="openai")), Markup(parse_percent("50"))),
    )
    quantities = {"input_tokens": MILLION, "output_tokens": MILLION}
    openai = Rater(card).rate(quantities, AT, provider="openai", model="gpt-4o-mini")
    assert show(openai) == [("input_tokens", "1000000", "0.18", "0.15"), ("output_tokens", "1000000", "2.4", "0.6")]
    mistral = Rater(card).rate({"input_tokens": MILLION}, AT, provider="mistral_ai", model="mistral-tiny")
    assert show(mistral) == [("input_tokens", "1000000", "0.375", "0.25")]


def test_one_hour_cache_writes_are_taken_out_of_cache_writes() -> None:
    """The 1 h share is priced once, at its own price."""
    quantities = {"cache_write_tokens": 100, "cache_write_1h_tokens": 30}
    rated = Rater().rate(quantities, AT, provider="anthropic", model="claude-sonnet-4-5")
    assert show(rated) == [
        ("cache_write_tokens", "70", "0.0002625", "0.0002625"),
        ("cache_write_1h_tokens", "30", "0.00018", "0.00018"),
    ]


def test_reasoning_is_inside_output() -> None:
    """Reasoning tokens are charged once, as output, unless the card prices them apart."""
    quantities = {"output_tokens": 100, "reasoning_tokens": 40}
    plain = Rater().rate(quantities, AT, provider="openai", model="gpt-4o-mini")
    assert show(plain) == [("output_tokens", "100", "0.00006", "0.00006")]
    card = RateCard((price("output_tokens", "1"), price("reasoning_tokens", "3")))
    apart = Rater(card).rate(quantities, AT, provider="openai", model="gpt-4o-mini")
    assert show(apart) == [
        ("output_tokens", "60", "0.00006", "0.000036"),
        ("reasoning_tokens", "40", "0.00012", "0.000024"),
    ]


def test_audio_has_its_own_price_where_the_book_has_one() -> None:
    """Audio tokens leave the text they are counted in; a card without an audio price charges them as text."""
    quantities = {"input_tokens": 100, "audio_input_tokens": 40, "output_tokens": 10, "audio_output_tokens": 10}
    at_cost = Rater().rate(quantities, AT, provider="openai", model="gpt-audio")
    assert show(at_cost) == [
        ("input_tokens", "60", "0.00015", "0.00015"),
        ("audio_input_tokens", "40", "0.00128", "0.00128"),
        ("audio_output_tokens", "10", "0.00064", "0.00064"),
    ]
    card = RateCard((price("input_tokens", "10"), price("output_tokens", "20")))
    carded = Rater(card).rate(quantities, AT, provider="openai", model="gpt-audio")
    assert carded.charge_attos == 100 * 10**13 + 10 * 2 * 10**13
    assert carded.cost_attos == at_cost.cost_attos


def test_impossible_subset_is_unpriced() -> None:
    """A part that is larger than its whole is a fault of the emitter and is never billed on."""
    quantities = {"cache_write_tokens": 10, "cache_write_1h_tokens": 11}
    rated = Rater().rate(quantities, AT, provider="anthropic", model="claude-sonnet-4-5")
    assert rated.state is RatingState.UNPRICED
    assert rated.problems == ("impossible: cache_write_1h_tokens exceeds cache_write_tokens",)


@pytest.mark.parametrize(("cached", "charge"), [(100_000, "0.33"), (100_001, "0.6600006")])
def test_size_tier_counts_cached_input(cached: int, charge: str) -> None:
    """A prompt above the threshold, cached tokens included, pays the higher price for every token."""
    quantities = {"input_tokens": 100_000, "cache_read_tokens": cached}
    rated = Rater().rate(quantities, AT, provider="anthropic", model="claude-sonnet-4-5")
    assert rated.charge_attos is not None
    assert format_attos(rated.charge_attos) == charge


def test_requests_are_optional() -> None:
    """A request without a price does not hold up tokens, but by itself it is unpriced, not free."""
    rater = Rater()
    with_tokens = rater.rate({"requests": 1, "input_tokens": 10}, AT, provider="openai", model="gpt-4o-mini")
    assert [line.unit for line in with_tokens.lines] == ["input_tokens"]
    assert with_tokens.state is RatingState.RATED
    alone = rater.rate({"requests": 1}, AT, provider="openai", model="gpt-4o-mini")
    assert (alone.state, alone.charge_attos, alone.problems) == (RatingState.UNPRICED, None, ("no_price: requests",))


def test_request_prices_are_charged_where_there_are_any() -> None:
    """A provider's fee per request is cost; a card that prices only tokens passes it over in the charge."""
    quantities = {"requests": 1, "input_tokens": MILLION}
    assert show(Rater().rate(quantities, AT, provider="perplexity", model="sonar")) == [
        ("requests", "1", "0.012", "0.012"),
        ("input_tokens", "1000000", "1", "1"),
    ]
    carded = Rater(RateCard((price("input_tokens", "2"),))).rate(quantities, AT, provider="perplexity", model="sonar")
    assert (carded.state, carded.charge_attos, carded.cost_attos) == (RatingState.RATED, 2 * 10**18, 1012 * 10**15)


def test_own_price_for_requests_keeps_the_cost_known() -> None:
    """Charging per request does not make the cost of the tokens unknown."""
    card = RateCard((price("requests", "0.01", 1),), (Markup(0),))
    rated = Rater(card).rate({"requests": 2, "input_tokens": 10}, AT, provider="openai", model="gpt-4o-mini")
    assert (rated.charge_attos, rated.cost_attos) == (2 * 10**16 + 15 * 10**11, 15 * 10**11)


@pytest.mark.parametrize(
    ("quantities", "state", "charge", "problems"),
    [
        ({}, RatingState.UNPRICED, None, ("no_quantities",)),
        ({"input_tokens": 0, "output_tokens": 0}, RatingState.RATED, 0, ()),
        ({"vector_queries": 0}, RatingState.RATED, 0, ()),
    ],
)
def test_nothing_used(
    quantities: Quantities, state: RatingState, charge: int | None, problems: tuple[str, ...]
) -> None:
    """Usage that is reported as zero is worth zero; usage that is not reported is not."""
    rated = Rater().rate(quantities, AT, provider="openai", model="gpt-4o-mini")
    assert (rated.state, rated.charge_attos, rated.problems) == (state, charge, problems)


def test_decimal_quantities_are_exact_or_refused() -> None:
    """Six decimals of a quantity times twelve of a price fit; what does not fit is not rounded."""
    rater = Rater(RateCard((price("hours", "0.000000000001", 1),)))
    assert rater.rate({"hours": Decimal("0.000001")}, AT).charge_attos == 1
    refused = rater.rate({"hours": Decimal("0.0000001")}, AT)
    assert (refused.state, refused.charge_attos) == (RatingState.UNPRICED, None)
    assert refused.problems == ("inexact: hours",)


@pytest.mark.parametrize("quantity", [-1, Decimal(-1), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity")])
@pytest.mark.parametrize("unit", ["output_tokens", "cache_write_1h_tokens", "cache_write_tokens"])
def test_no_quantity_earns_money_or_stops_the_batch(unit: str, quantity: int | Decimal) -> None:
    """A quantity that cannot be counted leaves its event unpriced: it is neither a credit nor an exception."""
    used = {"input_tokens": 5, "cache_write_tokens": 3, "cache_write_1h_tokens": 1} | {unit: quantity}
    rated = Rater().rate(used, AT, provider="anthropic", model="claude-haiku-4-5")
    assert (rated.state, rated.charge_attos) == (RatingState.UNPRICED, None)
    assert rated.cost_attos is None
    tiered = Rater().rate(used, AT, provider="anthropic", model="claude-sonnet-4-5")
    assert (tiered.state, tiered.charge_attos) == (RatingState.UNPRICED, None)
    assert rated.problems[0].startswith(("impossible: ", "inexact: "))


def test_decimal_tokens_are_split_exactly() -> None:
    """Parts are taken out of decimal wholes without rounding to the digits of a default context."""
    whole = Decimal("100000000000000000000000000000.000001")
    card = RateCard((price("output_tokens", "1", 1), price("reasoning_tokens", "2", 1)))
    rated = Rater(card).rate({"output_tokens": whole, "reasoning_tokens": 1}, AT)
    assert rated.charge_attos == 10**47 + 10**12 + 10**18


def test_event_time_decides() -> None:
    """Usage from before a price change is rated at the old price, whenever it arrives."""
    turn = parse_instant("2026-07-01")
    card = RateCard(
        (price("u", "1", 1, Selector(to_nanos=turn)), price("u", "2", 1, Selector(from_nanos=turn, to_nanos=turn + 10)))
    )
    rater = Rater(card)
    states = [
        (rater.rate({"u": 1}, at).charge_attos, rater.rate({"u": 1}, at).state.value)
        for at in (turn - 1, turn, turn + 10)
    ]
    assert states == [(10**18, "rated"), (2 * 10**18, "rated"), (None, "unpriced")]


def test_price_version_spells_out_the_arithmetic() -> None:
    """The stored version alone gives each line's prices and where they come from."""
    card = RateCard(
        (price("output_tokens", "2.40", MILLION, Selector(customer_id="acme", model="gpt-4o*")),), (Markup(200_000),)
    )
    quantities = {"input_tokens": 10, "output_tokens": 5}
    rated = Rater(card).rate(quantities, AT, provider="openai", model="gpt-4o-mini-2024-07-18", customer_id="acme")
    assert rated.version is not None
    assert rated.version.read_body() == {
        "kind": "rating",
        "currency": "USD",
        "cost_currency": "USD",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "prices": {
            "input_tokens": {"charge": "0.00000018", "cost": "0.00000015", "entry": {"markup_percent": "20"}},
            "output_tokens": {
                "charge": "0.0000024",
                "cost": "0.0000006",
                "entry": {"price": "0.0000024", "customer": "acme", "model": "gpt-4o*"},
            },
        },
    }


def test_price_version_depends_on_used_prices_only() -> None:
    """Adding a price for another unit, or an end to a price, leaves the ids of past records as they were."""
    quantities, turn = {"u": 1}, parse_instant("2027-01-01")
    before = Rater(RateCard((price("u", "1", 1),))).rate(quantities, AT)
    ended = RateCard((price("u", "1", 1, Selector(to_nanos=turn)), price("v", "1", 1)))
    assert Rater(ended).rate(quantities, AT).price_version == before.price_version
    assert Rater(RateCard((price("u", "2", 1),))).rate(quantities, AT).price_version != before.price_version


def test_many_names_do_not_grow_the_cache() -> None:
    """Names from outside that no price mentions share one entry, so a sender cannot exhaust memory with customers."""
    rater = Rater(RateCard((price("u", "1", 1),)))
    for number in range(100):
        rater.rate({"u": 1}, AT, customer_id=f"customer-{number}", step=f"step-{number}")
    assert len(rater._routes) == 1


def in_credits(worth: Selector | None = None) -> Rater:
    """An image costs half a credit, a credit is worth 0.01."""
    half = ChargePrice("images", 0, credits_micros=500_000)
    return Rater(RateCard((half, price("credits", "0.01", 1, worth))))


def test_a_unit_that_costs_credits_is_charged_what_they_are_worth() -> None:
    """7 images at 0.5 credits are 3.5 credits, at 0.01 each 0.035; the version says both."""
    rated = in_credits().rate({"images": 7}, AT)
    assert show(rated) == [("images", "7", "0.035", "-")]
    assert rated.version is not None
    prices = rated.version.read_body()["prices"]
    worth = {"price": "0.01"}
    entry = {"credits": "0.5"}
    assert prices == {
        "images": {"charge": "0.005", "cost": None, "entry": entry, "credits": {"each": "0.5", "worth": worth}}
    }


def test_without_a_price_of_credits_in_force_a_unit_that_costs_them_is_unpriced() -> None:
    """A credit that is worth something for another customer only, or from tomorrow on, is no price."""
    for worth in (Selector("other"), Selector(from_nanos=AT + 1)):
        rated = in_credits(worth).rate({"images": 7}, AT, customer_id="acme")
        assert (rated.state, rated.problems) == (RatingState.UNPRICED, ("no_price: images",))


def test_a_quantity_whose_credits_are_not_exact_is_unpriced() -> None:
    """0.000001 images would be 0.0000005 credits, which no grant can be counted in; 0.000002 are 0.000001."""
    assert in_credits().rate({"images": Decimal("0.000001")}, AT).problems == ("inexact: images",)
    assert in_credits().rate({"images": Decimal("0.000002")}, AT).charge_attos == 10**10
