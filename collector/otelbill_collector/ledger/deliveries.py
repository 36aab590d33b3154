"""The Stripe outbox, second half: which intent may be sent, what became of it, and what is stopped.

Does not own the making of intents (`ledger.outbox`) nor the reading of answers (`export.stripe.answers`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import Intent, IntentKind, IntentState, Stop
from otelbill_collector.domain.windows import FUTURE_MAX_NANOS

# Stripe keeps an identifier unique for at least 24 hours. One hour is left for clocks and for the attempt itself.
DOUBT_AGE_MAX_NANOS = 23 * HOUR_NANOS

INTENT_COLUMNS = (
    "i.intent_id, i.identifier, i.lane_id, i.account, i.livemode, l.meter, l.customer_id, l.quantum, i.start_nanos,"
    " i.length_nanos, i.revision, i.kind, i.amount, i.carry_before, i.carry_after, i.value, i.stamp_seconds,"
    " i.made_nanos, i.state, i.stripe_customer_id, i.attempts, i.attempt_group, i.doubt_nanos, i.last_sent_nanos,"
    " i.due_nanos, i.answer_status, i.answer_code, i.answer_message, i.request_id, i.superseded_by"
)
FROM_INTENTS = " FROM stripe_intent i JOIN stripe_lane l USING (lane_id) "

# Columns of INTENT_COLUMNS that are not stored as what they are: (position, reader).
_READERS = {4: bool, 7: int, 11: IntentKind, 12: int, 13: int, 14: int, 15: int, 18: IntentState}


def read_intent(row: Sequence[object]) -> Intent:
    """An intent from a row of INTENT_COLUMNS."""
    values = [_READERS[position](value) if position in _READERS else value for position, value in enumerate(row)]
    return Intent(*values)  # type: ignore[arg-type]  # SQLite gives untyped rows; the columns are STRICT


def recover_sending(conn: sqlite3.Connection, now_nanos: int) -> int:
    """After a start: what was being sent when the process ended may or may not be at Stripe, and is sent again."""
    changed = conn.execute(
        "UPDATE stripe_intent SET state = 'unknown', due_nanos = ?,"
        " doubt_nanos = COALESCE(doubt_nanos, last_sent_nanos)"
        " WHERE state = 'sending'",
        (now_nanos,),
    )
    return changed.rowcount


@dataclass(frozen=True, slots=True)
class Due:
    """Which intents to list: of one account and mode, due at `now`, or (`ignore_due`) all that may be sent."""

    account: str
    livemode: bool
    now_nanos: int
    limit: int
    ignore_due: bool = False


def list_due(conn: sqlite3.Connection, due: Due) -> list[Intent]:
    """The oldest intent of each lane that may be sent now, oldest first, at most `limit`.

    Left out: stopped scopes whose retry time has not come, and intents in doubt for 23 hours or more, since Stripe
    may have forgotten their identifiers: only a reconciliation may decide about those.
    """
    # One index probe per lane: the state list is that of the partial index, word for word, or it would not be used.
    rows = conn.execute(
        f"SELECT {INTENT_COLUMNS} FROM stripe_lane l JOIN stripe_intent i ON i.intent_id ="
        " (SELECT w.intent_id FROM stripe_intent w WHERE w.lane_id = l.lane_id"
        " AND w.state IN ('pending', 'sending', 'unknown') AND w.state <> 'sending'"
        " AND w.account = :account AND w.livemode = :livemode"
        " AND (w.doubt_nanos IS NULL OR w.doubt_nanos > :forgotten) ORDER BY w.intent_id LIMIT 1)"
        " WHERE (:ignore_due OR i.due_nanos <= :now) AND i.stamp_seconds <= :horizon"
        " AND NOT EXISTS (SELECT 1 FROM stripe_stop s WHERE s.retry_nanos > :now AND (s.scope = 'account'"
        " OR (s.scope = 'meter' AND s.name = l.meter) OR (s.scope = 'lane' AND s.name = CAST(l.lane_id AS TEXT))))"
        " ORDER BY i.intent_id LIMIT :limit",
        {
            "account": due.account,
            "livemode": int(due.livemode),
            "ignore_due": int(due.ignore_due),
            "now": due.now_nanos,
            "horizon": (due.now_nanos + FUTURE_MAX_NANOS) // NANOS,
            "forgotten": due.now_nanos - DOUBT_AGE_MAX_NANOS,
            "limit": due.limit,
        },
    ).fetchall()
    return [read_intent(row) for row in rows]


def mark_sending(conn: sqlite3.Connection, addressed: Iterable[tuple[int, str]], now_nanos: int) -> set[int]:
    """Write down, before a byte leaves, that intents (intent id, Stripe customer) are being sent.

    Returns the ids that may be sent now; left out are those a reconciliation has decided about in the meantime.
    """
    marked = set()
    for intent_id, stripe_customer_id in addressed:
        changed = conn.execute(
            "UPDATE stripe_intent SET state = 'sending', attempts = attempts + 1, last_sent_nanos = ?,"
            " stripe_customer_id = COALESCE(stripe_customer_id, ?)"
            " WHERE intent_id = ? AND state IN ('pending', 'unknown')",
            (now_nanos, stripe_customer_id, intent_id),
        )
        if changed.rowcount == 1:
            marked.add(intent_id)
    return marked


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an answer makes of an intent that was being sent."""

    intent_id: int
    state: IntentState
    due_nanos: int
    doubt_nanos: int | None = None  # set: from now on it may be at Stripe
    renew_key: bool = False  # the next attempt needs a new Idempotency-Key
    readdress: bool = False  # the next attempt reads the customer mapping again
    answer_status: int | None = None
    answer_code: str | None = None
    answer_message: str | None = None
    request_id: str | None = None


def settle(conn: sqlite3.Connection, settlement: Settlement) -> None:
    """Record the answer to an intent that was being sent. Raises ValueError where it was not."""
    changed = conn.execute(
        "UPDATE stripe_intent SET state = ?, due_nanos = ?, doubt_nanos = COALESCE(doubt_nanos, ?),"
        " attempt_group = attempt_group + ?, stripe_customer_id = CASE WHEN ? THEN NULL ELSE stripe_customer_id END,"
        " answer_status = ?, answer_code = ?, answer_message = ?, request_id = ?"
        " WHERE intent_id = ? AND state = 'sending'",
        (
            settlement.state.value,
            settlement.due_nanos,
            settlement.doubt_nanos,
            int(settlement.renew_key),
            int(settlement.readdress),
            settlement.answer_status,
            settlement.answer_code,
            settlement.answer_message,
            settlement.request_id,
            settlement.intent_id,
        ),
    )
    if changed.rowcount != 1:
        raise ValueError(
            f"intent {settlement.intent_id} was not being sent; does a second exporter run on this ledger?"
        )


def confirm(conn: sqlite3.Connection, intent_ids: Iterable[int]) -> int:
    """Record that Stripe's sums hold these intents; one that is being sent just now is left to its answer."""
    values: dict[int, list[int]] = {}
    for intent_id in intent_ids:
        row = conn.execute(
            "UPDATE stripe_intent SET state = 'confirmed'"
            " WHERE intent_id = ? AND state NOT IN ('confirmed', 'dead', 'sending') RETURNING lane_id, value",
            (intent_id,),
        ).fetchone()
        if row is not None:
            values.setdefault(int(row[0]), []).append(int(row[1]))
    for lane_id, confirmed in values.items():
        (before,) = conn.execute("SELECT confirmed FROM stripe_lane WHERE lane_id = ?", (lane_id,)).fetchone()
        total = str(int(before) + sum(confirmed))
        conn.execute("UPDATE stripe_lane SET confirmed = ? WHERE lane_id = ?", (total, lane_id))
    return sum(len(confirmed) for confirmed in values.values())


def put_stop(conn: sqlite3.Connection, stop: Stop) -> None:
    """Stop a scope, or move its retry time; `since` stays that of the first time."""
    conn.execute(
        "INSERT INTO stripe_stop (scope, name, code, message, since_nanos, retry_nanos) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (scope, name) DO UPDATE SET code = excluded.code, message = excluded.message,"
        " retry_nanos = excluded.retry_nanos",
        (stop.scope, stop.name, stop.code, stop.message, stop.since_nanos, stop.retry_nanos),
    )


def clear_stop(conn: sqlite3.Connection, scope: str, name: str) -> None:
    """Let a scope send again."""
    conn.execute("DELETE FROM stripe_stop WHERE scope = ? AND name = ?", (scope, name))


def retry_stops(conn: sqlite3.Connection, now_nanos: int, *, except_code: str) -> None:
    """Let every stopped scope be tried once now; it stays listed until something of it is delivered.

    Stops of `except_code` are left: they end when the exporter finds their cause gone, without asking Stripe.
    """
    conn.execute(
        "UPDATE stripe_stop SET retry_nanos = :now WHERE retry_nanos > :now AND code <> :code",
        {"now": now_nanos, "code": except_code},
    )


def clear_all_stops(conn: sqlite3.Connection) -> None:
    """Let everything be tried again: a new process may have a new key, mapping or meter."""
    conn.execute("DELETE FROM stripe_stop")


def list_stops(conn: sqlite3.Connection) -> list[Stop]:
    """Everything that is stopped, widest scope first."""
    rows = conn.execute(
        "SELECT scope, name, code, message, since_nanos, retry_nanos FROM stripe_stop ORDER BY scope, name"
    )
    return [Stop(*row) for row in rows]


def list_waiting_lanes(conn: sqlite3.Connection) -> list[tuple[int, str]]:
    """(lane id, customer id) of every lane with intents to send."""
    rows = conn.execute(
        "SELECT lane_id, customer_id FROM stripe_lane WHERE lane_id IN"
        " (SELECT lane_id FROM stripe_intent WHERE state IN ('pending', 'sending', 'unknown')) ORDER BY lane_id"
    )
    return [(int(lane_id), str(customer_id)) for lane_id, customer_id in rows]
