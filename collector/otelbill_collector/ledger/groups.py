"""Claim groups: which booked spans belong together, found again across requests and restarts. Owns the group cache.

A group is the closure of spans that share a claim key (trace, provider response id, twin), within a day of each other.
A key that no stored span carries stays in memory with all its members from its first span on, and needs no query. Other
keys are looked up in the days around a span's end, and stay in memory until evicted or a transaction fails.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from weakref import WeakValueDictionary

import pyarrow as pa

from otelbill_collector.domain.ids import is_twin_key
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.claim_runs import find_claims, list_recent_prefixes, read_prefixes
from otelbill_collector.ledger.known_keys import KnownKeys
from otelbill_collector.ledger.segments import build_record, decode_table

Key = tuple[int, bytes]  # day, claim key
KeyFunction = Callable[[Candidate], tuple[bytes, ...]]

_TABLES_MAX = 32


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """Bounds of memory: claim keys held with their spans, and stored keys remembered by the filter (2 bytes each)."""

    keys_max: int = 400_000
    known_keys_max: int = 50_000_000


_DEFAULT_LIMITS = GroupLimits()


@dataclass(slots=True, weakref_slot=True, eq=False)
class Member:
    """One span of a group. `booked` is its booking in force, None until the first one; `day` is that of its end."""

    event_id: str
    candidate: Candidate
    content: bytes
    received_nanos: int
    keys: tuple[bytes, ...]
    day: int
    booked: UsageRecord | None = None


class GroupIndex:
    """Members by claim key. Not thread-safe: only the writer uses it, inside its transaction."""

    def __init__(self, keys_of: KeyFunction, limits: GroupLimits = _DEFAULT_LIMITS) -> None:
        self._keys_of = keys_of
        self._limits = limits
        self._known = KnownKeys(limits.known_keys_max)
        self._fresh: dict[bytes, list[Member]] = {}  # every member of the key, on whatever day
        self._stored: OrderedDict[Key, list[Member]] = OrderedDict()  # every member within a day of the day
        self._members: WeakValueDictionary[str, Member] = WeakValueDictionary()
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._arrived: list[Member] = []  # of the transaction in progress
        self._uncommitted: dict[bytes, list[Member]] = {}  # those of them whose keys are not in `_fresh`

    def remember(self, connection: sqlite3.Connection) -> None:
        """Fill the filter from the ledger, once, before anything else: newest days first, as far as it has room."""
        for day, prefixes in list_recent_prefixes(connection, self._limits.known_keys_max >> 1):
            if prefixes is None:  # no room for this day and those before
                self._known.covered_from = day + 1
                return
            self._known.add(prefixes, day)

    def expect(self, keys: Iterable[bytes]) -> None:
        """Take the keys of a batch into memory that are stored nowhere. To be called before members are looked up."""
        unknown: list[bytes] = []
        fresh = self._fresh
        for key in dict.fromkeys(keys):
            members = fresh.pop(key, None)
            if members is None:
                unknown.append(key)
            else:
                fresh[key] = members  # the longest unused stands first
        for key, may_be_stored in zip(unknown, self._known.find(read_prefixes(unknown)), strict=True):
            if not may_be_stored:
                fresh[key] = []

    def load_keys(self, connection: sqlite3.Connection, day: int, keys: Iterable[bytes]) -> None:
        """Have every member in memory that shares one of the keys and ended within a day of `day`."""
        covered = self._known.covers(day)
        for key in keys:
            if not covered or key not in self._fresh:
                self._load_key(connection, (day, key))

    def find_members(self, connection: sqlite3.Connection, day: int, keys: Iterable[bytes]) -> list[Member]:
        """All members that share one of the keys and ended within a day of `day`."""
        found: dict[str, Member] = {}
        for key in keys:
            for member in self._list_members(connection, (day, key)):
                found[member.event_id] = member
        return list(found.values())

    def close_group(self, connection: sqlite3.Connection, start: Member) -> list[Member]:
        """The whole group of `start`, ordered by event id."""
        group = {start.event_id: start}
        pending = [start]
        seen: set[tuple[Key, str | None]] = set()
        while pending:
            member = pending.pop()
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

    def is_alone(self, member: Member) -> bool:
        """True when the group of `member` is known, without a query, to be itself only."""
        return self._known.covers(member.day) and all(self._is_own(key, member) for key in member.keys)

    def _is_own(self, key: bytes, member: Member) -> bool:
        """True when a key in memory links `member` to nobody else."""
        members = self._fresh.get(key, ())
        if len(members) == 1:
            return True
        emitter = member.candidate.emitter
        return bool(members) and is_twin_key(key) and all(other.candidate.emitter == emitter for other in members)

    def find_event(self, event_id: str) -> Member | None:
        """A member that is in memory. Every member of a looked-up key is."""
        return self._members.get(event_id)

    def add_member(self, member: Member) -> None:
        """Make a new member visible under its keys, in its day and the neighbouring ones."""
        self._members[member.event_id] = member
        self._arrived.append(member)
        covered = self._known.covers(member.day)
        for key in member.keys:
            fresh = self._fresh.get(key)
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
        self._stored.clear()
        self._members.clear()
        self._tables.clear()
        self._arrived.clear()
        self._uncommitted.clear()

    def settle(self) -> None:
        """After a commit: its members are found in the database from now on; evict the longest unused keys."""
        if self._arrived:
            keys = [key for member in self._arrived for key in member.keys]
            self._known.add(read_prefixes(keys), max(member.day for member in self._arrived))
            self._arrived.clear()
            self._uncommitted.clear()
        excess = self.size() - self._limits.keys_max
        while excess > 0 and self._stored:
            self._stored.popitem(last=False)
            excess -= 1
        for key in list(islice(self._fresh, max(0, excess))):
            del self._fresh[key]

    def size(self) -> int:
        """Keys in memory."""
        return len(self._fresh) + len(self._stored)

    @property
    def known_keys(self) -> int:
        """Stored keys that the filter remembers."""
        return self._known.size()

    def _list_members(self, connection: sqlite3.Connection, place: Key) -> Sequence[Member]:
        day, key = place
        fresh = self._fresh.get(key)
        if fresh is None or not self._known.covers(day):
            return self._load_key(connection, place)
        return [member for member in fresh if -1 <= member.day - day <= 1]

    def _load_key(self, connection: sqlite3.Connection, place: Key) -> list[Member]:
        members = self._stored.get(place)
        if members is not None:
            self._stored.move_to_end(place)
            return members
        day, key = place
        rows = find_claims(connection, day, key)
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
            for row in self._load_table(connection, segment_id).take(found).to_pylist():
                record = build_record(row)
                known = newest.get(record.event_id)
                if known is None or record.revision > known.revision:
                    newest[record.event_id] = record
        return [self._adopt(record) for record in newest.values()]

    def _adopt(self, record: UsageRecord) -> Member:
        """The one object in memory that stands for an event, so that all its keys see the same booking."""
        member = self._members.get(record.event_id)
        if member is None:
            member = Member(
                event_id=record.event_id,
                candidate=record.candidate,
                content=record.content,
                received_nanos=record.received_nanos,
                keys=self._keys_of(record.candidate),
                day=record.event_nanos // DAY_NANOS,
                booked=record,
            )
            self._members[record.event_id] = member
        return member

    def _load_table(self, connection: sqlite3.Connection, segment_id: int) -> pa.Table:
        table = self._tables.get(segment_id)
        if table is None:
            (body,) = connection.execute("SELECT body FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
            table = decode_table(body)
            self._tables[segment_id] = table
            if len(self._tables) > _TABLES_MAX:
                self._tables.popitem(last=False)
        return table
