"""The billing horizon is derived: whatever is not settled holds the evidence it needs, and is named with its remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from otelbill_collector.billing import CloseRequest
from otelbill_collector.config.values import Customer, Retention, Stripe
from otelbill_collector.crediting import CreditDesk, CreditTerms, render_balance
from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.domain.retention import InvalidPolicy, RetentionPolicy
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.credit_usage import load_demands
from otelbill_collector.ledger.credits import mark_changed
from otelbill_collector.ledger.journal import Due, save_due
from otelbill_collector.ledger.tombstones import find_pruned, list_prunings
from otelbill_collector.retention import HeldBack, NoPolicy, Plan, StripeTooEarly, adopt_stripe
from tests.retention_world import CONFIG, POLICY, Desk, find_faults, look, prune, replay
from tests.spans import SECOND, chat
from tests.stripe_world import MemoryStripe, World


def list_held(plan: Plan) -> list[str]:
    """What holds a plan back."""
    return [holder.kind for holder in plan.holders]


def test_an_open_period_holds_all_from_its_start_on(desk: Desk) -> None:
    """Of each customer, what no approved invoice has stays, and the refusal names it with its remedy."""
    plan = desk.retention.plan()
    assert list_held(plan) == ["open_period", "open_period"]
    assert plan.is_empty
    with pytest.raises(HeldBack, match=r"acme 2026-01 is not closed .*otelbill close acme --period 2026-01"):
        desk.retention.apply(operator="ann")
    desk.close_months("2026-01", "2026-02", "2026-03", customers=("acme",))
    desk.close_months("2026-01", customers=("globex",))
    plan = desk.retention.plan()
    assert [(item.kind, item.detail) for item in plan.holders] == [("open_period", "globex 2026-02 is not closed")]
    assert (plan.floor_nanos, plan.extent.last) == (parse_instant("2026-02-01"), 6)
    with pytest.raises(HeldBack, match="globex 2026-02"):
        desk.retention.apply(operator="ann")
    assert desk.retention.apply(operator="ann", partly=True)["applied"]
    assert desk.read(find_pruned) == 6
    desk.close_months("2026-02", "2026-03", customers=("globex",))
    assert desk.retention.apply(operator="ann")["applied"]
    assert (desk.read(find_pruned), len(desk.read(list_prunings))) == (12, 2)
    assert find_faults(desk) == []


def test_a_draft_holds_until_it_is_approved(desk: Desk) -> None:
    """A draft may be voided, and is then made again from its records."""
    desk.close_months("2026-01", "2026-02", "2026-03", customers=("acme",))
    desk.close_months("2026-01", "2026-02", customers=("globex",))
    (made,) = desk.billing.close(CloseRequest("globex", "2026-03", "ann"))["closed"]
    (holder,) = desk.retention.plan().holders
    assert (holder.kind, holder.from_nanos) == ("draft_invoice", parse_instant("2026-03-01"))
    assert made["invoice_id"] in holder.remedy


def test_an_approved_period_with_later_usage_holds_until_that_is_invoiced(desk: Desk) -> None:
    """Late usage of a closed period is charged with the next one, from the records of both."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    desk.books.post(chat("later", customer="acme", ended=parse_instant("2026-02-02"), trace="later"), now=desk.now)
    desk.fold()
    (holder,) = desk.retention.plan().holders
    assert (holder.kind, holder.from_nanos) == ("unsettled_invoice", parse_instant("2026-02-01"))
    assert "acme 2026-02 has" in holder.detail
    desk.close_months("2026-04")
    before = look(desk)
    assert desk.retention.plan().holders == ()
    assert desk.retention.apply(operator="ann")["applied"]
    assert look(desk) == before


def test_usage_that_waits_holds(tmp_path: Path) -> None:
    """Held, unpriced and suspended events stay, however old, until somebody settles them."""
    desk = Desk(tmp_path / "ledger", replace(CONFIG, retention=Retention(POLICY, closed_only=False)))
    at = parse_instant("2026-02-03")
    desk.books.post(
        chat("nobody", customer=None, ended=at, trace="n"),
        chat("strange", model="model-nobody-knows", ended=at + SECOND, trace="s"),
        now=at + SECOND,
    )
    desk.fill()
    plan = desk.retention.plan()
    assert sorted(list_held(plan)) == ["suspense", "unpriced"]
    assert plan.floor_nanos == at
    for event in desk.read(lambda conn: conn.execute("SELECT event_id FROM open_event").fetchall()):
        wish = Wish(event, "ann", "test", desk.now, void=True)
        desk.books.books.correct(wish)
    desk.fold()
    assert desk.retention.plan().holders == ()
    desk.books.close()


def test_groups_that_are_due_hold(desk: Desk) -> None:
    """What is decided again needs its whole group."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    day = parse_instant("2026-02-05") // DAY_NANOS
    desk.books.store.transact(lambda connection: save_due(connection, [Due(2**62, day, b"k" * 16)]))
    (holder,) = desk.retention.plan().holders
    assert (holder.kind, holder.from_nanos) == ("due_group", parse_instant("2026-02-03"))


def test_credits_that_are_not_posted_hold_and_are_the_same_afterwards(desk: Desk) -> None:
    """A grant that is given after pruning finds the usage of its time, as one from before does."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    credits = CreditDesk(desk.books.store, CreditTerms(), lambda: desk.now)
    given = {"customer_id": "acme", "operator": "ann", "start": "2026-01-01", "units": "5000", "unit": "input_tokens"}
    credits.give({**given, "reason": "first"})
    balance = desk.read(lambda connection: render_balance(connection, "acme", desk.now))
    demands = desk.read(lambda connection: load_demands(connection, "acme", before=desk.now))
    desk.books.store.transact(lambda connection: mark_changed(connection, ["acme"]))
    assert list_held(desk.retention.plan()) == ["credits"]
    credits.post_due()
    before = look(desk)
    assert desk.retention.apply(operator="ann")["applied"]
    assert look(desk) == before
    assert desk.read(lambda connection: render_balance(connection, "acme", desk.now)) == balance
    assert sorted(desk.read(lambda connection: load_demands(connection, "acme", before=desk.now))) == sorted(demands)
    assert find_faults(desk) == []


def test_whoever_gets_the_first_credits_after_pruning_has_the_usage_before_it(desk: Desk) -> None:
    """Usage is not folded for credits while nobody has any; what is pruned is folded before it goes."""
    prune(desk)
    credits = CreditDesk(desk.books.store, CreditTerms(), lambda: desk.now)
    given = {"customer_id": "globex", "operator": "ann", "start": "2026-01-01", "unit": "output_tokens"}
    credits.give({**given, "units": "1000", "reason": "late"})
    balance = desk.read(lambda connection: render_balance(connection, "globex", desk.now))
    assert balance["balances"] == [{"asset": "output_tokens", "left": "100"}]  # 5 months of 9 calls of 20 tokens
    assert find_faults(desk) == []
    assert [item.table for item in replay(desk).values() if not item.equal] == []


STRIPE = Stripe(api_key="sk_test_1")


def test_stripe_windows_hold_until_they_are_sent_and_confirmed(tmp_path: Path) -> None:
    """Usage that Stripe does not have for certain keeps its evidence; windows are the same after pruning and replay."""
    config = replace(CONFIG, stripe=STRIPE, retention=Retention(POLICY, closed_only=False))
    desk = Desk(tmp_path / "ledger", config)
    desk.fill()
    assert list_held(desk.retention.plan()) == ["stripe_window"]
    desk.books.close()
    world = World(tmp_path / "ledger", MemoryStripe(now_nanos=desk.now))
    world.now = desk.now
    world.exporter.run_once(desk.now)
    world.close()
    desk.books.reopen()
    desk.wire()
    assert list_held(desk.retention.plan()) == ["stripe_intent"]
    desk.books.store.transact(lambda connection: connection.execute("UPDATE stripe_intent SET state = 'confirmed'"))
    assert desk.retention.plan().holders == ()
    before = look(desk, customers=())
    assert desk.retention.apply(operator="ann")["applied"]
    assert look(desk, customers=()) == before
    assert [fault for fault in find_faults(desk) if "stripe_window" in fault] == []
    assert [item.table for item in replay(desk).values() if not item.equal] == []
    assert look(desk, customers=()) == before
    without = replace(config, stripe=None)
    desk.config = without
    desk.wire()
    assert list_held(desk.retention.plan()) == ["stripe"]
    desk.books.close()


def test_stripe_that_joins_after_pruning_begins_after_it(desk: Desk) -> None:
    """Usage that is gone cannot be sent: a start that would miss some of it is refused, and says from when on."""
    prune(desk)
    told = r"stripe.since must be 2026-02-12T00:00:01.000000001Z or later: .* on 2027-04-20 by policy 13mo \(ann\)"
    with pytest.raises(StripeTooEarly, match=told):
        adopt_stripe(desk.books.store, replace(CONFIG, stripe=STRIPE))
    desk.config = replace(CONFIG, stripe=replace(STRIPE, since_nanos=parse_instant("2026-03-01")))
    adopt_stripe(desk.books.store, desk.config)
    desk.wire()
    desk.fold()
    assert find_faults(desk) == []


def test_periods_are_kept_whole_whatever_their_calendar(tmp_path: Path) -> None:
    """A period that reaches above the floor keeps all its evidence, from its start in its own time zone on."""
    customers = {"globex": Customer(time_zone="Asia/Kolkata", anchor_day=11)}
    desk = Desk(tmp_path / "ledger", replace(CONFIG, customers=customers))
    desk.fill()
    desk.close_months("2026-01", "2026-02", "2026-03", customers=("acme",))
    for month in ("2025-12-11", "2026-01-11", "2026-02-11", "2026-03-11"):
        (made,) = desk.billing.close(CloseRequest("globex", month, "ann"))["closed"]
        desk.billing.approve([made["invoice_id"]], operator="ann", reason="checked")
    before = look(desk, customers=("acme",))
    assert desk.retention.apply(operator="ann")["applied"]
    ended = desk.read(lambda connection: max(item.ended_max for item in list_prunings(connection)))
    assert ended < parse_instant("2026-03-01")
    assert look(desk, customers=("acme",)) == before
    (made,) = desk.billing.close(CloseRequest("globex", "2026-04-11", "ann"))["closed"]
    assert {line["period"] for line in made["lines"]} == {"2026-04-11"}
    assert find_faults(desk) == []
    desk.books.close()


def test_without_a_policy_nothing_is_planned(desk: Desk) -> None:
    """Evidence is kept for ever unless somebody says otherwise."""
    desk.config = replace(CONFIG, retention=Retention())
    desk.wire()
    with pytest.raises(NoPolicy, match=r"retention\.evidence"):
        desk.retention.apply(operator="ann")
    assert desk.retention.run(desk.now) == 0
    assert desk.read(find_pruned) == 0


@pytest.mark.parametrize("text", ["", "13", "13 mo", "0d", "35d", "1mo", "13m", "-1d", "1.5mo", "13MO"])
def test_a_policy_is_whole_days_or_months_and_longer_than_spans_may_be_late(text: str) -> None:
    """What is less than 36 days could lose what is still to be billed."""
    with pytest.raises(InvalidPolicy):
        RetentionPolicy(text)


@pytest.mark.parametrize(
    ("text", "now", "floor"),
    [
        ("36d", "2027-02-10T23:59:59Z", "2027-01-05"),
        ("2mo", "2027-04-30T00:00:00Z", "2027-02-28"),
        ("13mo", "2027-03-31T12:00:00Z", "2026-02-28"),
        ("12mo", "2028-02-29", "2027-02-28"),
    ],
)
def test_a_policy_counts_calendar_days_of_utc(text: str, now: str, floor: str) -> None:
    """Months are calendar months; a day that a month does not have is its last."""
    assert RetentionPolicy(text).find_floor(parse_instant(now)) == parse_instant(floor)


def test_an_invoice_that_changes_while_a_plan_is_carried_out_makes_it_void(desk: Desk) -> None:
    """What is decided rests on what was approved, and under which terms."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    plan = desk.retention.plan()
    desk.close_months("2026-04", customers=("acme",))
    assert not desk.retention._begin(plan, "ann")
    assert desk.read(list_prunings) == []
    assert desk.retention.apply(operator="ann")["applied"]


def test_usage_that_arrives_while_a_plan_is_carried_out_is_not_lost(desk: Desk) -> None:
    """What was booked below the floor since the plan was made makes the plan void; nothing is written."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    plan = desk.retention.plan()
    desk.books.post(chat("just now", ended=parse_instant("2026-02-02"), trace="just now"), now=desk.now)
    assert not desk.retention._begin(plan, "ann")
    assert desk.read(list_prunings) == []
    desk.fold()
    assert list_held(desk.retention.plan()) == ["unsettled_invoice"]
