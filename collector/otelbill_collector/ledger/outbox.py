"""The Stripe outbox, first half: booking amounts into windows, and turning closed windows into immutable intents.

Does not own delivery (`ledger.deliveries`) nor read models (`ledger.outbox_views`). Every function takes the
connection of the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from otelbill_collector.domain.instants import NANOS, floor_slice
from otelbill_collector.domain.intents import Intent, IntentKind
from otelbill_collector.domain.windows import (
    FUTURE_MAX_NANOS,
    MeterDelta,
    WindowKey,
    choose_stamp,
    derive_identifier,
    quantise,
    require_window_length,
    split_value,
)

CLOSE_BATCH_MAX = 1000  # windows closed in one transaction, so that the ledger's writer is never held for long

_WindowRow = tuple[int, int, int, str, str, int]


@dataclass(frozen=True, slots=True)
class Closing:
    """Under which account, and by which clock, windows are closed. `close_all` closes open windows too."""

    account: str
    livemode: bool
    now_nanos: int
    grace_nanos: int
    close_all: bool = False


def accumulate(conn: sqlite3.Connection, deltas: Iterable[MeterDelta], window_nanos: int) -> None:
    """Add amounts to their windows. Call it in the transaction that moves the fold's high-water mark: exactly once.

    Raises ValueError where a meter is used with two different quanta: money and units must not share a meter.
    """
    require_window_length(window_nanos)
    sums: dict[tuple[str, str, int], tuple[int, int]] = {}
    quanta: dict[tuple[str, str], int] = {}
    for delta in deltas:
        lane_key = (delta.meter, delta.customer_id)
        _require_quantum(lane_key, quanta.setdefault(lane_key, delta.quantum), delta.quantum)
        key = (*lane_key, floor_slice(delta.event_nanos, window_nanos))
        amount, last = sums.get(key, (0, delta.event_nanos))
        sums[key] = (amount + delta.amount, max(last, delta.event_nanos))
    lanes = {key: _require_lane(conn, key, quantum) for key, quantum in quanta.items()}
    booked = dict.fromkeys(lanes.values(), 0)
    for (meter, customer_id, start), (amount, last) in sums.items():
        lane_id = lanes[meter, customer_id]
        booked[lane_id] += amount
        _add_to_window(conn, lane_id, start, window_nanos, amount, last)
    for lane_id, amount in booked.items():
        (before,) = conn.execute("SELECT booked FROM stripe_lane WHERE lane_id = ?", (lane_id,)).fetchone()
        conn.execute("UPDATE stripe_lane SET booked = ? WHERE lane_id = ?", (str(int(before) + amount), lane_id))


def _require_quantum(lane_key: tuple[str, str], known: int, given: int) -> None:
    if known != given:
        raise ValueError(
            f"meter {lane_key[0]} of customer {lane_key[1]} counts {known} sub-units a unit, not {given}: "
            "give money and units meters of different names"
        )


def _require_lane(conn: sqlite3.Connection, lane_key: tuple[str, str], quantum: int) -> int:
    row = conn.execute("SELECT lane_id, quantum FROM stripe_lane WHERE meter = ? AND customer_id = ?", lane_key)
    found = row.fetchone()
    if found is not None:
        _require_quantum(lane_key, int(found[1]), quantum)
        return int(found[0])
    insert = "INSERT INTO stripe_lane (meter, customer_id, quantum) VALUES (?, ?, ?) RETURNING lane_id"
    return int(conn.execute(insert, (*lane_key, str(quantum))).fetchone()[0])


def _add_to_window(
    conn: sqlite3.Connection, lane_id: int, start: int, length: int, amount: int, last_event_nanos: int
) -> None:
    key = (lane_id, start, length)
    row = conn.execute(
        "SELECT amount, settled, last_event_nanos FROM stripe_window"
        " WHERE lane_id = ? AND start_nanos = ? AND length_nanos = ?",
        key,
    ).fetchone()
    if row is None:
        conn.execute(
            "INSERT INTO stripe_window (lane_id, start_nanos, length_nanos, amount, dirty, last_event_nanos)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*key, str(amount), int(amount != 0), last_event_nanos),
        )
        return
    total, settled = int(row[0]) + amount, int(row[1])
    conn.execute(
        "UPDATE stripe_window SET amount = ?, dirty = ?, last_event_nanos = ?"
        " WHERE lane_id = ? AND start_nanos = ? AND length_nanos = ?",
        (str(total), int(total != settled), max(int(row[2]), last_event_nanos), *key),
    )


_WINDOW_DUE = (
    "dirty = 1 AND (:close_all OR (start_nanos + length_nanos + :grace <= :now"
    " AND (closed_nanos IS NULL OR closed_nanos + length_nanos <= :now)))"
)


def _bind_closing(closing: Closing) -> dict[str, int]:
    return {"close_all": int(closing.close_all), "grace": closing.grace_nanos, "now": closing.now_nanos}


def has_due_window(conn: sqlite3.Connection, closing: Closing) -> bool:
    """Whether `close_windows` would find anything to do."""
    query = f"SELECT EXISTS (SELECT 1 FROM stripe_window WHERE {_WINDOW_DUE})"
    return bool(conn.execute(query, _bind_closing(closing)).fetchone()[0])


def close_windows(conn: sqlite3.Connection, closing: Closing) -> tuple[int, int]:
    """Decide the values of windows that are due: (windows closed, intents made). Repeat while `has_due_window`.

    A window is due once it ended `grace` ago; late usage is due at most once a window length, so that stragglers do
    not make an intent each.
    """
    rows: list[_WindowRow] = conn.execute(
        "SELECT lane_id, start_nanos, length_nanos, amount, settled, last_event_nanos"
        f" FROM stripe_window WHERE {_WINDOW_DUE} ORDER BY lane_id, start_nanos LIMIT {CLOSE_BATCH_MAX}",
        _bind_closing(closing),
    ).fetchall()
    made = 0
    for lane_id, windows in groupby(rows, key=lambda row: int(row[0])):
        made += _close_lane(conn, closing, lane_id, windows)
    return len(rows), made


def _close_lane(conn: sqlite3.Connection, closing: Closing, lane_id: int, windows: Iterator[_WindowRow]) -> int:
    meter, customer_id, quantum_text, carry_text, settled_text = conn.execute(
        "SELECT meter, customer_id, quantum, carry, settled FROM stripe_lane WHERE lane_id = ?", (lane_id,)
    ).fetchone()
    quantum, carry, lane_settled, made = int(quantum_text), int(carry_text), int(settled_text), 0
    for _, start, length, total, settled, last_event in windows:
        amount = int(total) - int(settled)
        value, carry_after = quantise(amount, carry=carry, quantum=quantum)
        draft = _Draft(lane_id, meter, customer_id, start, length, amount, carry, carry_after, value, last_event)
        made += _insert_parts(conn, closing, draft, quantum)
        carry, lane_settled = carry_after, lane_settled + amount
        conn.execute(
            "UPDATE stripe_window SET settled = amount, dirty = 0, closed_nanos = ?"
            " WHERE lane_id = ? AND start_nanos = ? AND length_nanos = ?",
            (closing.now_nanos, lane_id, start, length),
        )
    conn.execute(
        "UPDATE stripe_lane SET carry = ?, settled = ? WHERE lane_id = ?", (str(carry), str(lane_settled), lane_id)
    )
    return made


@dataclass(frozen=True, slots=True)
class _Draft:
    """A window's value before it has revisions and identifiers."""

    lane_id: int
    meter: str
    customer_id: str
    start_nanos: int
    length_nanos: int
    amount: int
    carry_before: int
    carry_after: int
    value: int
    last_event_nanos: int


def _insert_parts(conn: sqlite3.Connection, closing: Closing, draft: _Draft, quantum: int) -> int:
    parts = split_value(draft.value)
    stamp = choose_stamp(
        start_nanos=draft.start_nanos, last_event_nanos=draft.last_event_nanos, now_nanos=closing.now_nanos
    )
    amount_left, carry = draft.amount, draft.carry_before
    for position, value in enumerate(parts):
        revision = find_next_revision(conn, draft.lane_id, draft.start_nanos, draft.length_nanos)
        kind = IntentKind.DELTA if revision > position else IntentKind.WINDOW
        last = position == len(parts) - 1
        amount = amount_left if last else value * quantum
        carry_after = draft.carry_after if last else carry
        insert_intent(
            conn,
            NewIntent(
                lane_id=draft.lane_id,
                key=WindowKey(
                    closing.account,
                    closing.livemode,
                    draft.meter,
                    draft.customer_id,
                    draft.start_nanos,
                    draft.length_nanos,
                    revision,
                ),
                kind=IntentKind.CARRY_FORWARD if stamp.carried_forward else kind,
                amounts=(amount, carry, carry_after),
                value=value,
                stamp_seconds=stamp.seconds,
            ),
            closing.now_nanos,
        )
        amount_left, carry = amount_left - amount, carry_after
    return len(parts)


@dataclass(frozen=True, slots=True)
class NewIntent:
    """An intent about to be written down. `amounts` is (amount, carry before, carry after) in sub-units."""

    lane_id: int
    key: WindowKey
    kind: IntentKind
    amounts: tuple[int, int, int]
    value: int
    stamp_seconds: int


def insert_intent(conn: sqlite3.Connection, new: NewIntent, now_nanos: int) -> str:
    """Write an intent down, as pending or (see `find_doubt`) in doubt, and return its identifier."""
    identifier = derive_identifier(new.key)
    stamp_nanos = new.stamp_seconds * NANOS
    due = now_nanos if stamp_nanos <= now_nanos + FUTURE_MAX_NANOS else stamp_nanos
    doubt = find_doubt(conn, new)
    conn.execute(
        "INSERT INTO stripe_intent (identifier, lane_id, account, livemode, start_nanos, length_nanos, revision, kind,"
        " amount, carry_before, carry_after, value, stamp_seconds, made_nanos, due_nanos, state, doubt_nanos)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identifier,
            new.lane_id,
            new.key.account,
            int(new.key.livemode),
            new.key.start_nanos,
            new.key.length_nanos,
            new.key.revision,
            new.kind.value,
            *(str(amount) for amount in new.amounts),
            str(new.value),
            new.stamp_seconds,
            now_nanos,
            due,
            "pending" if doubt is None else "unknown",
            doubt,
        ),
    )
    return identifier


def find_doubt(conn: sqlite3.Connection, new: NewIntent) -> int | None:
    """Since when an intent may be at Stripe before this ledger sends it; None where it certainly is not.

    A restored ledger does not know what was sent between the backup and the restore. A window that had begun by then
    may have been sent under this very identifier, so it starts in doubt: sent again only while Stripe still knows
    its identifiers, and otherwise left to the reconciliation.
    """
    if new.kind is IntentKind.REPLACEMENT:  # the reconciliation found it missing
        return None
    copied = dict(conn.execute("SELECT kind, max(at_nanos) FROM copy_event GROUP BY kind").fetchall())
    if "restore" not in copied or new.key.start_nanos >= copied["restore"]:
        return None
    return max(new.key.start_nanos, int(copied.get("backup", 0)))


def find_next_revision(conn: sqlite3.Connection, lane_id: int, start_nanos: int, length_nanos: int) -> int:
    """The number of the next value of a window: 0 where nothing was sent for it yet."""
    row = conn.execute(
        "SELECT MAX(revision) FROM stripe_intent WHERE lane_id = ? AND start_nanos = ? AND length_nanos = ?",
        (lane_id, start_nanos, length_nanos),
    ).fetchone()
    return 0 if row[0] is None else int(row[0]) + 1


def replace_intent(conn: sqlite3.Connection, intent: Intent, stamp_seconds: int, now_nanos: int) -> str:
    """Give an intent that is certainly not at Stripe up for a new revision of the same value; returns its identifier.

    Raises ValueError where the intent was given up already.
    """
    revision = find_next_revision(conn, intent.lane_id, intent.start_nanos, intent.length_nanos)
    key = WindowKey(
        intent.account,
        intent.livemode,
        intent.meter,
        intent.customer_id,
        intent.start_nanos,
        intent.length_nanos,
        revision,
    )
    amounts = (intent.amount, intent.carry_before, intent.carry_after)
    new = NewIntent(intent.lane_id, key, IntentKind.REPLACEMENT, amounts, intent.value, stamp_seconds)
    identifier = insert_intent(conn, new, now_nanos)
    changed = conn.execute(
        "UPDATE stripe_intent SET state = 'dead', superseded_by = ? WHERE intent_id = ? AND state <> 'dead'",
        (identifier, intent.intent_id),
    )
    if changed.rowcount != 1:
        raise ValueError(f"intent {intent.identifier} was given up already; look for its later revision")
    return identifier
