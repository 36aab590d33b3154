"""A small Stripe in memory and a ledger on disk, for the exporter's tests. Owns no assertions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS, parse_instant
from otelbill_collector.domain.intents import Intent, OutboxStatus
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.windows import MeterDelta
from otelbill_collector.export.stripe.answers import Answer
from otelbill_collector.export.stripe.exporter import StripeExporter
from otelbill_collector.export.stripe.pace import Pacer
from otelbill_collector.export.stripe.ports import Meter, MeterEvent, Price, StripeBooks, StripeCallError, StripeSink
from otelbill_collector.export.stripe.reconcile import StripeReconciler
from otelbill_collector.export.stripe.settings import StripeSettings
from otelbill_collector.ledger import outbox, outbox_views
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.testing.stripe_server import StripeServer

NOON = parse_instant("2026-11-21T12:00:00Z")
MINUTE = 60 * NANOS
METER = "otelbill_charge_usd_micro"
CUSTOMERS = {"acme": "cus_acme", "globex": "cus_globex"}
HOUR_SECONDS = HOUR_NANOS // NANOS


class Killed(BaseException):
    """The process ends here, as by kill -9: nothing after this line of the exporter runs."""


@dataclass
class MemoryStripe:
    """StripeSink and StripeBooks: identifiers unique for 24 hours, saved replies, and a fault for each call.

    `faults` yields one of ok, 5xx-before, 5xx-after, reset-before, reset-after, garbage, 429, 409, kill-before,
    kill-after for every send; when it ends, everything is ok.
    """

    now_nanos: int = NOON
    faults: Iterable[str] = ()
    answer_with: Callable[[MeterEvent], Answer | None] = lambda event: None
    meters: list[Meter] = field(
        default_factory=lambda: [Meter("mtr_1", METER, True, "sum", "stripe_customer_id", "value")]
    )
    prices: list[Price] = field(default_factory=list)
    counted: list[MeterEvent] = field(default_factory=list)
    attempts: list[MeterEvent] = field(default_factory=list)
    reads_fail: int = 0

    def __post_init__(self) -> None:
        self._faults = iter(self.faults)
        self._seen: dict[str, int] = {}
        self._saved: dict[str, tuple[int, Answer]] = {}
        self._in_flight: set[tuple[str, str]] = set()
        self.overlaps = 0
        self._lock = threading.Lock()

    def set_faults(self, faults: Iterable[str]) -> None:
        self._faults = iter(faults)

    def send(self, event: MeterEvent) -> Answer:
        lane = (event.event_name, event.stripe_customer_id)
        with self._lock:
            self.overlaps += lane in self._in_flight
            self._in_flight.add(lane)
            fault = next(self._faults, "ok")
            self.attempts.append(event)
        try:
            with self._lock:
                return self._answer(event, fault)
        finally:
            with self._lock:
                self._in_flight.discard(lane)

    def _answer(self, event: MeterEvent, fault: str) -> Answer:
        if fault == "kill-before":
            raise Killed
        if fault == "reset-before":
            return Answer(None, message="connection reset")
        if fault == "5xx-before":
            return Answer(503, message="try later")
        if fault == "429":
            return Answer(429, code="rate_limit", limited_reason="endpoint-rate", message="slow down")
        if fault == "409":
            return Answer(409, code="lock_timeout", message="busy")
        at, saved = self._saved.get(event.idempotency_key, (0, None))
        if saved is not None and self.now_nanos - at < 24 * HOUR_NANOS:
            return saved
        answer = self.answer_with(event) or self._commit(event)
        if fault == "5xx-after":
            answer = Answer(500, message="something went wrong")
        if answer.status in (200, 500):
            self._saved[event.idempotency_key] = (self.now_nanos, answer)
        if fault == "kill-after":
            raise Killed
        if fault == "reset-after":
            return Answer(None, message="connection reset")
        if fault == "garbage":
            return Answer(200, readable=False, message="not JSON")
        return answer

    def _commit(self, event: MeterEvent) -> Answer:
        seen = self._seen.get(event.identifier)
        if seen is not None and self.now_nanos - seen < 24 * HOUR_NANOS:
            message = f"An event already exists with identifier {event.identifier}."
            return Answer(400, error_type="invalid_request_error", message=message)
        self._seen[event.identifier] = self.now_nanos
        self.counted.append(event)
        return Answer(200, request_id=f"req_{len(self.counted)}")

    def sum_by_hour(self, event_name: str, stripe_customer_id: str) -> dict[int, Decimal]:
        sums: dict[int, Decimal] = {}
        for event in self.counted:
            if (event.event_name, event.stripe_customer_id) == (event_name, stripe_customer_id):
                hour = event.stamp_seconds // HOUR_SECONDS * HOUR_SECONDS
                sums[hour] = sums.get(hour, Decimal(0)) + Decimal(event.value)
        return sums

    def total(self, stripe_customer_id: str, event_name: str = METER) -> int:
        return int(sum(self.sum_by_hour(event_name, stripe_customer_id).values()))

    def find_meter(self, event_name: str) -> Meter | None:
        return next((meter for meter in self.meters if meter.event_name == event_name), None)

    def list_hours(
        self, meter_id: str, stripe_customer_id: str, *, from_seconds: int, to_seconds: int
    ) -> Mapping[int, Decimal]:
        if self.reads_fail:
            self.reads_fail -= 1
            raise StripeCallError("meters.event_summaries.list", Answer(503, message="try later"))
        event_name = next(meter.event_name for meter in self.meters if meter.meter_id == meter_id)
        sums = self.sum_by_hour(event_name, stripe_customer_id)
        return {hour: value for hour, value in sums.items() if from_seconds <= hour < to_seconds}

    def create_meter(self, meter: Meter, *, display_name: str, idempotency_key: str) -> Meter:
        created = replace(meter, meter_id=f"mtr_{len(self.meters) + 1}")
        self.meters.append(created)
        return created

    def find_price(self, lookup_key: str) -> Price | None:
        return next((price for price in self.prices if price.lookup_key == lookup_key), None)

    def create_price(self, price: Price, *, product_name: str, idempotency_key: str) -> Price:
        created = replace(price, price_id=f"price_{len(self.prices) + 1}")
        self.prices.append(created)
        return created


def make_settings(**changes: object) -> StripeSettings:
    base = StripeSettings(api_key="sk_test_1", customers=CUSTOMERS, rate_per_second=10_000, workers=2)
    return replace(base, **changes)  # type: ignore[arg-type]


def make_pacer(rate: int = 10_000) -> Pacer:
    """A pacer whose clock stands still and whose pauses take no time."""
    return Pacer(rate, read_nanos=lambda: 0, pause=lambda nanos: None)


class World:
    """A ledger folder, an exporter and a reconciler on it, and the clock they are told."""

    def __init__(
        self,
        folder: Path,
        stripe: StripeSink,
        settings: StripeSettings | None = None,
        books: StripeBooks | None = None,
        server: StripeServer | None = None,
    ) -> None:
        self.server = server
        self.folder = folder
        self.stripe = stripe
        self.books = books or stripe
        self.settings = settings or make_settings()
        self.now = NOON
        self.store: SqliteStore
        self.exporter: StripeExporter
        self.open()

    def open(self) -> None:
        self.store = SqliteStore(self.folder)
        self.exporter = StripeExporter(self.store, self.stripe, self.settings, make_pacer())

    def close(self) -> None:
        self.exporter.close()
        self.store.close()

    def restart(self, **changes: object) -> None:
        """End the process and start it again on the same folder, with changed settings."""
        self.close()
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        self.open()

    def book(self, customer_id: str, usd: str, *, at: int | None = None, meter: str = METER) -> None:
        attos = parse_attos(usd)
        delta = MeterDelta.of_charge(
            meter=meter, customer_id=customer_id, event_nanos=self.now if at is None else at, attos=attos
        )
        self.accumulate([delta])

    def accumulate(self, deltas: list[MeterDelta]) -> None:
        self.store.transact(lambda conn: outbox.accumulate(conn, deltas, self.settings.window_nanos))

    def advance(self, nanos: int) -> None:
        self.now += nanos
        if isinstance(self.stripe, MemoryStripe):
            self.stripe.now_nanos = self.now
        if self.server is not None:
            self.server.clock.set(self.now // NANOS)

    def reconciler(self) -> StripeReconciler:
        return StripeReconciler(self.store, self.books, self.settings, make_pacer())  # type: ignore[arg-type]

    def intents(self) -> list[Intent]:
        return self.store.read(outbox_views.find_intents_for)

    def status(self) -> OutboxStatus:
        return self.store.read(outbox_views.status)
