"""Which segments hold an id: sorted files of 8-byte entries, a hash of the id above the segment. Owns their content.

A hash of 32 bits may lead to a segment that does not hold the id; whoever finds one looks at its records. An id that
is in a segment is always found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.native import ids as native

INDEXED = ("event_id", "record_id", "trace_id", "span_id", "response_id", "run_id")
ENTRY_BYTES = 8

Entries = NDArray[np.uint64]
_HASHED_BYTES_MAX = 256  # of one id
_SEGMENT_BITS = np.uint64(32)


def make_entries(tables: Iterable[tuple[int, pa.Table]]) -> Entries:
    """The sorted entries of every id in (segment id, columns)."""
    found = [
        _make_column_entries(column, segment_id) for segment_id, table in tables for column in _list_columns(table)
    ]
    if not found:
        return np.empty(0, dtype=np.uint64)
    return sort_entries(np.concatenate(found))


def sort_entries(entries: Entries) -> Entries:
    """Entries in order, each once. The array that is given is not used any more."""
    library = native.find_ids()
    if library is not None:
        return native.sort_entries(library, entries)
    entries.sort()
    is_first = np.ones(len(entries), dtype=np.bool_)
    np.not_equal(entries[1:], entries[:-1], out=is_first[1:])
    distinct: Entries = entries[is_first]
    return distinct


def _list_columns(table: pa.Table) -> Iterator[pa.Array]:
    for name in INDEXED:
        for chunk in table[name].chunks:
            is_text = pa.types.is_string(chunk.type) or pa.types.is_binary(chunk.type)
            yield chunk if is_text else chunk.cast(pa.binary())


def _make_column_entries(column: pa.Array, segment_id: int) -> Entries:
    library = native.find_ids()
    if library is not None:
        return native.make_entries(library, column, segment_id)
    values = column.cast(pa.binary())
    values = values.filter(pc.fill_null(pc.greater(pc.binary_length(values), 0), False))
    if not len(values):
        return np.empty(0, dtype=np.uint64)
    return (_hash_values(values) << _SEGMENT_BITS) | np.uint64(segment_id)


def _hash_values(column: pa.Array) -> Entries:
    """32 mixed bits for each value of a binary column without nulls."""
    _, offsets, body = column.buffers()
    places = np.frombuffer(offsets, dtype="<i4")[column.offset : column.offset + len(column) + 1].astype(np.int64)
    raw = np.frombuffer(body, dtype=np.uint8) if body else np.empty(0, np.uint8)
    lengths = np.diff(places)
    used = np.minimum(lengths, _HASHED_BYTES_MAX)
    width = max(8, -(-int(used.max()) // 8) * 8)
    padded = np.zeros(len(column) * width, dtype=np.uint8)
    starts = np.cumsum(used) - used
    inside = np.arange(int(used.sum())) - np.repeat(starts, used)
    rows = np.repeat(np.arange(len(column)), used)
    padded[rows * width + inside] = raw[np.repeat(places[:-1], used) + inside]
    mixed = _mix(lengths.astype(np.uint64))
    words = padded.view("<u8").reshape(len(column), -1)
    filled = (used + 7) >> 3
    for index in range(words.shape[1]):  # a value's hash does not depend on how long others are
        mixed = np.where(index < filled, _mix(mixed ^ words[:, index]), mixed)
    hashes: Entries = mixed >> _SEGMENT_BITS
    return hashes


def _mix(values: Entries) -> Entries:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def write_entries(path: Path, entries: Entries) -> int:
    """Write sorted entries; returns how many."""
    path.write_bytes(entries.astype("<u8").tobytes())
    return len(entries)


def merge_entries(path: Path, sources: Sequence[Path]) -> int:
    """Write the entries of several files as one; returns how many."""
    return write_entries(path, sort_entries(np.concatenate([_open_entries(source) for source in sources])))


def find_segments(paths: Sequence[Path], ids: Iterable[bytes]) -> set[int]:
    """Segments that may hold one of the ids; every segment that does is among them. Raises OSError, ValueError."""
    wanted = [value for value in ids if value]
    if not wanted:
        return set()
    firsts = np.unique(_hash_values(pa.array(wanted, type=pa.binary()))) << _SEGMENT_BITS
    found: set[int] = set()
    for path in paths:
        entries = _open_entries(path)
        starts = np.searchsorted(entries, firsts)
        ends = np.searchsorted(entries, firsts | np.uint64(0xFFFFFFFF), side="right")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            found.update((entries[start:end] & np.uint64(0xFFFFFFFF)).tolist())
    return found


def _open_entries(path: Path) -> Entries:
    if not path.stat().st_size:
        return np.empty(0, dtype=np.uint64)
    return np.memmap(path, dtype="<u8", mode="r")
