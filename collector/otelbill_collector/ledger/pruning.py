"""Removing evidence that is settled: bodies of segments and claim keys go, rows and sums stay. Owns the steps.

First the decision is written, with the floor before which nothing is booked any more. Then bodies go step by step, a
transaction each with the sums of what it removes, then claim keys. After a crash the decision is carried out further.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from otelbill_collector.domain.ids import derive_claim_key
from otelbill_collector.ledger import compaction, credit_usage, meters, openings, rollups
from otelbill_collector.ledger.claim_runs import keep_claims, list_runs_until
from otelbill_collector.ledger.credits import mark_changed
from otelbill_collector.ledger.journal import chain_digest, find_high_water, save_high_water
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.pruned_sums import Steps, add_rows, encode_steps, sum_segments
from otelbill_collector.ledger.segments import decode_table
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.ledger.tombstones import KEYS, PRUNED, Pruning, find_pruned, find_pruned_end, list_prunings

_STEP_SEGMENTS = 128  # commits wait while their pages are freed
_STEP_BYTES = 4 * 1024 * 1024
_STEP_RECORDS = 32_768
_OLD_KEYS = 20_000  # rows of `claim_key` that go in one transaction
_ROW = "segment_id, booked_nanos, ended_min, ended_max, record_count, digest"


class PruningRefused(RuntimeError):
    """Evidence cannot be removed. The message says what is wrong with it; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Step:
    """Segments that go in one transaction, with all that must be known of them afterwards."""

    first: int
    last: int
    steps: Steps
    events: tuple[tuple[bytes, int], ...]  # claim key of an event with an id of its own, and its segment


def digest_rows(rows: Sequence[tuple[int | bytes, ...]]) -> bytes:
    """SHA-256 over what stays of pruned segments."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(b"|".join(value if isinstance(value, bytes) else b"%d" % value for value in row))
    return hasher.digest()


def list_rows(connection: sqlite3.Connection, first: int, last: int) -> list[tuple[int | bytes, ...]]:
    """What stays of segments, in order."""
    query = f"SELECT {_ROW} FROM segment WHERE segment_id BETWEEN ? AND ? ORDER BY segment_id"
    return connection.execute(query, (first, last)).fetchall()


def prove_segments(store: SqliteStore, first: int, last: int) -> None:
    """Check the chain of segments that may go, in short snapshots. Raises PruningRefused."""
    for start in range(first, last + 1, _STEP_SEGMENTS):
        store.read(partial(_prove_some, first=start, last=min(start + _STEP_SEGMENTS - 1, last)))


def _prove_some(connection: sqlite3.Connection, first: int, last: int) -> None:
    for _ in _walk_proven(connection, first, last):
        pass


def _walk_proven(connection: sqlite3.Connection, first: int, last: int) -> Iterator[tuple[int, int, bytes]]:
    """(id, records, body) of segments that are what was written. Raises PruningRefused at one that is not."""
    row = connection.execute("SELECT digest FROM segment WHERE segment_id = ?", (first - 1,)).fetchone()
    previous, after = bytes(32) if row is None else row[0], first - 1
    query = "SELECT segment_id, digest, record_count, body FROM segment WHERE segment_id BETWEEN ? AND ? ORDER BY 1"
    for segment_id, digest, count, body in connection.execute(query, (first, last)):
        if segment_id != after + 1 or chain_digest(previous, body) != digest:
            raise PruningRefused(f"segment {after + 1} is not what was written; `otelbill verify` says more")
        yield segment_id, count, body
        previous, after = digest, segment_id


class Seen(NamedTuple):
    """Up to where a decision has looked: the last segment, change of an invoice's state, and restated terms."""

    segment_id: int
    invoice_event_id: int
    restated_id: int


def find_seen(connection: sqlite3.Connection) -> Seen:
    """What there is now."""
    query = "SELECT coalesce(max({0}_id), 0) FROM {1}"
    names = (("segment", "segment"), ("invoice_event", "invoice_event"), ("restated", "restated_terms"))
    return Seen(*(connection.execute(query.format(*name)).fetchone()[0] for name in names))


def append_pruning(connection: sqlite3.Connection, pruning: Pruning, *, seen: Seen) -> bool:
    """Write a decision down. Call inside a write transaction.

    False, with nothing written, if anything from before its floor was booked since, or said of a closed period.
    """
    query = "SELECT 1 FROM segment WHERE segment_id > ? AND ended_min < ? LIMIT 1"
    if connection.execute(query, (seen.segment_id, pruning.floor_nanos)).fetchone() is not None:
        return False
    if find_seen(connection)[1:] != seen[1:]:
        return False
    marks = ", ".join("?" * len(Pruning._fields))
    connection.execute(f"INSERT INTO pruning ({', '.join(Pruning._fields)}) VALUES ({marks})", pruning)
    return True


def is_unfinished(connection: sqlite3.Connection) -> bool:
    """Whether something that was decided is still to be removed."""
    decided = max((item.segment_last for item in list_prunings(connection)), default=0)
    return find_pruned(connection) < decided or find_pruned(connection, KEYS) < decided


class Pruner:
    """Carries decisions out on one open ledger, in short transactions. `metering` is what Stripe is told."""

    def __init__(self, store: SqliteStore, metering: Metering | None) -> None:
        self._store = store
        self._metering = metering

    def advance(self) -> bool:
        """Take the next step; False where there is none, or it has to wait. Raises PruningRefused for damage."""
        step = self._store.read(lambda connection: _prepare_step(connection, self._store.path, self._metering))
        if step is not None:
            return self._store.transact(partial(_save_step, step=step, metered=self._metering is not None))
        if not self._store.read(is_unfinished):
            return False
        self._remove_keys()
        return True

    def _remove_keys(self) -> None:
        """Nothing that is still booked looks for the keys of what is gone."""
        end = self._store.read(find_pruned_end)
        pruned = self._store.read(find_pruned)
        done: set[int] = set()
        while runs := set(self._store.read(partial(list_runs_until, ended_nanos=end))) - done:  # some merge meanwhile
            for run_id in runs:
                self._store.transact(partial(keep_claims, run_id=run_id, after=pruned))
            done |= runs
        while self._store.transact(partial(_remove_old_keys, pruned=pruned)):
            pass
        self._store.transact(partial(save_high_water, name=KEYS, segment_id=pruned))


def _remove_old_keys(connection: sqlite3.Connection, pruned: int) -> int:
    """Those of ledgers from before the runs."""
    key = "day, key, segment_id, position"
    some = f"SELECT {key} FROM claim_key WHERE segment_id <= ? LIMIT {_OLD_KEYS}"
    return connection.execute(f"DELETE FROM claim_key WHERE ({key}) IN ({some})", (pruned,)).rowcount


def _prepare_step(connection: sqlite3.Connection, ledger: Path, metering: Metering | None) -> Step | None:
    """The next segments whose bodies go, proven once more by the chain and summed. Reads only."""
    pruned = find_pruned(connection)
    decided = max((item.segment_last for item in list_prunings(connection)), default=0)
    last, size, records = pruned, 0, 0
    events: list[tuple[bytes, int]] = []
    for segment_id, count, body in _walk_proven(connection, pruned + 1, decided):
        events += [(key, segment_id) for key in _list_own_events(body)]
        last, size, records = segment_id, size + len(body), records + count
        if last - pruned >= _STEP_SEGMENTS or size >= _STEP_BYTES or records >= _STEP_RECORDS:
            break
    if last == pruned:
        return None
    return Step(pruned + 1, last, sum_segments(ledger, pruned + 1, last, metering), tuple(events))


def _list_own_events(body: bytes) -> list[bytes]:
    column = decode_table(body, ("explicit_event_id",))["explicit_event_id"]
    names = pc.unique(column).to_pylist() if column.null_count < len(column) else []
    return [derive_claim_key("event-key", name) for name in names if name]


def _save_step(connection: sqlite3.Connection, step: Step, *, metered: bool) -> bool:
    """Remove bodies and keep what they summed up to, in one transaction; False while a fold has yet to read them."""
    if find_pruned(connection) != step.first - 1:
        raise PruningRefused("the mark moved meanwhile: two prunings on one ledger")
    if min(list_marks(connection, metered=metered)) < step.last:
        return False
    if not _has_credits_folded(connection, step):
        folded, changed = credit_usage.fold_credit_usage(connection)
        mark_changed(connection, changed)
        return folded > 0
    row = (step.last, step.first, encode_steps(step.steps))
    connection.execute("INSERT INTO pruning_step (segment_last, segment_first, sums) VALUES (?, ?, ?)", row)
    connection.executemany("INSERT INTO pruned_event VALUES (?, ?) ON CONFLICT DO NOTHING", step.events)
    connection.execute("UPDATE segment SET body = x'' WHERE segment_id BETWEEN ? AND ?", (step.first, step.last))
    save_high_water(connection, PRUNED, step.last)
    return True


def _has_credits_folded(connection: sqlite3.Connection, step: Step) -> bool:
    """Usage is folded for credits once anybody has some; who gets the first ones later finds this usage.

    Folds the step from its sums, where the mark stands right before it.
    """
    mark = find_high_water(connection, credit_usage.NAME)
    if mark >= step.last:
        return True
    if mark != step.first - 1:
        return False
    rows = step.steps["credit_usage"]
    add_rows(connection, "credit_usage", rows)
    save_high_water(connection, credit_usage.NAME, step.last)
    mark_changed(connection, {row[0] for row in rows[1:]})
    return True


def list_marks(connection: sqlite3.Connection, *, metered: bool) -> list[int]:
    """Marks that must be past what goes."""
    names = (rollups.NAME, openings.NAME, compaction.NAME, *((meters.NAME,) if metered else ()))
    return [*(find_high_water(connection, name) for name in names), compaction.find_mark(connection, compaction.IDS)]
