"""A ledger with five months of usage and all that acts on it, a year later: what retention is tried on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from otelbill_collector.app import build_rater
from otelbill_collector.audit import build_metering
from otelbill_collector.billing import Billing, CloseRequest, build_billing_rules, load_invoice
from otelbill_collector.config import Config
from otelbill_collector.config.values import Retention
from otelbill_collector.crediting import create_terms, render_balance
from otelbill_collector.domain.instants import HOUR_NANOS, parse_instant
from otelbill_collector.domain.retention import RetentionPolicy
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.meters import fold_meters
from otelbill_collector.ledger.replay import Replayed, replay_derived
from otelbill_collector.operations import Operations
from otelbill_collector.retention import RetentionDesk
from tests.books import TestBooks
from tests.spans import SECOND, TestSpan, chat
from tests.whole_ledger import CHECKS, verify

T = TypeVar("T")
POLICY = RetentionPolicy("13mo")
CONFIG = Config(retention=Retention(POLICY))
NOW = parse_instant("2027-04-20T12:00:00Z")  # the policy asks for what is before 2026-03-20
CUSTOMERS = ("acme", "globex")
MONTHS = tuple(f"2026-{month:02d}" for month in range(1, 6))


class Desk:
    """A ledger with usage in the first months of 2026, and everything that acts on it at `now`."""

    def __init__(self, folder: Path, config: Config = CONFIG) -> None:
        self.config, self.now = config, NOW
        self.books = TestBooks(folder, config)
        self.wire()

    def wire(self) -> None:
        """Make what a start makes."""
        self.retention = RetentionDesk(self.books.books, self.config, lambda: self.now)
        self.billing = Billing(self.books.store, self.config, lambda: self.now)
        self.operations = Operations(
            self.books.stages,
            None,
            lambda: self.now,
            build_rater(self.config),
            self.billing,
            create_terms(self.config.rate_card),
            self.retention,
        )

    def fill(self) -> None:
        """Usage of every month, late and corrected usage among it, folded and written as files."""
        for month in MONTHS:
            for day in (10, 11, 12):
                self.post_day(month, day)
        late = chat("late", customer="acme", ended=parse_instant("2026-01-20"), trace="late", tokens=(7, 7))
        self.books.post(late, now=parse_instant("2026-01-25"))
        self.fold()

    def post_day(self, month: str, day: int) -> None:
        """Three calls of each customer, a request each."""
        for customer in CUSTOMERS:
            calls = [make_call(customer, month, day, call) for call in range(3)]
            if (customer, month, day) == ("acme", MONTHS[0], 10):
                calls.append(make_job("job", calls[0].ended))
            self.books.post(*calls, now=parse_instant(f"{month}-{day}") + HOUR_NANOS)

    def fold(self) -> None:
        """Bring every derived table and file up to date."""
        self.operations.decide_due()
        self.operations.fold()
        metering = build_metering(self.config)
        while metering is not None and self.books.store.transact(lambda connection: fold_meters(connection, metering)):
            pass
        self.operations.credits.post_due()
        Compactor(self.books.store).compact_all()

    def close_months(self, *months: str, customers: tuple[str, ...] = CUSTOMERS) -> None:
        """Close and approve."""
        for month in months or MONTHS:
            for customer in customers:
                answer = self.billing.close(CloseRequest(customer, month, "ann"))
                assert not answer["refused"], answer
                ids = [item["invoice_id"] for item in answer["closed"]]
                self.billing.approve(ids, operator="ann", reason="checked")

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read model."""
        return self.books.store.read(work)


def make_call(customer: str, month: str, day: int = 10, call: int = 0) -> TestSpan:
    """One of the calls of `Desk.fill`."""
    ended = parse_instant(f"{month}-{day}")
    name = f"{month} {customer} {ended} {call}"
    tokens = (100 + MONTHS.index(month), 20)
    return chat(name, customer=customer, tokens=tokens, started=ended, ended=ended + SECOND, trace=name)


def make_job(name: str, ended: int, event_id: str = "job 7") -> TestSpan:
    """A call of acme that carries an event with an id of its own."""
    span = chat(name, customer="acme", ended=ended, trace=name)
    return replace(span, attributes={**span.attributes, "otelbill.event.id": event_id})


def look(desk: Desk, customers: tuple[str, ...] = CUSTOMERS) -> dict[str, Any]:
    """All that must not change."""
    rules = build_billing_rules(desk.config)

    def load(connection: sqlite3.Connection) -> dict[str, Any]:
        tables = ("rollup", "rollup_day", "open_event", "credit_transfer", "stripe_window", "stripe_lane")
        found: dict[str, Any] = {
            name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}"))) for name in tables
        }
        for customer in customers:
            found[customer] = render_balance(connection, customer, desk.now)
            found |= {(customer, month): load_invoice(connection, rules, customer, month) for month in MONTHS}
        return found

    usage = [desk.books.usage(*by) for by in (("customer",), ("customer", "model", "hour"), ("day", "step"))]
    return {"ledger": desk.read(load), "usage": usage}


def replay(desk: Desk) -> dict[str, Replayed]:
    """Build everything again that follows from the segments."""
    found = desk.books.store.transact(lambda connection: replay_derived(connection, CHECKS.keys_of))
    Compactor(desk.books.store).rebuild()
    return {item.table: item for item in found}


def find_faults(desk: Desk) -> list[str]:
    """What verification says."""
    checks = replace(CHECKS, metering=build_metering(desk.config))
    return [finding.describe() for finding in verify(desk.books.store.path, checks).findings]


def prune(desk: Desk) -> None:
    """Close what the policy asks for, and let it go."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    desk.operations.credits.post_due()
    assert desk.retention.apply(operator="ann")["applied"]
