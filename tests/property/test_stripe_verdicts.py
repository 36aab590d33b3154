"""Properties of the verdict on an hour: equal is said only of what is equal, and doubt is never settled by a guess."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import DELIVERED_STATES, Intent, IntentKind, IntentState
from otelbill_collector.export.stripe.verdicts import Hour, Row, Verdict, judge_hour
from tests.stripe_world import METER, MINUTE, NOON

PLAIN = Intent(
    *(0, "ob1.0", 1, "default", False, METER, "acme", 1, NOON, 5 * MINUTE, 0, IntentKind.WINDOW, 0, 0, 0, 0),
    *(NOON // NANOS, NOON, IntentState.PENDING, "cus_acme", 1, 0, NOON, NOON, NOON, None, None, None, None, None),
)
SETTLE = 30 * MINUTE

STANDING = [state for state in IntentState if state is not IntentState.DEAD]
DRAWN = st.lists(
    st.tuples(st.integers(-5, 9).filter(bool), st.sampled_from(STANDING), st.booleans()), min_size=1, max_size=7
)


def build_hour(drawn: list[tuple[int, IntentState, bool]], open_units: int) -> tuple[Hour, Decimal]:
    """The hour, and what Stripe has: delivered values, and of those in doubt the ones whose flag says so."""
    intents = [
        replace(PLAIN, intent_id=number, identifier=f"ob1.{number}", value=value, state=state)
        for number, (value, state, _) in enumerate(drawn)
    ]
    at_stripe = [
        value for value, state, arrived in drawn if state in DELIVERED_STATES or (arrived and state != "pending")
    ]
    return Hour(METER, "cus_acme", NOON // NANOS, intents, Decimal(open_units)), Decimal(sum(at_stripe))


def judge(hour: Hour, stripe: Decimal, age_nanos: int) -> Row:
    return judge_hour(hour, stripe, NOON + age_nanos, SETTLE)


AGES = st.sampled_from([MINUTE, 2 * HOUR_NANOS, 25 * HOUR_NANOS])


@given(drawn=DRAWN, open_units=st.integers(0, 2), noise=st.integers(-2, 2), age=AGES)
def test_equal_is_said_only_of_what_is_equal(
    drawn: list[tuple[int, IntentState, bool]], open_units: int, noise: int, age: int
) -> None:
    """An equal hour has nothing open or pending, and Stripe's sum is that of all its intents."""
    hour, stripe = build_hour(drawn, open_units)
    row = judge(hour, stripe + noise, age)
    if row.verdict is Verdict.EQUAL:
        assert row.stripe == row.delivered == row.ledger
        assert hour.open == 0
        assert all(intent.state is not IntentState.PENDING for intent in hour.intents)


@given(drawn=DRAWN, noise=st.integers(-2, 2), age=AGES)
def test_what_is_confirmed_adds_up_to_stripes_sum(
    drawn: list[tuple[int, IntentState, bool]], noise: int, age: int
) -> None:
    """Intents are confirmed only together with all that make up Stripe's sum, and lost ones are none of them."""
    hour, stripe = build_hour(drawn, 0)
    row = judge(hour, stripe + noise, age)
    proven = {intent.intent_id for intent in hour.intents if intent.state is IntentState.CONFIRMED} | set(row.confirmed)
    if row.confirmed:
        assert sum(intent.value for intent in hour.intents if intent.intent_id in proven) == row.stripe
    assert not proven & {intent.intent_id for intent in row.lost}


@given(drawn=DRAWN, age=AGES)
def test_only_old_doubt_is_given_up(drawn: list[tuple[int, IntentState, bool]], age: int) -> None:
    """An intent is sent anew only when its attempts are 23 hours old and Stripe's settled sum lacks it."""
    hour, stripe = build_hour(drawn, 0)
    row = judge(hour, stripe, age)
    for intent in row.lost:
        assert intent.state is IntentState.UNKNOWN
        assert age >= 23 * HOUR_NANOS


@given(drawn=DRAWN)
def test_replacing_the_lost_ones_makes_the_hour_whole(drawn: list[tuple[int, IntentState, bool]]) -> None:
    """If every intent the verdict gives up is sent again, Stripe ends with the sum of all that stand."""
    old_doubt = [
        (value, state if state in DELIVERED_STATES else IntentState.UNKNOWN, here) for value, state, here in drawn
    ]
    hour, stripe = build_hour(old_doubt, 0)
    row = judge(hour, stripe, 25 * HOUR_NANOS)
    if row.verdict in (Verdict.EQUAL, Verdict.PENDING):
        assert stripe + sum(intent.value for intent in row.lost) == sum(intent.value for intent in hour.intents)


def test_nothing_is_guessed_where_two_explanations_fit() -> None:
    """Stripe has 3 of the values 1, 2 and 3, which may be one or two of them: none is confirmed, none sent anew."""
    unknown = IntentState.UNKNOWN
    hour, stripe = build_hour([(1, unknown, False), (2, unknown, False), (3, unknown, True)], 0)
    row = judge(hour, stripe, 25 * HOUR_NANOS)
    assert (row.confirmed, row.lost) == ((), ())
    assert row.verdict is not Verdict.EQUAL
    assert "ob1." in row.remedy
