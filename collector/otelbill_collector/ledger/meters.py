"""From booked records to the Stripe outbox: the fold that feeds its windows, exactly once. Owns which records count."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.domain.windows import MeterDelta
from otelbill_collector.ledger.journal import find_high_water, save_high_water
from otelbill_collector.ledger.outbox import accumulate
from otelbill_collector.ledger.readings import Reading, read_segments
from otelbill_collector.ledger.segments import parse_quantities
from otelbill_collector.ledger.sums import (
    Groups,
    Key,
    encode_key,
    find_largest,
    group_rows,
    read_integers,
    read_signs,
    slice_time,
    sum_amounts,
    sum_integers,
)

NAME = "stripe"
_FIXED = ("sign", "ended_nanos", "customer_id", "rating")


@dataclass(frozen=True, slots=True)
class Metering:
    """What Stripe is told: the charge on one meter, or quantities on a meter per unit (`unit_meters`)."""

    window_nanos: int
    charge_meter: str | None
    unit_meters: Mapping[str, str] = field(default_factory=dict)
    since_nanos: int = 0  # usage before this instant is not sent


@dataclass(frozen=True, slots=True)
class MeterFold:
    """What the next fold adds to windows: the amounts of segments past `before` up to `mark`."""

    before: int
    mark: int
    segments: int
    deltas: Sequence[MeterDelta]  # one per meter, customer and window, as the first record of each stands


def fold_meters(connection: sqlite3.Connection, metering: Metering) -> int:
    """Add segments past the mark to the outbox's windows; returns how many. Call inside a write transaction."""
    return save_meters(connection, metering, prepare_meters(connection, metering))


def prepare_meters(connection: sqlite3.Connection, metering: Metering, reading: Reading | None = None) -> MeterFold:
    """Sum the segments past the mark, which `reading` begins with. Reads only: the writer need not wait for it.

    Rated records with a customer count; what is held, unpriced or in suspense comes with the record that settles it.
    """
    before = find_high_water(connection, NAME)
    if reading is None:
        reading = read_segments(connection, before, list_columns(metering))
    deltas = _sum_deltas(reading.join(), metering) if reading.tables else []
    return MeterFold(before, reading.mark, len(reading.tables), deltas)


def list_columns(metering: Metering) -> tuple[str, ...]:
    """The columns of a segment that are folded."""
    amounts = ("charge",) if metering.charge_meter is not None else ()
    units = tuple(unit for unit in STANDARD_UNITS if unit in metering.unit_meters)
    others = ("other_quantities",) if set(metering.unit_meters).difference(STANDARD_UNITS) else ()
    return (*_FIXED, *amounts, *units, *others)


def save_meters(connection: sqlite3.Connection, metering: Metering, fold: MeterFold) -> int:
    """Write a fold, unless another one was quicker; returns how many segments. Call inside a write transaction."""
    if fold.segments and find_high_water(connection, NAME) == fold.before:
        accumulate(connection, fold.deltas, metering.window_nanos)
        save_high_water(connection, NAME, fold.mark)
    return fold.segments


_Placed = tuple[int, int, MeterDelta]  # first row, place of the unit within a row, sum


@dataclass(frozen=True, slots=True)
class _Rows:
    """Records that count, and what of them is read for every meter."""

    table: pa.Table
    ended: NDArray[np.int64]
    customers: Key
    windows: Key
    groups: Groups  # by customer and window

    @classmethod
    def of(cls, table: pa.Table, window_nanos: int) -> _Rows:
        """Read the columns, and group by them."""
        ended, customers = read_integers(table["ended_nanos"]), encode_key(table["customer_id"])
        windows = slice_time(ended, window_nanos)
        return cls(table, ended, customers, windows, group_rows([customers, windows]))


def _sum_deltas(table: pa.Table, metering: Metering) -> list[MeterDelta]:
    """Sums in the order in which their meters and customers first occur: lanes are numbered in that order."""
    counted = _match_rated(table, metering)
    table = table if counted.all() else table.filter(pa.array(counted))
    if not table.num_rows:
        return []
    rows = _Rows.of(table, metering.window_nanos)
    found: list[_Placed] = []
    if metering.charge_meter is not None:
        found.extend(_sum_column(rows, "charge", metering.charge_meter, 0, metering))
    for place, unit in enumerate(STANDARD_UNITS, start=1):
        if unit in metering.unit_meters:
            found.extend(_sum_column(rows, unit, metering.unit_meters[unit], place, metering))
    if set(metering.unit_meters).difference(STANDARD_UNITS):
        found.extend(_list_others(table, metering))
    found.sort(key=itemgetter(0, 1))
    return [delta for _, _, delta in found]


def _match_rated(table: pa.Table, metering: Metering) -> NDArray[np.bool_]:
    """Which records count."""
    ratings, customers = encode_key(table["rating"]), encode_key(table["customer_id"])
    rated = np.array([value == "rated" for value in ratings.values])
    known = np.array([bool(value) for value in customers.values])
    late = read_integers(table["ended_nanos"]) >= metering.since_nanos
    found: NDArray[np.bool_] = late & rated[ratings.codes] & known[customers.codes]
    return found


def _sum_column(rows: _Rows, name: str, meter: str, place: int, metering: Metering) -> Iterator[_Placed]:
    """Sums of one column over the records in which it is not zero."""
    counts = _match_nonzero(rows.table[name])
    if not counts.any():
        return
    numbers = np.arange(len(counts)) if counts.all() else np.flatnonzero(counts)
    if len(numbers) < len(counts):
        rows = _Rows.of(rows.table.take(pa.array(numbers)), metering.window_nanos)
    signs = read_signs(rows.table["sign"])
    total_of = sum_amounts if name == "charge" else sum_integers
    totals = total_of(rows.table[name], signs, rows.groups)
    lasts = find_largest(rows.ended, rows.groups)
    firsts = rows.groups.firsts
    payers = [rows.customers.values[code] for code in rows.customers.codes[firsts].tolist()]
    for number, customer, last, total in zip(numbers[firsts].tolist(), payers, lasts, totals, strict=True):
        if name == "charge":
            delta = MeterDelta.of_charge(meter=meter, customer_id=customer, event_nanos=last, attos=total)
        else:
            delta = MeterDelta.of_quantity(meter=meter, customer_id=customer, event_nanos=last, quantity=total)
        yield number, place, delta


def _match_nonzero(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where an integer or an amount is known and not zero."""
    array = column.combine_chunks()
    words = array.type.bit_width // 64
    raw = np.frombuffer(array.buffers()[1], dtype="<i8")[array.offset * words : (array.offset + len(array)) * words]
    counts: NDArray[np.bool_] = (raw.reshape(-1, words) != 0).any(axis=1)
    return counts & array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else counts


def _list_others(table: pa.Table, metering: Metering) -> Iterator[_Placed]:
    """Units that have no column of their own, record by record: few records have any, and each is checked."""
    after = len(STANDARD_UNITS) + 1
    columns = [table[name].combine_chunks() for name in ("other_quantities", "sign", "customer_id", "ended_nanos")]
    for number in np.flatnonzero(columns[0].is_valid().to_numpy(zero_copy_only=False)).tolist():
        text, sign, customer, ended = (column[number].as_py() for column in columns)
        for place, (unit, quantity) in enumerate(parse_quantities(text).items(), start=after):
            meter = metering.unit_meters.get(unit)
            if meter is not None and quantity:
                yield (
                    number,
                    place,
                    MeterDelta.of_quantity(
                        meter=meter, customer_id=customer, event_nanos=ended, quantity=sign * quantity
                    ),
                )
