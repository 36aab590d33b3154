"""Records as Parquet: the columns that queries see, sorted by customer and time. Owns files' content, not their names.

A file holds what a reader asks for and nothing of claims; the whole evidence is in the segments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.sums import Int64s, encode_key, read_integers

_TEXT, _INT, _TIME = pa.string(), pa.int64(), pa.timestamp("us")
_AMOUNT = pa.decimal128(38, 18)
SEGMENT_ID, BOOKED = "segment_id", "booked_nanos"

_TIMES = {
    "ended_at": "ended_nanos",
    "started_at": "started_nanos",
    "received_at": "received_nanos",
    "booked_at": BOOKED,
}
_HEX = ("trace_id", "span_id", "parent_span_id", "winner_trace_id", "winner_span_id")
_NAMES = tuple(
    "customer_id project_id run_id step provider model request_model operation response_id service_tier service "
    "emitter dialect reason usage_source rating currency price_version".split()
)

# What `otelbill query` shows as `records`, in this order. A change needs a migration that forgets the files there are.
RECORDS = pa.schema(
    [
        *(("event_id", _TEXT), ("record_id", _TEXT), ("corrects", _TEXT), ("revision", _INT), ("sign", pa.int8())),
        *((name, _TIME) for name in _TIMES),
        ("ended_nanos", _INT),
        *((name, _TEXT) for name in _NAMES),
        *(("attempt", _INT), ("billable", pa.bool_()), ("caveats", pa.list_(_TEXT))),
        *((unit, _INT) for unit in STANDARD_UNITS),
        ("other_quantities", _TEXT),
        *(("cost", _AMOUNT), ("charge", _AMOUNT), ("note", _TEXT)),
        *((name, _TEXT) for name in _HEX),
        (SEGMENT_ID, _INT),
    ]
)
SOURCES = tuple(  # the columns of a segment that are read for them
    name
    for name in dict.fromkeys(_TIMES.get(field.name, field.name) for field in RECORDS)
    if name not in (SEGMENT_ID, BOOKED)
)
_SORTED = (("customer_id", "ascending"), ("ended_nanos", "ascending"))
# Instants and counts are written as differences: several times as small, and no dearer.
_DIFFERENCES = dict.fromkeys(
    ("ended_at", "started_at", "received_at", "booked_at", "ended_nanos", "input_tokens", "output_tokens", SEGMENT_ID),
    "DELTA_BINARY_PACKED",
)
_WITH_STATISTICS = ["customer_id", "ended_at", "ended_nanos", "sign", "rating", "booked_at", SEGMENT_ID]
_ROW_GROUP = 65_536
_MERGE_BATCH = 16_384
_HEX_PAIRS = np.frombuffer(bytes(range(256)).hex().encode(), dtype="<u2")


class Cancelled(Exception):
    """The sidecar is stopping; what was begun is thrown away."""


def build_records(tables: Sequence[tuple[int, int, pa.Table]]) -> pa.Table:
    """The columns of RECORDS for (segment id, booked time, columns) of segments, in their order."""
    if not tables:
        return RECORDS.empty_table()
    rows = gather_rows(tables)
    return pa.table([_build_column(rows, field) for field in RECORDS], schema=RECORDS)


def gather_rows(tables: Iterable[tuple[int, int, pa.Table]]) -> pa.Table:
    """The rows of (segment id, booked time, SOURCES) of segments as one table with both; no column of nulls only.

    Where nobody else holds the tables, a column of them is freed as soon as it is gathered.
    """
    parts = []
    for segment_id, booked_nanos, table in tables:
        count = table.num_rows
        table = table.append_column(SEGMENT_ID, pa.repeat(pa.scalar(segment_id, _INT), count))
        parts.append(table.append_column(BOOKED, pa.repeat(pa.scalar(booked_nanos, _INT), count)))
        del table
    whole = pa.concat_tables(parts, promote_options="permissive")
    parts.clear()
    gathered: dict[str, pa.ChunkedArray] = {}
    for name in whole.column_names:
        column = whole.select([name])
        whole = whole.drop_columns([name])
        if column[name].null_count < column.num_rows or name == "customer_id":  # what is missing is written as null
            gathered[name] = column.unify_dictionaries().combine_chunks()[name]
        del column
    return pa.table(gathered)


def order_rows(rows: pa.Table) -> Int64s:
    """The order in which rows are written: by customer, nobody last, and time."""
    customers = encode_key(rows["customer_id"])
    ranks = np.empty(len(customers.values), dtype=np.int64)
    ordered = sorted(range(len(ranks)), key=lambda code: _place_name(customers.values[code]))
    ranks[ordered] = np.arange(len(ranks))
    return np.lexsort((read_integers(rows["ended_nanos"]), ranks[customers.codes]))


def _place_name(name: str | None) -> tuple[bool, str]:
    return name is None, name or ""


def _build_column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    source = _TIMES.get(field.name, field.name)
    if source not in table.column_names:  # no segment has any value, or all are from before the column was kept
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    column = table[source]
    if field.name in _TIMES:
        return column.cast(pa.timestamp("ns")).cast(_TIME, safe=False)
    if field.name in _HEX:
        return pa.chunked_array([_encode_hex(chunk) for chunk in column.cast(pa.binary()).chunks], type=_TEXT)
    return column if column.type == field.type else column.cast(field.type)


def _encode_hex(column: pa.Array) -> pa.Array:
    """Bytes as lower-case hex; no bytes as null."""
    if not pc.max(pc.binary_length(column)).as_py():
        return pa.nulls(len(column), _TEXT)
    column = pc.if_else(pc.equal(pc.binary_length(column), 0), pa.scalar(None, pa.binary()), column)
    _, offsets, body = column.buffers()
    places = np.frombuffer(offsets, dtype="<i4")[column.offset : column.offset + len(column) + 1]
    raw = np.frombuffer(body, dtype=np.uint8)[places[0] : places[-1]] if len(column) and body else np.empty(0, np.uint8)
    text = _HEX_PAIRS[raw].tobytes()
    doubled = ((places - places[:1]) * 2).astype("<i4")
    known = pc.is_valid(column).buffers()[1] if column.null_count else None
    return pa.Array.from_buffers(_TEXT, len(column), [known, pa.py_buffer(doubled), pa.py_buffer(text)])


def write_records(path: Path, rows: pa.Table, order: Int64s) -> int:
    """Write gathered rows in an order as a Parquet file; returns how many. Only a row group is in memory once more."""
    with open_writer(path) as writer:
        for start in range(0, len(order), _ROW_GROUP):
            part = rows.take(pa.array(order[start : start + _ROW_GROUP]))
            columns = [_build_column(part, field) for field in RECORDS]
            writer.write_table(pa.table(columns, schema=RECORDS), row_group_size=_ROW_GROUP)
    return len(order)


def merge_records(path: Path, sources: Sequence[Path], is_cancelled: Callable[[], bool]) -> int:
    """Write the records of sorted files as one, in bounded memory; returns how many. Raises Cancelled."""
    files = [pq.ParquetFile(source) for source in sources]
    count, waiting, held = 0, [], 0
    try:
        with open_writer(path) as writer:
            for part in _merge_sorted([file.iter_batches(_MERGE_BATCH) for file in files]):
                if is_cancelled():
                    raise Cancelled
                waiting.append(part)
                held += part.num_rows
                count += part.num_rows
                if held >= _ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=held)
                    waiting, held = [], 0
            if waiting:
                writer.write_table(pa.concat_tables(waiting), row_group_size=held)
    finally:
        for file in files:
            file.close()
    return count


def open_writer(path: Path) -> pq.ParquetWriter:
    """Where records are written in their order, a row group at a time."""
    return pq.ParquetWriter(
        path,
        RECORDS,
        compression="zstd",
        compression_level=1,
        use_dictionary=list(_NAMES),
        column_encoding=_DIFFERENCES,
        write_statistics=_WITH_STATISTICS,
        sorting_columns=pq.SortingColumn.from_ordering(RECORDS, list(_SORTED)),
    )


def _merge_sorted(streams: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[pa.Table]:
    """Everything in order. What is not above the last row at hand of any stream can be given out."""
    open_streams = list(streams)
    heads = [_read_next(stream) for stream in open_streams]
    while any(head is not None for head in heads):
        bound = min(_read_key(head, head.num_rows - 1) for head in heads if head is not None)
        parts = []
        for index, head in enumerate(heads):
            if head is None:
                continue
            cut = bisect_right(range(head.num_rows), bound, key=partial(_read_key, head))
            parts.append(head.slice(0, cut))
            heads[index] = head.slice(cut) if cut < head.num_rows else _read_next(open_streams[index])
        yield pa.concat_tables(parts).sort_by(list(_SORTED))


def _read_next(stream: Iterator[pa.RecordBatch]) -> pa.Table | None:
    for batch in stream:
        if batch.num_rows:
            return pa.Table.from_batches([batch])
    return None


def _read_key(table: pa.Table, row: int) -> tuple[bool, str, int]:
    customer = table["customer_id"][row].as_py()
    return customer is None, customer or "", table["ended_nanos"][row].as_py()
