"""From booked records to the Stripe outbox: the fold that feeds its windows, exactly once. Owns which records count."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.domain.windows import MeterDelta
from otelbill_collector.ledger.journal import find_high_water, list_tables, save_high_water
from otelbill_collector.ledger.outbox import accumulate
from otelbill_collector.ledger.segments import parse_quantities
from otelbill_collector.ledger.sums import read_integers, sort_groups, sum_amounts, sum_integers

NAME = "stripe"
_SEGMENTS_MAX = 256
_ROWS_MAX = 200_000
_COLUMNS = ["sign", "ended_nanos", "customer_id", "rating", "charge", *STANDARD_UNITS, "other_quantities"]


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


def prepare_meters(connection: sqlite3.Connection, metering: Metering) -> MeterFold:
    """Sum the segments past the mark. Reads only: the writer need not wait for it.

    Rated records with a customer count; what is held, unpriced or in suspense comes with the record that settles it.
    """
    before = mark = find_high_water(connection, NAME)
    tables: list[pa.Table] = []
    rows = 0
    for segment_id, table in list_tables(connection, mark, columns=_COLUMNS):
        tables.append(table)
        mark, rows = segment_id, rows + table.num_rows
        if len(tables) >= _SEGMENTS_MAX or rows >= _ROWS_MAX:
            break
    deltas = _sum_deltas(pa.concat_tables(tables), metering) if tables else []
    return MeterFold(before, mark, len(tables), deltas)


def save_meters(connection: sqlite3.Connection, metering: Metering, fold: MeterFold) -> int:
    """Write a fold, unless another one was quicker; returns how many segments. Call inside a write transaction."""
    if fold.segments and find_high_water(connection, NAME) == fold.before:
        accumulate(connection, fold.deltas, metering.window_nanos)
        save_high_water(connection, NAME, fold.mark)
    return fold.segments


_Placed = tuple[int, int, MeterDelta]  # first row, place of the unit within a row, sum


def _sum_deltas(table: pa.Table, metering: Metering) -> list[MeterDelta]:
    """Sums in the order in which their meters and customers first occur: lanes are numbered in that order."""
    counted = pc.and_(pc.equal(table["rating"], "rated"), pc.not_equal(table["customer_id"], ""))
    table = table.filter(pc.and_(counted, pc.greater_equal(table["ended_nanos"], metering.since_nanos)))
    if not table.num_rows:
        return []
    found: list[_Placed] = []
    if metering.charge_meter is not None:
        found.extend(_sum_column(table, "charge", metering.charge_meter, 0, metering))
    for place, unit in enumerate(STANDARD_UNITS, start=1):
        if unit in metering.unit_meters:
            found.extend(_sum_column(table, unit, metering.unit_meters[unit], place, metering))
    if set(metering.unit_meters).difference(STANDARD_UNITS):
        found.extend(_list_others(table, metering))
    found.sort(key=itemgetter(0, 1))
    return [delta for _, _, delta in found]


def _sum_column(table: pa.Table, name: str, meter: str, place: int, metering: Metering) -> Iterator[_Placed]:
    """Sums of one column over the records in which it is not zero."""
    counts = pc.fill_null(pc.not_equal(table[name], pa.scalar(0, type=table[name].type)), False)
    numbers = np.flatnonzero(counts.combine_chunks().to_numpy(zero_copy_only=False))
    if not len(numbers):
        return
    rows = table.take(pa.array(numbers))
    ended, customers = read_integers(rows["ended_nanos"]), rows["customer_id"].combine_chunks()
    order, starts = sort_groups([customers, pa.array(ended - ended % metering.window_nanos)])
    signs = read_integers(rows["sign"])[order]
    if name == "charge":
        sums = sum_amounts(rows[name], order, starts, signs)
    else:
        sums = sum_integers(read_integers(rows[name])[order], starts, signs)
    lasts = np.maximum.reduceat(ended[order], starts).tolist()
    firsts = order[starts]  # the order is stable: the first of a group stands first
    payers = customers.take(pa.array(firsts)).to_pylist()
    for number, customer, last, total in zip(numbers[firsts].tolist(), payers, lasts, sums, strict=True):
        if name == "charge":
            delta = MeterDelta.of_charge(meter=meter, customer_id=customer, event_nanos=last, attos=total)
        else:
            delta = MeterDelta.of_quantity(meter=meter, customer_id=customer, event_nanos=last, quantity=total)
        yield number, place, delta


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
