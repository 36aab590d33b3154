"""From the blob of a segment back to its columns, or to those of them that are asked for. Owns the way back.

`packed` says what the form means. The columns come back in the types of SCHEMA, value for value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.ids import derive_record_id
from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.column_ids import derive_records
from otelbill_collector.ledger.packed import (
    ATTOS,
    BYTES,
    DECIDED,
    DERIVED,
    LISTS,
    PACKED,
    TOLD,
    Form,
    make_array,
    make_scalar,
    make_texts,
    render_hex,
    render_units,
    repeat_value,
    widen_attos,
)
from otelbill_collector.ledger.segment_schema import AMOUNT, NAMES, SCHEMA

Bytes = NDArray[np.uint8]

_IDENTITY = ("event_id", "revision", "sign")
_ID_BYTES = 16


def unpack_table(
    body: bytes, stored: pa.Schema, form: Form, columns: Sequence[str], *, dictionaries: bool, validate: bool
) -> pa.Table:
    """Columns of a packed segment; `stored` is the schema of its blob. Of the others nothing is read.

    With `validate` what is stored is checked first. Raises ValueError where it is not sound.
    """
    needed = {part for name in columns for part in _list_needed(name)}
    needed |= {form.same[name] for name in needed if name in form.same}
    needed |= {ATTOS[name] for name in needed if name in ATTOS}
    fields = [place for place, name in enumerate(stored.names) if name in needed]
    segment = _Segment(_read_stored(body, form, fields, validate=validate), form, dictionaries)
    arrays = [segment.restore(name) for name in columns]
    return pa.table(arrays, names=list(columns))


def unpack_batch(body: bytes, stored: pa.Schema, form: Form) -> pa.RecordBatch:
    """A segment's rows as the packed batch that they were written from. Raises ValueError where it is not sound."""
    segment = _Segment(_read_stored(body, form, list(range(len(stored)))), form, dictionaries=True)
    return pa.record_batch([segment.restore_packed(name) for name in PACKED], names=list(PACKED))


def read_identity(body: bytes, stored: pa.Schema, form: Form) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int8]]:
    """Of a segment's rows the event ids as packed, the revisions and the signs: all that their ids follow from."""
    fields = [place for place, name in enumerate(stored.names) if name in _IDENTITY]
    segment = _Segment(_read_stored(body, form, fields), form, dictionaries=False)
    events, revisions, signs = (segment.restore_packed(name) for name in _IDENTITY)
    return events, revisions.to_numpy(zero_copy_only=False), signs.to_numpy(zero_copy_only=False)


def _read_stored(body: bytes, form: Form, fields: Sequence[int], *, validate: bool = False) -> dict[str, pa.Array]:
    found: dict[str, pa.Array] = {}
    if fields or validate:
        options = pa.ipc.IpcReadOptions(included_fields=None if validate else fields, use_threads=False)
        batch = pa.ipc.open_stream(body, options=options).read_next_batch()
        if validate:
            batch.validate(full=True)
        if batch.num_rows != form.rows:
            raise ValueError(f"the segment says {form.rows} rows and has {batch.num_rows}")
        found = dict(zip(batch.schema.names, batch.columns, strict=True))
    return found


def _list_needed(name: str) -> tuple[str, ...]:
    if name in DECIDED:
        return name, TOLD, DECIDED[name]
    if name in DERIVED:
        return _IDENTITY
    return (name, *STANDARD_UNITS) if name == "span_quantities" else (name,)


class _Segment:
    """The stored columns of a segment, and what each column of SCHEMA is made of."""

    def __init__(self, stored: dict[str, pa.Array], form: Form, dictionaries: bool) -> None:
        self._stored = stored
        self._form = form
        self._dictionaries = dictionaries

    def restore(self, name: str) -> pa.Array:
        """A column as readers see it."""
        if name in DERIVED:
            return self._derive_ids(name)
        if name in DECIDED:
            return self._restore_said(name)
        if name == "span_quantities":
            units = {unit: self.restore(unit) for unit in STANDARD_UNITS}
            return pc.coalesce(self._find(name, pa.string()), render_units(units, self._form.rows))
        if name in NAMES:
            return self._restore_name(name)
        if name in LISTS:
            return _split_lists(self._find_text(name))
        if name in ATTOS:
            return self._restore_amount(name)
        column = self._find(name, SCHEMA.field(name).type)
        if name in BYTES:
            return column.fill_null(b"")
        return column

    def restore_packed(self, name: str) -> pa.Array:
        """A column of PACKED, as `packing` takes it."""
        if name in NAMES or name in LISTS:
            return _encode(self._find_text(name))
        if name in ATTOS:
            name = self._form.same.get(name, name)
            return self._find(name, AMOUNT) if name in self._stored else self._find(ATTOS[name], pa.int64())
        if name in BYTES or name == "event_id":
            return self._stored[name] if name in self._stored else pa.nulls(self._form.rows, SCHEMA.field(name).type)
        return self._find(name, pa.bool_() if name == TOLD else SCHEMA.field(name).type)

    def _find(self, name: str, kind: pa.DataType) -> pa.Array:
        """A stored column in a type, whether or not it is constant."""
        if name in self._stored:
            column = self._stored[name]
            if pa.types.is_string(kind) and pa.types.is_fixed_size_binary(column.type):
                return render_hex(column) if name == "event_id" else _spread_text(column)
            return column if column.type == kind else column.cast(kind)
        value = self._form.constants.get(name)
        return pa.nulls(self._form.rows, kind) if value is None else repeat_value(value, kind, self._form.rows)

    def _find_text(self, name: str) -> pa.Array:
        """A name as it is stored: as a dictionary or as texts. What is constant is a dictionary of one."""
        name = self._form.same.get(name, name)
        if name in self._stored:
            column = self._stored[name]
            return column if pa.types.is_dictionary(column.type) else self._find(name, pa.string())
        value = self._form.constants.get(name)
        known = np.zeros(self._form.rows, dtype=bool) if value is None else None
        codes = make_array(pa.int8(), np.zeros(self._form.rows, dtype=np.int8), known)
        return pa.DictionaryArray.from_arrays(codes, make_texts([] if value is None else [str(value)]))

    def _restore_name(self, name: str) -> pa.Array:
        if self._dictionaries:
            return _encode(self._find_text(name))
        return self._find(self._form.same.get(name, name), pa.string())

    def _restore_said(self, name: str) -> pa.Array:
        """What the span said, which is what was decided in rows that are `as_told`."""
        decided = DECIDED[name]
        if TOLD not in self._stored and self._form.constants.get(TOLD):
            return self.restore(decided)
        told = self._find(TOLD, pa.bool_())
        kind = SCHEMA.field(name).type
        if not (pa.types.is_string(kind) or name in LISTS):
            return pc.if_else(told, self._find(decided, kind), self._find(name, kind))
        column = pc.if_else(told, _decode(self._find_text(decided)), _decode(self._find_text(name)))
        if name in LISTS:
            return _split_lists(column)
        return _encode(column) if self._dictionaries and name in NAMES else column

    def _restore_amount(self, name: str) -> pa.Array:
        name = self._form.same.get(name, name)
        narrow = ATTOS[name]
        if narrow in self._stored or narrow in self._form.constants:
            return widen_attos(self._find(narrow, pa.int64()))
        return self._find(name, SCHEMA.field(name).type)

    def _derive_ids(self, name: str) -> pa.Array:
        """`record_id` or `corrects`, by the formulas of `UsageRecord`."""
        events = self._stored.get("event_id", self.restore("event_id"))
        revisions = self.restore("revision").to_numpy(zero_copy_only=False)
        reversals = self.restore("sign").to_numpy(zero_copy_only=False) < 0
        if name == "record_id":
            known = np.ones(self._form.rows, dtype=bool)
            found = derive_record_ids(events, revisions, reversals)
        else:  # a reversal names the booking, and a revision the one before it
            known = reversals | (revisions > 0)
            found = derive_record_ids(events, np.where(reversals, revisions, revisions - 1), np.zeros_like(reversals))
        texts = render_hex(make_array(pa.binary(_ID_BYTES), found))
        return texts if known.all() else pc.if_else(pa.array(known), texts, make_scalar(None, pa.string()))


def derive_record_ids(events: pa.Array, revisions: NDArray[np.int64], reversals: NDArray[np.bool_]) -> Bytes:
    """`record_id` of bookings and reversals, [n, 16]. `events` are event ids as packed."""
    if pa.types.is_fixed_size_binary(events.type):
        start = events.offset * _ID_BYTES
        raw = np.frombuffer(events.buffers()[1], dtype=np.uint8)[start : start + len(events) * _ID_BYTES]
        return derive_records(raw.reshape(-1, _ID_BYTES), revisions, reversals)
    rows = zip(events.to_pylist(), revisions.tolist(), reversals.tolist(), strict=True)
    ids = [
        bytes.fromhex(derive_record_id(event, revision, "reversal" if reverses else "usage"))
        for event, revision, reverses in rows
    ]
    return np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(-1, _ID_BYTES)


def _encode(column: pa.Array) -> pa.Array:
    """As a dictionary whose type is that of every segment."""
    if not pa.types.is_dictionary(column.type):
        return column.dictionary_encode()
    return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), column.dictionary)


def _decode(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _spread_text(column: pa.Array) -> pa.Array:
    """Texts of one size, in their usual form."""
    width = column.type.byte_width
    ends = np.arange(0, (len(column) + 1) * width, width, dtype=np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(column), [None, pa.py_buffer(ends), column.buffers()[1]], null_count=0
    )


def _split_lists(column: pa.Array) -> pa.Array:
    """JSON texts of lists as lists."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    items = [json.loads(text) for text in coded.dictionary.to_pylist()]
    ends = np.zeros(len(items) + 1, dtype=np.int32)
    np.cumsum([len(item) for item in items], out=ends[1:])
    lists = pa.ListArray.from_arrays(make_array(pa.int32(), ends), make_texts(list(chain.from_iterable(items))))
    return lists.take(coded.indices)
