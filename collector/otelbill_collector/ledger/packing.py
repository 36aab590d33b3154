"""From columns to the blob of a segment: what is derived, alike or constant is left out. Owns the way there.

`packed` says what the form means, `unpacking` goes back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.ledger.packed import (
    ALIKE,
    ATTOS,
    BYTES,
    DECIDED,
    DERIVED,
    LISTS,
    PACKED,
    TOLD,
    Constant,
    Form,
    make_array,
    make_scalar,
    narrow_attos,
    read_known,
    render_hex,
    render_units,
    repeat_value,
    widen_attos,
)
from otelbill_collector.ledger.segment_schema import AMOUNT, NAMES, SCHEMA

_OPTIONS = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1), use_threads=False)
_DICTIONARY_ROWS_MIN = 256  # a dictionary is a message of its own, of some 200 bytes
_EVENT_BYTES = 16
_CODED = pa.dictionary(pa.int32(), pa.string())
_CODES = tuple((1 << kind.bit_width - 1, kind) for kind in (pa.int8(), pa.int16(), pa.int32()))
_NIBBLES = np.full(256, 16, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


def pack_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with the columns of SCHEMA as one that `write_packed` takes."""
    rows = batch.num_rows
    columns = {name: batch.column(name) for name in batch.schema.names if name not in DERIVED}
    for name in LISTS:
        columns[name] = _pack_lists(columns[name])
    said = columns["span_quantities"]
    columns["span_quantities"] = _keep(said, pc.equal(said, render_units(columns, rows)))
    columns[TOLD] = _mark_told(columns, rows)
    columns |= {name: columns[name].dictionary_encode() for name in (*NAMES, *LISTS)}
    columns |= {name: _pack_bytes(columns[name]) for name in BYTES}
    columns |= {name: narrow_attos(columns[name]) for name in ATTOS}
    columns["event_id"] = _pack_hex(columns["event_id"])
    return pa.record_batch([columns[name] for name in PACKED], names=list(PACKED))


def _pack_lists(column: pa.Array) -> pa.Array:
    if not column.null_count and not len(column.flatten()):
        return repeat_value("[]", pa.string(), len(column))
    return pa.array([None if item is None else json.dumps(item) for item in column.to_pylist()], type=pa.string())


def _keep(column: pa.Array, known_elsewhere: pa.Array) -> pa.Array:
    """The column without what can be told from others."""
    return pc.if_else(known_elsewhere, make_scalar(None, column.type), column)


def _mark_told(columns: dict[str, pa.Array], rows: int) -> pa.Array:
    """Where spans say what was decided; there, what they say is taken from `columns`."""
    told = repeat_value(True, pa.bool_(), rows)
    for said, decided in DECIDED.items():
        one, other = columns[said], columns[decided]
        if not one.equals(other):
            neither = pc.and_(one.is_null(), other.is_null())
            told = pc.and_(told, pc.or_(neither, pc.equal(one, other).fill_null(make_scalar(False, pa.bool_()))))
    columns |= {said: _keep(columns[said], told) for said in DECIDED}
    return told


def _pack_bytes(column: pa.Array) -> pa.Array:
    """Of fixed size where all have one; no bytes are null."""
    sizes = pc.binary_length(column)
    some = pc.greater(sizes, make_scalar(0, sizes.type))
    column = pc.if_else(some, column, make_scalar(None, column.type))
    bounds = pc.min_max(sizes.filter(some)).as_py()
    return column.cast(pa.binary(bounds["max"])) if bounds["max"] and bounds["min"] == bounds["max"] else column


def _pack_hex(column: pa.Array) -> pa.Array:
    """16 bytes for 32 lower-case hex digits; as it is where one of them is anything else."""
    sizes = pc.min_max(pc.binary_length(column)).as_py()
    if column.null_count or sizes != {"min": 2 * _EVENT_BYTES, "max": 2 * _EVENT_BYTES}:
        return column
    start = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset]
    text = np.frombuffer(column.buffers()[2], dtype=np.uint8)[start : start + len(column) * 2 * _EVENT_BYTES]
    digits = _NIBBLES[text].reshape(-1, 2)
    if digits.max() > 15:
        return column
    return make_array(pa.binary(_EVENT_BYTES), (digits[:, 0] << 4 | digits[:, 1]).reshape(-1, _EVENT_BYTES))


def write_packed(batches: Sequence[pa.RecordBatch]) -> bytes:
    """One segment with the rows of one batch or two, in their order, as one Arrow IPC stream of one batch."""
    batch = join_packed(batches)
    stored, form = _settle(dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows)
    schema = pa.schema([(name, array.type) for name, array in stored.items()], metadata=form.render())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=_OPTIONS) as writer:
        writer.write_batch(pa.record_batch(list(stored.values()), schema=schema))
    return bytes(sink.getvalue())


def join_packed(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of packed batches, in their order, as one."""
    if len(batches) == 1:
        return batches[0]
    columns = [join_columns(name, [batch.column(name) for batch in batches]) for name in PACKED]
    return pa.record_batch(columns, names=list(PACKED))


def join_columns(name: str, parts: Sequence[pa.Array]) -> pa.Array:
    """The rows of all, in a type that holds them."""
    if pa.types.is_dictionary(parts[0].type):
        coded = [part if part.type == _CODED else recode(part, pa.int32()) for part in parts]
        return pa.chunked_array(coded).unify_dictionaries().combine_chunks()
    if any(part.type != parts[0].type for part in parts):
        parts = [_widen(name, part) for part in parts]
    return pa.concat_arrays(parts)


def drop_unused(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """A dictionary column without the values that none of its rows has."""
    indices = column.indices if not column.null_count else column.indices.fill_null(len(column.dictionary))
    codes = indices.to_numpy()
    used = np.zeros(len(column.dictionary) + 1, dtype=bool)
    used[codes] = True
    if used[:-1].all():
        return column
    places = np.cumsum(used, dtype=np.int32) - 1
    kept = make_array(pa.int64(), np.flatnonzero(used[:-1]))
    return pa.DictionaryArray.from_arrays(
        make_array(pa.int32(), places[codes], read_known(column.indices)), column.dictionary.take(kept)
    )


def _widen(name: str, column: pa.Array) -> pa.Array:
    if name in ATTOS:
        return column if column.type == AMOUNT else widen_attos(column)
    if name == "event_id":
        return render_hex(column) if pa.types.is_fixed_size_binary(column.type) else column
    return column.cast(SCHEMA.field(name).type)


def _settle(columns: dict[str, pa.Array], rows: int) -> tuple[dict[str, pa.Array], Form]:
    """The columns that are stored, each as narrow as may be, and what is said of the others."""
    stored: dict[str, pa.Array] = {}
    constants: dict[str, Constant] = {}
    same = {name: other for name, other in ALIKE.items() if columns[name].equals(columns[other])}
    for name, column in columns.items():
        if name in same:
            continue
        stored_name = ATTOS[name] if name in ATTOS and column.type != AMOUNT else name
        if column.null_count == rows:
            constants[stored_name] = None
        elif pa.types.is_dictionary(column.type):
            if len(column.dictionary) == 1 and not column.null_count:
                constants[stored_name] = column.dictionary[0].as_py()
            else:
                stored[stored_name] = _settle_names(column, rows)
        elif pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
            bounds = pc.min_max(column).as_py()
            if bounds["min"] == bounds["max"] and not column.null_count:
                constants[stored_name] = bounds["min"]
            else:
                stored[stored_name] = _narrow(column, bounds["min"], bounds["max"])
        else:
            text = pa.types.is_string(column.type) and name != "event_id"  # there bytes would stand for digits
            stored[stored_name] = _settle_text(column) if text else column
    return stored, Form(rows, constants, same)


def _settle_names(column: pa.DictionaryArray, rows: int) -> pa.Array:
    """Codes of the smallest size, or texts where there are few rows or nearly each has its own."""
    values = len(column.dictionary)
    if rows < _DICTIONARY_ROWS_MIN or 2 * values > rows:
        return _settle_text(column.dictionary_decode())
    kind = next(kind for limit, kind in _CODES if values <= limit)
    return column if column.indices.type == kind else recode(column, kind)


def recode(column: pa.DictionaryArray, kind: pa.DataType) -> pa.DictionaryArray:
    """A dictionary column with codes of another size."""
    return pa.DictionaryArray.from_arrays(column.indices.cast(kind), column.dictionary)


def _settle_text(column: pa.Array) -> pa.Array:
    """Texts of one size need no list of where they start."""
    if column.null_count or not len(column):
        return column
    _, places, body = column.buffers()
    ends = np.frombuffer(places, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    sizes = ends[1:] - ends[:-1]
    size = int(sizes[0])
    if not size or (sizes != size).any():
        return column
    return pa.Array.from_buffers(pa.binary(size), len(column), [None, body.slice(int(ends[0]), size * len(column))])


def _narrow(column: pa.Array, low: int, high: int) -> pa.Array:
    if pa.types.is_boolean(column.type):
        return column
    return next((column.cast(kind) for limit, kind in _CODES if -limit <= low and high < limit), column)
