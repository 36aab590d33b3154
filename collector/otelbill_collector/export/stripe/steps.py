"""From an outcome to the next step of an intent: its state, when it is due again, and what must stop.

A pure function, matched exhaustively. Owns backoff; does not own storage or sending.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import assert_never

from otelbill_collector.domain.instants import MINUTE_NANOS, NANOS
from otelbill_collector.domain.intents import Intent, IntentState, Stop
from otelbill_collector.export.stripe.answers import Answer, Outcome
from otelbill_collector.ledger.deliveries import Settlement

BACKOFF_MIN_NANOS = NANOS
BACKOFF_MAX_NANOS = 60 * NANOS
# A stop is tried again after 15 seconds, then after as long as it has lasted, at most this long: bounded, and cheap,
# as one event is the probe of its whole scope.
STOP_RETRY_MIN_NANOS = 15 * NANOS
STOP_RETRY_MAX_NANOS = {"account": 5 * MINUTE_NANOS, "meter": MINUTE_NANOS, "lane": 10 * MINUTE_NANOS}
MESSAGE_MAX = 500  # characters of Stripe's text that are kept


@dataclass(frozen=True, slots=True)
class Step:
    """What to write down after an answer, and what to stop because of it."""

    settlement: Settlement
    stop: Stop | None = None


def decide_step(intent: Intent, answer: Answer, outcome: Outcome, *, network_retries: int, now_nanos: int) -> Step:
    """The next step of an intent that was being sent. `intent` is as it was before this attempt."""
    base = Settlement(
        intent_id=intent.intent_id,
        state=_waiting_state(intent),
        due_nanos=now_nanos + compute_backoff(intent.identifier, intent.attempts),
        answer_status=answer.status,
        answer_code=answer.code or outcome.value,
        answer_message=(answer.message or "")[:MESSAGE_MAX] or None,
        request_id=answer.request_id,
    )
    match outcome:
        case Outcome.ACCEPTED:
            return Step(replace(base, state=IntentState.ACCEPTED))
        case Outcome.DELIVERED:
            return Step(replace(base, state=_delivered_state(intent, network_retries)))
        case Outcome.PACE | Outcome.CONTENTION:
            return Step(base)
        case Outcome.UNKNOWN:
            # An answered failure may be replayed under its Idempotency-Key; silence may not.
            unknown = replace(base, state=IntentState.UNKNOWN, doubt_nanos=now_nanos)
            return Step(replace(unknown, renew_key=answer.status is not None and answer.status >= 500))
        case Outcome.FUTURE:
            return Step(replace(base, due_nanos=_due_when_past(intent, now_nanos), renew_key=True))
        case Outcome.TOO_OLD | Outcome.TOO_MANY_DIGITS | Outcome.KEY_REUSED | Outcome.REFUSED:
            return Step(replace(base, state=IntentState.REJECTED))
        case Outcome.NO_METER:
            return Step(
                replace(base, due_nanos=now_nanos, renew_key=True),
                _stop("meter", intent.meter, outcome, answer, now_nanos),
            )
        case Outcome.UNKNOWN_CUSTOMER:
            return Step(
                # A customer Stripe does not know was never charged, so the corrected mapping may be used.
                replace(base, due_nanos=now_nanos, renew_key=True, readdress=True),
                _stop("lane", str(intent.lane_id), outcome, answer, now_nanos),
            )
        case Outcome.CREDENTIALS:
            return Step(
                replace(base, due_nanos=now_nanos, renew_key=True),
                _stop("account", "", outcome, answer, now_nanos),
            )
        case _:  # pragma: no cover
            assert_never(outcome)


def _waiting_state(intent: Intent) -> IntentState:
    """Waiting again: still in doubt if an earlier attempt was, since this answer says nothing about that one."""
    return IntentState.PENDING if intent.doubt_nanos is None else IntentState.UNKNOWN


def _delivered_state(intent: Intent, network_retries: int) -> IntentState:
    """A duplicate is a delivery only where an attempt of this very intent may have arrived before."""
    if intent.doubt_nanos is not None or network_retries > 0:
        return IntentState.DUPLICATE
    return IntentState.MISMATCH


def _due_when_past(intent: Intent, now_nanos: int) -> int:
    return max(intent.stamp_seconds * NANOS, now_nanos + BACKOFF_MAX_NANOS)


def _stop(scope: str, name: str, outcome: Outcome, answer: Answer, now_nanos: int) -> Stop:
    message = (answer.message or outcome.value)[:MESSAGE_MAX]
    return Stop(scope, name, outcome.value, message, now_nanos, now_nanos + STOP_RETRY_MIN_NANOS)


def extend_stop(stop: Stop, earlier: Stop | None) -> Stop:
    """A new stop of a scope that may be stopped already: it waits as long again as the scope has been stopped."""
    if earlier is None:
        return stop
    lasted = stop.since_nanos - earlier.since_nanos
    wait = min(max(lasted, STOP_RETRY_MIN_NANOS), STOP_RETRY_MAX_NANOS[stop.scope])
    return replace(stop, since_nanos=earlier.since_nanos, retry_nanos=stop.since_nanos + wait)


def compute_backoff(identifier: str, attempts: int) -> int:
    """1 s doubling to 60 s, of which half to all is waited; the share comes from the identifier, so runs repeat."""
    full = min(BACKOFF_MAX_NANOS, BACKOFF_MIN_NANOS << min(attempts, 6))
    share = int.from_bytes(hashlib.sha256(f"{identifier}.{attempts}".encode()).digest()[:4], "big")
    return full // 2 + (full // 2) * share // 2**32
