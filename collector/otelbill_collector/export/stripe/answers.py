"""What Stripe's answers mean: one closed table from answer to outcome. Owns the reading, not what is done about it.

`RULES` is the table of docs/stripe.md; a test keeps the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, or the absence of one (`status` None). `readable` is false for a body that made no sense."""

    status: int | None
    readable: bool = True
    error_type: str | None = None
    code: str | None = None
    message: str | None = None
    request_id: str | None = None
    limited_reason: str | None = None  # header Stripe-Rate-Limited-Reason


class Outcome(StrEnum):
    """What an answer says about an event."""

    ACCEPTED = "accepted"
    DELIVERED = "delivered"
    PACE = "pace"
    CONTENTION = "contention"
    CREDENTIALS = "credentials"
    KEY_REUSED = "key_reused"
    NO_METER = "no_meter"
    TOO_OLD = "too_old"
    FUTURE = "future"
    TOO_MANY_DIGITS = "too_many_digits"
    UNKNOWN_CUSTOMER = "unknown_customer"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: an answer whose status is in `statuses` and that shows one of the marks has this outcome.

    The marks are error types, error codes, fragments of the message in lower case, or the rate-limit header; a rule
    without marks needs the status alone.
    """

    outcome: Outcome
    statuses: range
    answer: str
    action: str
    error_types: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    fragments: tuple[str, ...] = ()
    limited: bool = False

    def matches(self, answer: Answer) -> bool:
        """Whether this row is about that answer."""
        if answer.status is None or not answer.readable or answer.status not in self.statuses:
            return False
        if not (self.error_types or self.codes or self.fragments or self.limited):
            return True
        message = (answer.message or "").lower()
        return (
            answer.error_type in self.error_types
            or answer.code in self.codes
            or any(fragment in message for fragment in self.fragments)
            or (self.limited and answer.limited_reason is not None)
        )


def _status(first: int, last: int | None = None) -> range:
    return range(first, (last or first) + 1)


# First match wins. What matches no row (no reply, 5xx, an unreadable body) is UNKNOWN.
RULES: tuple[Rule, ...] = (
    Rule(Outcome.ACCEPTED, _status(200, 299), "2xx", "accepted; confirmed by the next reconciliation"),
    Rule(
        Outcome.PACE,
        _status(400, 429),
        "429 with `Stripe-Rate-Limited-Reason`, or code `rate_limit`",
        "waits 1 s to 60 s with jitter; the pace of the whole account is halved, then recovers",
        codes=frozenset({"rate_limit"}),
        limited=True,
    ),
    Rule(
        Outcome.CONTENTION,
        _status(409),
        "409",
        "waits with jitter, then sent again; if frequent, two senders share a lane",
    ),
    Rule(Outcome.CONTENTION, _status(429), "429 without that header (`lock_timeout`)", "as 409"),
    Rule(
        Outcome.CREDENTIALS,
        _status(401),
        "401",
        "all sending stops, intents wait; tried again after 15 seconds, ever more rarely up to every 5 minutes, "
        "by a flush and at each start",
    ),
    Rule(Outcome.CREDENTIALS, _status(403), "403", "as 401: the restricted key lacks a permission"),
    Rule(
        Outcome.KEY_REUSED,
        _status(400),
        "400 of type `idempotency_error`",
        "rejected, never sent again with that key; a person must look",
        error_types=frozenset({"idempotency_error"}),
    ),
    Rule(
        Outcome.DELIVERED,
        _status(400),
        '400 "already exists with identifier", or code `duplicate_meter_event`',
        "duplicate: an earlier attempt of ours arrived. If we never sent it before: mismatch, the hour's sum decides",
        codes=frozenset({"duplicate_meter_event"}),
        fragments=("already exists with identifier",),
    ),
    Rule(
        Outcome.NO_METER,
        _status(400, 404),
        '400 "No active meter found", or code `no_meter`, `archived_meter`',
        "the meter stops, its intents wait; tried within a minute, so `otelbill stripe apply` is the whole remedy",
        codes=frozenset({"no_meter", "archived_meter"}),
        fragments=("no active meter found",),
    ),
    Rule(
        Outcome.TOO_OLD,
        _status(400),
        '400 "more than 35 days in past", or code `timestamp_too_far_in_past`',
        "rejected with its value on record; bill it by an invoice item, or `otelbill stripe reissue` it",
        codes=frozenset({"timestamp_too_far_in_past"}),
        fragments=("days in past", "days in the past"),
    ),
    Rule(
        Outcome.FUTURE,
        _status(400),
        "400 about a timestamp in the future, or code `timestamp_in_future`",
        "held until its time has come, then sent again; check this host's clock",
        codes=frozenset({"timestamp_in_future"}),
        fragments=("in the future", "minutes in future"),
    ),
    Rule(
        Outcome.TOO_MANY_DIGITS,
        _status(400),
        '400 "can have at most ... digits", or code `meter_event_value_too_many_digits`',
        "rejected; cannot happen while Stripe takes 15 digits, since larger values are split when they are made",
        codes=frozenset({"meter_event_value_too_many_digits"}),
        fragments=("can have at most",),
    ),
    Rule(
        Outcome.UNKNOWN_CUSTOMER,
        _status(400, 404),
        '400 or 404 "No such customer", or code `meter_event_customer_not_found`',
        "the lane stops, its intents wait; create the customer at Stripe (tried again up to every 10 minutes, and by "
        "`otelbill stripe flush`), or correct `customers.*.stripe` and restart",
        codes=frozenset({"meter_event_customer_not_found"}),
        fragments=("no such customer",),
    ),
    Rule(
        Outcome.REFUSED,
        _status(400, 499),
        "any other 4xx",
        "rejected, with code, text and request id; a person must look; `otelbill stripe reissue` sends it again",
    ),
)

UNKNOWN_ANSWER = "5xx, reset, timeout, an unreadable body, anything else"
UNKNOWN_ACTION = (
    "unknown: sent again with the same identifier for 23 hours; after that the hour's sum decides between confirmed "
    "and a new revision"
)


def classify(answer: Answer) -> Outcome:
    """The outcome of an answer, by the first row of RULES that matches; UNKNOWN where none does."""
    return next((rule.outcome for rule in RULES if rule.matches(answer)), Outcome.UNKNOWN)


def render_table() -> str:
    """The table in Markdown, as docs/stripe.md shows it."""
    rows = [(rule.answer, rule.outcome.value, rule.action) for rule in RULES]
    rows.append((UNKNOWN_ANSWER, Outcome.UNKNOWN.value, UNKNOWN_ACTION))
    lines = ["| answer | outcome | what otelbill does |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {answer} | `{outcome}` | {action} |" for answer, outcome, action in rows)])
