"""Evidence segments: usage records as columns in one Arrow IPC blob. Owns the way from records and back; no SQL here.

Readers see the columns of `segment_schema`, in which amounts are decimal128 with 18 decimals: the exact money. How the
blob holds them is said by `packed`; blobs of earlier versions, which hold these columns as they are, are read too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.domain.money import EXACT
from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.usage import (
    STANDARD_UNITS,
    Candidate,
    Decision,
    Quantities,
    Quantity,
    RatingState,
    Role,
    UsageSource,
)
from otelbill_collector.ledger import unpacking
from otelbill_collector.ledger.id_sets import Ids, view_ids
from otelbill_collector.ledger.packed import DERIVED, TOLD, find_form
from otelbill_collector.ledger.packing import pack_batch, write_packed
from otelbill_collector.ledger.segment_schema import (
    AMOUNT,
    NAMES,
    OF_AMOUNTS,
    OF_CANDIDATE,
    OF_DECISION,
    OF_RECORD,
    SCHEMA,
    Spec,
)

Row = dict[str, Any]  # one row of an Arrow table, typed by SCHEMA

_ATTOS_MAX = 10**38 - 1
_STANDARD = frozenset(STANDARD_UNITS)
RECORD_COLUMNS = tuple(name for name in SCHEMA.names if name not in DERIVED)
"""Columns from which a record can be built again: its ids follow from them."""


def encode_segment(records: Sequence[UsageRecord], before: Sequence[pa.RecordBatch] = ()) -> bytes:
    """One Arrow IPC stream with a row per record, in the order given, after the rows of `before`.

    Those have the columns of SCHEMA, or are packed already.
    """
    batches = [batch if TOLD in batch.schema.names else pack_batch(batch) for batch in before]
    if records or not batches:
        batches.append(pack_batch(encode_records(records)))
    return write_packed(batches)


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """The same of a batch that has the columns of SCHEMA, of which those that are derived may be missing."""
    return write_packed([pack_batch(batch)])


def fit_columns(table: pa.Table) -> pa.Table:
    """The table with the columns of SCHEMA, in that order; older segments lack some, which then say nothing."""
    held = set(table.column_names)
    columns = [
        _fit_column(table[item.name], item.type) if item.name in held else pa.nulls(table.num_rows, item.type)
        for item in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)


def _fit_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def encode_records(records: Sequence[UsageRecord]) -> pa.RecordBatch:
    """A row of the columns of SCHEMA for each record."""
    candidates = [record.candidate for record in records]
    decisions = [record.decision for record in records]
    billed = [decision.quantities for decision in decisions]
    columns = _read_columns(OF_RECORD, records)
    columns |= _read_columns(OF_CANDIDATE, candidates)
    columns["span_quantities"] = [render_quantities(candidate.quantities) for candidate in candidates]
    columns |= _read_columns(OF_DECISION, decisions)
    columns |= {unit: [quantities.get(unit) for quantities in billed] for unit in STANDARD_UNITS}
    columns["other_quantities"] = [render_other(quantities) for quantities in billed]
    columns |= _read_columns(OF_AMOUNTS, [record.amounts for record in records])
    arrays = [
        encode_amounts(columns[field.name]) if field.type == AMOUNT else pa.array(columns[field.name], type=field.type)
        for field in SCHEMA
    ]
    return pa.record_batch(arrays, schema=SCHEMA)


def _read_columns(spec: Spec, parts: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The columns of one part of the records: all attributes of a part are read at once."""
    read = attrgetter(*(attribute for _, attribute in spec.values()))
    return dict(zip(spec, zip(*map(read, parts), strict=True), strict=True))


def encode_amounts(attos: Sequence[int | None]) -> pa.Array:
    """Attos as decimal128 with 18 decimals: the same integers, so no Decimal is made for each."""
    if any(amount is not None and abs(amount) > _ATTOS_MAX for amount in attos):
        raise OverflowError("an amount of 10^20 or more does not fit the ledger")
    body = b"".join([(amount or 0).to_bytes(16, "little", signed=True) for amount in attos])
    known = pa.array([amount is not None for amount in attos], type=pa.bool_())
    return pa.Array.from_buffers(AMOUNT, len(attos), [known.buffers()[1], pa.py_buffer(body)])


def decode_table(
    body: bytes, columns: Sequence[str] | None = None, *, dictionaries: bool = False, validate: bool = False
) -> pa.Table:
    """The segment's columns, or those that are asked for, in that order; nothing else is read.

    With `dictionaries` the columns of NAMES come as Arrow dictionary arrays, for whoever groups by them. With
    `validate` the whole blob is checked before its columns are made: it may have been damaged.
    """
    reader = pa.ipc.open_stream(body)
    form = find_form(reader.schema)
    if form is not None:
        names = SCHEMA.names if columns is None else columns
        return unpacking.unpack_table(body, reader.schema, form, names, dictionaries=dictionaries, validate=validate)
    table = _read_plain(body, reader.schema, None if validate else columns)
    if validate:
        table.validate(full=True)
    if columns is not None:
        table = table.select(columns)
    if dictionaries:
        for place, name in enumerate(table.column_names):
            if name in NAMES:
                table = table.set_column(place, name, table[name].dictionary_encode())
    return table


def decode_packed(body: bytes) -> pa.RecordBatch:
    """The segment's rows as `write_packed` takes them, for whoever writes most of what they say again."""
    schema = pa.ipc.open_stream(body).schema
    form = find_form(schema)
    if form is not None:
        return unpacking.unpack_batch(body, schema, form)
    return pack_batch(fit_columns(_read_plain(body, schema, None)).combine_chunks().to_batches()[0])


def read_bookings(body: bytes) -> tuple[Ids, NDArray[np.int8]]:
    """Of each row of the segment the id of the booking that it is or, where its sign is below zero, reverses; signs."""
    schema = pa.ipc.open_stream(body).schema
    form = find_form(schema)
    if form is None:
        table = _read_plain(body, schema, ("event_id", "revision", "sign"))
        events, *numbers = (column.combine_chunks() for column in table.columns)
        revisions, signs = (column.to_numpy(zero_copy_only=False) for column in numbers)
    else:
        events, revisions, signs = unpacking.read_identity(body, schema, form)
    return view_ids(unpacking.derive_record_ids(events, revisions, np.zeros(len(signs), dtype=np.bool_))), signs


def _read_plain(body: bytes, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    """A segment of the first form. Columns that its version did not know are null where they are asked for."""
    if columns is None:
        return pa.ipc.open_stream(body).read_all()
    wanted = [schema.get_field_index(name) for name in columns if name in schema.names]
    options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
    table = pa.ipc.open_stream(body, options=options).read_all()
    for name in columns:
        if name not in schema.names:
            kind = SCHEMA.field(name).type
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table


def decode_records(body: bytes) -> list[UsageRecord]:
    """The segment's records, in order."""
    return [build_record(row) for row in decode_table(body, RECORD_COLUMNS).to_pylist()]


def build_record(row: Row) -> UsageRecord:
    """The record that a row was made from."""
    candidate = Candidate(
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        parent_span_id=row["parent_span_id"],
        started_nanos=row["started_nanos"],
        ended_nanos=row["ended_nanos"],
        dialect=row["dialect"],
        role=Role(row["role"]),
        detail=row["detail"],
        provider=row["provider"],
        model=row["model"],
        request_model=row["request_model"],
        operation=row["operation"],
        response_id=row["response_id"],
        service_tier=row["service_tier"],
        customer_id=row["span_customer_id"],
        project_id=row["span_project_id"],
        run_id=row["span_run_id"],
        step=row["span_step"],
        attempt=row["attempt"],
        explicit_event_id=row["explicit_event_id"],
        failed=row["failed"],
        billable=row["span_billable"],
        reason=row["span_reason"],
        usage_source=UsageSource(row["span_usage_source"]),
        caveats=tuple(row["span_caveats"]),
        quantities=parse_quantities(row["span_quantities"]),
        # Segments from before these columns were kept lack them.
        emitter=row.get("emitter") or "",
        service=row.get("service"),
        traits=tuple(row.get("traits") or ()),
    )
    return UsageRecord(
        event_id=row["event_id"],
        revision=row["revision"],
        sign=row["sign"],
        content=row["content"],
        received_nanos=row["received_nanos"],
        candidate=candidate,
        decision=_build_decision(row),
        amounts=_build_amounts(row),
        note=row["note"],
    )


def _build_decision(row: Row) -> Decision:
    return Decision(
        billable=row["billable"],
        reason=row["reason"],
        usage_source=UsageSource(row["usage_source"]),
        quantities=read_quantities(row),
        caveats=tuple(row["caveats"]),
        customer_id=row["customer_id"],
        project_id=row["project_id"],
        run_id=row["run_id"],
        step=row["step"],
        winner_trace_id=row["winner_trace_id"],
        winner_span_id=row["winner_span_id"],
    )


def _build_amounts(row: Row) -> Amounts:
    return Amounts(
        state=RatingState(row["rating"]),
        price_version=row["price_version"],
        cost_attos=to_attos(row["cost"]),
        charge_attos=to_attos(row["charge"]),
        currency=row["currency"],
    )


def read_quantities(row: Mapping[str, Any]) -> dict[str, Quantity]:
    """Billed quantities of a row: the standard units' columns and the others."""
    quantities: dict[str, Quantity] = {unit: row[unit] for unit in STANDARD_UNITS if row[unit] is not None}
    if row["other_quantities"] is not None:
        quantities.update(parse_quantities(row["other_quantities"]))
    return quantities


def render_quantities(quantities: Quantities) -> str:
    """JSON object unit -> decimal text, keys sorted: the same quantities give the same text."""
    parts = [f'{render_unit(unit)}: "{format_quantity(value)}"' for unit, value in sorted(quantities.items())]
    return f"{{{', '.join(parts)}}}"


@lru_cache(maxsize=1024)
def render_unit(unit: str) -> str:
    """A unit's name as JSON text."""
    return json.dumps(unit)


@lru_cache(maxsize=1024)
def build_form(units: tuple[str, ...]) -> tuple[str, Callable[[Mapping[str, Quantity]], Any]]:
    """`render_quantities` of whole numbers of these units: the text with places for them, and what reads them in order.

    Any: what `%` takes, one value or several.
    """
    order = sorted(units)
    text = "{" + ", ".join([f'{render_unit(unit).replace("%", "%%")}: "%d"' for unit in order]) + "}"
    return text, itemgetter(*order) if order else lambda _: ()


def parse_quantities(text: str) -> dict[str, Quantity]:
    """The inverse of render_quantities; whole numbers come back as integers."""
    if "\\" not in text and "." not in text:  # of pieces between quotes every fourth is a unit, or its number
        pieces = text.split('"')
        return dict(zip(pieces[1::4], map(int, pieces[3::4]), strict=True))
    return {unit: parse_quantity(value) for unit, value in json.loads(text).items()}


def format_quantity(value: Quantity) -> str:
    """Decimal text of a quantity, without exponent."""
    return str(value) if isinstance(value, int) else format(value, "f")


def parse_quantity(text: str) -> Quantity:
    """The quantity of such a text; an integer where it has no fraction."""
    return Decimal(text) if "." in text else int(text)


def render_other(quantities: Quantities) -> str | None:
    """`render_quantities` of the units that have no column of their own."""
    if _STANDARD.issuperset(quantities):
        return None
    return render_quantities({unit: value for unit, value in quantities.items() if unit not in _STANDARD})


def to_attos(amount: Decimal | None) -> int | None:
    """Attos of an amount column's value."""
    return None if amount is None else int(EXACT.scaleb(amount, 18))


def add_quantities(total: dict[str, Quantity], quantities: Mapping[str, Quantity], sign: int) -> None:
    """Add sign x quantities to a running total, in place and exactly."""
    for unit, value in quantities.items():
        signed = value if sign > 0 else -value
        before = total.get(unit, 0)
        if isinstance(before, int) and isinstance(signed, int):
            total[unit] = before + signed
        else:
            total[unit] = EXACT.add(Decimal(before), Decimal(signed))
