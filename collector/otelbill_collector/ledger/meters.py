"""From booked records to the Stripe outbox: the fold that feeds its windows, exactly once. Owns which records count."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.domain.windows import MeterDelta
from otelbill_collector.ledger.journal import find_high_water, list_tables, save_high_water
from otelbill_collector.ledger.outbox import accumulate
from otelbill_collector.ledger.segments import read_quantities, to_attos

NAME = "stripe"
_SEGMENTS_MAX = 256
_COLUMNS = ["sign", "ended_nanos", "customer_id", "rating", "charge", *STANDARD_UNITS, "other_quantities"]


@dataclass(frozen=True, slots=True)
class Metering:
    """What Stripe is told: the charge on one meter, or quantities on a meter per unit (`unit_meters`)."""

    window_nanos: int
    charge_meter: str | None
    unit_meters: Mapping[str, str] = field(default_factory=dict)
    since_nanos: int = 0  # usage before this instant is not sent


def fold_meters(connection: sqlite3.Connection, metering: Metering) -> int:
    """Add segments past the mark to the outbox's windows; returns how many. Call inside a write transaction.

    Rated records with a customer count; what is held, unpriced or in suspense comes with the record that settles it.
    """
    mark = find_high_water(connection, NAME)
    deltas: list[MeterDelta] = []
    folded = 0
    for segment_id, table in list_tables(connection, mark):
        for row in table.select(_COLUMNS).to_pylist():
            if row["rating"] == "rated" and row["customer_id"] and row["ended_nanos"] >= metering.since_nanos:
                deltas.extend(_list_deltas(row, metering))
        mark, folded = segment_id, folded + 1
        if folded >= _SEGMENTS_MAX:
            break
    if folded:
        accumulate(connection, deltas, metering.window_nanos)
        save_high_water(connection, NAME, mark)
    return folded


def _list_deltas(row: Mapping[str, Any], metering: Metering) -> Iterator[MeterDelta]:
    customer, event_nanos, sign = row["customer_id"], row["ended_nanos"], row["sign"]
    charge = to_attos(row["charge"])
    if metering.charge_meter is not None and charge:
        yield MeterDelta.of_charge(
            meter=metering.charge_meter, customer_id=customer, event_nanos=event_nanos, attos=sign * charge
        )
    if metering.unit_meters:
        for unit, quantity in read_quantities(row).items():
            meter = metering.unit_meters.get(unit)
            if meter is not None and quantity:
                yield MeterDelta.of_quantity(
                    meter=meter, customer_id=customer, event_nanos=event_nanos, quantity=sign * quantity
                )
