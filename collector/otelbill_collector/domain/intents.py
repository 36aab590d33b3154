"""Intents as values: one immutable outgoing Stripe event and how far it has come. Owns the states and their meaning.

Does not own storage (`ledger.outbox`) nor the reading of answers (`export.stripe.answers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class IntentState(StrEnum):
    """How far an intent has come. `accepted`, `duplicate` and `confirmed` count as delivered."""

    PENDING = "pending"  # decided, and certainly not at Stripe
    SENDING = "sending"  # written down before its bytes leave; after a crash it may or may not be at Stripe
    ACCEPTED = "accepted"  # Stripe answered 2xx
    DUPLICATE = "duplicate"  # Stripe has had it from an earlier attempt of ours
    UNKNOWN = "unknown"  # no readable answer: it may or may not be at Stripe
    REJECTED = "rejected"  # Stripe refused it for good; its money waits for a person
    MISMATCH = "mismatch"  # Stripe knows the identifier although we had never sent it
    CONFIRMED = "confirmed"  # its hour was compared with Stripe's sums and was equal
    DEAD = "dead"  # given up: a later revision carries its value


DELIVERED_STATES = frozenset({IntentState.ACCEPTED, IntentState.DUPLICATE, IntentState.CONFIRMED})
WAITING_STATES = frozenset({IntentState.PENDING, IntentState.SENDING, IntentState.UNKNOWN})
# What Stripe may hold although no answer said so; the hourly sums decide.
DOUBTFUL_STATES = frozenset(
    {IntentState.SENDING, IntentState.UNKNOWN, IntentState.MISMATCH, IntentState.REJECTED},
)


class IntentKind(StrEnum):
    """Why an intent exists."""

    WINDOW = "window"  # the first value of a window
    DELTA = "delta"  # usage that came after the window's value was decided; may be negative
    CARRY_FORWARD = "carry_forward"  # its window is too old for Stripe; stamped in the open period
    REPLACEMENT = "replacement"  # takes the place of an intent that is certainly not at Stripe


@dataclass(frozen=True, slots=True)
class Intent:
    """One outgoing meter event. Everything down to `made_nanos` never changes.

    `value` is in whole units of the meter. `amount`, `carry_before` and `carry_after` are in sub-units, with
    amount + carry_before == value * quantum + carry_after. `stripe_customer_id` is fixed by the first attempt.
    `doubt_nanos` is when the first attempt left whose outcome is not known.
    """

    intent_id: int
    identifier: str
    lane_id: int
    account: str
    livemode: bool
    meter: str
    customer_id: str
    quantum: int
    start_nanos: int
    length_nanos: int
    revision: int
    kind: IntentKind
    amount: int
    carry_before: int
    carry_after: int
    value: int
    stamp_seconds: int
    made_nanos: int
    state: IntentState
    stripe_customer_id: str | None
    attempts: int
    attempt_group: int
    doubt_nanos: int | None
    last_sent_nanos: int | None
    due_nanos: int
    answer_status: int | None
    answer_code: str | None
    answer_message: str | None
    request_id: str | None
    superseded_by: str | None


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a scope does not send: the whole `account`, one `meter`, or one `lane`; tried again at `retry_nanos`."""

    scope: str
    name: str
    code: str
    message: str
    since_nanos: int
    retry_nanos: int


@dataclass(frozen=True, slots=True)
class LaneSums:
    """One lane's books in whole units: booked == intended + carry + open, exactly."""

    lane_id: int
    meter: str
    customer_id: str
    booked: Decimal  # everything the ledger booked
    open: Decimal  # booked in windows whose value is not decided yet
    carry: Decimal  # less than one unit, waiting for the next window
    intended: int  # values of all intents that stand
    delivered: int  # of these, accepted, duplicate or confirmed
    waiting: int  # of these, pending, sending or unknown
    refused: int  # of these, rejected or mismatch: a person must look

    @property
    def balanced(self) -> bool:
        """Whether every sub-unit booked is intended, carried or open."""
        return self.booked == self.intended + self.carry + self.open


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The outbox at a glance: intents by state, what is stopped and why, and the books of each lane."""

    counts: dict[IntentState, int]
    oldest_waiting_nanos: int | None
    waiting_by_account: dict[tuple[str, bool], int]
    stops: tuple[Stop, ...]
    lanes: tuple[LaneSums, ...]
