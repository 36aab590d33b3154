"""The exporter with the real `stripe` client against the local Stripe: faults on the wire, kills, and its oracle."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import IntentState
from otelbill_collector.domain.money import ATTOS_PER_UNIT, parse_attos
from otelbill_collector.domain.windows import MeterDelta
from otelbill_collector.export.stripe.answers import Answer, Outcome
from otelbill_collector.export.stripe.catalog import apply_catalog, plan_catalog
from otelbill_collector.export.stripe.client import open_account
from otelbill_collector.export.stripe.ports import MeterEvent, StripeSink
from otelbill_collector.export.stripe.settings import MeteringMode, StripeSettings
from otelbill_collector.export.stripe.verdicts import Verdict
from otelbill_collector.testing.stripe_server import (
    Behaviour,
    CustomerCheck,
    Fault,
    FaultKind,
    LaneLock,
    SettableClock,
    StripeServer,
)
from tests.stripe_world import CUSTOMERS, METER, MINUTE, NOON, Killed, World, make_settings

WIRE_FAULTS = [kind for kind in FaultKind if kind is not FaultKind.DELAY]
CHILD = Path(__file__).with_name("stripe_child.py")
CHILD_DEADLINE_SECONDS = 60


class KillingSink:
    """Ends the process just before a call leaves, or just after its answer came, by lot."""

    def __init__(self, sink: StripeSink, rng: random.Random) -> None:
        self._sink = sink
        self._rng = rng
        self.rate = 0.0

    def send(self, event: MeterEvent) -> Answer:
        fate = self._rng.random()
        if fate < self.rate / 2:
            raise Killed
        answer = self._sink.send(event)
        if fate < self.rate:
            raise Killed
        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StripeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with StripeServer(clock=SettableClock(NOON // NANOS)) as server:
        for customer in CUSTOMERS.values():
            server.add_customer(customer)
        yield server


def point_at(server: StripeServer, **changes: object) -> StripeSettings:
    return make_settings(api_base=server.base_url, meter_api_base=server.base_url, **changes)


def sum_by_customer(server: StripeServer) -> dict[str, int]:
    sums = dict.fromkeys(CUSTOMERS.values(), 0)
    for hour in server.sum_hours():
        sums[hour.customer] += int(hour.value)
    return sums


def open_world(folder: Path, server: StripeServer, settings: StripeSettings, sink: StripeSink | None = None) -> World:
    account = open_account(settings)
    return World(folder, sink or account, settings, books=account, server=server)


@pytest.mark.parametrize("seed", range(10))
def test_the_oracle_agrees_after_any_faults_and_kills(tmp_path: Path, server: StripeServer, seed: int) -> None:
    """Errors before and after the commit, resets, garbage, limits and kills: nothing lost, nothing doubled."""
    rng = random.Random(seed)
    settings = point_at(server)
    apply_catalog(open_account(settings), settings)
    sink = KillingSink(open_account(settings), rng)
    sink.rate = 0.1
    world = open_world(tmp_path, server, settings, sink)
    booked = dict.fromkeys(CUSTOMERS, 0)
    for _ in range(12):
        for _ in range(4):
            customer = rng.choice(list(CUSTOMERS))
            amount = f"{'-' if rng.random() < 0.1 else ''}0.{rng.randrange(10**12):012d}"
            world.book(customer, amount, at=world.now - rng.randrange(2 * HOUR_NANOS))
            booked[customer] += parse_attos(amount)
        for _ in range(rng.randrange(4)):
            server.faults.add(Fault(rng.choice(WIRE_FAULTS), nth=rng.randrange(1, 4)))
        try:
            rng.choice((world.exporter.run_once, world.exporter.flush))(world.now)
        except Killed:
            world.restart()
        world.advance(rng.choice((MINUTE, 7 * MINUTE, HOUR_NANOS)))
    fired = server.faults.fired
    server.faults.clear()
    sink.rate = 0.0
    world.advance(2 * MINUTE)
    assert world.exporter.flush(world.now).drained
    result = world.reconciler().reconcile(world.now)
    assert fired, "this seed met no fault"
    assert sum_by_customer(server) == {
        CUSTOMERS[customer]: Fraction(attos, ATTOS_PER_UNIT) * 10**6 // 1 for customer, attos in booked.items()
    }
    assert result.equal, result.differences
    assert world.status().counts[IntentState.CONFIRMED] == len(server.list_events())
    world.close()


def test_a_killed_process_resumes_where_it_was(tmp_path: Path, server: StripeServer) -> None:
    """kill -9 at any point of real sending, three times over: each event is at Stripe once, each sum is right."""
    server.behaviour = Behaviour(latency_seconds=0.01)
    settings = point_at(server)
    apply_catalog(open_account(settings), settings)
    world = open_world(tmp_path, server, settings)
    deltas = [
        MeterDelta.of_charge(
            meter=METER, customer_id=customer, event_nanos=NOON - number * MINUTE, attos=parse_attos("1")
        )
        for number in range(0, 600, 5)
        for customer in CUSTOMERS
    ]
    world.accumulate(deltas)
    world.close()
    for kills in range(1, 4):
        run_child(tmp_path, server, events_min=kills * 50)
    world.open()
    world.advance(2 * MINUTE)
    assert world.exporter.flush(world.now).drained
    assert sum_by_customer(server) == dict.fromkeys(CUSTOMERS.values(), 120 * 10**6)
    assert len(server.list_events()) == 240
    assert world.reconciler().reconcile(world.now).equal
    world.close()


def run_child(folder: Path, server: StripeServer, *, events_min: int) -> None:
    """Run an exporter process until Stripe has that many events, then kill it."""
    command = [sys.executable, str(CHILD), str(folder), server.base_url, str(NOON)]
    search = os.pathsep.join(entry for entry in sys.path if entry)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": search})
    deadline = time.monotonic() + CHILD_DEADLINE_SECONDS
    while len(server.list_events()) < events_min:
        assert child.poll() is None, "the child ended by itself"
        assert time.monotonic() < deadline, "the child sends nothing"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert child.stdin is not None
    child.stdin.close()


def test_nothing_is_lost_while_stripe_is_down(tmp_path: Path, server: StripeServer) -> None:
    """With nobody listening, intents wait; when Stripe is back they go out and both books are equal."""
    settings = point_at(server)
    apply_catalog(open_account(settings), settings)
    world = open_world(tmp_path, server, settings)
    world.book("acme", "1.5")
    server.faults.add(Fault(FaultKind.RESET_BEFORE_READ, route="*", times=1000))
    assert not world.exporter.flush(world.now).drained
    assert not world.reconciler().reconcile(world.now).equal
    server.faults.clear()
    world.advance(2 * MINUTE)
    assert world.exporter.run_once(world.now).drained
    assert world.reconciler().reconcile(world.now).equal
    assert sum_by_customer(server)["cus_acme"] == 1_500_000
    world.close()


def test_plan_and_apply_against_the_server(server: StripeServer) -> None:
    """Apply makes the meter and the price as a bill needs them, and finds them again."""
    settings = point_at(server)
    account = open_account(settings)
    assert plan_catalog(account, settings).pending
    apply_catalog(account, settings)
    assert not plan_catalog(account, settings).pending
    price = account.find_price(settings.event_name)
    assert price is not None
    assert format(price.unit_amount or 0, "f") == "0.0001"


def test_sending_before_apply_waits_for_it(tmp_path: Path, server: StripeServer) -> None:
    """Without a meter the intents wait, and apply is the whole remedy."""
    settings = point_at(server)
    world = open_world(tmp_path, server, settings)
    world.book("acme", "1")
    assert world.exporter.flush(world.now).outcomes == {Outcome.NO_METER: 1}
    apply_catalog(open_account(settings), settings)
    world.advance(MINUTE)
    assert world.exporter.flush(world.now).drained
    assert world.reconciler().reconcile(world.now).equal
    world.close()


def test_raw_units_agree_to_the_last_token(tmp_path: Path, server: StripeServer) -> None:
    """In units mode every meter's sum at Stripe is the ledger's token count."""
    settings = point_at(server, mode=MeteringMode.UNITS)
    apply_catalog(open_account(settings), settings, units=("input_tokens", "output_tokens"))
    world = open_world(tmp_path, server, settings)
    world.accumulate(
        [
            MeterDelta.of_quantity(
                meter=settings.name_unit_meter(unit),
                customer_id="acme",
                event_nanos=NOON + number * NANOS,
                quantity=number,
            )
            for number in range(1, 1000)
            for unit in ("input_tokens", "output_tokens")
        ]
    )
    world.advance(HOUR_NANOS)
    assert world.exporter.run_once(world.now).drained
    assert {(hour.event_name, int(hour.value)) for hour in server.sum_hours()} == {
        ("otelbill_input_tokens", 499_500),
        ("otelbill_output_tokens", 499_500),
    }
    assert world.reconciler().reconcile(world.now).equal
    world.close()


def test_a_customer_noticed_too_late_shows_as_short(tmp_path: Path, server: StripeServer) -> None:
    """Where Stripe takes an event and rejects it afterwards, the comparison finds the hour short."""
    settings = point_at(server, customers={"acme": "cus_late"})
    apply_catalog(open_account(settings), settings)
    server.behaviour = Behaviour(customer_check=CustomerCheck.ASYNC)
    world = open_world(tmp_path, server, settings)
    world.book("acme", "1")
    world.exporter.flush(world.now)
    server.add_customer("cus_late")
    world.advance(HOUR_NANOS)
    (row,) = world.reconciler().reconcile(world.now).rows
    assert row.verdict is Verdict.SHORT
    assert row.difference == -1_000_000
    world.close()


def test_an_unknown_customer_is_a_stopped_lane(tmp_path: Path, server: StripeServer) -> None:
    """Where Stripe notices at once, the lane stops and its intent waits for the right mapping."""
    settings = point_at(server, customers={"acme": "cus_wrong"})
    apply_catalog(open_account(settings), settings)
    world = open_world(tmp_path, server, settings)
    world.book("acme", "1")
    assert world.exporter.flush(world.now).outcomes == {Outcome.UNKNOWN_CUSTOMER: 1}
    world.restart(customers={"acme": "cus_acme"})
    assert world.exporter.flush(world.now).drained
    assert sum_by_customer(server)["cus_acme"] == 1_000_000
    world.close()


def test_lanes_never_collide_at_stripe(tmp_path: Path, server: StripeServer) -> None:
    """With Stripe refusing two calls at once for one customer and meter, none of ours is refused."""
    settings = point_at(server, workers=4)
    apply_catalog(open_account(settings), settings)
    server.behaviour = Behaviour(lane_lock=LaneLock.CONFLICT, latency_seconds=0.005)
    world = open_world(tmp_path, server, settings)
    for number in range(10):
        for customer in CUSTOMERS:
            world.book(customer, "1", at=NOON - number * 5 * MINUTE)
    assert world.exporter.flush(world.now).outcomes == {Outcome.ACCEPTED: 20}
    world.close()


def test_long_ranges_are_read_page_by_page(tmp_path: Path, server: StripeServer) -> None:
    """More than 100 hours of sums are all compared."""
    settings = point_at(server)
    apply_catalog(open_account(settings), settings)
    world = open_world(tmp_path, server, settings)
    for number in range(130):
        world.book("acme", "1", at=NOON - number * HOUR_NANOS)
    world.exporter.flush(world.now)
    result = world.reconciler().reconcile(world.now)
    assert (len(result.rows), result.equal) == (130, True)
    world.close()
