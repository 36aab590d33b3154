"""Read models of the Stripe outbox: the status, the intents behind a bill line, and what a reconciliation compares.

Reads only. Sums are added in Python, because they do not fit SQLite's 64 bits.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from decimal import Decimal

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import (
    DELIVERED_STATES,
    WAITING_STATES,
    Intent,
    IntentState,
    LaneSums,
    OutboxStatus,
)
from otelbill_collector.domain.money import EXACT
from otelbill_collector.ledger.deliveries import FROM_INTENTS, INTENT_COLUMNS, list_stops, read_intent

_HOUR_SECONDS = HOUR_NANOS // NANOS


def status(conn: sqlite3.Connection) -> OutboxStatus:
    """The outbox at a glance: counts by state, the oldest waiting intent, stops, and every lane's books."""
    waiting = conn.execute(
        "SELECT account, livemode, COUNT(*) FROM stripe_intent WHERE state IN ('pending', 'sending', 'unknown')"
        " GROUP BY account, livemode"
    )
    return OutboxStatus(
        counts=count_states(conn),
        oldest_waiting_nanos=find_oldest_waiting(conn),
        waiting_by_account={(str(account), bool(livemode)): int(count) for account, livemode, count in waiting},
        stops=tuple(list_stops(conn)),
        lanes=tuple(list_lane_sums(conn)),
    )


def find_oldest_waiting(conn: sqlite3.Connection) -> int | None:
    """When the oldest intent that is not delivered was made."""
    row = conn.execute("SELECT MIN(made_nanos) FROM stripe_intent WHERE state IN ('pending', 'sending', 'unknown')")
    oldest: int | None = row.fetchone()[0]
    return oldest


def count_states(conn: sqlite3.Connection) -> dict[IntentState, int]:
    """Intents by state; every state is named, with 0 where there is none."""
    counts = dict.fromkeys(IntentState, 0)
    for state, count in conn.execute("SELECT state, intents FROM stripe_intent_count"):
        counts[IntentState(state)] = int(count)
    return counts


_Values = dict[tuple[int, IntentState], int]
_Amounts = dict[int, tuple[int, int]]


def list_lane_sums(conn: sqlite3.Connection) -> list[LaneSums]:
    """The books of every lane, exact. Costs one row per lane and per intent that is not confirmed yet."""
    amounts: _Amounts = {}
    values: _Values = {}
    for lane_id, booked, settled, confirmed in conn.execute(
        "SELECT lane_id, booked, settled, confirmed FROM stripe_lane"
    ):
        amounts[lane_id] = (int(booked), int(settled))
        values[lane_id, IntentState.CONFIRMED] = int(confirmed)
    # The condition is that of the partial index, word for word, or it would not be used.
    _add_values(values, conn, "state NOT IN ('confirmed', 'dead')")
    return _assemble_sums(conn, amounts, values)


def recompute_lane_sums(conn: sqlite3.Connection) -> list[LaneSums]:
    """The same from nothing but windows and intents: an audit, at the cost of one pass over all of them."""
    amounts: _Amounts = {}
    for lane_id, amount, settled in conn.execute("SELECT lane_id, amount, settled FROM stripe_window"):
        booked_before, settled_before = amounts.get(lane_id, (0, 0))
        amounts[lane_id] = (booked_before + int(amount), settled_before + int(settled))
    values: _Values = {}
    _add_values(values, conn, "superseded_by IS NULL")
    return _assemble_sums(conn, amounts, values)


def _add_values(values: _Values, conn: sqlite3.Connection, condition: str) -> None:
    for lane_id, state, value in conn.execute(f"SELECT lane_id, state, value FROM stripe_intent WHERE {condition}"):
        key = (lane_id, IntentState(state))
        values[key] = values.get(key, 0) + int(value)


def _assemble_sums(conn: sqlite3.Connection, amounts: _Amounts, values: _Values) -> list[LaneSums]:
    sums = []
    for lane_id, meter, customer_id, quantum_text, carry in conn.execute(
        "SELECT lane_id, meter, customer_id, quantum, carry FROM stripe_lane ORDER BY meter, customer_id"
    ):
        by_state = {state: values.get((lane_id, state), 0) for state in IntentState}
        quantum = int(quantum_text)
        booked, settled = amounts.get(lane_id, (0, 0))
        sums.append(
            LaneSums(
                lane_id=lane_id,
                meter=meter,
                customer_id=customer_id,
                booked=divide_exact(booked, quantum),
                open=divide_exact(booked - settled, quantum),
                carry=divide_exact(int(carry), quantum),
                intended=sum(by_state.values()),
                delivered=sum(by_state[state] for state in DELIVERED_STATES),
                waiting=sum(by_state[state] for state in WAITING_STATES),
                refused=by_state[IntentState.REJECTED] + by_state[IntentState.MISMATCH],
            )
        )
    return sums


def divide_exact(amount: int, quantum: int) -> Decimal:
    """Whole units and their exact fraction; quanta are powers of ten, so the quotient always terminates."""
    quotient = EXACT.divide(Decimal(amount), Decimal(quantum))
    # Whole numbers keep all their digits, because sums are shown by str(): 1000000, not 1E+6.
    return Decimal(amount // quantum) if amount % quantum == 0 else quotient.normalize(EXACT)


def find_intents_for(
    conn: sqlite3.Connection,
    *,
    identifier: str | None = None,
    meter: str | None = None,
    customer_id: str | None = None,
    event_nanos: int | None = None,
) -> list[Intent]:
    """Intents by identifier (or Idempotency-Key), or by meter, customer and the instant of an event in their window."""
    rows = conn.execute(
        f"SELECT {INTENT_COLUMNS}{FROM_INTENTS}"
        "WHERE (:identifier IS NULL OR i.identifier = :identifier)"
        " AND (:meter IS NULL OR l.meter = :meter) AND (:customer IS NULL OR l.customer_id = :customer)"
        " AND (:event IS NULL OR (i.start_nanos <= :event AND :event < i.start_nanos + i.length_nanos))"
        " ORDER BY i.intent_id",
        {
            "identifier": None if identifier is None else _cut_attempt_group(identifier),
            "meter": meter,
            "customer": customer_id,
            "event": event_nanos,
        },
    )
    return [read_intent(row) for row in rows]


def _cut_attempt_group(identifier: str) -> str:
    """`ob1.abc.3` is the Idempotency-Key of the fourth attempt group of `ob1.abc`."""
    return ".".join(identifier.split(".")[:2])


@dataclass(frozen=True, slots=True)
class OpenAmount:
    """What is booked for an hour of a lane but not yet decided, in whole units and their exact fraction."""

    meter: str
    customer_id: str
    hour_seconds: int
    amount: Decimal


def list_intents_between(conn: sqlite3.Connection, *, from_seconds: int, to_seconds: int) -> list[Intent]:
    """Standing intents stamped in [from, to), in the order they were made."""
    rows = conn.execute(
        f"SELECT {INTENT_COLUMNS}{FROM_INTENTS}"
        "WHERE i.stamp_seconds >= ? AND i.stamp_seconds < ? AND i.superseded_by IS NULL ORDER BY i.intent_id",
        (from_seconds, to_seconds),
    )
    return [read_intent(row) for row in rows]


def find_oldest_unconfirmed(conn: sqlite3.Connection) -> int | None:
    """The stamp, in seconds, of the oldest intent that no comparison has confirmed yet."""
    row = conn.execute(
        "SELECT MIN(stamp_seconds) FROM stripe_intent WHERE state NOT IN ('confirmed', 'dead')"
    ).fetchone()
    return None if row[0] is None else int(row[0])


def list_open_amounts(conn: sqlite3.Connection) -> list[OpenAmount]:
    """Everything booked that no intent carries yet, by hour; carries of lanes are not in it."""
    rows = conn.execute(
        "SELECT l.meter, l.customer_id, l.quantum, w.start_nanos, w.amount, w.settled"
        " FROM stripe_window w JOIN stripe_lane l USING (lane_id) WHERE w.dirty = 1"
    )
    return [
        OpenAmount(
            meter,
            customer_id,
            start // HOUR_NANOS * _HOUR_SECONDS,
            divide_exact(int(amount) - int(settled), int(quantum)),
        )
        for meter, customer_id, quantum, start, amount, settled in rows
    ]
