"""What an operator may do to a ledger: assign, replay, send, reconcile. Owns the answers' shape as plain JSON values.

The same object serves the command line (on a ledger that no sidecar holds) and the sidecar's API (on the one it holds).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from otelbill_collector.billing import Billing
from otelbill_collector.crediting import CreditDesk, CreditTerms
from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.intents import OutboxStatus
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.records import DeadLetter
from otelbill_collector.explanation import render_record
from otelbill_collector.export.stripe.catalog import Plan, apply_catalog, plan_catalog
from otelbill_collector.export.stripe.exporter import ExportReport, StripeExporter
from otelbill_collector.export.stripe.ports import StripeBooks
from otelbill_collector.export.stripe.reconcile import Reconciliation, StripeReconciler
from otelbill_collector.export.stripe.settings import StripeSettings
from otelbill_collector.isolation import STORE_FAULTS
from otelbill_collector.ledger.booking import Outcome
from otelbill_collector.ledger.books import Books
from otelbill_collector.ledger.corrections import Correction, Wish, list_corrections
from otelbill_collector.ledger.deadletters import list_dead_letters, mark_replayed
from otelbill_collector.ledger.folding import Folder
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.outbox_views import status
from otelbill_collector.ledger.repricing import Progress, Scope
from otelbill_collector.ledger.resolutions import Resolution
from otelbill_collector.ledger.rollups import count_events
from otelbill_collector.pipeline import Request, Stages, carry_batch
from otelbill_collector.retention import RetentionDesk
from otelbill_collector.simulation import identify_prices

_log = logging.getLogger("otelbill.operations")

Json = dict[str, Any]  # answers are printed or sent as JSON
# Readers add what is not folded yet, so who rates a month again need not wait for that: the collector's job does it.
_FOLDED_AT_ONCE_MAX = 100_000
_REPLAY_MAX = 10_000


class NoStripe(RuntimeError):
    """The configuration has no `stripe` section."""

    def __init__(self) -> None:
        super().__init__("no Stripe account is configured; add a `stripe` section with api_key to otelbill.yaml")


class OtherPrices(RuntimeError):
    """The collector that holds the ledger was started with another rate card than the operator's."""

    def __init__(self) -> None:
        super().__init__("the running collector has another rate card; restart it with this configuration, then rerate")


@dataclass(frozen=True, slots=True)
class StripeDesk:
    """Everything that acts on one Stripe account."""

    settings: StripeSettings
    metering: Metering
    account: StripeBooks
    exporter: StripeExporter
    reconciler: StripeReconciler


class Operations:
    """Operator commands on open books. `clock` gives nanoseconds UTC."""

    def __init__(
        self,
        stages: Stages,
        desk: StripeDesk | None,
        clock: Callable[[], int],
        rater: Rater | None = None,
        billing: Billing | None = None,
        terms: CreditTerms = CreditTerms(),  # noqa: B008 a frozen value
        retention: RetentionDesk | None = None,
    ) -> None:
        self.progress: tuple[int, int] | None = None  # segments that were rated again, of how many, while that goes on
        self.watch: Progress = _report_nothing  # told of the same
        self._stages = replace(stages, scanner=None)  # which is the writer's alone
        self._billing = billing
        self._retention = retention
        self.credits = CreditDesk(stages.books.store, terms, clock)
        self._desk = desk
        self._folder = Folder(stages.books.store, None if desk is None else desk.metering)
        self._clock = clock
        self._rater = rater or Rater()

    @property
    def books(self) -> Books:
        """The open books."""
        return self._stages.books

    @property
    def billing(self) -> Billing:
        """Periods and invoices. Raises RuntimeError where they were not wired."""
        if self._billing is None:
            raise RuntimeError("these operations have no billing")
        return self._billing

    @property
    def retention(self) -> RetentionDesk:
        """Retention of evidence. Raises RuntimeError where it was not wired."""
        if self._retention is None:
            raise RuntimeError("these operations have no retention")
        return self._retention

    def fold(self) -> int:
        """Bring rollups, open events and the Stripe outbox up to date; returns the number of segments folded."""
        return self._folder.fold()

    def decide_due(self) -> int:
        """Decide again the claim groups whose time has come; returns the number of records booked."""
        return len(self.books.post_due(self._clock()).records)

    def price_waiting(self) -> int:
        """Rate what waits for a price, which a new rate card may hold; returns how many events were priced."""
        self.fold()
        if not self.books.store.read(count_events)["unpriced"]:
            return 0
        priced = self.books.price_waiting(self._clock())
        self.fold()
        return priced

    def adjust(self, wish: Wish) -> Json:
        """Correct events as an operator wants. Raises UnknownEvent, InvalidCorrection; then nothing is written."""
        booking = self.books.correct(wish)
        self.fold()
        return {"batch": wish.derive_batch(), "booked": [render_record(record) for record in booking.records]}

    def take_back(self, *, batch: str, operator: str, reason: str) -> Json:
        """Take back a batch of corrections. Raises InvalidCorrection."""
        booking = self.books.take_back(batch, operator=operator, reason=reason, now_nanos=self._clock())
        self.fold()
        return {"batch": batch, "booked": [render_record(record) for record in booking.records]}

    def rerate(self, scope: Scope, *, prices: str, operator: str, reason: str, terms: bool = False) -> Json:
        """Rate a scope again by today's rate card. `prices` is what the operator saw: other prices are refused.

        With `terms` its fees, discounts, minimums and commitments hold for closed periods in the scope, too.
        """
        if prices != identify_prices(self._rater):
            raise OtherPrices
        try:
            changed = self.books.rerate(
                self._rater, scope, operator=operator, reason=reason, now_nanos=self._clock(), progress=self._note
            )
        finally:
            self.progress = None
        restated = self.billing.restate_terms(scope, operator=operator, reason=reason) if terms else 0
        if changed <= _FOLDED_AT_ONCE_MAX:
            self.fold()
        return {"changed": changed, "restated": restated}

    def _note(self, done: int, total: int) -> None:
        self.progress = done, total
        self.watch(done, total)

    @property
    def clock(self) -> Callable[[], int]:
        """Nanoseconds UTC."""
        return self._clock

    def resolve_usage(self, *, event_id: str, quantities: Mapping[str, int], operator: str, reason: str) -> Json:
        """Give a held event its usage by hand. Raises UnknownEvent, NotHeld, InvalidResolution."""
        given = Resolution(event_id, dict(quantities), operator, reason, self._clock())
        booking = self.books.resolve_usage(given)
        self.fold()
        return {"booked": [render_record(record) for record in booking.records]}

    def replay_dead_letters(self, letter_ids: Sequence[str] = ()) -> Json:
        """Take dead letters (all, or those named) through the pipeline again; what is still wrong stays where it is."""
        letters = self.books.store.read(lambda connection: list_dead_letters(connection, limit=_REPLAY_MAX))
        wanted = [letter for letter in letters if not letter_ids or letter.letter_id in letter_ids]
        done = [letter.letter_id for letter in wanted if self._replay(letter)]
        self.books.store.transact(lambda connection: mark_replayed(connection, done, self._clock()))
        self.fold()
        return {"replayed": len(done), "still_dead": len(wanted) - len(done)}

    def _replay(self, letter: DeadLetter) -> bool:
        # Received now, because a span from the future may have become one of the past.
        try:
            carried = carry_batch([Request(letter.body, self._clock())], self._stages, self._clock())
        except STORE_FAULTS:
            raise
        except Exception as fault:  # noqa: BLE001 the upgrade did not help this one; it must not keep the others here
            _log.error("dead letter %s still trips a fault (%s)", letter.letter_id, type(fault).__name__)
            return False
        outcomes = carried.posted.booking.outcomes if carried.posted else []
        return bool(outcomes) and outcomes[0] not in (Outcome.CONFLICT, Outcome.PRUNED)

    def flush_stripe(self) -> Json:
        """Close every window, open ones too, and send all that can be sent now."""
        desk = self._require_desk()
        self.fold()
        return render_report(desk.exporter.flush(self._clock()))

    def send_due(self) -> ExportReport | None:
        """Send what is due; None without a Stripe account."""
        return None if self._desk is None else self._desk.exporter.run_once(self._clock())

    def reconcile_stripe(self, *, since_nanos: int | None = None) -> Json:
        """Compare the ledger with Stripe, hour by hour."""
        desk = self._require_desk()
        self.fold()
        return render_reconciliation(desk.reconciler.reconcile(self._clock(), since_nanos=since_nanos))

    def reissue_intent(self, identifier: str) -> Json:
        """Send a refused intent again as a new revision, if Stripe's sum shows that it is missing."""
        desk = self._require_desk()
        return {"identifier": desk.reconciler.reissue(identifier, self._clock())}

    def plan_stripe(self) -> Json:
        """What `apply_stripe` would create."""
        desk = self._require_desk()
        return render_plan(plan_catalog(desk.account, desk.settings, units=sorted(desk.metering.unit_meters)))

    def apply_stripe(self) -> Json:
        """Create the meters and the price that are missing."""
        desk = self._require_desk()
        return render_plan(apply_catalog(desk.account, desk.settings, units=sorted(desk.metering.unit_meters)))

    def _require_desk(self) -> StripeDesk:
        if self._desk is None:
            raise NoStripe
        return self._desk


def _report_nothing(done: int, total: int) -> None:
    """For callers that cannot be shown progress."""


def render_corrections(connection: sqlite3.Connection) -> list[Json]:
    """What operators corrected, oldest first."""
    return [render_correction(item) for item in list_corrections(connection)]


def render_correction(correction: Correction) -> Json:
    """One correction; `value` is None where it takes back what nothing preceded."""
    return {
        "batch": correction.batch,
        "event_id": correction.event_id,
        "aspect": correction.aspect.value,
        "value": None if correction.value is None else json.loads(correction.value),
        "operator": correction.operator,
        "reason": correction.reason,
        "given_at": format_instant(correction.given_nanos),
        "reverses": correction.reverses,
    }


def render_status(connection: sqlite3.Connection) -> Json:
    """The outbox as JSON values."""
    found: OutboxStatus = status(connection)
    return {
        "counts": {state.value: count for state, count in found.counts.items()},
        "oldest_waiting_at": None if found.oldest_waiting_nanos is None else format_instant(found.oldest_waiting_nanos),
        "stops": [
            {"scope": stop.scope, "name": stop.name, "code": stop.code, "message": stop.message} for stop in found.stops
        ],
        "lanes": [
            {
                "meter": lane.meter,
                "customer_id": lane.customer_id,
                "booked": str(lane.booked),
                "delivered": str(lane.delivered),
                "waiting": str(lane.waiting),
                "refused": str(lane.refused),
                "carry": str(lane.carry),
            }
            for lane in found.lanes
        ],
    }


def render_report(report: ExportReport) -> Json:
    """A run of the exporter."""
    return {
        "windows_closed": report.windows_closed,
        "intents_made": report.intents_made,
        "sent": report.sent,
        "outcomes": {outcome.value: count for outcome, count in report.outcomes.items()},
        "drained": report.drained,
    }


def render_plan(plan: Plan) -> Json:
    """A plan of changes to a Stripe account."""
    return {"pending": plan.pending, "items": [_render_fields(item) for item in plan.items]}


def render_reconciliation(result: Reconciliation) -> Json:
    """Both books side by side."""
    return {
        "equal": result.equal,
        "equal_where_compared": result.equal_where_compared,
        "not_compared": list(result.not_compared),
        "from": format_instant(result.from_nanos),
        "to": format_instant(result.to_nanos),
        "rows": [_render_fields(row) for row in result.rows],
        "lanes": [_render_fields(lane) for lane in result.lanes],
        "differences": list(result.differences),
        "confirmed": result.confirmed,
        "replaced": result.replaced,
    }


def _render_fields(value: Any) -> Json:
    """Any: the small frozen dataclasses of the Stripe exporter, whose fields are text, numbers, enums or Decimal."""
    names = value.__dataclass_fields__
    return {name: _render_value(getattr(value, name)) for name in names}


def _render_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, tuple):
        return [_render_value(item) for item in value]
    return getattr(value, "identifier", None) or str(value)
