"""Rating is a linear, order-free, repeatable function of what was used."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.domain.charges import PeriodCharge, Pricing
from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.domain.ratecard import ChargePrice, InvalidRateCard, Markup, RateCard, Selector
from otelbill_collector.domain.rating import Rated, Rater
from otelbill_collector.domain.selectors import (
    EventNames,
    Membership,
    matches_pattern,
    normalize_model,
    overlap_patterns,
)
from otelbill_collector.domain.usage import RatingState

AT = parse_instant("2026-11-20")
UNITS = ["input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "requests", "pages"]
NAMES = {"provider": "openai", "model": "gpt-4o-mini", "customer_id": "acme", "step": "research"}

counts = st.integers(0, 2**53)
quantities = st.dictionaries(st.sampled_from(UNITS), counts, min_size=1)
selectors = st.builds(
    Selector,
    customer_id=st.sampled_from([None, "acme", "other"]),
    step=st.sampled_from([None, "research"]),
    model=st.sampled_from([None, "gpt-4o-mini", "gpt*", "gpt-4o*", "*mini", "*4o*", "g*i"]),
    provider=st.sampled_from([None, "openai", "OpenAI", "azure"]),
    from_nanos=st.sampled_from([None, AT - DAY_NANOS, AT]),
    to_nanos=st.sampled_from([None, AT + 1, AT + DAY_NANOS]),
    group=st.sampled_from([None, None, "enterprise", "startup"]),
    service_tier=st.sampled_from([None, None, "default", "batch"]),
)

pytestmark = pytest.mark.money
prices = st.builds(ChargePrice, st.sampled_from(UNITS), st.integers(0, 10**12).map(lambda n: n * 10**6), selectors)
in_credits = st.builds(
    lambda unit, selector, micros: ChargePrice(unit, 0, selector, micros),
    st.sampled_from(UNITS),
    selectors,
    st.integers(0, 10**7),
)
worth = st.builds(lambda steps: ChargePrice("credits", steps * 10**12), st.integers(0, 10**6))
markups = st.builds(Markup, st.integers(-1_000_000, 2_000_000), selectors)
charges = st.builds(
    lambda unit, attos, selector: PeriodCharge(
        f"{unit} {selector.list_usage_names()}", unit, Pricing.PER_UNIT, selector, attos * 10**6
    ),
    st.sampled_from(UNITS),
    st.integers(0, 10**12),
    selectors,
)
MEMBERS = {"acme": Membership(group="enterprise")}


@st.composite
def cards(draw: st.DrawFn) -> RateCard:
    """Valid cards: an entry that overlaps an earlier one is left out."""
    card = RateCard(prices=(draw(worth),))
    for entry in draw(st.lists(st.one_of(prices, in_credits, markups, charges), max_size=12)):
        try:
            if isinstance(entry, Markup):
                card = replace(card, markups=(*card.markups, entry))
            elif isinstance(entry, PeriodCharge):
                card = replace(card, charges=(*card.charges, entry))
            else:
                card = replace(card, prices=(*card.prices, entry))
        except InvalidRateCard:
            continue
    return card


@given(cards(), quantities, st.integers(-DAY_NANOS, DAY_NANOS))
def test_lines_are_the_whole(card: RateCard, used: dict[str, int], offset: int) -> None:
    """The amounts of the lines add up to the event's, and each is its quantity times its price."""
    rated = Rater(card, members=MEMBERS).rate(used, AT + offset, **NAMES)
    for line in rated.lines:
        assert line.charge_attos == (
            None if line.charge_price_attos is None else line.quantity * line.charge_price_attos
        )
        assert line.cost_attos == (None if line.cost_price_attos is None else line.quantity * line.cost_price_attos)
    if rated.state is RatingState.RATED:
        assert rated.charge_attos == sum(line.charge_attos or 0 for line in rated.lines)
        assert all(line.charge_attos is not None or line.unit == "requests" for line in rated.lines)
    else:
        assert rated.charge_attos is None
        assert rated.problems
    if rated.cost_attos is not None:
        assert rated.cost_attos == sum(line.cost_attos or 0 for line in rated.lines)


@given(cards(), quantities, st.randoms(use_true_random=False))
def test_order_of_the_file_does_not_matter(card: RateCard, used: dict[str, int], shuffler: object) -> None:
    """Shuffled prices, markups and quantities give the same amounts and the same price version."""
    shuffled = list(card.prices), list(card.markups), list(used.items()), list(card.charges)
    for entries in shuffled:
        shuffler.shuffle(entries)  # type: ignore[attr-defined]
    other = RateCard(tuple(shuffled[0]), tuple(shuffled[1]), charges=tuple(shuffled[3]))
    first, second = (
        Rater(card, members=MEMBERS).rate(used, AT, **NAMES),
        Rater(other, members=MEMBERS).rate(dict(shuffled[2]), AT, **NAMES),
    )
    assert _content(first) == _content(second)


@given(cards(), quantities, quantities)
def test_splitting_usage_never_changes_the_total(card: RateCard, first: dict[str, int], second: dict[str, int]) -> None:
    """Two events cost what one event of their summed quantities costs, since prices are per unit."""
    rater = Rater(card, members=MEMBERS)
    whole = {unit: first.get(unit, 0) + second.get(unit, 0) for unit in first | second}
    parts = [rater.rate(used, AT, **NAMES) for used in (first, second)]
    together = rater.rate(whole, AT, **NAMES)
    if all(part.state is RatingState.RATED for part in parts):
        assert together.charge_attos == sum(part.charge_attos or 0 for part in parts)
        assert together.cost_attos == sum(part.cost_attos or 0 for part in parts) or together.cost_attos is None


@given(cards(), quantities, st.integers(-DAY_NANOS, DAY_NANOS))
def test_rating_twice_gives_the_same(card: RateCard, used: dict[str, int], offset: int) -> None:
    """A warm rater and a new one agree in every field: nothing is remembered but prices."""
    warm = Rater(card, members=MEMBERS)
    for at_nanos in (AT, AT + offset, AT):
        assert warm.rate(used, at_nanos, **NAMES) == Rater(card, members=MEMBERS).rate(used, at_nanos, **NAMES)


@given(cards(), quantities, st.integers(-DAY_NANOS, DAY_NANOS))
def test_what_a_period_charge_covers_is_charged_once(card: RateCard, used: dict[str, int], offset: int) -> None:
    """Each unit is priced by its event or counted by one period charge, never both, and nothing is counted twice."""
    rater = Rater(card, members=MEMBERS)
    names = EventNames(NAMES["provider"], NAMES["model"], None, None, NAMES["customer_id"], NAMES["step"])
    covered = rater.list_covered(used, AT + offset, names)
    rated = rater.rate(used, AT + offset, **NAMES)
    in_versions = {charge.version.version_id: Decimal(quantity) for charge, quantity in covered}
    content = rated.version.read_body()["prices"] if rated.version else {}
    assert isinstance(content, dict)
    for line in rated.lines:
        price = content.get(line.unit)
        if isinstance(price, dict) and price["charge"] == "period":
            assert line.charge_attos == 0
            in_versions[price["entry"]["period_charge"]["version"]] -= Decimal(line.quantity)  # type: ignore[index, call-overload]
    assert not any(in_versions.values())


letters = st.text("ab*", max_size=6)


@given(letters, letters, st.text("ab", max_size=8))
def test_patterns_that_share_a_name_are_known_to(one: str, other: str, name: str) -> None:
    """Two patterns that one name fits are found to overlap, so that no event ever has two equal prices."""
    one, other = normalize_model(one), normalize_model(other)
    if matches_pattern(one, name) and matches_pattern(other, name):
        assert overlap_patterns(one, other)
    if overlap_patterns(one, name):
        assert matches_pattern(one, name)


@given(cards(), quantities, st.integers(-DAY_NANOS, DAY_NANOS))
def test_the_short_way_to_amounts_is_the_long_one(card: RateCard, used: dict[str, int], offset: int) -> None:
    """Sums without lines are those with lines, under the same price version; what needs a closer look gets it."""
    rater, at_nanos = Rater(card), AT + offset
    names = (NAMES["provider"], NAMES["model"], None, None)
    for _ in range(2):  # the second time by the plan that was kept
        sums = rater.sum_plain(used, at_nanos, names, NAMES["customer_id"], NAMES["step"])
        if sums is not None:
            rated = Rater(card).rate(used, at_nanos, **NAMES)
            assert rated.state is RatingState.RATED
            assert sums == (rated.cost_attos, rated.charge_attos, rated.version)


def test_a_plain_event_goes_the_short_way() -> None:
    """An event whose every unit has a price needs no lines."""
    used = {"input_tokens": 100, "output_tokens": 7, "requests": 1, "cache_read_tokens": 0}
    assert Rater().sum_plain(used, AT, ("openai", "gpt-4o-mini", None, None), "acme", None) is not None


def _content(rated: Rated) -> object:
    return rated._replace(lines=tuple(sorted(rated.lines)), problems=tuple(sorted(rated.problems)))  # type: ignore[arg-type]
