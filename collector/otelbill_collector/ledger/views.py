"""What `otelbill query` shows: the views, their columns, and how each is read from the ledger. Owns no DuckDB."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.compaction import NAME
from otelbill_collector.ledger.journal import find_high_water, list_tables
from otelbill_collector.ledger.parquet import SOURCES, build_records
from otelbill_collector.ledger.segments import parse_quantities

_TEXT, _INT, _TIME = pa.string(), pa.int64(), pa.timestamp("us")
_AMOUNT, _COUNT = pa.decimal128(38, 18), pa.decimal128(38, 0)

# The views over `records`, which itself is Parquet files and the segments that are not compacted yet.
DERIVED_VIEWS = {
    "events": "SELECT * EXCLUDE (sign, corrects) FROM (SELECT * FROM records WHERE sign > 0)"
    " ANTI JOIN (SELECT event_id, revision FROM records WHERE sign < 0) USING (event_id, revision)",
    "usage": "SELECT * FROM events WHERE rating <> 'not_billable'",
}


@dataclass(frozen=True, slots=True)
class StateView:
    """A view over a table of state: its columns, and a function that reads its rows."""

    schema: pa.Schema
    load: Callable[[sqlite3.Connection], Iterable[tuple[Any, ...]]]  # Any: values of the schema's types


def load_tail(connection: sqlite3.Connection) -> pa.Table:
    """The records that no Parquet file holds yet, in the columns of `records`."""
    mark = find_high_water(connection, NAME)
    query = "SELECT segment_id, booked_nanos FROM segment WHERE segment_id > ?"
    booked = dict(connection.execute(query, (mark,)).fetchall())
    tables = list_tables(connection, mark, columns=SOURCES)
    return build_records([(key, booked[key], table) for key, table in tables])


def load_view(connection: sqlite3.Connection, view: StateView) -> pa.Table:
    """All rows of a view of state."""
    rows = list(view.load(connection))
    columns = zip(*rows, strict=True) if rows else ([] for _ in view.schema)
    arrays = [_build_array(values, field.type) for field, values in zip(view.schema, columns, strict=True)]
    return pa.table(arrays, schema=view.schema)


def _build_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        values = [None if nanos is None else nanos // 1_000 for nanos in values]
    return pa.array(values, type=kind)


def _load_letters(connection: sqlite3.Connection) -> Iterable[tuple[Any, ...]]:
    return connection.execute(
        "SELECT letter_id, received_nanos, code, field, value, hint, lower(hex(trace_id)), lower(hex(span_id)),"
        " replayed_nanos FROM dead_letter ORDER BY received_nanos, letter_id"
    )


def _load_prices(connection: sqlite3.Connection) -> Iterable[tuple[Any, ...]]:
    for version, body in connection.execute("SELECT price_version, body FROM price_version ORDER BY price_version"):
        content = json.loads(body)
        facts = (version, content.get("provider"), content.get("model"), content.get("currency"))
        for unit, price in sorted(content.get("prices", {}).items()):
            yield *facts, unit, _read_price(price.get("cost")), _read_price(price.get("charge")), json.dumps(price)


def _read_price(price: Any) -> Decimal | None:
    """Any: a price as its version has it, text or an object with tiers; the price of the lowest tier."""
    text = price.get("price") if isinstance(price, dict) else price
    return None if text is None else Decimal(text)


def _load_rollups(connection: sqlite3.Connection) -> Iterable[tuple[Any, ...]]:
    for row in connection.execute("SELECT * FROM rollup ORDER BY hour_nanos"):
        hour, *facts, events, quantities, cost, charge, costless = row
        found = parse_quantities(quantities)
        units = [found.pop(unit, 0) for unit in STANDARD_UNITS]
        others = json.dumps({unit: str(value) for unit, value in sorted(found.items())}) if found else None
        amounts = (Decimal(format_attos(int(cost))), Decimal(format_attos(int(charge))))
        yield hour, *(fact or None for fact in facts), events, *units, others, *amounts, costless


def _load_segments(connection: sqlite3.Connection) -> Iterable[tuple[Any, ...]]:
    return connection.execute(
        "SELECT segment_id, booked_nanos, ended_min, ended_max, record_count, lower(hex(digest)) FROM segment"
        " ORDER BY segment_id"
    )


def _define(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(list(columns))


def _name_texts(names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, _TEXT) for name in names.split()]


STATE_VIEWS = {
    "rollups": StateView(
        _define(
            ("hour", _TIME),
            *_name_texts("customer_id project_id step provider model currency rating usage_source"),
            ("events", _INT),
            *((unit, _COUNT) for unit in STANDARD_UNITS),
            ("other_quantities", _TEXT),
            *(("cost", _AMOUNT), ("charge", _AMOUNT), ("cost_unknown", _INT)),
        ),
        _load_rollups,
    ),
    "dead_letters": StateView(
        _define(
            ("letter_id", _TEXT),
            ("received_at", _TIME),
            *_name_texts("code field value hint trace_id span_id"),
            ("replayed_at", _TIME),
        ),
        _load_letters,
    ),
    "prices": StateView(
        _define(
            *_name_texts("price_version provider model currency unit"),
            *(("cost", _AMOUNT), ("charge", _AMOUNT), ("detail", _TEXT)),
        ),
        _load_prices,
    ),
    "segments": StateView(
        _define(
            ("segment_id", _INT),
            *((name, _TIME) for name in ("booked_at", "ended_min", "ended_max")),
            *(("record_count", _INT), ("digest", _TEXT)),
        ),
        _load_segments,
    ),
}
VIEWS = ("records", *DERIVED_VIEWS, *STATE_VIEWS)
