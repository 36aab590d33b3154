"""Seeded simulation: bookings, faults, kills and restarts in any order; Stripe's own tally is the auditor."""

from __future__ import annotations

import contextlib
import random
from fractions import Fraction
from pathlib import Path

import pytest

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.domain.money import ATTOS_PER_UNIT, parse_attos
from otelbill_collector.ledger import outbox_views
from tests.stripe_world import CUSTOMERS, MINUTE, Killed, MemoryStripe, World

FAULTS = (
    "5xx-before",
    "5xx-after",
    "reset-before",
    "reset-after",
    "garbage",
    "429",
    "409",
    "kill-before",
    "kill-after",
)
STEPS = 40


def draw_faults(rng: random.Random, rate: float) -> list[str]:
    return [rng.choice(FAULTS) if rng.random() < rate else "ok" for _ in range(400)]


def take_step(world: World, rng: random.Random, booked: dict[str, int]) -> None:
    """One thing that can happen to a sidecar; a kill ends the process in the middle of it."""
    action = rng.choice(("book", "book", "book", "run", "run", "advance", "advance", "flush", "reconcile", "restart"))
    match action:
        case "book":
            customer = rng.choice(list(CUSTOMERS))
            amount = f"{'-' if rng.random() < 0.1 else ''}0.{rng.randrange(10**12):012d}"
            world.book(customer, amount, at=world.now - rng.randrange(2 * HOUR_NANOS))
            booked[customer] += parse_attos(amount)
        case "run":
            world.exporter.run_once(world.now)
        case "flush":
            world.exporter.flush(world.now)
        case "reconcile":
            world.reconciler().reconcile(world.now)
        case "advance":
            # Now and then an outage longer than Stripe remembers identifiers.
            world.advance(rng.choice((NANOS, MINUTE, 7 * MINUTE, 2 * HOUR_NANOS, 30 * HOUR_NANOS)))
        case "restart":
            world.restart()


def audit_books(world: World) -> None:
    """Running sums and counts must be what the rows say."""
    status = world.status()
    assert list(status.lanes) == world.store.read(outbox_views.recompute_lane_sums)
    states = [intent.state for intent in world.intents()]
    assert {state: states.count(state) for state in status.counts} == status.counts


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_stripe_ends_with_the_ledgers_sum(tmp_path: Path, seed: int) -> None:
    """After any sequence of faults and kills, once Stripe is well again, both books agree to the last micro-dollar."""
    rng = random.Random(seed)
    stripe = MemoryStripe(faults=draw_faults(rng, rng.choice((0.1, 0.4, 0.8))))
    world = World(tmp_path, stripe)
    booked = dict.fromkeys(CUSTOMERS, 0)
    for _ in range(STEPS):
        try:
            take_step(world, rng, booked)
        except Killed:
            world.restart()
    stripe.set_faults([])
    for _ in range(6):  # heal: run, let backoffs and doubts run out, compare
        with contextlib.suppress(Killed):
            world.exporter.flush(world.now)
        world.advance(24 * HOUR_NANOS)
        world.reconciler().reconcile(world.now)
    for customer, attos in booked.items():
        assert stripe.total(CUSTOMERS[customer]) == Fraction(attos, ATTOS_PER_UNIT) * 10**6 // 1
    assert world.reconciler().reconcile(world.now).equal
    assert stripe.overlaps == 0
    audit_books(world)
    world.close()
