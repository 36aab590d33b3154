"""Claim groups: which booked spans belong together, found again across requests and restarts. Owns the group cache.

A group is the closure of spans that share a claim key (trace, provider response id, twin). Keys are looked up in the
days around a span's end; what was looked up once stays in memory until it is evicted or a transaction fails.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import pyarrow as pa

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.segments import build_record, decode_table

Key = tuple[int, bytes]  # day, claim key
KeyFunction = Callable[[Candidate], tuple[bytes, ...]]

_KEYS_MAX = 400_000
_TABLES_MAX = 32
_FIND = "SELECT segment_id, position FROM claim_key WHERE day IN (?, ?, ?) AND key = ?"


@dataclass(slots=True, weakref_slot=True, eq=False)
class Member:
    """One span of a group. `booked` is its booking in force, None until the first one."""

    event_id: str
    candidate: Candidate
    content: bytes
    received_nanos: int
    keys: tuple[bytes, ...]
    booked: UsageRecord | None = None

    @property
    def day(self) -> int:
        return self.candidate.ended_nanos // DAY_NANOS


class GroupIndex:
    """Members by claim key. Not thread-safe: only the writer uses it, inside its transaction."""

    def __init__(self, keys_of: KeyFunction) -> None:
        self._keys_of = keys_of
        self._by_key: OrderedDict[Key, list[Member]] = OrderedDict()
        self._members: WeakValueDictionary[str, Member] = WeakValueDictionary()
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._uncommitted: dict[bytes, list[Member]] = {}

    def find_members(self, connection: sqlite3.Connection, day: int, keys: Iterable[bytes]) -> list[Member]:
        """All members that share one of the keys and ended within a day of `day`."""
        found: dict[str, Member] = {}
        for key in keys:
            for member in self._load_key(connection, (day, key)):
                found[member.event_id] = member
        return list(found.values())

    def close_group(self, connection: sqlite3.Connection, start: Member) -> list[Member]:
        """The whole group of `start`, ordered by event id."""
        group = {start.event_id: start}
        pending = [start]
        seen: set[Key] = set()
        while pending:
            member = pending.pop()
            for key in member.keys:
                place = (member.day, key)
                if place in seen:
                    continue
                seen.add(place)
                for other in self._load_key(connection, place):
                    if other.event_id not in group:
                        group[other.event_id] = other
                        pending.append(other)
        return [group[event_id] for event_id in sorted(group)]

    def find_event(self, event_id: str) -> Member | None:
        """A member that is in memory. Every member of a looked-up key is."""
        return self._members.get(event_id)

    def add_member(self, member: Member) -> None:
        """Make a new member visible under its keys, in its day and the neighbouring ones."""
        self._members[member.event_id] = member
        for key in member.keys:
            self._uncommitted.setdefault(key, []).append(member)
            for day in (member.day - 1, member.day, member.day + 1):
                members = self._by_key.get((day, key))
                if members is not None:
                    members.append(member)

    def forget(self) -> None:
        """Drop everything in memory, after a transaction failed: the database alone says what is booked."""
        self._by_key.clear()
        self._members.clear()
        self._tables.clear()
        self._uncommitted.clear()

    def settle(self) -> None:
        """After a commit: its members are found in the database from now on; evict the longest unused keys."""
        self._uncommitted.clear()
        while len(self._by_key) > _KEYS_MAX:
            self._by_key.popitem(last=False)

    def size(self) -> int:
        """Keys in memory."""
        return len(self._by_key)

    def _load_key(self, connection: sqlite3.Connection, place: Key) -> list[Member]:
        members = self._by_key.get(place)
        if members is not None:
            self._by_key.move_to_end(place)
            return members
        day, key = place
        rows = connection.execute(_FIND, (day - 1, day, day + 1, key)).fetchall()
        members = self._load_members(connection, rows) if rows else []
        # Members of the transaction in progress stand in memory only.
        known = {member.event_id for member in members}
        for member in self._uncommitted.get(key, ()):
            if abs(member.day - day) <= 1 and member.event_id not in known:
                members.append(member)
        self._by_key[place] = members
        return members

    def _load_members(self, connection: sqlite3.Connection, rows: Sequence[tuple[int, int]]) -> list[Member]:
        newest: dict[str, UsageRecord] = {}
        for segment_id, position in rows:
            record = build_record(self._load_table(connection, segment_id).slice(position, 1).to_pylist()[0])
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
