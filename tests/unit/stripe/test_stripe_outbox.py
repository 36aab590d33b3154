"""The outbox: what is booked becomes intents once, exactly, and intents never change."""

from __future__ import annotations

import sqlite3

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import IntentKind, IntentState
from otelbill_collector.domain.windows import MeterDelta
from otelbill_collector.ledger import outbox_views
from tests.stripe_world import METER, MINUTE, NOON, MemoryStripe, World


def test_a_window_is_sent_once_it_closed_and_its_grace_passed(world: World, stripe: MemoryStripe) -> None:
    """Usage is metered per window of 5 minutes, a minute after its end, at the second of its last event."""
    world.book("acme", "0.15", at=NOON + 10 * NANOS)
    world.book("acme", "0.05", at=NOON + 200 * NANOS)
    world.now = NOON + 6 * MINUTE - 1
    assert world.exporter.run_once(world.now).sent == 0
    world.now += 1
    report = world.exporter.run_once(world.now)
    assert (report.windows_closed, report.intents_made, report.sent) == (1, 1, 1)
    (event,) = stripe.counted
    assert (event.value, event.stripe_customer_id, event.event_name) == ("200000", "cus_acme", METER)
    assert event.stamp_seconds == NOON // NANOS + 200
    assert world.exporter.run_once(world.now + MINUTE).sent == 0


def test_fractions_of_a_micro_unit_are_carried_not_rounded_away(world: World, stripe: MemoryStripe) -> None:
    """Three windows of 0.4 micro-dollars bill 1 micro-dollar, once, and the rest stays in the lane."""
    for number in range(3):
        world.book("acme", "0.0000004", at=NOON + number * 5 * MINUTE)
    world.exporter.flush(NOON + 20 * MINUTE)
    assert [event.value for event in stripe.counted] == ["1"]
    (lane,) = world.status().lanes
    assert (str(lane.booked), lane.intended, str(lane.carry), lane.balanced) == ("1.2", 1, "0.2", True)


def test_a_window_worth_nothing_makes_no_intent(world: World) -> None:
    """A charge and its reversal in one window send nothing."""
    world.book("acme", "2")
    world.book("acme", "-2")
    report = world.exporter.flush(NOON + HOUR_NANOS)
    assert report.intents_made == 0
    assert world.intents() == []


@pytest.mark.parametrize(
    ("late", "kinds", "values"),
    [("0.000003", [IntentKind.WINDOW, IntentKind.DELTA], [5, 3]), ("-0.000005", ["window", "delta"], [5, -5])],
)
def test_late_usage_becomes_a_delta_of_its_own_window(
    world: World, late: str, kinds: list[str], values: list[int]
) -> None:
    """A window that was sent is never reopened; late usage and reversals get the next revision, in the same hour."""
    world.book("acme", "0.000005", at=NOON)
    world.now = NOON + 10 * MINUTE
    world.exporter.run_once(world.now)
    world.book("acme", late, at=NOON + NANOS)
    world.exporter.run_once(world.now + MINUTE)
    assert len(world.intents()) == 1, "stragglers are gathered for a window's length"
    world.exporter.run_once(world.now + 5 * MINUTE)
    intents = world.intents()
    assert [intent.kind for intent in intents] == kinds
    assert [intent.value for intent in intents] == values
    assert [intent.revision for intent in intents] == [0, 1]
    assert [intent.stamp_seconds for intent in intents] == [NOON // NANOS, NOON // NANOS + 1]
    assert len({intent.identifier for intent in intents}) == 2


def test_usage_too_old_for_stripe_is_carried_forward_and_says_so(world: World) -> None:
    """Past 34 days the amount is stamped in the open period, under the identifier of its own window."""
    world.book("acme", "1", at=NOON - 34 * DAY_NANOS)
    world.book("globex", "1", at=NOON - 34 * DAY_NANOS + 1)
    world.exporter.run_once(NOON)
    by_customer = {intent.customer_id: intent for intent in world.intents()}
    assert by_customer["acme"].kind is IntentKind.CARRY_FORWARD
    assert by_customer["acme"].stamp_seconds == NOON // NANOS
    assert by_customer["globex"].kind is IntentKind.WINDOW


def test_an_intent_cannot_be_changed_or_deleted(world: World) -> None:
    """The database itself refuses to alter what was decided."""
    world.book("acme", "1")
    world.exporter.flush(world.now)
    with pytest.raises(sqlite3.IntegrityError, match="never changes"):
        world.store.transact(lambda conn: conn.execute("UPDATE stripe_intent SET value = '2'"))
    with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
        world.store.transact(lambda conn: conn.execute("DELETE FROM stripe_intent"))
    assert world.intents()[0].value == 1_000_000


def test_values_past_15_digits_are_split_into_revisions(world: World, stripe: MemoryStripe) -> None:
    """Stripe refuses 16 digits, so a larger value leaves in parts that add up."""
    world.book("acme", "2500000000")
    world.exporter.flush(world.now)
    assert stripe.total("cus_acme") == 2_500_000_000 * 10**6
    assert all(len(event.value) <= 15 for event in stripe.counted)
    assert len(stripe.counted) == 3
    assert {intent.kind for intent in world.intents()} == {IntentKind.WINDOW}


def test_money_and_units_cannot_share_a_meter(world: World) -> None:
    """A meter counts one thing; mixing them is refused before anything is booked."""
    world.book("acme", "1")
    units = MeterDelta.of_quantity(meter=METER, customer_id="acme", event_nanos=NOON, quantity=3)
    with pytest.raises(ValueError, match="different names"):
        world.accumulate([units])
    assert str(world.status().lanes[0].booked) == "1000000"


def test_intents_are_found_by_what_a_bill_or_an_error_report_shows(world: World) -> None:
    """An identifier, an Idempotency-Key, or a customer and an instant all lead back to the intent."""
    world.book("acme", "1", at=NOON)
    world.book("globex", "1", at=NOON)
    world.exporter.flush(world.now)
    acme = next(intent for intent in world.intents() if intent.customer_id == "acme")

    def find(**by: object) -> list[str]:
        found = world.store.read(lambda conn: outbox_views.find_intents_for(conn, **by))  # type: ignore[arg-type]
        return [intent.identifier for intent in found]

    assert find(identifier=acme.identifier) == [acme.identifier]
    assert find(identifier=acme.identifier + ".2") == [acme.identifier]
    assert find(customer_id="acme", event_nanos=NOON + MINUTE) == [acme.identifier]
    assert find(customer_id="acme", event_nanos=NOON + 5 * MINUTE) == []
    assert acme.state is IntentState.ACCEPTED
