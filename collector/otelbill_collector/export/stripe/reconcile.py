"""Comparing the ledger with Stripe, hour by hour, until the difference is zero or a named list.

Owns the verdicts and what follows from them for intents in doubt. Sends nothing; replacements go out with the next run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TypeVar

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import Intent, IntentState, LaneSums
from otelbill_collector.domain.windows import STAMP_AGE_MAX_NANOS
from otelbill_collector.export.stripe.answers import Outcome, classify
from otelbill_collector.export.stripe.pace import Pacer
from otelbill_collector.export.stripe.ports import (
    Store,
    StripeBooks,
    StripeCallError,
    StripeProblem,
    StripeUnreachable,
)
from otelbill_collector.export.stripe.settings import StripeSettings
from otelbill_collector.export.stripe.verdicts import Hour, Row, Verdict, judge_hour
from otelbill_collector.ledger import deliveries, outbox, outbox_views
from otelbill_collector.ledger.outbox_views import OpenAmount

_HOUR_SECONDS = HOUR_NANOS // NANOS
USUAL_SPAN_NANOS = 2 * DAY_NANOS
READ_ATTEMPTS_MAX = 4

T = TypeVar("T")
_LaneKey = tuple[str, str]  # (meter, Stripe customer)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Both books side by side. `equal` means: every hour equal, every lane balanced, and nothing open or waiting.

    `lanes` prove the way from the ledger's exact totals to the intents; `rows` prove the way from those to Stripe.
    """

    from_nanos: int
    to_nanos: int
    rows: tuple[Row, ...]
    lanes: tuple[LaneSums, ...]
    differences: tuple[str, ...]
    confirmed: int
    replaced: int
    not_compared: tuple[str, ...] = ()  # our customer ids of whom at least one meter has no Stripe side to compare

    @property
    def equal(self) -> bool:
        """Whether the ledger and Stripe agree to the last unit."""
        return not self.differences and all(row.verdict is Verdict.EQUAL for row in self.rows)

    @property
    def equal_where_compared(self) -> bool:
        """Whether something was compared, all of that is equal, and only `not_compared` customers have more to send."""
        return (
            bool(self.rows)
            and all(row.verdict is Verdict.EQUAL for row in self.rows)
            and all(
                lane.balanced and (not lane.waiting or lane.customer_id in self.not_compared) for lane in self.lanes
            )
        )


class ReissueRefused(StripeProblem):
    """An intent may not be sent again: it is not refused, or it may be at Stripe."""


class StripeReconciler:
    """Compares one ledger with one account. Reads cost one call per lane and 100 hours, paced by its own bucket."""

    def __init__(self, store: Store, books: StripeBooks, settings: StripeSettings, pacer: Pacer) -> None:
        self._store = store
        self._books = books
        self._settings = settings
        self._pacer = pacer

    def reconcile(self, now_nanos: int, *, since_nanos: int | None = None) -> Reconciliation:
        """Compare the hours since `since` (or two days back, or the oldest unconfirmed intent), and act on doubt.

        Confirms intents of equal hours; gives intents that are certainly not at Stripe a new revision. Changes
        nothing where Stripe could not be read: such lanes are named in `differences`.
        """
        opens = self._store.read(outbox_views.list_open_amounts)
        start = self._choose_start(now_nanos, since_nanos, opens)
        end = now_nanos // HOUR_NANOS * _HOUR_SECONDS + _HOUR_SECONDS
        lanes_before = _list_lanes(self._collect_hours(start, end, opens)[0])
        sums, unread = self._read_stripe(lanes_before, start, end)
        # Read again after Stripe: what is sent meanwhile then counts as just sent, not as Stripe's surplus.
        opens = self._store.read(outbox_views.list_open_amounts)
        hours, blocked = self._collect_hours(start, end, opens)
        lanes_now = _list_lanes(hours)
        for lane in lanes_now:
            if lane not in sums and lane not in unread:
                unread[lane] = f"{lane[0]} of {lane[1]}: new since this comparison began; run reconcile again"
        unread_ids = {name for lane in unread for name in lanes_now.get(lane, lanes_before.get(lane, set()))}
        # An outage is the same line for each lane, and said once.
        differences = sorted(blocked.values()) + list(dict.fromkeys(text for _, text in sorted(unread.items())))
        for lane, by_hour in sums.items():
            for second, value in by_hour.items():
                if value and (lane, second) not in hours:
                    hours[lane, second] = Hour(*lane, second)
        rows = [
            judge_hour(hour, sums[lane].get(second, Decimal(0)), now_nanos, self._settings.settle_nanos)
            for (lane, second), hour in sorted(hours.items(), key=lambda item: item[0])
            if lane in sums
        ]
        confirmed = self._store.transact(lambda conn: deliveries.confirm(conn, _list_confirmed(rows)))
        replaced = self._replace([intent for row in rows for intent in row.lost], now_nanos)
        lanes = self._store.read(outbox_views.list_lane_sums)
        differences += [f"{row.describe()}: {row.remedy}" for row in rows if row.verdict is not Verdict.EQUAL]
        differences += list(_describe_lanes(lanes))
        return Reconciliation(
            from_nanos=start * NANOS,
            to_nanos=end * NANOS,
            rows=tuple(rows),
            lanes=tuple(lanes),
            differences=tuple(differences),
            confirmed=confirmed,
            replaced=replaced,
            not_compared=tuple(sorted(unread_ids | {customer_id for _, customer_id in blocked})),
        )

    def _choose_start(self, now_nanos: int, since_nanos: int | None, opens: list[OpenAmount]) -> int:
        """The first hour to compare: every hour with something undecided or unconfirmed is in."""
        if since_nanos is None:
            oldest = self._store.read(outbox_views.find_oldest_unconfirmed)
            since_nanos = now_nanos - USUAL_SPAN_NANOS
            if oldest is not None:
                since_nanos = min(since_nanos, oldest * NANOS)
            since_nanos = min([since_nanos, *(open_.hour_seconds * NANOS for open_ in opens)])
        return since_nanos // HOUR_NANOS * _HOUR_SECONDS

    def _collect_hours(
        self, start: int, end: int, opens: list[OpenAmount]
    ) -> tuple[dict[tuple[_LaneKey, int], Hour], dict[tuple[str, str], str]]:
        """The ledger's side by lane and hour, and a line for every (meter, customer) that cannot be compared at all."""
        hours: dict[tuple[_LaneKey, int], Hour] = {}
        blocked: dict[tuple[str, str], str] = {}

        def require_hour(meter: str, customer_id: str, stripe_id: str | None, second: int) -> Hour | None:
            if stripe_id is None:
                blocked[meter, customer_id] = (
                    f"{meter} of {customer_id}: blocked, no Stripe customer; set customers.{customer_id}.stripe"
                )
                return None
            lane = (meter, stripe_id)
            hour = hours.setdefault((lane, second), Hour(*lane, second))
            hour.customer_ids.add(customer_id)
            return hour

        intents = self._store.read(
            lambda conn: outbox_views.list_intents_between(conn, from_seconds=start, to_seconds=end)
        )
        for intent in intents:
            if (intent.account, intent.livemode) != (self._settings.account, self._settings.livemode):
                continue
            stripe_id = intent.stripe_customer_id or self._settings.find_stripe_customer(intent.customer_id)
            second = intent.stamp_seconds // _HOUR_SECONDS * _HOUR_SECONDS
            if hour := require_hour(intent.meter, intent.customer_id, stripe_id, second):
                hour.intents.append(intent)
        for open_ in opens:
            stripe_id = self._settings.find_stripe_customer(open_.customer_id)
            if hour := require_hour(open_.meter, open_.customer_id, stripe_id, open_.hour_seconds):
                hour.open += open_.amount
        return hours, blocked

    def _read_stripe(
        self, lanes: Mapping[_LaneKey, set[str]], start: int, end: int
    ) -> tuple[dict[_LaneKey, Mapping[int, Decimal]], dict[_LaneKey, str]]:
        """Stripe's side of each lane, or why it could not be read."""
        sums: dict[_LaneKey, Mapping[int, Decimal]] = {}
        unread: dict[_LaneKey, str] = {}
        meters: dict[str, str | None] = {}
        outage = ""
        for lane, customer_ids in lanes.items():
            if outage:
                unread[lane] = outage
                continue
            event_name, stripe_id = lane
            try:
                if event_name not in meters:
                    meters[event_name] = self._find_meter_id(event_name)
                meter_id = meters[event_name]
                if meter_id is None:
                    unread[lane] = f"{event_name}: no such meter at Stripe; run otelbill stripe apply"
                    continue
                read = partial(self._books.list_hours, meter_id, stripe_id, from_seconds=start, to_seconds=end)
                sums[lane] = self._call(read)
            except StripeUnreachable as error:
                outage = unread[lane] = str(error)
            except StripeCallError as error:
                unread[lane] = _describe_unread(lane, customer_ids, error)
        return sums, unread

    def _find_meter_id(self, event_name: str) -> str | None:
        meter = self._call(lambda: self._books.find_meter(event_name))
        return None if meter is None else meter.meter_id

    def _call(self, call: Callable[[], T]) -> T:
        """A read, tried again while Stripe is busy or out of reach. Raises StripeCallError after the last attempt."""
        for attempt in range(READ_ATTEMPTS_MAX):
            self._pacer.take()
            try:
                return call()
            except StripeCallError as error:
                self._yield_or_raise(error, attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _yield_or_raise(self, error: StripeCallError, attempt: int) -> None:
        status = error.answer.status
        transient = status is None or status in (409, 429) or status >= 500 or status < 300
        if not transient or attempt == READ_ATTEMPTS_MAX - 1:
            raise error
        self._pacer.slow_down()
        self._pacer.rest(NANOS // 10 << attempt)

    def _replace(self, lost: list[Intent], now_nanos: int) -> int:
        """New revisions for intents that are certainly not at Stripe, stamped as before where that is young enough."""

        def write(conn: sqlite3.Connection) -> None:
            for intent in lost:
                old = now_nanos - intent.stamp_seconds * NANOS >= STAMP_AGE_MAX_NANOS
                stamp = now_nanos // NANOS if old else intent.stamp_seconds
                outbox.replace_intent(conn, intent, stamp, now_nanos)

        if lost:
            self._store.transact(write)
        return len(lost)

    def reissue(self, identifier: str, now_nanos: int) -> str:
        """Send a rejected or mismatched intent again as a new revision, after its hour showed that it is missing.

        Returns the new identifier. Raises ReissueRefused where the intent is not one of those, or may be at Stripe.
        """
        found = self._store.read(lambda conn: outbox_views.find_intents_for(conn, identifier=identifier))
        if not found or found[0].state not in (IntentState.REJECTED, IntentState.MISMATCH):
            raise ReissueRefused(f"{identifier} is not a rejected or mismatched intent; see otelbill stripe status")
        intent = found[0]
        hour_nanos = intent.stamp_seconds * NANOS
        rows = self.reconcile(now_nanos, since_nanos=hour_nanos).rows
        missing = [row for row in rows if intent.identifier in row.missing]
        if not missing:
            raise ReissueRefused(f"{identifier} may be at Stripe, or its hour cannot be read; reconcile first")
        old = now_nanos - hour_nanos >= STAMP_AGE_MAX_NANOS
        stamp = now_nanos // NANOS if old else intent.stamp_seconds
        return self._store.transact(lambda conn: outbox.replace_intent(conn, intent, stamp, now_nanos))


def _list_lanes(hours: Mapping[tuple[_LaneKey, int], Hour]) -> dict[_LaneKey, set[str]]:
    """Each lane with our customers that share it."""
    lanes: dict[_LaneKey, set[str]] = {}
    for (lane, _), hour in sorted(hours.items(), key=lambda item: item[0]):
        lanes.setdefault(lane, set()).update(hour.customer_ids)
    return lanes


def _describe_unread(lane: _LaneKey, customer_ids: Iterable[str], error: StripeCallError) -> str:
    event_name, stripe_id = lane
    if classify(error.answer) is not Outcome.UNKNOWN_CUSTOMER:
        return f"{event_name} of {stripe_id}: not compared, {error}; run reconcile again"
    settings = " or ".join(f"customers.{customer_id}.stripe" for customer_id in sorted(customer_ids))
    return (
        f"{event_name} of {stripe_id}: not compared, Stripe knows no customer {stripe_id}; correct {settings} and "
        "restart the collector, or create that customer at Stripe"
    )


def _list_confirmed(rows: Iterable[Row]) -> list[int]:
    return [intent_id for row in rows for intent_id in row.confirmed]


def _describe_lanes(lanes: Iterable[LaneSums]) -> Iterable[str]:
    for lane in lanes:
        if not lane.balanced:
            yield (
                f"{lane.meter} of {lane.customer_id}: the ledger booked {lane.booked:f}, intents hold {lane.intended}, "
                f"carried {lane.carry:f}, open {lane.open:f}; a fault of otelbill: keep the ledger and report it"
            )
        if lane.waiting:
            yield f"{lane.meter} of {lane.customer_id}: {lane.waiting} units wait; see otelbill stripe status"
