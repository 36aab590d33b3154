"""Reconciliation: equal to the last unit, or a named difference with its remedy; doubt ends here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from otelbill_collector.cli.operate import describe_comparison
from otelbill_collector.domain.instants import HOUR_NANOS, format_instant
from otelbill_collector.export.stripe.answers import Answer
from otelbill_collector.export.stripe.ports import MeterEvent, StripeCallError, StripeUnreachable
from otelbill_collector.export.stripe.reconcile import ReissueRefused
from otelbill_collector.export.stripe.verdicts import Verdict
from otelbill_collector.operations import render_reconciliation
from tests.stripe_world import CUSTOMERS, METER, MINUTE, NOON, MemoryStripe, World

STRANGER = MeterEvent(METER, "x", "x", "cus_acme", "7", NOON // 10**9)


def send_hour(world: World) -> None:
    world.book("acme", "1", at=NOON)
    world.book("acme", "0.0000005", at=NOON + 5 * MINUTE)
    world.book("globex", "3", at=NOON)
    world.exporter.flush(NOON + 10 * MINUTE)


def test_equal_books_are_called_equal_and_confirm_their_intents(world: World) -> None:
    """When every hour equals, nothing is open and every lane balances, the ledger and Stripe agree."""
    send_hour(world)
    result = world.reconciler().reconcile(NOON + 10 * MINUTE)
    assert result.equal
    assert [(row.stripe_customer_id, row.delivered, row.stripe, row.verdict) for row in result.rows] == [
        ("cus_acme", 1_000_000, Decimal(1_000_000), Verdict.EQUAL),
        ("cus_globex", 3_000_000, Decimal(3_000_000), Verdict.EQUAL),
    ]
    assert result.confirmed == 2
    assert {intent.state for intent in world.intents()} == {"confirmed"}
    assert world.reconciler().reconcile(NOON + HOUR_NANOS).equal, "and stays so"


def test_usage_that_is_not_sent_yet_is_pending_not_equal(world: World) -> None:
    """An open window means the books cannot be equal yet."""
    send_hour(world)
    world.book("acme", "1", at=NOON + HOUR_NANOS)
    result = world.reconciler().reconcile(NOON + HOUR_NANOS)
    assert not result.equal
    assert [row.verdict for row in result.rows if row.verdict is not Verdict.EQUAL] == [Verdict.PENDING]


def test_a_lagging_sum_is_pending_until_the_settle_delay_then_short(world: World, stripe: MemoryStripe) -> None:
    """Stripe adds up later; only after half an hour is a missing value a difference, and it names the remedy."""
    send_hour(world)
    stripe.counted.pop(0)
    young = world.reconciler().reconcile(NOON + 11 * MINUTE)
    assert [row.verdict for row in young.rows].count(Verdict.PENDING) == 1
    old = world.reconciler().reconcile(NOON + HOUR_NANOS)
    (row,) = [row for row in old.rows if row.verdict is not Verdict.EQUAL]
    assert row.verdict is Verdict.SHORT
    assert abs(row.difference) in (1_000_000, 3_000_000)
    (line,) = old.differences
    assert format_instant(NOON) in line
    assert "error reports" in line


def test_a_value_nobody_here_sent_is_over(world: World, stripe: MemoryStripe) -> None:
    """Something else on the same meter and customer shows as a surplus with a remedy."""
    send_hour(world)
    stripe.counted.append(STRANGER)
    result = world.reconciler().reconcile(NOON + HOUR_NANOS)
    (row,) = [row for row in result.rows if row.verdict is Verdict.OVER]
    assert row.difference == 7
    assert not result.equal


def test_a_value_counted_twice_is_named(world: World, stripe: MemoryStripe) -> None:
    """A surplus of exactly one of our values points at that event."""
    send_hour(world)
    stripe.counted.append(stripe.counted[0])
    (row,) = [row for row in world.reconciler().reconcile(NOON + HOUR_NANOS).rows if row.verdict is Verdict.OVER]
    assert stripe.counted[0].identifier in row.remedy
    assert "twice" in row.remedy


def test_a_surplus_in_an_hour_without_usage_is_seen(world: World, stripe: MemoryStripe) -> None:
    """Hours the ledger knows nothing of are compared as well, for customers with traffic."""
    send_hour(world)
    stripe.counted.append(replace(STRANGER, stamp_seconds=(NOON - 3 * HOUR_NANOS) // 10**9))
    result = world.reconciler().reconcile(NOON + HOUR_NANOS)
    assert [(row.verdict, row.stripe) for row in result.rows if row.delivered == 0] == [(Verdict.OVER, Decimal(7))]


@pytest.mark.parametrize(("fault", "state", "replaced"), [("reset-after", "confirmed", 0), ("reset-before", "dead", 1)])
def test_doubt_of_23_hours_is_ended_by_the_sum(
    world: World, stripe: MemoryStripe, fault: str, state: str, replaced: int
) -> None:
    """What the sum proves is confirmed; what it disproves goes out as a new revision: counted once either way."""
    stripe.set_faults([fault])
    world.book("acme", "1")
    world.advance(10 * MINUTE)
    world.exporter.run_once(world.now)
    world.advance(24 * HOUR_NANOS)
    result = world.reconciler().reconcile(world.now)
    assert result.replaced == replaced
    assert world.intents()[0].state == state
    world.exporter.run_once(world.now)
    assert stripe.total("cus_acme") == 1_000_000
    assert world.reconciler().reconcile(world.now).equal
    assert all(lane.balanced for lane in world.status().lanes)


def test_two_intents_in_doubt_are_told_apart_by_their_values(world: World, stripe: MemoryStripe) -> None:
    """Where only one choice of intents explains the sum, that one is confirmed and the other sent again."""
    stripe.set_faults(["reset-after", "reset-before"])
    world.book("acme", "1")
    world.advance(6 * MINUTE)
    world.exporter.run_once(world.now)
    world.book("acme", "2", at=NOON + 5 * MINUTE)
    world.advance(24 * HOUR_NANOS)
    world.exporter.run_once(world.now)
    world.advance(24 * HOUR_NANOS)
    assert [intent.state for intent in world.intents()] == ["unknown", "unknown"]
    assert world.reconciler().reconcile(world.now).replaced == 1
    world.exporter.run_once(world.now)
    assert stripe.total("cus_acme") == 3_000_000
    assert [intent.state for intent in world.intents()] == ["confirmed", "dead", "accepted"]


def test_a_foreign_duplicate_is_confirmed_when_the_sum_holds_it(world: World, stripe: MemoryStripe) -> None:
    """A ledger restored from a backup finds its own old events at Stripe, and the comparison heals it."""
    world.book("acme", "1")
    stripe.set_faults(["reset-after"])
    world.advance(10 * MINUTE)
    world.exporter.run_once(world.now)
    world.store.transact(
        lambda conn: conn.execute("UPDATE stripe_intent SET state = 'pending', doubt_nanos = NULL, attempt_group = 9")
    )
    world.exporter.run_once(world.now + 2 * MINUTE)
    assert world.intents()[0].state == "mismatch"
    result = world.reconciler().reconcile(world.now + 3 * MINUTE)
    assert result.equal
    assert world.intents()[0].state == "confirmed"


def test_a_refused_intent_is_reissued_only_when_it_is_missing(world: World, stripe: MemoryStripe) -> None:
    """A person may send a refused value again, once, and never while it may be at Stripe."""
    answers = iter([Answer(400, message="strange")])
    stripe.answer_with = lambda event: next(answers, None)
    world.book("acme", "1")
    world.exporter.flush(NOON)
    (refused,) = world.intents()
    reconciler = world.reconciler()
    with pytest.raises(ReissueRefused, match="may be at Stripe"):
        reconciler.reissue(refused.identifier, NOON + MINUTE)
    (row,) = reconciler.reconcile(NOON + HOUR_NANOS).rows
    assert row.verdict is Verdict.SHORT
    assert refused.identifier in row.remedy
    new = reconciler.reissue(refused.identifier, NOON + HOUR_NANOS)
    assert new != refused.identifier
    with pytest.raises(ReissueRefused, match="not a rejected"):
        reconciler.reissue(refused.identifier, NOON + HOUR_NANOS)
    world.exporter.run_once(NOON + HOUR_NANOS)
    assert stripe.total("cus_acme") == 1_000_000
    assert world.reconciler().reconcile(NOON + HOUR_NANOS).equal


def test_a_lane_that_cannot_be_read_is_named_and_left_alone(world: World, stripe: MemoryStripe) -> None:
    """Four failing reads make a named difference; fewer are ridden out."""
    send_hour(world)
    stripe.reads_fail = 4
    result = world.reconciler().reconcile(NOON + 10 * MINUTE)
    assert not result.equal
    assert "not compared" in result.differences[0]
    stripe.reads_fail = 3
    assert world.reconciler().reconcile(NOON + 10 * MINUTE).equal


def test_customers_that_share_a_stripe_customer_are_compared_together(world: World, stripe: MemoryStripe) -> None:
    """Stripe knows one sum for them, so the comparison adds ours up first."""
    world.restart(customers={"a": "cus_1", "b": "cus_1"})
    world.book("a", "1")
    world.book("b", "2")
    world.exporter.flush(NOON)
    result = world.reconciler().reconcile(NOON)
    assert result.equal
    assert [row.stripe for row in result.rows] == [Decimal(3_000_000)]


def test_unmapped_customers_keep_the_books_from_being_equal(world: World) -> None:
    """Money that waits for a mapping is a named difference."""
    world.book("initech", "1")
    world.exporter.flush(NOON)
    result = world.reconciler().reconcile(NOON)
    assert not result.equal
    assert any("no Stripe customer" in line for line in result.differences)


def test_a_blocked_customer_does_not_hide_that_the_rest_is_equal(world: World) -> None:
    """One unmapped customer keeps the result from `equal`, and the reader is told that all else agrees."""
    send_hour(world)
    world.book("initech", "1")
    world.exporter.flush(NOON + 10 * MINUTE)
    result = world.reconciler().reconcile(NOON + 10 * MINUTE)
    assert (result.equal, result.equal_where_compared, result.not_compared) == (False, True, ("initech",))
    said = describe_comparison(render_reconciliation(result))
    assert said == "ledger and Stripe are equal where compared; 1 customer not compared"


def test_a_real_difference_beside_a_blocked_customer_is_still_called_one(world: World, stripe: MemoryStripe) -> None:
    """What was not compared never excuses an hour that differs."""
    send_hour(world)
    world.book("initech", "1")
    world.exporter.flush(NOON + 10 * MINUTE)
    stripe.counted.append(STRANGER)
    result = world.reconciler().reconcile(NOON + HOUR_NANOS)
    assert not result.equal_where_compared
    assert describe_comparison(render_reconciliation(result)).startswith("ledger and Stripe DIFFER")


class FailingStripe(MemoryStripe):
    """Fails every read of one Stripe customer, or of all, with `error`."""

    error: StripeCallError
    failing: str | None = None
    reads: int = 0

    def list_hours(
        self, meter_id: str, stripe_customer_id: str, *, from_seconds: int, to_seconds: int
    ) -> Mapping[int, Decimal]:
        self.reads += 1
        if self.failing in (None, stripe_customer_id):
            raise self.error
        return super().list_hours(meter_id, stripe_customer_id, from_seconds=from_seconds, to_seconds=to_seconds)


def test_a_customer_stripe_does_not_know_is_answered_with_the_setting_to_correct(tmp_path: Path) -> None:
    """Comparing again cannot help there, so the remedy is the mapping or the customer at Stripe."""
    stripe = FailingStripe()
    stripe.failing = "cus_acme"
    stripe.error = StripeCallError("list", Answer(404, code="resource_missing", message="No such customer: 'cus_acme'"))
    world = World(tmp_path, stripe)
    send_hour(world)
    result = world.reconciler().reconcile(NOON + 10 * MINUTE)
    (line,) = result.differences
    assert "customers.acme.stripe" in line
    assert "create that customer at Stripe" in line
    assert "run reconcile again" not in line
    assert (result.not_compared, result.equal_where_compared) == (("acme",), True)
    world.close()


def test_an_outage_is_one_line_and_is_not_waited_for_by_each_customer(tmp_path: Path) -> None:
    """With nobody at the address the comparison ends soon, names the address once, and is not called a difference."""
    stripe = FailingStripe()
    stripe.error = StripeUnreachable("list", Answer(None), address="http://127.0.0.1:9", reason="ConnectionError")
    world = World(tmp_path, stripe)
    send_hour(world)
    result = world.reconciler().reconcile(NOON + 10 * MINUTE)
    (line,) = result.differences
    assert line.startswith("http://127.0.0.1:9 does not answer")
    assert stripe.reads == 4, "one customer's attempts, not every customer's"
    assert not result.equal
    said = describe_comparison(render_reconciliation(result))
    assert said == "ledger and Stripe were not compared: 2 customers not compared"
    world.close()


class BusyStripe(MemoryStripe):
    """Runs `meanwhile` just before its sums are read, as another thread would."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def list_hours(
        self, meter_id: str, stripe_customer_id: str, *, from_seconds: int, to_seconds: int
    ) -> Mapping[int, Decimal]:
        self.meanwhile()
        return super().list_hours(meter_id, stripe_customer_id, from_seconds=from_seconds, to_seconds=to_seconds)


def test_what_is_sent_during_a_comparison_is_no_difference(tmp_path: Path) -> None:
    """The exporter goes on while books are compared; what it sends meanwhile is neither short nor over."""
    stripe = BusyStripe()
    world = World(tmp_path, stripe)
    send_hour(world)
    world.advance(2 * HOUR_NANOS)

    def send_late_usage() -> None:
        world.book("acme", "2", at=NOON)
        world.book("late", "1", at=NOON)
        world.exporter.flush(world.now)

    stripe.meanwhile = send_late_usage
    result = world.reconciler().reconcile(world.now)
    assert {row.verdict for row in result.rows} <= {Verdict.EQUAL, Verdict.PENDING}
    stripe.meanwhile = lambda: None
    world.restart(customers={**CUSTOMERS, "late": "cus_late"})
    world.exporter.flush(world.now)
    assert world.reconciler().reconcile(world.now).equal
    world.close()
