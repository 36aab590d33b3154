"""What in the ledger still needs evidence, and from which event time on: the billing horizon. Reads only.

Periods and invoices are the caller's to judge, since calendars are configuration; their usage is found here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from otelbill_collector.domain.instants import DAY_NANOS, format_instant
from otelbill_collector.domain.retention import Holder
from otelbill_collector.ledger import credit_usage, meters
from otelbill_collector.ledger.credits import list_customers
from otelbill_collector.ledger.journal import find_high_water, find_last_segment
from otelbill_collector.ledger.openings import HELD, SUSPENSE, UNPRICED
from otelbill_collector.ledger.pruning import list_marks
from otelbill_collector.ledger.tombstones import find_pruned

_REMEDIES = {
    HELD: "`otelbill held` lists them, `otelbill resolve` or `otelbill adjust --void` settles them",
    UNPRICED: "`otelbill held` lists them; add a price and restart, or `otelbill adjust`",
    SUSPENSE: "`otelbill suspense` lists them, `otelbill adjust --customer` assigns them",
}
_GROUP_DAYS = 2  # a group is looked up within a day of a span, and those within a day of that


def list_holders(connection: sqlite3.Connection, before_nanos: int, *, metered: bool) -> Iterator[Holder]:
    """Everything but periods that needs evidence from before an instant. `metered`: Stripe is configured."""
    for holder in (
        *_list_openings(connection),
        *_list_due(connection),
        *_list_windows(connection, metered=metered),
        *_list_credits(connection),
    ):
        if holder.from_nanos < before_nanos:
            yield holder


def _list_openings(connection: sqlite3.Connection) -> Iterator[Holder]:
    query = "SELECT kind, min(ended_nanos), count(*) FROM open_event GROUP BY kind ORDER BY kind"
    for kind, nanos, count in connection.execute(query).fetchall():
        detail = f"{count} events are {'in ' if kind == SUSPENSE else ''}{kind}, the oldest of {format_instant(nanos)}"
        yield Holder(kind, nanos, detail, _REMEDIES[kind])


def _list_due(connection: sqlite3.Connection) -> Iterator[Holder]:
    day, count = connection.execute("SELECT min(day), count(*) FROM due_group").fetchone()
    if day is not None:
        nanos = (day - _GROUP_DAYS) * DAY_NANOS
        detail = f"{count} claim groups are to be decided again, the oldest of {format_instant(day * DAY_NANOS)[:10]}"
        yield Holder("due_group", nanos, detail, "they are decided by themselves; the log says what hinders it")


def _list_windows(connection: sqlite3.Connection, *, metered: bool) -> Iterator[Holder]:
    (dirty,) = connection.execute("SELECT min(start_nanos) FROM stripe_window WHERE dirty = 1").fetchone()
    if dirty is not None:
        detail = f"usage from {format_instant(dirty)} on is in Stripe windows that are not closed"
        yield Holder("stripe_window", dirty, detail, "they close by themselves, or with `otelbill stripe flush`")
    query = "SELECT min(start_nanos), count(*) FROM stripe_intent WHERE state NOT IN ('confirmed', 'dead')"
    nanos, count = connection.execute(query).fetchone()
    if nanos is not None:
        detail = f"{count} Stripe intents are not confirmed, the oldest of {format_instant(nanos)}"
        yield Holder(
            "stripe_intent", nanos, detail, "`otelbill reconcile` confirms them, `otelbill stripe status` says more"
        )
    if not metered and find_high_water(connection, meters.NAME):
        detail = "the ledger has Stripe windows, and the configuration has no stripe section to sum them by"
        yield Holder("stripe", 0, detail, "run with the configuration of the collector")


def _list_credits(connection: sqlite3.Connection) -> Iterator[Holder]:
    known = set(list_customers(connection))
    query = "SELECT customer_id, next_nanos, dirty FROM credit_post WHERE dirty > 0 OR next_nanos IS NOT NULL"
    for customer_id, following, dirty in connection.execute(query):
        if customer_id in known:
            nanos = 0 if dirty > 0 else following
            yield Holder("credits", nanos, f"credits of {customer_id} are not posted", "the collector posts them")


class Extent(NamedTuple):
    """Segments that could go together: what there is in them. `last` is `first` - 1 where none could."""

    first: int
    last: int
    records: int
    body_bytes: int
    ended_min: int
    ended_max: int


def find_extent(connection: sqlite3.Connection, before_nanos: int, *, metered: bool) -> Extent:
    """The segments after those that are gone, as far as all their events ended before an instant and are folded."""
    first = find_pruned(connection) + 1
    marks = list_marks(connection, metered=metered)
    marks += [find_high_water(connection, credit_usage.NAME)] if list_customers(connection) else []
    last = min(*marks, find_last_segment(connection) - 1)  # the newest stays, so that the chain goes on from it
    query = "SELECT segment_id FROM segment WHERE segment_id >= ? AND ended_max >= ? ORDER BY segment_id LIMIT 1"
    row = connection.execute(query, (first, before_nanos)).fetchone()
    last = last if row is None else min(last, row[0] - 1)
    if last < first:
        return Extent(first, first - 1, 0, 0, 0, 0)
    query = (
        "SELECT sum(record_count), sum(length(body)), min(ended_min), max(ended_max) FROM segment"
        " WHERE segment_id BETWEEN ? AND ?"
    )
    return Extent(first, last, *connection.execute(query, (first, last)).fetchone())
