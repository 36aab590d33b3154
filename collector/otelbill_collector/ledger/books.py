"""The open books of one sidecar: store, claim groups and rules together. Owns the write transactions of booking."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import DeadLetter, UsageRecord
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.booking import (
    Alone,
    Booking,
    Decide,
    KeysOf,
    Rate,
    Rules,
    book_candidates,
    book_due,
    book_members,
    collect_keys,
)
from otelbill_collector.ledger.deadletters import save_dead_letter
from otelbill_collector.ledger.groups import GroupIndex, GroupLimits
from otelbill_collector.ledger.instructions import Instruction, list_instructions, save_instruction
from otelbill_collector.ledger.lineage import find_record, list_unpriced
from otelbill_collector.ledger.resolutions import (
    NotHeld,
    Resolution,
    is_open,
    list_resolutions,
    save_resolution,
)
from otelbill_collector.ledger.sqlite import SqliteStore

T = TypeVar("T")
_WAITING_MAX = 100_000  # at one start; the next start goes on
_WAITING_BATCH = 1_000
_DEFAULT_LIMITS = GroupLimits()


class UnknownEvent(LookupError):
    """No record in the ledger has this id. The message says where ids are found."""


@dataclass(frozen=True, slots=True)
class Posted:
    """What one write transaction made of arrivals and dead letters; `kept` says which letters are new."""

    booking: Booking
    kept: tuple[bool, ...]


class Books:
    """Everything that books records goes through here, one transaction at a time."""

    def __init__(
        self,
        store: SqliteStore,
        *,
        claim_keys: KeysOf,
        decide: Decide,
        rate: Rate,
        alone: Alone | None = None,
        limits: GroupLimits = _DEFAULT_LIMITS,
    ) -> None:
        self.store = store
        # Writer, jobs and API book from their own threads. What is in memory belongs to the transaction: until it is
        # settled or forgotten, after the store's lock is free again, nobody else may see it.
        self._turn = threading.RLock()
        self._index = GroupIndex(lambda candidate: collect_keys(candidate, claim_keys), limits)
        store.transact(self._index.remember)
        self._instructions = {item.event_id: item for item in store.transact(list_instructions)}
        self._resolutions = {item.event_id: item for item in store.transact(list_resolutions)}
        self._rules = Rules(claim_keys, decide, rate, self._instructions, self._resolutions, alone)

    @property
    def group_keys(self) -> int:
        """Claim keys held in memory."""
        return self._index.size()

    @property
    def known_keys(self) -> int:
        """Stored claim keys that are remembered, so that a new key is known to be new without a query."""
        return self._index.known_keys

    def post(self, arrivals: Sequence[tuple[Candidate, int]], letters: Sequence[DeadLetter], now_nanos: int) -> Posted:
        """Book (candidate, received time) pairs and keep dead letters; durable when this returns."""

        def work(connection: sqlite3.Connection) -> Posted:
            kept = tuple(save_dead_letter(connection, letter) for letter in letters)
            return Posted(book_candidates(connection, self._index, arrivals, self._rules, now_nanos), kept)

        return self._transact(work)

    def post_due(self, now_nanos: int) -> Booking:
        """Decide again the groups whose time has come."""
        return self._transact(lambda connection: book_due(connection, self._index, self._rules, now_nanos))

    def price_waiting(self, now_nanos: int) -> int:
        """Rate again what no price covered, with the prices of today's card for its event time; returns how many.

        A reversal and a revision each; what still has no price stays as it is. What is priced is never priced again.
        """
        waiting = self.store.read(lambda connection: list_unpriced(connection, limit=_WAITING_MAX))
        priced = 0
        for start in range(0, len(waiting), _WAITING_BATCH):
            batch = waiting[start : start + _WAITING_BATCH]
            records = self._transact(partial(self._rebook_all, records=batch, now_nanos=now_nanos))
            priced += sum(record.sign > 0 for record in records)
        return priced

    def _rebook_all(
        self, connection: sqlite3.Connection, records: Sequence[UsageRecord], now_nanos: int
    ) -> list[UsageRecord]:
        booked: list[UsageRecord] = []
        for record in records:
            booked.extend(self._rebook(connection, record, now_nanos).records)
        return booked

    def assign_customer(self, given: Instruction) -> Booking:
        """Book an event to another customer: a reversal and a revision that carry the reason. Raises UnknownEvent.

        `given.event_id` may also be the id of one of the event's records.
        """
        record = self._require_record(given.event_id)
        instruction = replace(given, event_id=record.event_id)

        def work(connection: sqlite3.Connection) -> Booking:
            save_instruction(connection, instruction)
            return self._rebook(connection, record, instruction.given_nanos)

        with self._turn, _provisionally(self._instructions, record.event_id, instruction):
            return self._transact(work)

    def resolve_usage(self, given: Resolution) -> Booking:
        """Give a held event its usage: a reversal and a revision that carry the reason. Raises UnknownEvent, NotHeld.

        Giving the same quantities again books nothing; other quantities correct what was given before.
        """
        record = self._require_record(given.event_id)
        resolution = replace(given, event_id=record.event_id)
        before = self._resolutions.get(record.event_id)
        if not is_open(record.decision) and not (before is not None and record.decision.billable):
            raise NotHeld(
                f"event {record.event_id} is not held (billable: {record.decision.billable}, usage "
                f"{record.decision.usage_source.value}); `otelbill held` lists the events that are"
            )
        if before is not None and before.quantities == resolution.quantities:
            return Booking()

        def work(connection: sqlite3.Connection) -> Booking:
            save_resolution(connection, resolution)
            return self._rebook(connection, record, resolution.given_nanos)

        with self._turn, _provisionally(self._resolutions, record.event_id, resolution):
            return self._transact(work)

    def _require_record(self, identifier: str) -> UsageRecord:
        record = self.store.read(lambda connection: find_record(connection, identifier))
        if record is None:
            raise UnknownEvent(f"no event or record {identifier}; `otelbill explain TRACE_ID` lists the ids of a trace")
        return record

    def _rebook(self, connection: sqlite3.Connection, record: UsageRecord, now_nanos: int) -> Booking:
        """Decide the record's group again."""
        keys = self._rules.claim_keys(record.candidate)
        found = self._index.find_members(connection, record.event_nanos // DAY_NANOS, keys)
        members = [member for member in found if member.event_id == record.event_id]
        return book_members(connection, self._index, members, self._rules, now_nanos)

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._turn:
            try:
                result = self.store.transact(work)
            except BaseException:
                # Memory may hold members that were never committed; the database alone says what is booked.
                self._index.forget()
                raise
            self._index.settle()
            return result


@contextmanager
def _provisionally(known: dict[str, T], event_id: str, value: T) -> Iterator[None]:
    """`value` counts inside, and stays unless the block fails."""
    before = known.get(event_id)
    known[event_id] = value
    try:
        yield
    except BaseException:
        if before is None:
            del known[event_id]
        else:
            known[event_id] = before
        raise
