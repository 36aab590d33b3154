"""Booked rows rated again by columns: which of them other prices made, and their reversals and revisions as segments.

Reads from the newest segment to the oldest, so that it knows what is in force. Owns no transaction (see `books`), and
leaves to booking what an operator said something of.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from otelbill_collector.ledger.id_sets import IdSet, read_ids
from otelbill_collector.ledger.journal import (
    Encoded,
    append_encoded,
    find_last_segment,
    list_bodies,
    save_price_versions,
)
from otelbill_collector.ledger.packed import DERIVED
from otelbill_collector.ledger.repricing import Scope, match_booked, match_scope
from otelbill_collector.ledger.segment_schema import SCHEMA
from otelbill_collector.ledger.segments import build_record, decode_table, encode_batch, fit_columns
from otelbill_collector.ledger.sums import read_integers

Int64s = NDArray[np.int64]
Flags = NDArray[np.bool_]
KeysOf = Callable[[Candidate], tuple[bytes, ...]]

_COLUMNS = (*RATING_COLUMNS, "sign", "rating", "currency", "cost", "charge", "price_version", "usage_source")
_POSITION = (1 << 32) - 1
_READ_ROWS = 100_000  # looked at in one snapshot
_SEGMENT_EVENTS = 4_096  # two rows each
_COMMIT_EVENTS = 16_384
_STATES = pa.array([RatingState.RATED.value, RatingState.UNPRICED.value])
_GUESSED = pa.array([UsageSource.ESTIMATED.value, UsageSource.UNKNOWN.value])  # whether it is held is not for prices


@dataclass(frozen=True, slots=True)
class Revisions:
    """Rows in force whose amounts change, with what they become, column by column.

    `places` say where a row stands, as segment and position in one number; `entries` are the claim entries of the rows'
    segments, `bodies` the contents of price versions; both for more rows than these.
    """

    rows: pa.Table
    rating: pa.Array
    price_version: pa.Array
    cost: Amounts
    charge: Amounts
    places: Int64s
    entries: Entries
    bodies: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.places)

    def choose(self, wanted: Int64s) -> Revisions:
        """Some of the rows."""
        taken = pa.array(wanted)
        columns = [item.take(taken) for item in (self.rows, self.rating, self.price_version)]
        return self._rebuild(columns, wanted)

    def cut(self, size: int) -> Iterator[Revisions]:
        """All rows in portions, which copy nothing."""
        for start in range(0, len(self), size):
            columns = [item.slice(start, size) for item in (self.rows, self.rating, self.price_version)]
            yield self._rebuild(columns, slice(start, start + size))

    def _rebuild(self, columns: Sequence[Any], part: Int64s | slice) -> Revisions:
        rows, rating, version = columns
        amounts = self.cost.choose(part), self.charge.choose(part)
        return Revisions(rows, rating, version, *amounts, self.places[part], self.entries, self.bodies)


@dataclass(frozen=True, slots=True)
class Batch:
    """What some segments, the oldest of which is `first`, hold to be rated again: by columns, and one by one."""

    first: int
    revisions: Revisions | None
    records: Sequence[UsageRecord]

    def list_commits(self) -> Iterator[Revisions]:
        """The revisions in portions for one transaction each."""
        return iter(()) if self.revisions is None else self.revisions.cut(_COMMIT_EVENTS)


@dataclass(frozen=True, slots=True)
class Written:
    """Segments ready to be appended, and of each claim entry the number of its segment among them."""

    segments: Sequence[Encoded]
    entries: Entries
    numbers: Int64s
    days: tuple[int, int]
    event_ids: Sequence[str]
    record_ids: frozenset[str]
    bodies: Mapping[str, str]


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
    _late: set[str] = field(default_factory=set)  # records that were reversed since the run began
    _own: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._columns = ColumnRater(self.rater)
        self._seen = self.end

    def read_batch(self, connection: sqlite3.Connection, before: int) -> Batch | None:
        """What the next segments before one hold, towards the oldest; None when there are no more."""
        bodies: dict[int, bytes] = {}
        tables: list[pa.Table] = []
        rows = 0
        since, until = self.scope.from_nanos, self.scope.to_nanos
        for segment_id, body in list_bodies(connection, before, ended_from=since, ended_to=until):
            bodies[segment_id] = body
            tables.append(decode_table(body, _COLUMNS))
            rows += tables[-1].num_rows
            found = _list_reversed(body, tables[-1]["sign"])
            if found is not None:
                self._reversed.add(read_ids(found))
            if rows >= _READ_ROWS:
                break
        if not bodies:
            return None
        revisions, records = self._find_revisions(connection, bodies, tables)
        return Batch(min(bodies), revisions, records)

    def _find_revisions(
        self, connection: sqlite3.Connection, bodies: Mapping[int, bytes], tables: Sequence[pa.Table]
    ) -> tuple[Revisions | None, list[UsageRecord]]:
        places = np.concatenate(
            [
                (segment_id << 32) + np.arange(table.num_rows, dtype=np.int64)
                for segment_id, table in zip(bodies, tables, strict=True)
            ]
        )
        table = pa.concat_tables(tables)
        wanted = pc.and_(match_scope(table, self.scope), pc.greater(table["sign"], 0))
        wanted = pc.and_(wanted, pc.is_in(table["rating"], value_set=_STATES))
        chosen = np.flatnonzero(wanted.combine_chunks().to_numpy(zero_copy_only=False))
        table = table.take(pa.array(chosen)).combine_chunks()
        rated = self._columns.rate(table)
        changed = np.flatnonzero(~match_booked(connection, table, rated, self.rater.card.currency))
        if not len(changed):
            return None, []
        places = places[chosen[changed]]
        rows = _take_rows(bodies, places)
        guessed = pc.is_in(table["usage_source"], value_set=_GUESSED).combine_chunks()
        by_booking = guessed.to_numpy(zero_copy_only=False)[changed]
        in_force = ~self._reversed.match(read_ids(rows["record_id"])) if len(self._reversed) else ~(by_booking & False)
        if self.told:
            told = pc.is_in(rows["event_id"], value_set=pa.array(sorted(self.told))).combine_chunks()
            by_booking = by_booking | told.to_numpy(zero_copy_only=False)
        slow = rows.filter(pa.array(in_force & by_booking))
        records = [build_record(row) for row in slow.to_pylist()]
        kept = np.flatnonzero(in_force & ~by_booking)
        if not len(kept):
            return None, records
        rows = rows if len(kept) == rows.num_rows else rows.take(pa.array(kept))
        return self._build(rows, rated, changed[kept], places[kept], connection), records

    def _build(
        self, rows: pa.Table, rated: RatedRows, changed: Int64s, places: Int64s, connection: sqlite3.Connection
    ) -> Revisions:
        forms = [rated.forms[number] for number in np.unique(rated.form[changed]).tolist()]
        bodies = {form.version.version_id: form.version.body for form in forms if form.version}
        entries = self._claims.load_entries(connection, np.unique(places >> 32).tolist())
        return Revisions(
            rows,
            rated.choose_texts([form.state.value for form in rated.forms], changed),
            rated.choose_texts([form.version_id for form in rated.forms], changed),
            rated.cost.choose(changed),
            rated.charge.choose(changed),
            places,
            entries,
            bodies,
        )

    def write(self, found: Revisions) -> Written:
        """Reversals and revisions as segments. Takes the time, and needs no transaction."""
        segments, placed = [], []
        for portion in found.cut(_SEGMENT_EVENTS):
            segments.append(_encode_portion(portion, self.note, self.rater.card.currency))
            placed.append(len(portion) + np.arange(len(portion)))  # the revisions come after all reversals
        numbers = np.arange(len(found)) // _SEGMENT_EVENTS
        entries, rows = self._move_entries(found, np.concatenate(placed))
        ended = [(item.ended_min // DAY_NANOS, item.ended_max // DAY_NANOS) for item in segments]
        return Written(
            segments,
            entries,
            numbers[rows],
            (min(day for day, _ in ended), max(day for _, day in ended)),
            found.rows["event_id"].to_pylist(),
            frozenset(found.rows["record_id"].to_pylist()),
            found.bodies,
        )

    def _move_entries(self, found: Revisions, positions: Int64s) -> tuple[Entries, Int64s]:
        """The claim entries of the revisions, whose segment is not known yet, and of each the row that it leads to."""
        order = np.argsort(found.places)
        ordered = found.places[order]
        where = (found.entries["segment"].astype(np.int64) << 32) + found.entries["position"].astype(np.int64)
        place = np.searchsorted(ordered, where)
        hit = np.flatnonzero(ordered[np.minimum(place, len(ordered) - 1)] == where)
        rows = order[place[hit]]
        entries = found.entries[hit].copy()
        missing = np.setdiff1d(np.arange(len(found)), rows)  # ledgers from before the runs
        if len(missing):
            keys = [self.keys_of(build_record(row).candidate) for row in found.rows.take(pa.array(missing)).to_pylist()]
            again = np.repeat(missing, [len(item) for item in keys])
            made = make_entries(0, [key for item in keys for key in item], again)
            entries, rows = np.concatenate([entries, made]), np.concatenate([rows, again])
        entries["position"] = positions[rows]
        return entries, rows

    def append(self, connection: sqlite3.Connection, written: Written, now_nanos: int) -> bool:
        """Append segments, unless something in them was booked anew meanwhile. Call inside a write transaction."""
        last = find_last_segment(connection)
        for segment_id, body in list_bodies(connection, last + 1, after=self._seen):
            if segment_id not in self._own and (reversed_ids := _list_reversed(body)) is not None:
                self._late.update(reversed_ids.to_pylist())
        self._seen = last
        if not self._late.isdisjoint(written.record_ids):
            return False
        save_price_versions(connection, written.bodies)
        ids = [append_encoded(connection, item, now_nanos) for item in written.segments]
        written.entries["segment"] = np.array(ids)[written.numbers]
        append_entries(connection, written.entries, written.days)
        self._own.update(ids)
        return True

    def leave_late(self, found: Revisions) -> Revisions:
        """Without what was booked anew since it was read: that has the prices of now already."""
        ids = found.rows["record_id"].to_pylist()
        return found.choose(np.array([row for row, name in enumerate(ids) if name not in self._late], dtype=np.int64))


def _list_reversed(body: bytes, signs: pa.ChunkedArray | None = None) -> pa.ChunkedArray | None:
    """Ids of the records that a segment reverses, None where it reverses none. `signs` are its, if already read."""
    signs = decode_table(body, ("sign",))["sign"] if signs is None else signs
    if not len(signs) or pc.min(signs).as_py() > 0:
        return None
    table = decode_table(body, ("sign", "corrects"))
    return table.filter(pc.less(table["sign"], 0))["corrects"]


def _take_rows(bodies: Mapping[int, bytes], places: Int64s) -> pa.Table:
    """The rows at places, which stand together segment by segment, whole."""
    segments = places >> 32
    edges = np.flatnonzero(np.concatenate(([True], segments[1:] != segments[:-1], [True])))
    tables = []
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        table = fit_columns(decode_table(bodies[int(segments[start])]))
        positions = places[start:end] & _POSITION
        tables.append(table if len(positions) == table.num_rows else table.take(pa.array(positions)))
    return pa.concat_tables(tables)


def _encode_portion(found: Revisions, note: str, currency: str) -> Encoded:
    """All reversals, then all revisions, in one batch: what both have alike is compressed once."""
    count = len(found)
    rows = found.rows
    revisions = read_integers(rows["revision"])
    sign = pa.array(np.repeat(np.array([-1, 1], dtype=np.int8), count))
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "sign": sign,
        "revision": pa.array(np.concatenate([revisions, revisions + 1])),
        "note": pa.repeat(pa.scalar(note, type=pa.string()), 2 * count),
        "rating": _join(rows["rating"], found.rating),
        "price_version": _join(rows["price_version"], found.price_version),
        "cost": _join(rows["cost"], found.cost.encode()),
        "charge": _join(rows["charge"], found.charge.encode()),
        "currency": _join(rows["currency"], pa.repeat(pa.scalar(currency, type=pa.string()), count)),
    }
    kinds = [item for item in SCHEMA if item.name not in DERIVED]
    arrays = [columns[item.name] if item.name in columns else _double(rows[item.name]) for item in kinds]
    batch = pa.table(arrays, schema=pa.schema(kinds)).combine_chunks().to_batches()[0]
    ended = read_integers(rows["ended_nanos"])
    return Encoded(encode_batch(batch), int(ended.min()), int(ended.max()), 2 * count)


def _double(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([*column.chunks, *column.chunks], type=column.type)


def _join(column: pa.ChunkedArray, new: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([*column.chunks, *pa.chunked_array([new]).cast(column.type).chunks], type=column.type)
