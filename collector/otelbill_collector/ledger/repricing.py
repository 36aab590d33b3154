"""What booked usage would be charged under other prices, by columns. Reads segments, writes nothing.

Sums by customer, as booked and under the other prices; and by billing period what its statement is made of on both
sides. Does not know terms or invoices (see `simulation`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.money import EXACT
from otelbill_collector.domain.periods import BillingCalendar, Period
from otelbill_collector.domain.prices import list_counted, list_covering
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.statements import UsageSum
from otelbill_collector.domain.usage import STANDARD_UNITS, Quantity, RatingState
from otelbill_collector.ledger.amount_columns import Amounts, read_amounts
from otelbill_collector.ledger.column_rating import RATING_COLUMNS, ColumnRater, RatedRows
from otelbill_collector.ledger.journal import find_price_version, list_tables
from otelbill_collector.ledger.segments import add_quantities, parse_quantities
from otelbill_collector.ledger.sums import (
    Groups,
    Key,
    count_signs,
    encode_key,
    group_rows,
    list_values,
    read_integers,
    read_signs,
    sum_amounts,
    sum_integers,
)

Int64s = NDArray[np.int64]
Flags = NDArray[np.bool_]
Progress = Callable[[int, int], None]  # segments done, segments in all

SCOPE_COLUMNS = ("customer_id", "provider", "model", "step")
BOOKED_COLUMNS = ("sign", "rating", "currency", "cost", "charge", "price_version")
_BATCH_ROWS = 200_000
_PRICED = pa.array([RatingState.RATED.value, RatingState.UNPRICED.value])
_NAMES = ("step", "provider", "model")


@dataclass(slots=True)
class Repriced:
    """Events of one customer, or the net of their bookings and reversals, with what is booked and what would be.

    Amounts in attos. `booked_uncharged` and `uncharged` count events without a charge, then and now.
    """

    events: int = 0
    booked_charge_attos: int = 0
    booked_cost_attos: int = 0
    booked_uncharged: int = 0
    charge_attos: int = 0
    cost_attos: int = 0
    uncharged: int = 0
    changed: int = 0  # events that `rerate` would book again

    def add(self, other: Repriced) -> None:
        """Add another group."""
        for name in Repriced.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Scope:
    """Which events: [from, to) of event time, and exact values of columns. `fixed` events keep what is booked."""

    from_nanos: int | None = None
    to_nanos: int | None = None
    where: dict[str, str] = field(default_factory=dict)
    fixed: Collection[str] = ()

    def holds(self, period: Period) -> bool:
        """Whether a billing period lies in the scope as a whole."""
        begun = self.from_nanos is None or self.from_nanos <= period.start_nanos
        return begun and (self.to_nanos is None or period.end_nanos <= self.to_nanos)


@dataclass(frozen=True, slots=True)
class PeriodSplit:
    """How to sum by billing period: each customer's calendar, and whether discounts tell names of usage apart."""

    find_calendar: Callable[[str], BillingCalendar]
    by_names: bool = False


Uses = dict[tuple[str, Period], dict[tuple[Any, ...], UsageSum]]
"""By customer and period: sums of what events are charged by themselves, and of what period charges count."""


@dataclass(slots=True)
class Repricing:
    """What was found: sums by customer, and by period on both sides. `bodies` are the other prices' versions,
    `instants` some of the event times: one at least of each customer's period.
    """

    sums: dict[str | None, Repriced] = field(default_factory=dict)
    booked: Uses = field(default_factory=dict)
    then: Uses = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)
    instants: dict[tuple[str | None, Period | None], int] = field(default_factory=dict)


def sum_repriced(
    connection: sqlite3.Connection, rater: Rater, scope: Scope, progress: Progress, split: PeriodSplit | None = None
) -> Repricing:
    """By customer, what may be billed in the scope, as booked and under the rater's prices. Without what is held."""
    found = Repricing()
    columns = ColumnRater(rater)
    for table in _list_batches(connection, scope, progress):
        if table.num_rows:
            _Batch(connection, table, columns, scope, split).add_to(found)
    return found


def match_scope(table: pa.Table, scope: Scope) -> pa.ChunkedArray:
    """Rows of a scope, whoever fixed them."""
    mask = pc.is_valid(table["ended_nanos"])
    if scope.from_nanos is not None:
        mask = pc.and_(mask, pc.greater_equal(table["ended_nanos"], scope.from_nanos))
    if scope.to_nanos is not None:
        mask = pc.and_(mask, pc.less(table["ended_nanos"], scope.to_nanos))
    for name, value in scope.where.items():
        mask = pc.and_(mask, pc.fill_null(pc.equal(table[name], value), False))
    return mask


def match_booked(connection: sqlite3.Connection, table: pa.Table, rated: RatedRows, currency: str) -> Flags:
    """Rows that are booked as they would be now: equal in state and money, counted alike."""
    same = rated.cost.match(read_amounts(table["cost"])) & rated.charge.match(read_amounts(table["charge"]))
    key = encode_key(table["rating"])
    places = {value: place for place, value in enumerate(key.values)}
    states = [places.get(form.state.value, -1) for form in rated.forms]
    same &= np.array(states, dtype=np.int64)[rated.form] == key.codes
    key = encode_key(table["currency"])
    same &= np.array([value == currency for value in key.values], dtype=np.bool_)[key.codes]
    key = encode_key(table["price_version"])
    numbers: dict[tuple[tuple[str, str], ...], int] = {}
    booked = [list_counted(find_price_version(connection, value) if value else None) for value in key.values]
    then = [list_counted(form.version.body if form.version else None) for form in rated.forms]
    before = np.array([numbers.setdefault(item, len(numbers)) for item in booked], dtype=np.int64)
    after = np.array([numbers.setdefault(item, len(numbers)) for item in then], dtype=np.int64)
    waiting = np.array([form.state is not RatingState.RATED for form in rated.forms], dtype=np.bool_)
    found: Flags = same & ((before[key.codes] == after[rated.form]) | waiting[rated.form])
    return found


def _list_batches(connection: sqlite3.Connection, scope: Scope, progress: Progress) -> Iterator[pa.Table]:
    (total,) = connection.execute("SELECT count(*) FROM segment").fetchone()
    columns = [*RATING_COLUMNS, *BOOKED_COLUMNS, *(("event_id",) if scope.fixed else ())]
    waiting: list[pa.Table] = []
    rows = done = 0
    tables = list_tables(connection, 0, ended_from=scope.from_nanos, ended_to=scope.to_nanos, columns=columns)
    for done, (_, table) in enumerate(tables, start=1):
        waiting.append(table)
        rows += table.num_rows
        if rows >= _BATCH_ROWS:
            yield _choose_rows(waiting, scope)
            waiting, rows = [], 0
        progress(done, total)
    if waiting:
        yield _choose_rows(waiting, scope)
    if done < total:  # segments outside the scope are not looked at
        progress(total, total)


def _choose_rows(tables: Sequence[pa.Table], scope: Scope) -> pa.Table:
    table = pa.concat_tables(tables)
    mask = pc.and_(match_scope(table, scope), pc.is_in(table["rating"], value_set=_PRICED))
    return (table if pc.all(mask).as_py() else table.filter(mask)).combine_chunks()


class _Batch:
    """Rows that were rated together."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        table: pa.Table,
        columns: ColumnRater,
        scope: Scope,
        split: PeriodSplit | None,
    ) -> None:
        self._connection, self._table, self._split = connection, table, split
        self._rated = columns.rate(table)
        booked_cost, booked_charge = read_amounts(table["cost"]), read_amounts(table["charge"])
        self._changed = ~match_booked(connection, table, self._rated, columns.rater.card.currency)
        self._cost, self._charge = self._rated.cost, self._rated.charge
        self._fixed = np.zeros(table.num_rows, dtype=np.bool_)
        if scope.fixed:
            fixed = pc.is_in(table["event_id"], value_set=pa.array(sorted(scope.fixed)))
            self._fixed = fixed.combine_chunks().to_numpy(zero_copy_only=False)
            self._changed &= ~self._fixed
            self._cost, self._charge = (
                _mix(self._fixed, kept, new) for kept, new in ((booked_cost, self._cost), (booked_charge, self._charge))
            )
        self._customers = encode_key(table["customer_id"])
        self._periods = _number_periods(table, self._customers, scope, split)
        self._signs = read_signs(table["sign"])

    def add_to(self, found: Repricing) -> None:
        """Add the rows to what was found so far."""
        keys = [self._customers, self._periods]
        if self._split is not None and self._split.by_names:
            keys += [encode_key(self._table[name]) for name in _NAMES]
        groups = group_rows(keys)
        ended = read_integers(self._table["ended_nanos"])[groups.firsts].tolist()
        sums = zip(list_values(keys, groups.firsts), self._sum_groups(groups), ended, strict=True)
        for (customer, period, *names), item, instant in sums:
            found.sums.setdefault(customer, Repriced()).add(item)
            found.instants[customer, period] = instant
            if period is not None:
                _add_charges(found.booked, (customer, period), tuple(names), item.booked_charge_attos)
                _add_charges(found.then, (customer, period), tuple(names), item.charge_attos)
        if self._split is not None:
            self._add_counted(found)

    def _sum_groups(self, groups: Groups) -> Iterator[Repriced]:
        signs, table = self._signs, self._table
        charge, cost = (pa.chunked_array([item.encode()]) for item in (self._charge, self._cost))
        changed = pa.chunked_array([pa.array(self._changed, mask=~self._changed)])
        columns = [table["charge"], table["cost"], charge, cost]
        amounts = [sum_amounts(column, signs, groups) for column in columns]
        events = count_signs(signs, groups)
        counts = [count_signs(signs, groups, column) for column in (table["charge"], charge, changed)]
        for count, *values in zip(events, *amounts, *counts, strict=True):
            booked_charge, booked_cost, now_charge, now_cost, booked_charged, charged, differing = values
            yield Repriced(
                count,
                booked_charge,
                booked_cost,
                count - booked_charged,
                now_charge,
                now_cost,
                count - charged,
                differing,
            )

    def _add_counted(self, found: Repricing) -> None:
        """Quantities that period charges count, on both sides."""
        whole = np.array([period is not None for period in self._periods.values], dtype=np.bool_)[self._periods.codes]
        booked = encode_key(self._table["price_version"])
        bodies = [find_price_version(self._connection, name) if name else None for name in booked.values]
        covered = np.array([bool(list_covering(body)) for body in bodies], dtype=np.bool_)[booked.codes]
        known = read_amounts(self._table["charge"]).known
        self._add_side(found.booked, booked, whole & covered & known)
        forms = self._rated.forms
        names = [form.version_id for form in forms]
        covering = [bool(form.version and list_covering(form.version.body)) for form in forms]
        for form, counts in zip(forms, covering, strict=True):
            if counts and form.version:
                found.bodies[form.version.version_id] = form.version.body
        covered = np.array(covering, dtype=np.bool_)[self._rated.form]
        then = Key(self._rated.form, names)
        self._add_side(found.then, then, whole & covered & self._charge.known & ~self._fixed)

    def _add_side(self, uses: Uses, versions: Key, rows: Flags) -> None:
        chosen = np.flatnonzero(rows)
        if not len(chosen):
            return
        table = self._table.take(pa.array(chosen))
        others = encode_key(table["other_quantities"])
        keys = [Key(key.codes[chosen], key.values) for key in (self._customers, self._periods, versions)]
        groups, signs = group_rows([*keys, others]), self._signs[chosen]
        units = {
            unit: sum_integers(table[unit], signs, groups)
            for unit in STANDARD_UNITS
            if table[unit].null_count < table.num_rows
        }
        events = count_signs(signs, groups)
        values = list_values([*keys, others], groups.firsts)
        for group, ((customer, period, version, text), count) in enumerate(zip(values, events, strict=True)):
            quantities: dict[str, Quantity] = {unit: sums[group] for unit, sums in units.items()}
            if text is not None:
                times = {unit: _multiply(quantity, count) for unit, quantity in parse_quantities(text).items()}
                add_quantities(quantities, times, 1)
            item = _find_use(uses, (customer, period), (None, None, None, version))
            item.events += count
            add_quantities(item.quantities, quantities, 1)


def _multiply(quantity: Quantity, times: int) -> Quantity:
    return quantity * times if isinstance(quantity, int) else EXACT.multiply(quantity, Decimal(times))


def _mix(rows: Flags, one: Amounts, other: Amounts) -> Amounts:
    return Amounts(np.where(rows[:, None], one.words, other.words), np.where(rows, one.known, other.known))


def _find_use(uses: Uses, place: tuple[str, Period], names: tuple[Any, ...]) -> UsageSum:
    step, provider, model, version = names
    found = uses.setdefault(place, {})
    if names not in found:
        found[names] = UsageSum(None, step, provider, model, version, None)
    return found[names]


def _add_charges(uses: Uses, place: tuple[str, Period], names: tuple[Any, ...], attos: int) -> None:
    _find_use(uses, place, (*(names or (None, None, None)), None)).charge_attos += attos


def _number_periods(table: pa.Table, customers: Key, scope: Scope, split: PeriodSplit | None) -> Key:
    """The billing period of each row, None where it is not in the scope as a whole."""
    codes: Int64s = np.zeros(table.num_rows, dtype=np.int64)
    periods: list[Period | None] = [None]
    if split is None or set(scope.where) - {"customer_id"}:
        return Key(codes, periods)
    ended = read_integers(table["ended_nanos"])
    calendars: dict[BillingCalendar, list[int]] = {}
    for number, name in enumerate(customers.values):
        if name is not None:
            calendars.setdefault(split.find_calendar(name), []).append(number)
    for calendar, members in calendars.items():
        rows = _find_rows(customers, members)
        if not len(rows):
            continue
        times = ended[rows]
        found = list(calendar.list_periods(int(times.min()), int(times.max()) + 1))
        starts = np.array([period.start_nanos for period in found], dtype=np.int64)
        whole = np.array([scope.holds(period) for period in found], dtype=np.bool_)
        places = np.searchsorted(starts, times, side="right") - 1
        codes[rows] = np.where(whole[places], places + len(periods), 0)
        periods += found
    return Key(codes, periods)


def _find_rows(key: Key, members: Iterable[int]) -> Int64s:
    chosen = np.zeros(len(key.values), dtype=np.bool_)
    chosen[list(members)] = True
    return np.flatnonzero(chosen[key.codes])
