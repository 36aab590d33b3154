"""The exporter: closes windows, sends intents lane by lane, writes every answer down. Owns the order of these steps.

All ledger work happens on the caller's thread, two transactions a round; only the HTTP calls run on the small pool.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.intents import Intent, IntentState, Stop
from otelbill_collector.export.stripe.answers import Answer, Outcome, classify
from otelbill_collector.export.stripe.pace import Pacer
from otelbill_collector.export.stripe.ports import MeterEvent, Store, StripeSink
from otelbill_collector.export.stripe.settings import StripeSettings
from otelbill_collector.export.stripe.steps import Step, decide_step, extend_stop
from otelbill_collector.ledger import deliveries, outbox, outbox_views

FRUITLESS_MAX = 10  # rounds in a row that a flush survives without one delivery
_FLUSH_REST_NANOS = NANOS // 20
_NEVER_NANOS = 2**63 - 1
NO_CUSTOMER = "no_stripe_customer"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """One run: windows closed, intents made, answers by outcome, and all intents of the ledger by state."""

    windows_closed: int = 0
    intents_made: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    counts: dict[IntentState, int] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Attempts made in this run."""
        return sum(self.outcomes.values())

    @property
    def drained(self) -> bool:
        """Whether nothing of the ledger waits any more."""
        return not any(
            self.counts.get(state, 0) for state in (IntentState.PENDING, IntentState.SENDING, IntentState.UNKNOWN)
        )


class StripeExporter:
    """Sends what the outbox holds to one account. One exporter per ledger; calls from several threads take turns."""

    def __init__(self, store: Store, sink: StripeSink, settings: StripeSettings, pacer: Pacer) -> None:
        self._store = store
        self._sink = sink
        self._settings = settings
        self._pacer = pacer
        self._recovered = False
        self._stopping = threading.Event()
        self._turn = threading.Lock()  # two runs at once would put two calls into one lane
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="otelbill-stripe")

    def run_once(self, now_nanos: int) -> ExportReport:
        """Close windows that are due and send what may be sent, for about ten seconds at most.

        May be killed at any point: the next start sends again whatever was on its way.
        """
        with self._turn:
            self._recover_once(now_nanos)
            closed, made = self._close(now_nanos, close_all=False)
            outcomes = self._send_rounds(now_nanos, ignore_due=False)
            return self._report(closed, made, outcomes)

    def flush(self, now_nanos: int) -> ExportReport:
        """Close every window, open ones too, and send until nothing can be sent or Stripe keeps failing.

        What is stopped is tried again first: whoever asks for a flush may just have mended the cause.
        Backoff is not awaited but shortened, so this ends within seconds of pauses; what is left waits for `run_once`.
        """
        with self._turn:
            self._recover_once(now_nanos)
            self._store.transact(lambda conn: deliveries.retry_stops(conn, now_nanos, except_code=NO_CUSTOMER))
            closed, made = self._close(now_nanos, close_all=True)
            outcomes = self._drain(now_nanos)
            return self._report(closed, made, outcomes)

    def stop(self) -> None:
        """Ask a run in another thread to end after its present round. May be called from anywhere."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for calls in flight and end the pool."""
        self.stop()
        self._pool.shutdown(wait=True)

    def _drain(self, now_nanos: int) -> dict[Outcome, int]:
        outcomes: dict[Outcome, int] = {}
        fruitless = 0
        while fruitless < FRUITLESS_MAX and not self._stopping.is_set():
            results = self._send_rounds(now_nanos, ignore_due=True)
            for outcome, count in results.items():
                outcomes[outcome] = outcomes.get(outcome, 0) + count
            if not self._list_batch(now_nanos, ignore_due=True):
                break
            if results.keys() & _PROGRESS:
                fruitless = 0
            else:
                fruitless += 1
                self._pacer.rest(_FLUSH_REST_NANOS << min(fruitless, 5))
        return outcomes

    def _recover_once(self, now_nanos: int) -> None:
        if self._recovered:
            return

        def recover(conn: sqlite3.Connection) -> None:
            deliveries.recover_sending(conn, now_nanos)
            deliveries.clear_all_stops(conn)

        self._store.transact(recover)
        self._recovered = True

    def _close(self, now_nanos: int, *, close_all: bool) -> tuple[int, int]:
        settings = self._settings
        closing = outbox.Closing(settings.account, settings.livemode, now_nanos, settings.grace_nanos, close_all)
        windows_closed = intents_made = 0
        while self._store.read(lambda conn: outbox.has_due_window(conn, closing)):
            closed, made = self._store.transact(lambda conn: outbox.close_windows(conn, closing))
            windows_closed, intents_made = windows_closed + closed, intents_made + made
        return windows_closed, intents_made

    def _send_rounds(self, now_nanos: int, *, ignore_due: bool) -> dict[Outcome, int]:
        """Rounds of at most one intent per lane, until none is left or none of a round got anywhere."""
        self._mark_unmapped(now_nanos)
        outcomes: dict[Outcome, int] = {}
        sent = 0
        # Ten seconds' worth of calls, so that neither a stop nor a window waits longer for a run to end.
        sent_max = self._settings.run_max or 10 * self._settings.rate
        while sent < sent_max and not self._stopping.is_set():
            batch = self._list_batch(now_nanos, ignore_due=ignore_due)
            if not batch:
                break
            addressed = self._mark_sending(batch, now_nanos)
            answers = list(self._pool.map(self._send_one, addressed))
            results = [classify(answer) for answer in answers]
            self._settle(zip([intent for intent, _ in addressed], answers, results, strict=True), now_nanos)
            for outcome in results:
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            sent += len(batch)
            if ignore_due and not any(outcome in _PROGRESS for outcome in results):
                break
        return outcomes

    def _list_batch(self, now_nanos: int, *, ignore_due: bool) -> list[Intent]:
        """Heads of lanes that go to different Stripe lanes, and one probe for a scope that was stopped until now."""
        settings = self._settings
        # About two seconds' worth at the present pace, so that a slowed account does not make a round endless.
        limit = min(settings.batch_max, max(1, 2 * NANOS // self._pacer.interval_nanos))
        due = deliveries.Due(settings.account, settings.livemode, now_nanos, limit, ignore_due)
        heads = self._store.read(lambda conn: deliveries.list_due(conn, due))
        stops = {(stop.scope, stop.name) for stop in self._store.read(deliveries.list_stops)}
        batch: dict[tuple[str, str | None], Intent] = {}
        probed: set[tuple[str, str]] = set()
        for head in heads:
            scopes = stops & {("account", ""), ("meter", head.meter)}
            if scopes & probed:
                continue
            customer = head.stripe_customer_id or self._settings.find_stripe_customer(head.customer_id)
            if batch.setdefault((head.meter, customer), head) is head:
                probed |= scopes
        return list(batch.values())

    def _mark_unmapped(self, now_nanos: int) -> None:
        """Keep one visible stop for each lane that has something to send and no Stripe customer to send it to.

        A lane with nothing left to send, as when its intent was given up, is not stopped any more.
        """
        waiting = self._store.read(deliveries.list_waiting_lanes)
        unmapped = {
            str(lane_id): customer_id
            for lane_id, customer_id in waiting
            if self._settings.find_stripe_customer(customer_id) is None
        }
        lanes = [stop for stop in self._store.read(deliveries.list_stops) if stop.scope == "lane"]
        stopped = {stop.name for stop in lanes if stop.code == NO_CUSTOMER}
        idle = {stop.name for stop in lanes} - {str(lane_id) for lane_id, _ in waiting}
        added = unmapped.keys() - stopped
        removed = (stopped - unmapped.keys()) | idle
        if not added and not removed:
            return

        def mark(conn: sqlite3.Connection) -> None:
            for name in sorted(added):
                message = f"blocked: no Stripe customer for {unmapped[name]!r}; set customers.{unmapped[name]}.stripe"
                deliveries.put_stop(conn, Stop("lane", name, NO_CUSTOMER, message, now_nanos, _NEVER_NANOS))
            for name in sorted(removed):
                deliveries.clear_stop(conn, "lane", name)

        self._store.transact(mark)

    def _require_customer(self, intent: Intent) -> str:
        customer = intent.stripe_customer_id or self._settings.find_stripe_customer(intent.customer_id)
        assert customer is not None, f"lane {intent.lane_id} is sent to nobody; _mark_unmapped runs first"
        return customer

    def _mark_sending(self, batch: list[Intent], now_nanos: int) -> list[tuple[Intent, str]]:
        addressed = [(intent, self._require_customer(intent)) for intent in batch]
        pairs = [(intent.intent_id, customer) for intent, customer in addressed]
        marked = self._store.transact(lambda conn: deliveries.mark_sending(conn, pairs, now_nanos))
        return [(intent, customer) for intent, customer in addressed if intent.intent_id in marked]

    def _send_one(self, addressed: tuple[Intent, str]) -> Answer:
        intent, customer = addressed
        self._pacer.take()
        event = MeterEvent(
            event_name=intent.meter,
            identifier=intent.identifier,
            idempotency_key=_name_attempt_group(intent),
            stripe_customer_id=customer,
            value=str(intent.value),
            stamp_seconds=intent.stamp_seconds,
        )
        try:
            return self._sink.send(event)
        except Exception as error:  # noqa: BLE001 whatever broke, the event may have left: its outcome is unknown
            return Answer(status=None, message=f"{type(error).__name__}: {error}")

    def _settle(self, results: Iterable[tuple[Intent, Answer, Outcome]], now_nanos: int) -> None:
        retries = self._settings.network_retries
        steps: list[tuple[Intent, Outcome, Step]] = [
            (intent, outcome, decide_step(intent, answer, outcome, network_retries=retries, now_nanos=now_nanos))
            for intent, answer, outcome in results
        ]

        def write(conn: sqlite3.Connection) -> None:
            for intent, outcome, step in steps:
                deliveries.settle(conn, step.settlement)
                if outcome in _PROGRESS:
                    deliveries.clear_stop(conn, "account", "")
                    deliveries.clear_stop(conn, "meter", intent.meter)
                    deliveries.clear_stop(conn, "lane", str(intent.lane_id))
            stops = {(stop.scope, stop.name): stop for stop in deliveries.list_stops(conn)}
            for _, _, step in steps:
                if step.stop is not None:
                    earlier = stops.get((step.stop.scope, step.stop.name))
                    deliveries.put_stop(conn, extend_stop(step.stop, earlier))

        self._store.transact(write)
        for _, outcome, _ in steps:
            if outcome is Outcome.PACE:
                self._pacer.slow_down()
            elif outcome in _PROGRESS:
                self._pacer.speed_up()

    def _report(self, closed: int, made: int, outcomes: dict[Outcome, int]) -> ExportReport:
        counts = self._store.read(outbox_views.count_states)
        return ExportReport(closed, made, outcomes, counts)


# Outcomes after which the account, the meter and the customer are known to work.
_PROGRESS = frozenset({Outcome.ACCEPTED, Outcome.DELIVERED})


def _name_attempt_group(intent: Intent) -> str:
    """The Idempotency-Key: the bare identifier first, so that whichever Stripe reports leads back to the intent."""
    return f"{intent.identifier}.{intent.attempt_group}" if intent.attempt_group else intent.identifier
