"""Booked rows rated again by columns: which of them other prices made, and their reversals and revisions as segments.

Reads from the newest segment to the oldest, so that it knows what is in force. Owns no transaction (see `books`), and
leaves to booking what an operator said something of.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.domain.usage import Candidate, RatingState, UsageSource
from otelbill_collector.ledger.amount_columns import Amounts
from otelbill_collector.ledger.claim_runs import ClaimReader, Entries, append_entries, make_entries
from otelbill_collector.ledger.column_rating import RATING_COLUMNS, ColumnRater, RatedRows
from otelbill_collector.ledger.id_sets import Ids, IdSet, pack_ids, read_ids, view_ids
from otelbill_collector.ledger.journal import (
    Encoded,
    append_encoded,
    find_last_segment,
    list_bodies,
    save_price_versions,
)
from otelbill_collector.ledger.packed import make_array, make_texts, narrow_attos, repeat_value
from otelbill_collector.ledger.packing import drop_unused, join_columns, join_packed, write_packed
from otelbill_collector.ledger.repricing import Scope, match_booked, match_scope
from otelbill_collector.ledger.segments import decode_packed, decode_records, decode_table, read_bookings
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.ledger.unpacking import derive_record_ids

Int64s = NDArray[np.int64]
Flags = NDArray[np.bool_]
KeysOf = Callable[[Candidate], tuple[bytes, ...]]

_COLUMNS = (*RATING_COLUMNS, "rating", "currency", "cost", "charge", "price_version", "usage_source")
_POSITION = (1 << 32) - 1
_READ_ROWS = 200_000  # looked at in one snapshot
_SEGMENT_EVENTS = 4_096  # two rows each
_COMMIT_EVENTS = 32_768
_STATES = pa.array([RatingState.RATED.value, RatingState.UNPRICED.value])
_GUESSED = pa.array([UsageSource.ESTIMATED.value, UsageSource.UNKNOWN.value])  # whether it is held is not for prices


@dataclass(frozen=True, slots=True)
class Revisions:
    """Rows in force whose amounts change, packed, with what they become, column by column.

    `entries` are the claim entries of the rows, and `owners` the row of each, in order. `bodies` are the contents of
    price versions, maybe of more than these rows name.
    """

    rows: pa.RecordBatch
    rating: pa.DictionaryArray
    price_version: pa.DictionaryArray
    cost: Amounts
    charge: Amounts
    entries: Entries
    owners: Int64s
    bodies: Mapping[str, str]

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def list_record_ids(self) -> Ids:
        """The bookings that are to be reversed."""
        return _derive_records(self.rows)

    def list_event_ids(self) -> Ids:
        """Their events."""
        return _read_events(self.rows)

    def choose(self, wanted: Int64s) -> Revisions:
        """Some of the rows, in their order."""
        taken = pa.array(wanted)
        columns = [item.take(taken) for item in (self.rows, self.rating, self.price_version)]
        places = np.full(len(self), -1, dtype=np.int64)
        places[wanted] = np.arange(len(wanted))
        owners = places[self.owners]
        return self._rebuild(columns, wanted, self.entries[owners >= 0], owners[owners >= 0])

    def cut(self, size: int) -> Iterator[Revisions]:
        """All rows in portions, which copy nothing."""
        for start in range(0, len(self), size):
            columns = [item.slice(start, size) for item in (self.rows, self.rating, self.price_version)]
            first, last = np.searchsorted(self.owners, [start, start + size])
            owners = self.owners[first:last] - start
            yield self._rebuild(columns, slice(start, start + size), self.entries[first:last], owners)

    def _rebuild(self, columns: Sequence[Any], part: Int64s | slice, entries: Entries, owners: Int64s) -> Revisions:
        rows, rating, version = columns
        amounts = self.cost.choose(part), self.charge.choose(part)
        return Revisions(rows, rating, version, *amounts, entries, owners, self.bodies)


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows of some segments that would be booked otherwise now.

    `places` say where a row stands, as segment and position in one number; `rated` is of more rows, of which `rows` are
    these, and so are `entries`, the claim entries of the segments.
    """

    bodies: Mapping[int, bytes]
    places: Int64s
    rated: RatedRows
    rows: Int64s
    guessed: Flags
    entries: Entries


@dataclass(frozen=True, slots=True)
class Batch:
    """What some segments, the oldest of which is `first`, hold to be rated again."""

    first: int
    changes: Changes | None


@dataclass(frozen=True, slots=True)
class Written:
    """Segments ready to be appended, and of each claim entry the number of its segment among them."""

    found: Revisions
    segments: Sequence[Encoded]
    entries: Entries
    numbers: Int64s
    days: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a batch comes to: by columns, a part for each transaction; and what goes through booking, one by one."""

    first: int
    parts: Sequence[Written] = ()
    records: Sequence[UsageRecord] = ()


@dataclass(slots=True)
class Rerating:
    """One run over a ledger. `told` are events that operators said something of; `end` is the last segment it reads."""

    rater: Rater
    scope: Scope
    note: str
    told: Collection[str]
    keys_of: KeysOf
    end: int
    _columns: ColumnRater = field(init=False)
    _reversed: IdSet = field(default_factory=IdSet)
    _claims: ClaimReader = field(default_factory=ClaimReader)
    _seen: int = field(init=False)  # the last segment that was looked at for reversals of others
    _late: IdSet = field(default_factory=IdSet)  # records that were reversed since the run began
    _own: set[int] = field(default_factory=set)
    _told_ids: IdSet = field(init=False)

    def __post_init__(self) -> None:
        self._columns = ColumnRater(self.rater)
        self._seen = self.end
        self._told_ids = IdSet(pack_ids(bytes.fromhex("".join(self.told))))

    def prepare_all(self, store: SqliteStore) -> Iterator[Prepared]:
        """What each batch comes to. A thread prepares one while its predecessor is appended and its successor read."""
        preparer = ThreadPoolExecutor(1, "rerate")
        try:
            before = self.end + 1
            ahead: Future[Prepared] | None = None
            while batch := store.read(partial(self.read_batch, before=before)):
                before, ready, ahead = batch.first, ahead, preparer.submit(self.prepare, batch)
                if ready is not None:
                    yield ready.result()
            if ahead is not None:
                yield ahead.result()
        finally:
            preparer.shutdown(cancel_futures=True)

    def read_batch(self, connection: sqlite3.Connection, before: int) -> Batch | None:
        """What the next segments before one hold, towards the oldest; None when there are no more."""
        bodies: dict[int, bytes] = {}
        tables: list[pa.Table] = []
        stands: list[Flags] = []
        first, rows = 0, 0
        since, until = self.scope.from_nanos, self.scope.to_nanos
        for first, body in list_bodies(connection, before, ended_from=since, ended_to=until):
            in_force = self._find_in_force(body)
            rows += len(in_force)
            if in_force.any():
                bodies[first] = body
                tables.append(decode_table(body, _COLUMNS))
                stands.append(in_force)
            if rows >= _READ_ROWS:
                break
        if not first:
            return None
        changes = self._find_changes(connection, bodies, tables, np.concatenate(stands)) if bodies else None
        return Batch(first, changes)

    def _find_in_force(self, body: bytes) -> Flags:
        """Which rows of a segment none reverses: later ones were looked at before. Remembers what it reverses."""
        bookings, signs = read_bookings(body)
        self._reversed.add(bookings[signs < 0])
        in_force: Flags = signs > 0
        if len(self._reversed):
            in_force[in_force] = ~self._reversed.match(bookings[in_force])
        return in_force

    def _find_changes(
        self, connection: sqlite3.Connection, bodies: Mapping[int, bytes], tables: Sequence[pa.Table], stands: Flags
    ) -> Changes | None:
        places = np.concatenate(
            [
                (segment_id << 32) + np.arange(table.num_rows, dtype=np.int64)
                for segment_id, table in zip(bodies, tables, strict=True)
            ]
        )
        table = pa.concat_tables(tables)
        wanted = pc.and_(match_scope(table, self.scope), pc.is_in(table["rating"], value_set=_STATES))
        chosen = np.flatnonzero(stands & wanted.combine_chunks().to_numpy(zero_copy_only=False))
        table = table.take(pa.array(chosen)).combine_chunks()
        rated = self._columns.rate(table)
        changed = np.flatnonzero(~match_booked(connection, table, rated, self.rater.card.currency))
        if not len(changed):
            return None
        places = places[chosen[changed]]
        guessed = pc.is_in(table["usage_source"], value_set=_GUESSED).combine_chunks()
        guessed = guessed.to_numpy(zero_copy_only=False)[changed]
        entries = self._claims.load_entries(connection, np.unique(places >> 32).tolist())
        return Changes(bodies, places, rated, changed, guessed, entries)

    def prepare(self, batch: Batch) -> Prepared:
        """All that is to be appended of a batch. Needs neither the ledger nor the run's turn: any thread may do it."""
        changes = batch.changes
        if changes is None:
            return Prepared(batch.first)
        rows = _take_rows(changes.bodies, changes.places)
        by_booking = changes.guessed
        if self.told:
            by_booking = by_booking | self._told_ids.match(_read_events(rows))
        slow = np.flatnonzero(by_booking)
        records = decode_records(write_packed([rows.take(pa.array(slow))])) if len(slow) else []
        kept = np.flatnonzero(~by_booking)
        if not len(kept):
            return Prepared(batch.first, (), records)
        rows = rows if len(kept) == rows.num_rows else rows.take(pa.array(kept))
        revisions = self._build(rows, changes, kept)
        return Prepared(batch.first, [self.write(part) for part in revisions.cut(_COMMIT_EVENTS)], records)

    def _build(self, rows: pa.RecordBatch, changes: Changes, kept: Int64s) -> Revisions:
        rated, changed = changes.rated, changes.rows[kept]
        forms = [rated.forms[number] for number in np.unique(rated.form[changed]).tolist()]
        bodies = {form.version.version_id: form.version.body for form in forms if form.version}
        return Revisions(
            rows,
            rated.choose_texts([form.state.value for form in rated.forms], changed),
            rated.choose_texts([form.version_id for form in rated.forms], changed),
            rated.cost.choose(changed),
            rated.charge.choose(changed),
            *self._assign_entries(changes.entries, rows, changes.places[kept]),
            bodies,
        )

    def _assign_entries(self, entries: Entries, rows: pa.RecordBatch, places: Int64s) -> tuple[Entries, Int64s]:
        """The claim entries of rows that stand at places, and the row of each, in order."""
        order = np.argsort(places)
        ordered = places[order]
        where = (entries["segment"].astype(np.int64) << 32) + entries["position"].astype(np.int64)
        place = np.searchsorted(ordered, where)
        hit = np.flatnonzero(ordered[np.minimum(place, len(ordered) - 1)] == where)
        owners = order[place[hit]]
        entries = entries[hit]
        missing = np.flatnonzero(np.bincount(owners, minlength=len(places)) == 0)  # ledgers from before the runs
        if len(missing):
            found = decode_records(write_packed([rows.take(pa.array(missing))]))
            keys = [self.keys_of(record.candidate) for record in found]
            again = np.repeat(missing, [len(item) for item in keys])
            made = make_entries(0, [key for item in keys for key in item], again)
            entries, owners = np.concatenate([entries, made]), np.concatenate([owners, again])
        by_owner = np.argsort(owners, kind="stable")
        return entries[by_owner], owners[by_owner]

    def write(self, found: Revisions) -> Written:
        """Reversals and revisions as segments, for one transaction."""
        segments = [
            _encode_portion(portion, self.note, self.rater.card.currency) for portion in found.cut(_SEGMENT_EVENTS)
        ]
        ended = [(item.ended_min // DAY_NANOS, item.ended_max // DAY_NANOS) for item in segments]
        numbers = found.owners // _SEGMENT_EVENTS
        events = np.array([item.records // 2 for item in segments])
        entries = found.entries.copy()
        # The revisions come after all reversals of their segment.
        entries["position"] = found.owners - numbers * _SEGMENT_EVENTS + events[numbers]
        return Written(found, segments, entries, numbers, (min(day for day, _ in ended), max(day for _, day in ended)))

    def append(self, connection: sqlite3.Connection, written: Written, now_nanos: int) -> bool:
        """Append segments, unless something in them was booked anew meanwhile. Call inside a write transaction."""
        last = find_last_segment(connection)
        others = {*range(self._seen + 1, last + 1)} - self._own
        for segment_id, body in list_bodies(connection, max(others) + 1, after=min(others) - 1) if others else ():
            if segment_id in others:
                bookings, signs = read_bookings(body)
                self._late.add(bookings[signs < 0])
        self._seen = last
        if len(self._late) and self._late.match(written.found.list_record_ids()).any():
            return False
        save_price_versions(connection, written.found.bodies)
        ids = [append_encoded(connection, item, now_nanos) for item in written.segments]
        written.entries["segment"] = np.array(ids)[written.numbers]
        append_entries(connection, written.entries, written.days)
        self._own.update(ids)
        return True

    def leave_late(self, found: Revisions) -> Revisions:
        """Without what was booked anew since it was read: that has the prices of now already."""
        return found.choose(np.flatnonzero(~self._late.match(found.list_record_ids())))


def _take_rows(bodies: Mapping[int, bytes], places: Int64s) -> pa.RecordBatch:
    """The rows at places, which stand together segment by segment, packed."""
    segments = places >> 32
    edges = np.flatnonzero(np.concatenate(([True], segments[1:] != segments[:-1], [True])))
    batches = []
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        batch = decode_packed(bodies[int(segments[start])])
        positions = places[start:end] & _POSITION
        batches.append(batch if len(positions) == batch.num_rows else batch.take(pa.array(positions)))
    return join_packed(batches)


def _read_events(rows: pa.RecordBatch) -> Ids:
    events = rows["event_id"]
    if not pa.types.is_fixed_size_binary(events.type):
        return read_ids(events)
    start = events.offset * events.type.byte_width
    return pack_ids(events.buffers()[1].slice(start, len(events) * events.type.byte_width))


def _derive_records(rows: pa.RecordBatch) -> Ids:
    revisions = rows["revision"].to_numpy()
    return view_ids(derive_record_ids(rows["event_id"], revisions, np.zeros(len(revisions), dtype=np.bool_)))


def _encode_portion(found: Revisions, note: str, currency: str) -> Encoded:
    """All reversals, then all revisions, in one batch: what both have alike is compressed once."""
    count = len(found)
    rows = found.rows
    revisions = rows["revision"].to_numpy()
    columns = {
        "sign": make_array(pa.int8(), np.repeat(np.array([-1, 1], dtype=np.int8), count)),
        "revision": make_array(pa.int64(), np.concatenate([revisions, revisions + 1])),
        "note": _repeat_name(note, 2 * count),
        "rating": _join("rating", rows, found.rating),
        "price_version": _join("price_version", rows, found.price_version),
        "cost": _join("cost", rows, narrow_attos(found.cost.encode())),
        "charge": _join("charge", rows, narrow_attos(found.charge.encode())),
        "currency": _join("currency", rows, _repeat_name(currency, count)),
    }
    names = rows.schema.names
    arrays = [columns[name] if name in columns else _double(rows[name]) for name in names]
    ended = rows["ended_nanos"].to_numpy()
    body = write_packed([pa.record_batch(arrays, names=names)])
    return Encoded(body, int(ended.min()), int(ended.max()), 2 * count)


def _repeat_name(value: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(repeat_value(0, pa.int32(), count), make_texts([value]))


def _double(column: pa.Array) -> pa.Array:
    if not pa.types.is_dictionary(column.type):
        return pa.concat_arrays([column, column])
    used = drop_unused(column)
    return pa.DictionaryArray.from_arrays(pa.concat_arrays([used.indices, used.indices]), used.dictionary)


def _join(name: str, rows: pa.RecordBatch, new: pa.Array) -> pa.Array:
    old = rows[name]
    if pa.types.is_dictionary(old.type):
        old, new = drop_unused(old), drop_unused(new)
    return join_columns(name, [old, new])
