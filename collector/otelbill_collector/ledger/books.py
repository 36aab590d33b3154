"""The open books of one sidecar: store, claim groups and rules together. Owns the write transactions of booking."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import DAY_NANOS, format_instant
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.records import DeadLetter, UsageRecord
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.domain.span_columns import SpanColumns
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
from otelbill_collector.ledger.claim_runs import merge_waiting
from otelbill_collector.ledger.column_booking import ColumnRules
from otelbill_collector.ledger.column_ids import identify_columns
from otelbill_collector.ledger.correction_checks import check_correction
from otelbill_collector.ledger.corrections import (
    Correction,
    CorrectionBook,
    InvalidCorrection,
    Wish,
    list_corrections,
    save_corrections,
)
from otelbill_collector.ledger.deadletters import save_dead_letter
from otelbill_collector.ledger.groups import GroupIndex, GroupLimits
from otelbill_collector.ledger.journal import Due, find_last_segment, list_due
from otelbill_collector.ledger.large_groups import postpone_due
from otelbill_collector.ledger.lineage import find_record, list_unpriced
from otelbill_collector.ledger.openings import FIRST
from otelbill_collector.ledger.pruned_sums import resume_folds
from otelbill_collector.ledger.pruning import Seen, append_pruning
from otelbill_collector.ledger.refusals import refuse_pruned, refuse_pruned_columns
from otelbill_collector.ledger.repricing import Progress, Scope
from otelbill_collector.ledger.rerating import Rerating, Written
from otelbill_collector.ledger.resolutions import (
    NotHeld,
    Resolution,
    is_open,
    list_resolutions,
    save_resolution,
)
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.ledger.tombstones import Pruning, describe_absence, find_floor, find_pruned_end

T = TypeVar("T")
_WAITING_BATCH = 1_000
_DUE_BATCH = 100
# What every group would meet: the store or the machine. They stay due, the next run tries again.
_STORE_FAULTS = (sqlite3.Error, OSError, MemoryError)
_log = logging.getLogger("otelbill.books")
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
        columns: ColumnRules | None = None,
        limits: GroupLimits = _DEFAULT_LIMITS,
    ) -> None:
        self.store = store
        # Writer, jobs and API book from their own threads. What is in memory belongs to the transaction: until it is
        # settled or forgotten, after the store's lock is free again, nobody else may see it.
        self._turn = threading.RLock()
        self._index = GroupIndex(lambda candidate: collect_keys(candidate, claim_keys), limits)
        store.transact(self._index.remember)
        store.transact(resume_folds)
        self._floor_nanos = 0
        self._note_prunings()
        self._corrections = CorrectionBook(store.transact(list_corrections))
        self._resolutions = {item.event_id: item for item in store.transact(list_resolutions)}
        self._rules = Rules(claim_keys, decide, rate, self._corrections, self._resolutions, alone, columns)

    @property
    def group_keys(self) -> int:
        """Claim keys held in memory."""
        return self._index.size()

    @property
    def known_keys(self) -> int:
        """Stored claim keys that are remembered, so that a new key is known to be new without a query."""
        return self._index.known_keys

    def order_claims(self) -> None:
        """Merge runs of claim keys that wait for it, and make what quickens look-ups in them. Beside the commits."""
        merge_waiting(self.store)
        self._index.search.make_sieves(self.store)

    def identify(self, columns: SpanColumns) -> IdentifiedColumns:
        """Spans in columns as `post` takes them. Asks no ledger, so any thread may do it before their turn."""
        assert self._rules.columns is not None  # who has columns has rules for them
        return identify_columns(columns, self._rules.columns.derive_keys)

    def post(
        self,
        arrivals: Sequence[tuple[Candidate, int]],
        letters: Sequence[DeadLetter],
        now_nanos: int,
        columns: IdentifiedColumns | None = None,
    ) -> Posted:
        """Book (candidate, received time) pairs and spans in columns, and keep dead letters; durable on return.

        What ended before the floor of retention is not booked: its outcome says so.
        """

        def work(connection: sqlite3.Connection) -> Posted:
            kept = tuple(save_dead_letter(connection, letter) for letter in letters)
            floor = self._floor_nanos
            taken = [pair for pair in arrivals if pair[0].ended_nanos >= floor] if floor else arrivals
            in_time = columns
            if columns is not None and floor and int(columns.spans.ended_nanos.min()) < floor:
                in_time = columns.take(np.flatnonzero(columns.spans.ended_nanos >= floor))
            booking = book_candidates(connection, self._index, taken, self._rules, now_nanos, in_time)
            if len(taken) < len(arrivals):
                refuse_pruned(booking, arrivals, floor)
            if columns is not None and in_time is not columns:
                refuse_pruned_columns(booking, columns.spans, np.flatnonzero(columns.spans.ended_nanos < floor))
            return Posted(booking, kept)

        return self._transact(work)

    def begin_pruning(self, pruning: Pruning, *, seen: Seen) -> bool:
        """Decide that segments go: from now on nothing before the floor is booked.

        False, with nothing written, if anything from before it was booked, or its invoices changed, since `seen`.
        """
        with self._turn:
            begun = self._transact(lambda connection: append_pruning(connection, pruning, seen=seen))
            self._note_prunings()
            return begun

    def _note_prunings(self) -> None:
        self._floor_nanos = self.store.transact(find_floor)
        if self._floor_nanos:
            self._index.note_pruning()
        self._index.pruned_end_nanos = self.store.transact(find_pruned_end)

    def _require_open_past(self, nanos: int, what: str) -> None:
        """Raises EvidencePruned for what is final since evidence was pruned."""
        if nanos < self._floor_nanos:
            floor = format_instant(self._floor_nanos)
            raise EvidencePruned(
                f"{what} lies before {floor}, where all is final: {self.store.read(describe_absence)}; book the "
                "difference as a new event of today"
            )

    def post_due(self, now_nanos: int) -> Booking:
        """Decide again the groups whose time has come, some in each transaction: arrivals are booked in between.

        A group that trips a fault of ours is logged and put off; it keeps nobody else waiting.
        """
        whole = Booking()
        while dues := self.store.read(lambda connection: list_due(connection, now_nanos, _DUE_BATCH)):
            whole.decided.extend(self._decide_due(dues, now_nanos))
        return whole

    def _decide_due(self, dues: Sequence[Due], now_nanos: int) -> list[UsageRecord]:
        try:
            return self._transact(
                lambda connection: book_due(connection, self._index, dues, self._rules, now_nanos)
            ).decided
        except _STORE_FAULTS:
            raise
        except Exception as fault:  # noqa: BLE001 logged with its traceback; the group is tried again later
            if len(dues) > 1:
                return [record for due in dues for record in self._decide_due([due], now_nanos)]
            name = dues[0].key.hex()
            _log.error("claim group %s cannot be decided again now and is put off", name, exc_info=fault)
            self._transact(lambda connection: postpone_due(connection, dues[0], now_nanos))
            return []

    def price_waiting(self, now_nanos: int) -> int:
        """Rate again what no price covered, with the prices of today's card for its event time; returns how many.

        A reversal and a revision each; what still has no price stays as it is. What is priced is never priced again.
        """
        priced, after = 0, FIRST
        while batch := self.store.read(partial(list_unpriced, limit=_WAITING_BATCH, after=after)):
            after = (batch[-1].event_nanos, batch[-1].event_id)
            work = partial(self._rebook_all, records=batch, now_nanos=now_nanos, note="a price was found")
            try:
                booking = self._transact(work)
            except (sqlite3.Error, OSError, MemoryError):
                raise
            except Exception:  # noqa: BLE001 logged with its traceback; the others must not wait for these
                _log.exception("%d events could not be rated anew; they wait for the next start", len(batch))
            else:
                priced += sum(record.sign > 0 for record in booking.records)
        return priced

    def _rebook_all(
        self, connection: sqlite3.Connection, records: Sequence[UsageRecord], now_nanos: int, note: str | None = None
    ) -> Booking:
        """Decide the groups of these events again, and rate the events again."""
        members = []
        for record in records:
            keys = self._rules.claim_keys(record.candidate)
            found = self._index.find_members(connection, record.event_nanos // DAY_NANOS, keys)
            members += [member for member in found if member.event_id == record.event_id]
        return book_members(connection, self._index, members, self._rules, now_nanos, note)

    def rerate(
        self, rater: Rater, scope: Scope, *, operator: str, reason: str, now_nanos: int, progress: Progress
    ) -> int:
        """Rate events of a scope again where other prices rated them; returns how many changed.

        A reversal and a revision each, in many transactions, by columns; what operators said something of goes through
        booking, so that charges given by hand stay. What is equal is not booked, so that doing it again after an
        interruption books the rest. Raises EvidencePruned for a scope that is final.
        """
        self._require_open_past(scope.from_nanos or 0, "some of what is to be rated again")
        end = self.store.read(find_last_segment)
        note = f"rated again by {operator}: {reason}"
        told = self._corrections.event_ids | self._resolutions.keys()
        run = Rerating(rater, scope, note, told, lambda item: collect_keys(item, self._rules.claim_keys), end)
        changed = 0
        for batch in run.prepare_all(self.store):
            changed += sum(self._append_revisions(run, written, now_nanos) for written in batch.parts)
            for place in range(0, len(batch.records), _WAITING_BATCH):
                records = batch.records[place : place + _WAITING_BATCH]
                booking = self._transact(partial(self._rebook_all, records=records, now_nanos=now_nanos, note=note))
                changed += sum(record.sign > 0 for record in booking.records)
            progress(end + 1 - batch.first, end)
        return changed

    def _append_revisions(self, run: Rerating, written: Written, now_nanos: int) -> int:
        """Append them in one transaction, which only has to write: all else was done before. Returns how many."""

        def work(connection: sqlite3.Connection) -> bool:
            if not run.append(connection, written, now_nanos):
                return False
            self._index.evict_events(written.found.list_event_ids())
            return True

        while not self._transact(work):
            left = run.leave_late(written.found)
            if not len(left):
                return 0
            written = run.write(left)
        return len(written.found)

    def correct(self, wish: Wish) -> Booking:
        """Book events as an operator wants them: a reversal and a revision each, that carry the reason.

        `wish.event_ids` may also be ids of records. Raises UnknownEvent, InvalidCorrection; then nothing is written.
        """
        with self._turn:
            records = [self._require_record(identifier) for identifier in wish.event_ids]
            batch = wish.derive_batch()
            corrections = [
                Correction(record.event_id, aspect, value, batch, wish.operator, wish.reason, wish.given_nanos)
                for record in records
                for aspect, value in wish.list_values().items()
            ]
            for record in records:
                check_correction(self._corrections, record, [c for c in corrections if c.event_id == record.event_id])
            return self._book_corrections(records, corrections, wish.given_nanos)

    def take_back(self, batch: str, *, operator: str, reason: str, now_nanos: int) -> Booking:
        """Take back all corrections of a batch: what stood before them stands again. Raises InvalidCorrection."""
        with self._turn:
            given = self.store.read(lambda connection: list_corrections(connection, batch=batch))
            if not given:
                raise InvalidCorrection(f"no batch {batch} of corrections; `otelbill corrections` lists them")
            for correction in given:
                self._check_top(correction)
            undo = digest_parts("correction-batch", "reverse", batch, operator, reason, now_nanos).hex()[:16]
            corrections = [
                Correction(c.event_id, c.aspect, self._find_former(c), undo, operator, reason, now_nanos, batch)
                for c in given
            ]
            records = [self._require_record(event_id) for event_id in dict.fromkeys(c.event_id for c in given)]
            note = f"batch {batch} taken back by {operator}: {reason}"
            return self._book_corrections(records, corrections, now_nanos, note)

    def _check_top(self, correction: Correction) -> None:
        """Raises InvalidCorrection unless the correction stands."""
        stack = self._corrections.list_stack(correction.event_id, correction.aspect)
        if correction not in stack:
            raise InvalidCorrection(f"batch {correction.batch} is taken back already, or takes back another itself")
        if stack[-1] != correction:
            raise InvalidCorrection(
                f"event {correction.event_id} was corrected again by batch {stack[-1].batch}; take that back first"
            )

    def _find_former(self, correction: Correction) -> str | None:
        stack = self._corrections.list_stack(correction.event_id, correction.aspect)
        return stack[-2].value if len(stack) > 1 else None

    def _book_corrections(
        self,
        records: Sequence[UsageRecord],
        corrections: Sequence[Correction],
        now_nanos: int,
        note: str | None = None,
    ) -> Booking:
        def work(connection: sqlite3.Connection) -> Booking:
            save_corrections(connection, corrections)
            return self._rebook_all(connection, records, now_nanos, note)

        before = {record.event_id: self._corrections.save(record.event_id) for record in records}
        for correction in corrections:
            self._corrections.note(correction)
        try:
            return self._transact(work)
        except BaseException:
            for event_id, stacks in before.items():
                self._corrections.restore(event_id, stacks)
            raise

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
            return self._rebook_all(connection, [record], resolution.given_nanos)

        with self._turn, _provisionally(self._resolutions, record.event_id, resolution):
            return self._transact(work)

    def _require_record(self, identifier: str) -> UsageRecord:
        record = self.store.read(lambda connection: find_record(connection, identifier))
        if record is None:
            pruned = self.store.read(describe_absence)
            raise UnknownEvent(
                f"no event or record {identifier}; `otelbill explain TRACE_ID` lists the ids of a trace"
                + (f"; {pruned}" if pruned else "")
            )
        self._require_open_past(record.event_nanos, f"event {record.event_id}")
        return record

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
