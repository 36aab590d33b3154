"""Retention of evidence under a configuration: what may go, what holds it, carrying it out. Owns the billing horizon.

Below the floor everything is final: closed, invoiced, approved, at Stripe. Above it everything is whole: the evidence
of every period that reaches above the floor stays, and nothing that arrives there can need what is gone.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from otelbill_collector.audit import build_metering
from otelbill_collector.billing import BILLING_ERRORS, build_billing_rules
from otelbill_collector.config import Config
from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, format_instant
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.retention import Holder, RetentionPolicy
from otelbill_collector.invoicing import Drafting
from otelbill_collector.ledger import meters
from otelbill_collector.ledger.books import Books
from otelbill_collector.ledger.horizon import Extent, find_extent, list_holders
from otelbill_collector.ledger.journal import find_high_water, save_high_water
from otelbill_collector.ledger.periods import Invoice, InvoiceState, list_invoices
from otelbill_collector.ledger.pruning import (
    Pruner,
    PruningRefused,
    Seen,
    digest_rows,
    find_seen,
    is_unfinished,
    list_rows,
    prove_segments,
)
from otelbill_collector.ledger.rollups import find_usage, list_users
from otelbill_collector.ledger.sqlite import LedgerUnavailable, SqliteStore
from otelbill_collector.ledger.tombstones import (
    Pruning,
    describe_absence,
    find_floor,
    find_pruned,
    find_pruned_end,
    list_prunings,
)
from otelbill_collector.ledger.usage_sums import has_records

Json = dict[str, Any]  # Any: JSON values
Progress = Callable[[int, int], None]  # segments removed, of how many
SIDECAR = "otelbill collector"  # who prunes where nobody asked
_MARGIN_NANOS = 7 * DAY_NANOS  # between what goes and what may still come: a trace may go on over midnight
_PLAN_NANOS = HOUR_NANOS
_STEPS_PER_RUN = 8
_log = logging.getLogger("otelbill.retention")


class NoPolicy(RuntimeError):
    """The configuration keeps evidence for ever."""

    def __init__(self) -> None:
        super().__init__("evidence is kept for ever; set retention.evidence in otelbill.yaml, such as 13mo")


class HeldBack(RuntimeError):
    """The policy asks for more than is settled. The message names what holds it."""


class StripeTooEarly(LedgerUnavailable):
    """Stripe is to be told usage that was pruned before it was configured. The message says from when on it can be."""


RETENTION_ERRORS = (NoPolicy, HeldBack, PruningRefused)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a policy would remove now. `floor_nanos` is what it asks for, or less where something holds it."""

    policy: RetentionPolicy
    wanted_nanos: int
    floor_nanos: int
    holders: tuple[Holder, ...]
    extent: Extent
    seen: Seen  # what there was when this was found

    @property
    def is_empty(self) -> bool:
        """Whether nothing would go."""
        return self.extent.last < self.extent.first

    def render(self) -> Json:
        """JSON values."""
        extent = self.extent
        return {
            "policy": self.policy.text,
            "wanted_floor": format_instant(self.wanted_nanos),
            "floor": format_instant(self.floor_nanos),
            "segments": None if self.is_empty else {"first": extent.first, "last": extent.last},
            "records": extent.records,
            "bytes": extent.body_bytes,
            "from": None if self.is_empty else format_instant(extent.ended_min),
            "to": None if self.is_empty else format_instant(extent.ended_max),
            "held_by": [
                {
                    "kind": holder.kind,
                    "from": format_instant(holder.from_nanos),
                    "detail": holder.detail,
                    "remedy": holder.remedy,
                }
                for holder in self.holders
            ],
        }


class Horizon:
    """What is final on one snapshot of the ledger, under a configuration."""

    def __init__(self, connection: sqlite3.Connection, config: Config) -> None:
        self._connection = connection
        self._config = config
        self._rules = build_billing_rules(config)
        self._metered = build_metering(config) is not None
        self._old_floor = find_floor(connection)

    def plan(self, policy: RetentionPolicy, now_nanos: int) -> Plan:
        """What the policy would remove, and what keeps it from removing more."""
        wanted = policy.find_floor(now_nanos)
        holders = list(list_holders(self._connection, wanted, metered=self._metered))
        invoices: dict[str, list[Invoice]] = {}
        for invoice in list_invoices(self._connection):
            invoices.setdefault(invoice.customer_id, []).append(invoice)
        users = list_users(self._connection)
        if self._config.retention.closed_only:
            for customer_id in users:
                holders += self._list_open(customer_id, invoices.get(customer_id, ()), wanted)
        floor = max(min([wanted, *(holder.from_nanos for holder in holders)]), self._old_floor)
        starts = [self._find_start(customer_id, invoices.get(customer_id, ()), floor) for customer_id in users]
        before = min([floor - _MARGIN_NANOS, *starts])
        extent = find_extent(self._connection, before, metered=self._metered)
        holders.sort(key=lambda holder: (holder.from_nanos, holder.kind, holder.detail))
        return Plan(policy, wanted, floor, tuple(holders), extent, find_seen(self._connection))

    def _list_open(self, customer_id: str, invoices: Sequence[Invoice], wanted: int) -> Iterator[Holder]:
        """The first period of a customer, before the floor that is wanted, that is not final."""
        final = sorted(
            (invoice for invoice in invoices if invoice.state is InvoiceState.APPROVED),
            key=lambda invoice: invoice.start_nanos,
        )
        nanos = self._find_uncovered(customer_id, [invoice.period for invoice in final], wanted)
        if nanos is not None:
            yield self._describe_open(customer_id, invoices, nanos)
        for invoice in final:
            if self._old_floor < invoice.end_nanos <= wanted and (nanos is None or invoice.end_nanos <= nanos):
                problem = self._find_unsettled(customer_id, invoice.period)
                if problem is not None:
                    remedy = "close and approve the customer's next period"
                    yield Holder("unsettled_invoice", invoice.start_nanos, problem, remedy)
                    return

    def _find_uncovered(self, customer_id: str, final: Sequence[Period], wanted: int) -> int | None:
        """The first instant with usage from the old floor on that no approved invoice covers."""
        cursor = self._old_floor
        while cursor < wanted:
            hour = find_usage(self._connection, customer_id, cursor - cursor % HOUR_NANOS, wanted)
            if hour is None:
                return None
            at = max(hour, cursor)
            if hour < cursor:  # an hour that a period's end, in its own time zone, cuts in two
                bounds = {"after": find_pruned(self._connection), "from_nanos": cursor, "to_nanos": hour + HOUR_NANOS}
                if not has_records(self._connection, customer_id, **bounds):
                    cursor = hour + HOUR_NANOS
                    continue
            period = next((period for period in final if period.holds(at)), None)
            if period is None:
                return at
            cursor = period.end_nanos
        return None

    def _describe_open(self, customer_id: str, invoices: Sequence[Invoice], nanos: int) -> Holder:
        period = self._config.find_calendar(customer_id).find_period(nanos)
        starts = [invoice.end_nanos for invoice in invoices if invoice.stands and invoice.end_nanos <= nanos]
        start = max([period.start_nanos, *starts])
        for invoice in invoices:
            if invoice.state is InvoiceState.DRAFT and invoice.period.holds(nanos):
                detail = f"invoice {invoice.invoice_id} of {customer_id} {invoice.period.label} is a draft"
                remedy = f"`otelbill invoices approve {invoice.invoice_id}`"
                return Holder("draft_invoice", invoice.start_nanos, detail, remedy)
        detail = f"{customer_id} {period.label} is not closed"
        return Holder(
            "open_period", start, detail, f"`otelbill close {customer_id} --period {period.label}`, then approve"
        )

    def _find_unsettled(self, customer_id: str, period: Period) -> str | None:
        """What is left to invoice of an approved period."""
        try:
            left = Drafting(self._connection, self._rules, customer_id).list_adjusted(period)
        except BILLING_ERRORS as error:
            return f"what is left to invoice of {customer_id} {period.label} cannot be told: {error}"
        if not left:
            return None
        return f"{customer_id} {period.label} has {len(left)} differences that no invoice has"

    def _find_start(self, customer_id: str, invoices: Sequence[Invoice], floor: int) -> int:
        """Where the customer's period that reaches above the floor begins; the floor where it has no usage there."""
        period = next((invoice.period for invoice in invoices if invoice.stands and invoice.period.holds(floor)), None)
        period = period or self._config.find_calendar(customer_id).find_period(floor)
        hour = period.start_nanos - period.start_nanos % HOUR_NANOS
        used = find_usage(self._connection, customer_id, hour, floor)
        return floor if used is None else period.start_nanos


class RetentionDesk:
    """Plans and carries out retention on open books. One thread at a time acts; `clock` gives nanoseconds UTC."""

    def __init__(self, books: Books, config: Config, clock: Callable[[], int]) -> None:
        self._books = books
        self._config = config
        self._clock = clock
        self._pruner = Pruner(books.store, build_metering(config))
        self._turn = threading.Lock()
        self._planned_nanos = -_PLAN_NANOS
        self._rest_until = 0
        self._told: tuple[str, ...] = ()

    def plan(self, text: str | None = None) -> Plan:
        """What the policy of the configuration, or another, would remove now. Raises NoPolicy, InvalidPolicy."""
        return self._books.store.read(lambda connection: find_plan(connection, self._config, self._clock(), text))

    def apply(self, *, operator: str, partly: bool = False, advance: Progress = lambda _done, _total: None) -> Json:
        """Remove what the policy says. Raises NoPolicy, HeldBack (unless `partly`), PruningRefused.

        What an interrupted run left is carried out first, whatever holds more back.
        """
        with self._turn:
            self._finish(advance)
            plan = self.plan()
            if plan.holders and not partly:
                raise HeldBack(describe_holders(plan))
            if not plan.is_empty and not self._begin(plan, operator):
                raise HeldBack("something from before the floor was booked or invoiced just now; plan again")
            self._finish(advance)
            return {"applied": not plan.is_empty, **plan.render()}

    def run(self, now_nanos: int) -> int:
        """What is due, in some short steps; returns how many. For a periodic job; without a policy, only what was
        begun is finished.
        """
        with self._turn:
            if now_nanos < self._rest_until:
                return 0
            try:
                return self._run(now_nanos)
            except PruningRefused as error:
                _log.error("retention waits for an hour: %s", error)
                self._rest_until = now_nanos + _PLAN_NANOS
                return 0

    def _run(self, now_nanos: int) -> int:
        unfinished = self._books.store.read(is_unfinished)
        due = self._config.retention.evidence and now_nanos - self._planned_nanos >= _PLAN_NANOS
        if due and not unfinished:
            self._planned_nanos = now_nanos
            unfinished = self._begin_regularly()
        steps = 0
        while unfinished and steps < _STEPS_PER_RUN and self._pruner.advance():
            unfinished, steps = self._books.store.read(is_unfinished), steps + 1
        return steps

    def _begin_regularly(self) -> bool:
        plan = self.plan()
        told = tuple(holder.detail for holder in plan.holders)
        if told != self._told and told:
            _log.warning("retention is held back: %s", describe_holders(plan))
        self._told = told
        if plan.is_empty or not self._begin(plan, SIDECAR):
            return False
        _log.info("pruning segments %d to %d by policy %s", plan.extent.first, plan.extent.last, plan.policy.text)
        return True

    def _begin(self, plan: Plan, operator: str) -> bool:
        extent, store = plan.extent, self._books.store
        prove_segments(store, extent.first, extent.last)
        rows = store.read(lambda connection: list_rows(connection, extent.first, extent.last))
        pruning = Pruning(
            segment_first=extent.first,
            segment_last=extent.last,
            ended_min=extent.ended_min,
            ended_max=extent.ended_max,
            record_count=extent.records,
            digest=digest_rows(rows),
            floor_nanos=plan.floor_nanos,
            policy=plan.policy.text,
            operator=operator,
            at_nanos=self._clock(),
        )
        return self._books.begin_pruning(pruning, seen=plan.seen)

    def _finish(self, advance: Progress) -> None:
        store = self._books.store
        while store.read(is_unfinished):
            if not self._pruner.advance():
                raise PruningRefused("a fold has yet to read what was decided to go; try again in a moment")
            advance(store.read(find_pruned), max(item.segment_last for item in store.read(list_prunings)))


def find_plan(connection: sqlite3.Connection, config: Config, now_nanos: int, text: str | None = None) -> Plan:
    """What the policy of a configuration, or another, would remove. Raises NoPolicy, InvalidPolicy."""
    policy = RetentionPolicy(text) if text else config.retention.evidence
    if policy is None:
        raise NoPolicy
    return Horizon(connection, config).plan(policy, now_nanos)


def describe_holders(plan: Plan) -> str:
    """One sentence: up to where evidence could go, and what each holder needs."""
    held = "; ".join(f"{holder.detail} ({holder.remedy})" for holder in plan.holders)
    floor, wanted = format_instant(plan.floor_nanos), format_instant(plan.wanted_nanos)
    return f"policy {plan.policy.text} asks for events before {wanted}, only those before {floor} are settled: {held}"


def render_prunings(connection: sqlite3.Connection) -> list[Json]:
    """What was decided to go, oldest first, and how far it is carried out."""
    pruned = find_pruned(connection)
    return [
        {
            "segments": {"first": item.segment_first, "last": item.segment_last},
            "records": item.record_count,
            "from": format_instant(item.ended_min),
            "to": format_instant(item.ended_max),
            "floor": format_instant(item.floor_nanos),
            "policy": item.policy,
            "operator": item.operator,
            "at": format_instant(item.at_nanos),
            "finished": item.segment_last <= pruned,
        }
        for item in list_prunings(connection)
    ]


def adopt_stripe(store: SqliteStore, config: Config) -> None:
    """Have Stripe's windows begin after what was pruned before there were any. Raises StripeTooEarly."""
    metering = build_metering(config)
    pruned = store.read(find_pruned)
    if metering is None or store.read(partial(find_high_water, name=meters.NAME)) >= pruned:
        return
    end = store.read(find_pruned_end)
    if metering.since_nanos < end:
        raise StripeTooEarly(
            f"stripe.since must be {format_instant(end)} or later: {store.read(describe_absence)}, so that earlier "
            "usage cannot be sent to Stripe"
        )
    store.transact(partial(save_high_water, name=meters.NAME, segment_id=pruned))
