"""Claim groups: which booked spans belong together, found again across requests and restarts. Owns the group cache.

A group is the closure of spans that share a claim key (trace, provider response id, twin), within a day of each other.
A key that no stored span carries stays in memory with all its members from its first span on, and needs no query: those
of spans booked by columns in `recent_keys`, until something touches them. Other keys are looked up in the days around a
span's end, and stay in memory until evicted or a transaction fails.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice
from weakref import WeakSet, WeakValueDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.ids import is_twin_key
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.claim_runs import read_prefixes
from otelbill_collector.ledger.claim_search import ClaimSearch, fill_filters
from otelbill_collector.ledger.column_company import ColumnCompany, Meeting
from otelbill_collector.ledger.id_sets import Ids, IdSet, pack_ids
from otelbill_collector.ledger.known_keys import KnownKeys
from otelbill_collector.ledger.lineage import list_booked_days
from otelbill_collector.ledger.members import ColumnSingles, Member, Row, Singles
from otelbill_collector.ledger.segments import RECORD_COLUMNS, build_record, decode_table

Key = tuple[int, bytes]  # day, claim key
KeyFunction = Callable[[Candidate], tuple[bytes, ...]]

_TABLES_MAX = 32


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """Bounds of memory: claim keys held with their spans, and stored keys remembered by filters (3 to 4 bytes each)."""

    keys_max: int = 400_000
    known_keys_max: int = 400_000_000


_DEFAULT_LIMITS = GroupLimits()


class GroupIndex:
    """Members by claim key. Not thread-safe: only the writer uses it, inside its transaction."""

    def __init__(self, keys_of: KeyFunction, limits: GroupLimits = _DEFAULT_LIMITS) -> None:
        self._keys_of = keys_of
        self._limits = limits
        self._known = KnownKeys(limits.known_keys_max)
        self.search = ClaimSearch(limits.known_keys_max)
        # Every member of the key, on whatever day; a span that stood alone so far is a row of its batch.
        self._fresh: dict[bytes, list[Member] | Row] = {}
        self._columns = ColumnCompany(limits.keys_max, self.search)  # none of their keys in `_fresh`
        self._recent = self._columns.recent
        self._stored: OrderedDict[Key, list[Member]] = OrderedDict()  # every member within a day of the day
        self._members: WeakValueDictionary[str, Member] = WeakValueDictionary()
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._arrived: list[Member] = []  # of the transaction in progress
        self._arrived_singles: list[Singles] = []
        self._arrived_columns: list[ColumnSingles] = []
        self._singles: WeakSet[Singles] = WeakSet()  # those of which any span may be in `_fresh`
        self._doubtful: Set[bytes] = frozenset()  # keys of the batch that may be stored
        self._uncommitted: dict[bytes, list[Member]] = {}  # those of them whose keys are not in `_fresh`
        self.pruned_end_nanos = 0  # what ended before may have been pruned

    def remember(self, connection: sqlite3.Connection) -> None:
        """Fill the filters from the ledger, once, before anything else: newest days first, as far as there is room."""
        fill_filters(connection, self._known, self.search, self._limits.known_keys_max >> 1)

    def expect(self, connection: sqlite3.Connection, keys: Sequence[tuple[bytes, ...]]) -> Set[bytes]:
        """The keys of a batch, given per span, under which a span may have company: in the batch, in memory or stored.

        To be called before members are looked up.
        """
        listed = list(chain.from_iterable(keys))
        distinct = dict.fromkeys(listed)
        linked: set[bytes] = set()
        if len(distinct) < len(listed):
            linked.update([key for key, count in Counter(listed).items() if count > 1])
        fresh = self._fresh
        if len(self._recent):
            self._take_recent(list(distinct))
        held = fresh.keys() & distinct.keys()
        for key in held:
            fresh[key] = fresh.pop(key)  # the longest unused stands first
        unknown = [key for key in distinct if key not in held] if held else list(distinct)
        doubtful = [unknown[place] for place in self._known.find(read_prefixes(unknown))]
        if doubtful and not self._columns.is_pruned:
            doubtful = self.search.list_stored(connection, doubtful)
        self._doubtful = set(doubtful)
        return linked | held | self._doubtful

    def _take_recent(self, keys: Sequence[bytes]) -> None:
        """Have members of their own for those of the keys that spans booked by columns have."""
        marks = self._recent.mark(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16))
        for place in np.flatnonzero(marks).tolist():
            self._find_fresh(keys[place])

    def expect_columns(
        self,
        connection: sqlite3.Connection,
        columns: IdentifiedColumns,
        other_keys: Sequence[tuple[bytes, ...]],
    ) -> Meeting:
        """Which spans in columns have company that only rules can judge, see `ColumnCompany.meet`. `other_keys` are
        those of the batch's other spans. A span has company, too, when the filter does not cover its day.
        """
        company: NDArray[np.bool_] = columns.spans.ended_nanos < self.covered_from_nanos
        met = self._known.mark(read_prefixes(columns.keys))  # what is in memory is stored, and covered as long as it is
        others = b"".join(chain.from_iterable(other_keys))
        return self._columns.meet(connection, columns, met, company, others=others, held=self._fresh.keys())

    def add_columns(self, singles: ColumnSingles, seen: NDArray[np.bool_]) -> None:
        """Make spans visible that have no company by `expect_columns`, which also says which keys were `seen`.
        Before members of the batch are looked up.
        """
        self._arrived_columns.append(singles)
        self._columns.add(singles, seen)

    def open_keys(self, keys: Iterable[tuple[bytes, ...]]) -> None:
        """Take those of the expected keys into memory that are stored nowhere, for members to be added."""
        for key in chain.from_iterable(keys):
            if key not in self._doubtful and key not in self._fresh:
                self._fresh[key] = []

    def note_pruning(self) -> None:
        """From now on runs may lack keys of what was stored once."""
        self._columns.is_pruned = True

    def list_days(self, connection: sqlite3.Connection, key: bytes) -> list[int]:
        """Days under which a claim key may be booked."""
        return list_booked_days(connection, self.search.find_of_any_day(connection, key))

    def may_be_stored(self, key: bytes) -> bool:
        """Whether an expected key, which is not in memory, may be in the ledger on any of the days remembered."""
        return key in self._doubtful

    @property
    def covered_from_nanos(self) -> int:
        """Spans that ended from this instant on are told from stored ones by the filter alone."""
        return (self._known.covered_from + 1) * DAY_NANOS if self._known.covered_from else 0

    def add_singles(self, singles: Singles) -> None:
        """Make spans visible that stand alone, after `expect` linked none of their keys."""
        self._arrived_singles.append(singles)
        self._singles.add(singles)
        self._columns.note_others(
            [(span.emitter, key, False) for span, keys in zip(singles.candidates, singles.keys, strict=True)
             for key in keys]
        )  # fmt: skip
        fresh = self._fresh
        for number, keys in enumerate(singles.keys):
            row = (singles, number)
            for key in keys:
                fresh[key] = row

    def load_keys(self, connection: sqlite3.Connection, day: int, keys: Iterable[bytes]) -> None:
        """Have every member in memory that shares one of the keys and ended within a day of `day`."""
        covered = self._known.covers(day)
        for key in keys:
            if not covered or self._find_fresh(key) is None:
                self._load_key(connection, (day, key))

    def _find_fresh(self, key: bytes) -> list[Member] | None:
        """The members of a key in memory."""
        held = self._fresh.get(key)
        if isinstance(held, list):
            return held
        if held is None:
            rows = self._recent.take(key) if len(self._recent) else None
            if not rows:
                return None
            members = self._fresh[key] = [self._find_single(row) for row in rows]
            return members
        members = self._fresh[key] = [self._find_single(held)]
        return members

    def _find_single(self, row: Row) -> Member:
        singles, number = row
        member = singles.find_member(number)
        self._members[member.event_id] = member
        return member

    def find_members(self, connection: sqlite3.Connection, day: int, keys: Iterable[bytes]) -> list[Member]:
        """All members that share one of the keys and ended within a day of `day`."""
        found: dict[str, Member] = {}
        for key in keys:
            for member in self._list_members(connection, (day, key)):
                found[member.event_id] = member
        return list(found.values())

    def close_group(self, connection: sqlite3.Connection, start: Member) -> list[Member]:
        """The whole group of `start`, ordered by event id. Raises EvidencePruned where a part of it may be gone."""
        group = {start.event_id: start}
        pending = [start]
        seen: set[tuple[Key, str | None]] = set()
        while pending:
            member = pending.pop()
            if (member.day - 1) * DAY_NANOS < self.pruned_end_nanos:
                raise EvidencePruned("its claim group reaches back to spans whose evidence was pruned")
            for key in member.keys:
                apart = member.candidate.emitter if is_twin_key(key) else None
                place = (member.day, key)
                if (place, apart) in seen:
                    continue
                seen.add((place, apart))
                for other in self._list_members(connection, place):
                    if other.event_id not in group and other.candidate.emitter != apart:
                        group[other.event_id] = other
                        pending.append(other)
        return [group[event_id] for event_id in sorted(group)]

    def count_members(self, connection: sqlite3.Connection, member: Member) -> int:
        """At least how many spans the group of `member` has: the most that one key of it links."""
        counts = [1]
        for key in member.keys:
            if not is_twin_key(key):
                fresh = self._find_fresh(key)
                covered = fresh is not None and self._known.covers(member.day)
                counts.append(len(fresh) if covered and fresh else len(self._load_key(connection, (member.day, key))))
        return max(counts)

    def is_alone(self, member: Member) -> bool:
        """True when the group of `member` is known, without a query, to be itself only."""
        return self._known.covers(member.day) and all(self._is_own(key, member) for key in member.keys)

    def _is_own(self, key: bytes, member: Member) -> bool:
        """True when a key in memory links `member` to nobody else."""
        members = self._find_fresh(key)
        if not members:
            return False
        emitter = member.candidate.emitter
        return len(members) == 1 or (is_twin_key(key) and all(other.candidate.emitter == emitter for other in members))

    def find_event(self, event_id: str) -> Member | None:
        """A member that is in memory. Every member of a looked-up key is."""
        return self._members.get(event_id)

    def add_member(self, member: Member) -> None:
        """Make a new member visible under its keys, in its day and the neighbouring ones."""
        unseen = [fresh is not None and not fresh for fresh in map(self._find_fresh, member.keys)]
        emitter = member.candidate.emitter
        self._columns.note_others([(emitter, key, not new) for key, new in zip(member.keys, unseen, strict=True)])
        self._members[member.event_id] = member
        self._arrived.append(member)
        covered = self._known.covers(member.day)
        for key in member.keys:
            fresh = self._find_fresh(key)
            if fresh is not None:
                fresh.append(member)
            if fresh is None or not covered:
                self._uncommitted.setdefault(key, []).append(member)
                for day in (member.day - 1, member.day, member.day + 1):
                    if (members := self._stored.get((day, key))) is not None:
                        members.append(member)

    def forget(self) -> None:
        """Drop everything in memory, after a transaction failed: the database alone says what is booked."""
        self._fresh.clear()
        self._columns.forget()
        self.search.forget()
        self._stored.clear()
        self._members.clear()
        self._tables.clear()
        self._arrived.clear()
        self._arrived_singles.clear()
        self._arrived_columns.clear()
        self._uncommitted.clear()

    def evict_events(self, event_ids: Ids) -> None:
        """Drop spans from memory that were booked anew past it: whoever asks for them finds them in the database.

        To be called in the transaction that books them, with nothing arrived in it.
        """
        if self._members:
            for event_id in {event.tobytes().hex() for event in event_ids}.intersection(self._members.keys()):
                if (member := self._members.pop(event_id, None)) is not None:
                    self._evict_keys(member.day, member.keys)
        wanted = IdSet(event_ids)
        for singles in list(self._singles):
            for row in np.flatnonzero(wanted.match(pack_ids(b"".join(singles.events)))).tolist():
                self._evict_keys(singles.candidates[row].ended_nanos // DAY_NANOS, singles.keys[row])
        for columns in self._recent.list_batches():
            rated = columns.rated
            for row in np.flatnonzero(wanted.match(pack_ids(rated.event_id.tobytes()))).tolist():
                self._evict_keys(int(rated.spans.ended_nanos[row]) // DAY_NANOS, columns.find_keys(row))

    def _evict_keys(self, day: int, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._fresh.pop(key, None)
            self._recent.take(key)
            for around in (day - 1, day, day + 1):
                self._stored.pop((around, key), None)

    def settle(self) -> None:
        """After a commit: its members are found in the database from now on; evict the longest unused keys."""
        covered = self._known.covered_from
        self.search.settle()
        for singles in self._arrived_singles:
            newest = max(candidate.ended_nanos for candidate in singles.candidates)
            self._known.add(read_prefixes(singles.list_keys()[0]), newest // DAY_NANOS)
        self._arrived_singles.clear()
        for columns in self._arrived_columns:
            newest = int(columns.rated.spans.ended_nanos.max())
            self._known.add(read_prefixes(columns.rated.keys), newest // DAY_NANOS)
        self._arrived_columns.clear()
        if self._arrived:
            keys = [key for member in self._arrived for key in member.keys]
            self._known.add(read_prefixes(keys), max(member.day for member in self._arrived))
            self._arrived.clear()
            self._uncommitted.clear()
        if self._known.covered_from != covered:
            self._stored.clear()  # a key held as stored nowhere may be taken for new by what is left of the filter
            self._fresh.clear()  # and so may one held with its spans, where it is asked for by columns
            self._columns.forget()
        self._recent.settle()
        excess = len(self._fresh) + len(self._stored) - self._limits.keys_max
        while excess > 0 and self._stored:
            self._stored.popitem(last=False)
            excess -= 1
        for key in list(islice(self._fresh, max(0, excess))):
            del self._fresh[key]

    def size(self) -> int:
        """Keys in memory."""
        return len(self._fresh) + len(self._stored) + len(self._recent)

    @property
    def known_keys(self) -> int:
        """Stored keys that the filter remembers."""
        return self._known.size()

    def _list_members(self, connection: sqlite3.Connection, place: Key) -> Sequence[Member]:
        day, key = place
        fresh = self._find_fresh(key)
        if fresh is None or not self._known.covers(day):
            return self._load_key(connection, place)
        return [member for member in fresh if -1 <= member.day - day <= 1]

    def _load_key(self, connection: sqlite3.Connection, place: Key) -> list[Member]:
        members = self._stored.get(place)
        if members is not None:
            self._stored.move_to_end(place)
            return members
        day, key = place
        rows = self.search.find(connection, day, key)
        members = self._load_members(connection, rows) if rows else []
        members = [member for member in members if key in member.keys and -1 <= member.day - day <= 1]
        # Members of the transaction in progress stand in memory only.
        known = {member.event_id for member in members}
        for member in self._uncommitted.get(key, ()):
            if abs(member.day - day) <= 1 and member.event_id not in known:
                members.append(member)
        self._stored[place] = members
        return members

    def _load_members(self, connection: sqlite3.Connection, places: Iterable[tuple[int, int]]) -> list[Member]:
        positions: dict[int, list[int]] = {}
        for segment_id, position in places:
            positions.setdefault(segment_id, []).append(position)
        newest: dict[str, UsageRecord] = {}
        for segment_id, found in positions.items():
            table = self._load_table(connection, segment_id)
            for row in table.take(found).to_pylist() if table is not None else ():
                record = build_record(row)
                known = newest.get(record.event_id)
                if known is None or record.revision > known.revision:
                    newest[record.event_id] = record
        return [self._adopt(record) for record in newest.values()]

    def _adopt(self, record: UsageRecord) -> Member:
        """The one object in memory that stands for an event, so that all its keys see the same booking."""
        member = self._members.get(record.event_id)
        if member is not None:
            return member
        keys = self._keys_of(record.candidate)
        for key in keys:
            if isinstance(self._fresh.get(key), list):
                continue  # all of these are known by their ids
            for member in self._find_fresh(key) or ():  # a row of a batch so far
                if member.event_id == record.event_id:
                    return member
        member = Member(
            event_id=record.event_id,
            candidate=record.candidate,
            content=record.content,
            received_nanos=record.received_nanos,
            keys=keys,
            day=record.event_nanos // DAY_NANOS,
            booked=record,
        )
        self._members[record.event_id] = member
        return member

    def _load_table(self, connection: sqlite3.Connection, segment_id: int) -> pa.Table | None:
        """None where the segment was pruned and its keys are not yet: none of its members is within reach."""
        table = self._tables.get(segment_id)
        if table is None:
            (body,) = connection.execute("SELECT body FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
            if not body:
                return None
            table = decode_table(body, RECORD_COLUMNS)
            self._tables[segment_id] = table
            if len(self._tables) > _TABLES_MAX:
                self._tables.popitem(last=False)
        return table
