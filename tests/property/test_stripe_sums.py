"""Properties of the way from booked amounts to Stripe values: exact in sum, whatever the windows and their order."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.windows import CHARGE_QUANTUM, VALUE_MAX, MeterDelta, quantise, split_value
from otelbill_collector.ledger import outbox, outbox_views
from otelbill_collector.ledger.schema import migrate_schema
from otelbill_collector.ledger.seals import register_seal
from tests.stripe_world import METER, MINUTE, NOON

AMOUNTS = st.integers(min_value=-(10**22), max_value=10**22)
WINDOW = 5 * MINUTE


@given(st.lists(AMOUNTS, max_size=30), st.sampled_from([1, 10**6, 10**12]))
def test_units_sent_are_the_floor_of_the_exact_total(amounts: list[int], quantum: int) -> None:
    """However a total is cut into windows, what is sent differs from it by less than one unit, ever."""
    carry = sent = 0
    for amount in amounts:
        units, carry = quantise(amount, carry=carry, quantum=quantum)
        sent += units
        assert 0 <= carry < quantum
    assert sent == sum(amounts) // quantum
    assert sent * quantum + carry == sum(amounts)


@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_parts_of_a_value_add_up_and_fit(value: int) -> None:
    """Splitting changes no sum, makes no zero, and every part has at most 15 digits."""
    parts = split_value(value)
    assert sum(parts) == value
    assert all(part and abs(part) <= VALUE_MAX for part in parts)


@pytest.fixture(scope="module")
def schema() -> bytes:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        migrate_schema(conn)
        return conn.serialize()


BOOKINGS = st.lists(
    st.tuples(
        st.sampled_from(["acme", "globex"]),
        st.integers(min_value=0, max_value=40 * 60),  # seconds after noon
        AMOUNTS,
        st.booleans(),  # close windows after this booking
    ),
    max_size=25,
)


def run(schema: bytes, bookings: list[tuple[str, int, int, bool]], order: list[int]) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.deserialize(schema)
    register_seal(conn)
    clock = NOON
    for index in order:
        customer, second, amount, close = bookings[index]
        delta = MeterDelta(METER, customer, NOON + second * NANOS, amount, CHARGE_QUANTUM)
        outbox.accumulate(conn, [delta], WINDOW)
        clock += MINUTE
        if close:
            outbox.close_windows(conn, outbox.Closing("default", False, clock, 0))
    outbox.close_windows(conn, outbox.Closing("default", False, clock + MINUTE, 0, close_all=True))
    return conn


@given(bookings=BOOKINGS, data=st.data())
def test_order_and_closing_times_never_change_what_is_billed(
    schema: bytes, bookings: list[tuple[str, int, int, bool]], data: st.DataObject
) -> None:
    """Late, early, or reversed: each lane's intents add up to the floor of its total, and its books balance."""
    order = data.draw(st.permutations(range(len(bookings))))
    with closing(run(schema, bookings, order)) as conn:
        lanes = outbox_views.list_lane_sums(conn)
        assert lanes == outbox_views.recompute_lane_sums(conn)
        for lane in lanes:
            total = sum(amount for customer, _, amount, _ in bookings if customer == lane.customer_id)
            assert lane.intended == total // CHARGE_QUANTUM
            assert lane.balanced
            assert lane.open == 0


@given(bookings=BOOKINGS)
def test_every_intent_explains_itself(schema: bytes, bookings: list[tuple[str, int, int, bool]]) -> None:
    """amount + carry before == value x quantum + carry after, and revisions of a window count from 0 without gaps."""
    with closing(run(schema, bookings, list(range(len(bookings))))) as conn:
        revisions: dict[tuple[int, int], list[int]] = {}
        for intent in outbox_views.find_intents_for(conn):
            assert intent.amount + intent.carry_before == intent.value * intent.quantum + intent.carry_after
            assert intent.value != 0
            assert intent.start_nanos <= intent.stamp_seconds * NANOS < intent.start_nanos + intent.length_nanos
            revisions.setdefault((intent.lane_id, intent.start_nanos), []).append(intent.revision)
        assert all(numbers == list(range(len(numbers))) for numbers in revisions.values())
