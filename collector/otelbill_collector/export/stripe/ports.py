"""What the exporter needs from others: a ledger store and a Stripe account. Owns the shapes, implements nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, TypeVar

from otelbill_collector.export.stripe.answers import Answer

T = TypeVar("T")


class Store(Protocol):
    """The ledger, as transactions: `transact` is durable on return, `read` sees one snapshot."""

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one write transaction of the ledger's single writer."""
        ...

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a read-only snapshot."""
        ...


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """One meter event as it goes out. `value` is whole units in decimal digits."""

    event_name: str
    identifier: str
    idempotency_key: str
    stripe_customer_id: str
    value: str
    stamp_seconds: int


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter as Stripe has it."""

    meter_id: str
    event_name: str
    active: bool
    formula: str
    customer_key: str
    value_key: str


@dataclass(frozen=True, slots=True)
class Price:
    """A price as Stripe has it. `unit_amount` is in minor units of the currency."""

    price_id: str
    lookup_key: str
    active: bool
    currency: str
    unit_amount: Decimal | None
    meter_id: str | None


class StripeProblem(RuntimeError):
    """Something an operator asked for could not be done. The message says why and what to do."""


class StripeCallError(StripeProblem):
    """A read or a set-up call did not succeed. `answer` is what Stripe said, if anything."""

    def __init__(self, call: str, answer: Answer) -> None:
        super().__init__(
            f"Stripe call {call} failed: status {answer.status}, code {answer.code}, "
            f"{' '.join((answer.message or '').split())} (request {answer.request_id})"
        )
        self.answer = answer


class StripeUnreachable(StripeCallError):
    """Nobody answered at the address of Stripe's API; the client's own text is many lines and names no address."""

    def __init__(self, call: str, answer: Answer, *, address: str, reason: str) -> None:
        super().__init__(call, answer)
        self.args = (
            f"{address} does not answer ({reason}); nothing is lost: check the network, the proxy and "
            "stripe.api_base, then try again",
        )


class StripeSink(Protocol):
    """Where meter events go. Never raises for an answer Stripe may give; safe to call from several threads."""

    def send(self, event: MeterEvent) -> Answer:
        """Send one event and return the answer, or its absence."""
        ...


class StripeBooks(Protocol):
    """Stripe's side of a reconciliation, and the objects a bill needs. Every call may raise StripeCallError."""

    def find_meter(self, event_name: str) -> Meter | None:
        """The meter of an event name, active before inactive."""
        ...

    def list_hours(
        self, meter_id: str, stripe_customer_id: str, *, from_seconds: int, to_seconds: int
    ) -> Mapping[int, Decimal]:
        """Sums by start of the UTC hour, in seconds; both bounds are whole hours, half-open."""
        ...

    def create_meter(self, meter: Meter, *, display_name: str, idempotency_key: str) -> Meter:
        """Create a meter; `meter.meter_id` is ignored."""
        ...

    def find_price(self, lookup_key: str) -> Price | None:
        """The price that holds a lookup key."""
        ...

    def create_price(self, price: Price, *, product_name: str, idempotency_key: str) -> Price:
        """Create a metered monthly price with its product; `price.price_id` is ignored."""
        ...
