"""Spans in columns as rows of a segment, packed without a record in between. Owns that way; `packing` writes them.

The rows are those that the spans' records would have, which tests compare.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.span_columns import (
    COUNTED_UNITS,
    RATINGS,
    Int32s,
    Int64s,
    RatedColumns,
    SpanColumns,
    Template,
    Texts,
)
from otelbill_collector.domain.usage import INPUT_TOKENS, OUTPUT_TOKENS, REQUESTS, STANDARD_UNITS, Role
from otelbill_collector.ledger.packed import DECIDED, LISTS, PACKED, TOLD, make_array, make_scalar, make_texts
from otelbill_collector.ledger.segment_schema import AMOUNT, NAMES, SCHEMA

Flags = NDArray[np.bool_]

_TABLES_MAX = 64
_AMOUNT_WORD_MAX = 10**38 >> 64  # the high word of the first amount that a segment cannot hold
_OF_TEMPLATE: dict[str, Callable[[Template], Any]] = {  # Any: what the column's type takes
    "dialect": lambda template: template.dialect,
    "role": lambda template: template.role.value,
    "detail": lambda template: template.detail,
    "provider": lambda template: template.provider,
    "model": lambda template: template.model,
    "request_model": lambda template: template.request_model,
    "operation": lambda template: template.operation,
    "service_tier": lambda template: template.service_tier,
    "attempt": lambda template: template.attempt,
    "failed": lambda template: template.failed,
    "billable": lambda template: template.billable,
    "reason": lambda template: str(template.reason),
    "usage_source": lambda template: template.usage_source.value,
    "caveats": lambda template: json.dumps(template.caveats),
    "emitter": lambda template: template.emitter,
    "traits": lambda template: json.dumps(template.traits),
}


def encode_columns(rated: RatedColumns) -> pa.RecordBatch:
    """One packed row per span, in their order, for `segments.encode_segment`. Raises OverflowError for huge amounts."""
    spans = rated.spans
    tables, kinds = _find_tables(spans)
    columns = {name: tables.take(name, kinds) for name in _OF_TEMPLATE}
    columns |= _encode_identity(rated)
    columns["service"] = encode_codes(spans.service, spans.names)
    columns["response_id"] = _encode_texts(spans.response_id)
    columns |= _encode_payers(rated, columns)
    columns |= _encode_units(spans, tables, kinds)
    columns["rating"] = encode_codes(rated.rating, [state.value for state in RATINGS])
    columns["price_version"] = encode_codes(rated.price_version, rated.versions)
    columns["currency"] = encode_codes(np.where(rated.has_currency, 0, -1).astype(np.int32), [rated.currency])
    columns["cost"] = _encode_attos(rated.cost_attos, rated.has_cost)
    columns["charge"] = _encode_attos(rated.charge_attos, rated.has_charge)
    arrays = [columns[name] if name in columns else _encode_nothing(name, len(spans)) for name in PACKED]
    return pa.record_batch(arrays, names=list(PACKED))


def _encode_payers(rated: RatedColumns, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """Who was decided to pay and for what, and what the spans said where that is something else."""
    spans = rated.spans
    decided = {"customer_id": rated.customer, "project_id": rated.project, "step": rated.step}
    said = {"customer_id": spans.customer, "project_id": spans.project, "step": spans.step}
    payers = {name: encode_codes(codes, spans.names) for name, codes in decided.items()}
    payers["run_id"] = run = _encode_texts(rated.run_id)
    told = np.ones(len(spans), dtype=bool)
    for name, codes in said.items():
        told &= codes == decided[name]
    own_run = run if rated.run_id is spans.run_id else _encode_texts(spans.run_id)
    if not own_run.equals(run):
        neither = pc.and_(run.is_null(), own_run.is_null())
        same = pc.or_(neither, pc.equal(run, own_run).fill_null(make_scalar(False, pa.bool_())))
        told &= same.to_numpy(zero_copy_only=False)
    payers[TOLD] = pa.array(told)
    if not told.all():
        own = {name: encode_codes(codes, spans.names) for name, codes in said.items()} | {"run_id": own_run}
        payers |= {said: _hide(own.get(name, columns.get(name)), told) for said, name in DECIDED.items()}
    return payers


def _hide(column: pa.Array, where: Flags) -> pa.Array:
    """The column without its values in some rows."""
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(_hide(column.indices, where), column.dictionary)
    return pc.if_else(pa.array(where), make_scalar(None, column.type), column)


def _encode_nothing(name: str, count: int) -> pa.Array:
    coded = name in NAMES or name in LISTS
    return pa.nulls(count, pa.dictionary(pa.int8(), pa.string()) if coded else SCHEMA.field(name).type)


def _encode_identity(rated: RatedColumns) -> dict[str, pa.Array]:
    spans, count = rated.spans, len(rated.spans)
    parents = spans.has_parent.astype(bool)
    return {
        "event_id": make_array(pa.binary(16), rated.event_id),
        "revision": make_array(pa.int64(), np.zeros(count, dtype=np.int64)),
        "sign": make_array(pa.int8(), np.ones(count, dtype=np.int8)),
        "content": make_array(pa.binary(16), rated.content),
        "received_nanos": make_array(pa.int64(), spans.received_nanos),
        "trace_id": make_array(pa.binary(16), spans.trace_id),
        "span_id": make_array(pa.binary(8), spans.span_id),
        "parent_span_id": make_array(pa.binary(8), spans.parent_span_id, parents),
        "started_nanos": make_array(pa.int64(), spans.started_nanos),
        "ended_nanos": make_array(pa.int64(), spans.ended_nanos),
    }


def encode_codes(codes: Int32s, values: Sequence[str]) -> pa.DictionaryArray:
    """Codes into a list, which may be long, as a dictionary of those values that occur; -1 is null."""
    if len(codes) and (codes == codes[0]).all():  # one value, or none
        used = codes[:1][codes[:1] >= 0]
        compact = np.zeros(len(codes), dtype=np.int32)
    elif len(values) < 16 * len(codes):
        seen = np.zeros(len(values) + 1, dtype=bool)
        seen[codes] = True  # -1 is the last
        used = np.flatnonzero(seen[:-1]).astype(np.int32)
        places = np.zeros(len(values) + 1, dtype=np.int32)
        places[used] = np.arange(len(used), dtype=np.int32)
        compact = places[codes]
    else:
        found, order = np.unique(codes, return_inverse=True)
        absent = int(len(found) > 0 and found[0] < 0)
        used, compact = found[absent:], np.maximum(order - absent, 0).astype(np.int32)
    known = codes >= 0
    texts = make_texts([values[code] for code in used.tolist()])
    return pa.DictionaryArray.from_arrays(make_array(pa.int32(), compact, None if known.all() else known), texts)


def _encode_texts(texts: Texts) -> pa.Array:
    count = len(texts.starts) - 1
    known = texts.starts[1:] > texts.starts[:-1]
    mask = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    nulls = count - int(np.count_nonzero(known))
    buffers = [mask, pa.py_buffer(np.ascontiguousarray(texts.starts)), pa.py_buffer(np.ascontiguousarray(texts.pool))]
    return pa.Array.from_buffers(pa.string(), count, buffers, null_count=nulls)


def _encode_units(spans: SpanColumns, tables: _Tables, kinds: Int32s) -> dict[str, pa.Array]:
    """What is billed is what was said: see `SpanColumns.find_quantities`."""
    counted = tables.counted[kinds]
    columns = {unit: pa.nulls(len(spans), pa.int64()) for unit in STANDARD_UNITS}
    for unit, counts in zip(COUNTED_UNITS, spans.counts, strict=True):
        known = counted if unit in (INPUT_TOKENS, OUTPUT_TOKENS) else counted & (counts != 0)
        columns[unit] = make_array(pa.int64(), counts, known)
    columns[REQUESTS] = make_array(pa.int64(), np.ones(len(spans), dtype=np.int64), tables.calls[kinds])
    return columns


def _encode_attos(words: Int64s, known: Flags) -> pa.Array:
    low, high = words[:, 0], words[:, 1]
    fits = high == low >> 63
    if fits.all() or fits[known].all():
        return make_array(pa.int64(), low, known)
    if (np.abs(high[known]) >= _AMOUNT_WORD_MAX).any():
        _require_storable(words[known])
    return make_array(AMOUNT, words, known)


def _require_storable(words: Int64s) -> None:
    for low, high in words.tolist():
        if abs((high << 64) + (low & 2**64 - 1)) >= 10**38:
            raise OverflowError("an amount of 10^20 or more does not fit the ledger")


@dataclass(frozen=True, slots=True)
class _Tables:
    """For the templates that a batch uses: the values of every column that follows from the template."""

    templates: Sequence[Template]
    values: dict[str, pa.Array]  # the values that occur, of columns of text
    codes: dict[str, NDArray[Any]]  # their places, or the values themselves; one per template
    known: dict[str, Flags | None]
    counted: Flags
    calls: Flags

    def take(self, name: str, kinds: Int32s) -> pa.Array:
        """The column of spans with these templates."""
        codes, known = self.codes[name], self.known[name]
        mask = None if known is None else known[kinds]
        if name in self.values:
            kind = pa.from_numpy_dtype(codes.dtype)
            alike = len(self.values[name]) == 1
            found = np.zeros(len(kinds), dtype=codes.dtype) if alike else codes[kinds]
            return pa.DictionaryArray.from_arrays(make_array(kind, found, mask), self.values[name])
        if codes.dtype == bool:
            bits = pa.py_buffer(np.packbits(codes[kinds], bitorder="little"))
            return pa.Array.from_buffers(pa.bool_(), len(kinds), [None, bits], null_count=0)
        return make_array(pa.int64(), codes[kinds], mask)


_tables: dict[bytes, _Tables] = {}  # by the templates used; most batches use those of the one before


def _find_tables(spans: SpanColumns) -> tuple[_Tables, Int32s]:
    """The tables of a batch, and the place of each span's template in them."""
    places = np.zeros(len(spans.templates), dtype=np.int32)
    places[spans.template] = 1
    used = np.flatnonzero(places)
    places[used] = np.arange(len(used), dtype=np.int32)
    key = used.tobytes()
    tables = _tables.get(key)
    if tables is None or tables.templates is not spans.templates:
        if len(_tables) >= _TABLES_MAX:
            _tables.clear()
        tables = _tables[key] = _build_tables(spans.templates, used.tolist())
    return tables, places[spans.template]


def _build_tables(templates: Sequence[Template], used: Sequence[int]) -> _Tables:
    chosen = [templates[code] for code in used]
    calls = np.array([item.role is Role.CALL for item in chosen], dtype=bool)
    counts = np.array([item.counted and item.role in (Role.CALL, Role.AGGREGATE) for item in chosen], dtype=bool)
    tables = _Tables(templates, {}, {}, {}, counts, calls)
    for name, read in _OF_TEMPLATE.items():
        column = [read(item) for item in chosen]
        known = np.array([value is not None for value in column], dtype=bool)
        tables.known[name] = None if known.all() else known
        if name in NAMES or name in LISTS:
            texts = list(dict.fromkeys(value for value in column if value is not None))
            tables.values[name] = pa.array(texts, type=pa.string())
            places: dict[Any, int] = {text: place for place, text in enumerate(texts)}  # Any: texts
            kind = next(kind for kind in (np.int8, np.int16, np.int32) if len(texts) <= np.iinfo(kind).max)
            tables.codes[name] = np.array([places.get(value, 0) for value in column], dtype=kind)
        else:
            flags = pa.types.is_boolean(SCHEMA.field(name).type)
            tables.codes[name] = np.array([value or 0 for value in column], dtype=np.bool_ if flags else np.int64)
    return tables
