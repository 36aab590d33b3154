"""Rating is a linear, order-free, repeatable function of what was used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.domain.ratecard import ChargePrice, InvalidRateCard, Markup, RateCard, Selector
from otelbill_collector.domain.rating import Rated, Rater
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
    model=st.sampled_from([None, "gpt-4o-mini", "gpt*", "gpt-4o*"]),
    provider=st.sampled_from([None, "openai", "OpenAI", "azure"]),
    from_nanos=st.sampled_from([None, AT - DAY_NANOS, AT]),
    to_nanos=st.sampled_from([None, AT + 1, AT + DAY_NANOS]),
)
prices = st.builds(ChargePrice, st.sampled_from(UNITS), st.integers(0, 10**12).map(lambda n: n * 10**6), selectors)
markups = st.builds(Markup, st.integers(-1_000_000, 2_000_000), selectors)


@st.composite
def cards(draw: st.DrawFn) -> RateCard:
    """Valid cards: an entry that overlaps an earlier one is left out."""
    card = RateCard()
    for entry in draw(st.lists(st.one_of(prices, markups), max_size=12)):
        try:
            if isinstance(entry, Markup):
                card = RateCard(card.prices, (*card.markups, entry))
            else:
                card = RateCard((*card.prices, entry), card.markups)
        except InvalidRateCard:
            continue
    return card


@given(cards(), quantities, st.integers(-DAY_NANOS, DAY_NANOS))
def test_lines_are_the_whole(card: RateCard, used: dict[str, int], offset: int) -> None:
    """The amounts of the lines add up to the event's, and each is its quantity times its price."""
    rated = Rater(card).rate(used, AT + offset, **NAMES)
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
    shuffled = list(card.prices), list(card.markups), list(used.items())
    for entries in shuffled:
        shuffler.shuffle(entries)  # type: ignore[attr-defined]
    other = RateCard(tuple(shuffled[0]), tuple(shuffled[1]))
    first, second = Rater(card).rate(used, AT, **NAMES), Rater(other).rate(dict(shuffled[2]), AT, **NAMES)
    assert _content(first) == _content(second)


@given(cards(), quantities, quantities)
def test_splitting_usage_never_changes_the_total(card: RateCard, first: dict[str, int], second: dict[str, int]) -> None:
    """Two events cost what one event of their summed quantities costs, since prices are per unit."""
    rater = Rater(card)
    whole = {unit: first.get(unit, 0) + second.get(unit, 0) for unit in first | second}
    parts = [rater.rate(used, AT, **NAMES) for used in (first, second)]
    together = rater.rate(whole, AT, **NAMES)
    if all(part.state is RatingState.RATED for part in parts):
        assert together.charge_attos == sum(part.charge_attos or 0 for part in parts)
        assert together.cost_attos == sum(part.cost_attos or 0 for part in parts) or together.cost_attos is None


@given(cards(), quantities, st.integers(-DAY_NANOS, DAY_NANOS))
def test_rating_twice_gives_the_same(card: RateCard, used: dict[str, int], offset: int) -> None:
    """A warm rater and a new one agree in every field: nothing is remembered but prices."""
    warm = Rater(card)
    for at_nanos in (AT, AT + offset, AT):
        assert warm.rate(used, at_nanos, **NAMES) == Rater(card).rate(used, at_nanos, **NAMES)


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
