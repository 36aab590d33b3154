"""Grants, voids and transfers in the ledger: append-only tables, and posting by difference. See docs/credits.md.

Owns their SQL. What is burned is `domain.credits`' to say, over usage from `credit_usage`; what stands here follows it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from otelbill_collector.domain.credits import Burned, Demand, Place, burn
from otelbill_collector.domain.grants import (
    SLICE_NANOS,
    Grant,
    InvalidGrant,
    Measure,
    Origin,
    Rollover,
    Scope,
    Void,
)
from otelbill_collector.domain.instants import floor_slice, format_instant
from otelbill_collector.domain.transfers import Flow, Key, Kind, Transfer, list_flows, list_transfers, sum_posted
from otelbill_collector.ledger.credit_usage import find_horizon, load_demands

_GRANT_COLUMNS = (
    "grant_id, customer_id, measure, asset, amount, origin, priority, start_nanos, expiry_nanos, project_id, step,"
    " model, unit, rollover, reason, operator, given_nanos"
)
_TRANSFER_COLUMNS = (
    "transfer_id, kind, grant_id, at_nanos, project_id, step, model, unit, currency, customer_id, source, target,"
    " asset, amount, value_attos, booked_nanos, corrects"
)
_FOREVER = 2**62


class UnknownGrant(LookupError):
    """There is no such grant; the message says how to list those there are."""

    def __init__(self, grant_id: str) -> None:
        super().__init__(f"there is no grant {grant_id[:64]!r}; `otelbill credits list` shows all")


@dataclass(frozen=True, slots=True)
class CreditBook:
    """What one customer was granted, and what became of it up to an instant."""

    customer_id: str
    grants: tuple[Grant, ...]  # with those made by rollover
    voids: tuple[Void, ...]
    burned: Burned
    at_nanos: int


def save_grant(connection: sqlite3.Connection, grant: Grant) -> None:
    """Append a grant. Call inside a write transaction. Raises InvalidGrant for one that is there already."""
    if connection.execute("SELECT 1 FROM credit_grant WHERE grant_id = ?", (grant.grant_id,)).fetchone():
        raise InvalidGrant(
            f"the same was granted before, as {grant.grant_id}; if it is meant twice, say so in the reason"
        )
    connection.execute(
        f"INSERT INTO credit_grant ({_GRANT_COLUMNS}) VALUES ({', '.join('?' * 17)})",
        (
            *(grant.grant_id, grant.customer_id, grant.measure.value, grant.asset, str(grant.amount)),
            *(grant.origin.value, grant.priority, grant.start_nanos, grant.expiry_nanos),
            *(grant.scope.project_id, grant.scope.step, grant.scope.model, grant.scope.unit),
            *(_render_rollover(grant.rollover), grant.reason, grant.operator, grant.given_nanos),
        ),
    )
    _count_change(connection, [grant.customer_id])


def save_void(connection: sqlite3.Connection, void: Void) -> Grant:
    """Append a void; returns its grant. Call inside a write transaction. Raises UnknownGrant, InvalidGrant."""
    grant = _require_grant(connection, void.grant_id, void.given_nanos)
    before = connection.execute("SELECT given_nanos FROM credit_void WHERE grant_id = ?", (void.grant_id,)).fetchone()
    if before is not None:
        raise InvalidGrant(f"grant {void.grant_id} is void already, since {format_instant(before[0])}")
    if grant.expiry_nanos is not None and grant.expiry_nanos <= void.given_nanos:
        raise InvalidGrant(f"grant {void.grant_id} expired at {format_instant(grant.expiry_nanos)}: nothing to void")
    values = (void.grant_id, void.at_nanos, void.reason, void.operator, void.given_nanos)
    connection.execute("INSERT INTO credit_void VALUES (?, ?, ?, ?, ?)", values)
    _count_change(connection, [grant.customer_id])
    return grant


def _require_grant(connection: sqlite3.Connection, grant_id: str, now_nanos: int) -> Grant:
    query = f"SELECT {_GRANT_COLUMNS} FROM credit_grant WHERE grant_id = ?"
    row = connection.execute(query, (grant_id,)).fetchone()
    if row is not None:
        return _read_grant(row)
    for customer_id in list_customers(connection):  # it may have come of a rollover
        for grant in load_book(connection, customer_id, now_nanos).grants:
            if grant.grant_id == grant_id:
                return grant
    raise UnknownGrant(grant_id)


def list_grants(connection: sqlite3.Connection, customer_id: str | None = None) -> list[Grant]:
    """Grants as they were given, of one customer or of all, in the order in which they burn."""
    clause, values = ("", ()) if customer_id is None else (" WHERE customer_id = ?", (customer_id,))
    rows = connection.execute(f"SELECT {_GRANT_COLUMNS} FROM credit_grant{clause}", values)
    return sorted((_read_grant(row) for row in rows), key=lambda grant: (grant.customer_id, grant.order))


def list_voids(connection: sqlite3.Connection) -> list[Void]:
    """All voids, in the order of their grants' ids."""
    rows = connection.execute("SELECT grant_id, at_nanos, reason, operator, given_nanos FROM credit_void")
    return [Void(*row) for row in rows]


def list_customers(connection: sqlite3.Connection) -> list[str]:
    """Customers that were ever granted something."""
    return [row[0] for row in connection.execute("SELECT DISTINCT customer_id FROM credit_grant ORDER BY 1")]


def load_book(
    connection: sqlite3.Connection, customer_id: str, at_nanos: int, *, extra: Iterable[Demand] = (), tail: bool = True
) -> CreditBook:
    """Grants and what is burned of them by usage before an instant: that of segments not folded yet too, with `tail`.

    A quarter of an hour that has begun counts. `extra` is paid for as well, as if it were usage.
    """
    grants = list_grants(connection, customer_id)
    voids = list_voids(connection)
    demands = list(extra)
    if grants:
        horizon = find_horizon(connection, customer_id, at_nanos, demands)
        # A change of a later period's charge means nothing without that charge itself.
        demands = [demand for demand in demands if demand.place.at_nanos < horizon]
        demands += load_demands(connection, customer_id, before=horizon, tail=tail)
    burned = burn(grants, voids, demands, at_nanos)
    known = {grant.grant_id: grant for grant in (*grants, *burned.successors.values())}
    ordered = sorted(known.values(), key=lambda grant: grant.order)
    return CreditBook(
        customer_id, tuple(ordered), tuple(void for void in voids if void.grant_id in known), burned, at_nanos
    )


def find_balance(book: CreditBook) -> dict[str, int]:
    """Asset -> what all grants in force hold together: attos of a currency, millionths of a unit."""
    sums: dict[str, int] = {}
    for grant in book.grants:
        if grant.grant_id in book.burned.left:
            sums[grant.asset] = sums.get(grant.asset, 0) + book.burned.left[grant.grant_id]
    return sums


def mark_changed(connection: sqlite3.Connection, customer_ids: Iterable[str]) -> None:
    """Have the credits of those customers who have any posted again. Call inside a write transaction."""
    granted = set(list_customers(connection))
    _count_change(connection, sorted(granted & set(customer_ids)))


# credit_post.dirty counts changes of usage and grants; the transfers know of them while it is negative.


def _count_change(connection: sqlite3.Connection, customer_ids: Sequence[str]) -> None:
    connection.executemany(
        "INSERT INTO credit_post VALUES (?, 0, NULL, 1) ON CONFLICT (customer_id) DO UPDATE SET dirty = abs(dirty) + 1",
        [(customer_id,) for customer_id in customer_ids],
    )


def list_due(connection: sqlite3.Connection, now_nanos: int) -> list[str]:
    """Customers whose transfers do not say what grants and usage do, or not up to now."""
    rows = connection.execute(
        "SELECT customer_id FROM credit_post WHERE dirty > 0 OR next_nanos <= ? ORDER BY customer_id",
        (now_nanos,),
    )
    return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class Posting:
    """Transfers that are to be written, and what they were made from: they stand only while that is unchanged."""

    customer_id: str
    until_nanos: int
    next_nanos: int | None
    changes: int
    last_id: int
    transfers: tuple[Transfer, ...]


def prepare_posting(connection: sqlite3.Connection, customer_id: str, now_nanos: int) -> Posting:
    """The difference between what is burned and what is posted. Reads only, so that nobody waits for it.

    Time never goes back here: a clock that does would take back what has expired.
    """
    changes, until = _find_post(connection, customer_id)
    until = max(until, now_nanos)
    book = load_book(connection, customer_id, until, tail=False)
    last_id = _find_last_id(connection)
    given = [grant for grant in book.grants if grant.parent_id is None]
    made = list_transfers(
        list_flows(given, book.burned),
        sum_posted(list_posted(connection, customer_id)),
        customer_id=customer_id,
        booked_nanos=now_nanos,
        next_id=last_id + 1,
    )
    return Posting(customer_id, until, book.burned.next_nanos, changes, last_id, tuple(made))


def save_posting(connection: sqlite3.Connection, posting: Posting) -> bool:
    """Append its transfers; False, with nothing written, if what it was made from has changed. Call inside a write
    transaction.
    """
    changes, until = _find_post(connection, posting.customer_id)
    if changes != posting.changes or until > posting.until_nanos or _find_last_id(connection) != posting.last_id:
        return False
    connection.executemany(
        f"INSERT INTO credit_transfer ({_TRANSFER_COLUMNS}) VALUES ({', '.join('?' * 17)})",
        map(_render_transfer, posting.transfers),
    )
    connection.execute(
        "UPDATE credit_post SET until_nanos = ?, next_nanos = ?, dirty = -abs(dirty) WHERE customer_id = ?",
        (posting.until_nanos, posting.next_nanos, posting.customer_id),
    )
    return True


def _find_post(connection: sqlite3.Connection, customer_id: str) -> tuple[int, int]:
    query = "SELECT abs(dirty), until_nanos FROM credit_post WHERE customer_id = ?"
    changes, until = connection.execute(query, (customer_id,)).fetchone() or (0, 0)
    return changes, until


def _find_last_id(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(transfer_id), 0) FROM credit_transfer").fetchone()[0])


def list_posted(connection: sqlite3.Connection, customer_id: str | None = None) -> list[Transfer]:
    """Transfers of one customer or of all, in the order of posting."""
    clause, values = ("", ()) if customer_id is None else (" WHERE customer_id = ?", (customer_id,))
    rows = connection.execute(f"SELECT {_TRANSFER_COLUMNS} FROM credit_transfer{clause} ORDER BY transfer_id", values)
    return [_read_transfer(row) for row in rows]


@dataclass(frozen=True, slots=True)
class CreditLine:
    """What one grant pays in an interval: `charge_attos` is negative, `amount` is in the grant's measure."""

    grant: Grant
    currency: str
    charge_attos: int
    amount: int


@dataclass(frozen=True, slots=True)
class CreditLines:
    """Lines in the order of burning, and the usage that no credit paid for; lines and overage add up to the charges."""

    lines: tuple[CreditLine, ...]
    overage: tuple[Demand, ...]

    @property
    def overage_attos(self) -> int:
        """Charges that remain to be paid."""
        return sum(demand.charge_attos for demand in self.overage)


def list_credit_lines(
    connection: sqlite3.Connection,
    customer_id: str,
    from_nanos: int,
    to_nanos: int,
    *,
    charges: Iterable[Demand] = (),
) -> CreditLines:
    """What credits pay of the usage with event time in [from, to), both on quarters of an hour; reads only.

    `charges` are those of the period that no event carries and that `save_period_charges` has not been given: they are
    paid for after all usage of the period, at `find_charge_time(to_nanos)`. Without grants, all usage is overage.
    """
    book = load_book(connection, customer_id, to_nanos, extra=charges)
    burned = book.burned
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for item in burned.allocations:
        if item.place.at_nanos >= from_nanos:
            before = sums.get((item.grant_id, item.currency), (0, 0))
            sums[item.grant_id, item.currency] = (before[0] + item.value_attos, before[1] + item.amount)
    lines = [
        CreditLine(grant, currency, -value, amount)
        for grant in book.grants
        for (grant_id, currency), (value, amount) in sorted(sums.items())
        if grant_id == grant.grant_id
    ]
    if not book.grants:
        burned = burn((), (), [*load_demands(connection, customer_id, before=to_nanos), *charges], to_nanos)
    return CreditLines(tuple(lines), tuple(item for item in burned.overage if item.place.at_nanos >= from_nanos))


def find_charge_time(to_nanos: int) -> int:
    """When the charges of a whole period are paid for: in its last quarter of an hour, before its end."""
    return floor_slice(to_nanos - 1, SLICE_NANOS)


def save_period_charges(
    connection: sqlite3.Connection, customer_id: str, charges: Iterable[Demand], *, origin: str, booked_nanos: int
) -> None:
    """Append charges that no event carries, for credits to pay from then on; negative ones take back. Call inside a
    write transaction, once for an invoice: `origin` names it.
    """
    rows = [
        (customer_id, *demand.place, demand.currency, str(demand.charge_attos), origin, booked_nanos)
        for demand in charges
        if demand.charge_attos
    ]
    connection.executemany(
        "INSERT INTO credit_charge (customer_id, at_nanos, project_id, step, model, unit, currency, charge_attos,"
        " origin, booked_nanos) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    mark_changed(connection, [customer_id])


def _render_rollover(rollover: Rollover | None) -> str | None:
    if rollover is None:
        return None
    maximum = None if rollover.maximum is None else str(rollover.maximum)
    return json.dumps({"until": rollover.until_nanos, "percent_scaled": rollover.percent_scaled, "maximum": maximum})


def _read_rollover(text: str | None) -> Rollover | None:
    if text is None:
        return None
    found = json.loads(text)
    maximum = None if found["maximum"] is None else int(found["maximum"])
    return Rollover(found["until"], found["percent_scaled"], maximum)


def _read_grant(row: Sequence[Any]) -> Grant:
    (_, customer_id, measure, asset, amount, origin, priority, start, expiry, project, step, model, unit, rollover,
     reason, operator, given) = row  # fmt: skip
    kind = Measure(measure)
    return Grant(
        customer_id=customer_id,
        measure=kind,
        asset=asset,
        amount=int(amount),
        start_nanos=start,
        reason=reason,
        operator=operator,
        given_nanos=given,
        origin=Origin(origin),
        priority=priority,
        expiry_nanos=expiry,
        scope=Scope(project, step, model, unit),
        rollover=_read_rollover(rollover),
    )


def _render_transfer(item: Transfer) -> tuple[Any, ...]:
    key, flow = item.key, item.flow
    return (
        *(item.transfer_id, key.kind.value, key.grant_id, *key.place, key.currency, item.customer_id),
        *(flow.source, flow.target, flow.asset, str(flow.amount), str(flow.value_attos)),
        *(item.booked_nanos, item.corrects),
    )


def _read_transfer(row: Sequence[Any]) -> Transfer:
    transfer_id, kind, grant_id, at, project, step, model, unit, currency, customer_id, *rest = row
    source, target, asset, amount, value, booked, corrects = rest
    key = Key(Kind(kind), grant_id, Place(at, project, step, model, unit), currency)
    return Transfer(
        transfer_id, key, customer_id, Flow(source, target, asset, int(amount), int(value)), booked, corrects
    )
