"""What is folded from segments while a sidecar runs, from one reading of each. Owns the order, and no sums.

Rollups, open events and Stripe's windows have a mark each, so that each may be rebuilt by itself. Where the marks
are the same, which is the rule, new segments are read once for all, on a snapshot beside the writer.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from typing import NamedTuple

from otelbill_collector.ledger import meters, openings, rollups
from otelbill_collector.ledger.journal import find_high_water, find_last_segment
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.readings import Reading, read_segments
from otelbill_collector.ledger.sqlite import SqliteStore

_READINGS_MAX = 64  # summed before rows are written, where Stripe's windows need none of them at hand


class _Found(NamedTuple):
    after: int
    reading: Reading
    rollups: rollups.Fold
    openings: openings.Fold


class Folder:
    """Folds an open ledger. Any thread may call it; one at a time works."""

    def __init__(self, store: SqliteStore, metering: Metering | None) -> None:
        self._store = store
        self._metering = metering
        metered = () if metering is None else meters.list_columns(metering)
        self._columns = tuple(dict.fromkeys((*rollups.COLUMNS, *openings.COLUMNS, *metered)))
        self._standing = rollups.Standing()
        self._turn = threading.Lock()

    def fold(self) -> int:
        """Fold what is there now; returns how many segments. What comes meanwhile is for the next time: under load
        there is always more, and rows are written once for all that was read.
        """
        total = 0
        with self._turn:
            end = self._store.read(find_last_segment)
            while count := self._fold_some(end):
                total += count
        return total

    def _fold_some(self, end: int) -> int:
        found = self._store.read(lambda connection: self._prepare(connection, end))
        count = max(found.rollups.segments, found.openings.segments)
        if count:
            self._store.transact(lambda connection: self._save(connection, found))
            self._standing.accept(found.rollups)
        # By itself: a fault of Stripe's configuration must not keep usage from being counted.
        return max(count, 0 if self._metering is None else self._fold_meters(self._metering, found))

    def _prepare(self, connection: sqlite3.Connection, end: int) -> _Found:
        after = find_high_water(connection, rollups.NAME)
        is_shared = find_high_water(connection, openings.NAME) == after
        opened = openings.Fold(after, after, 0, ())
        reading = Reading(after, ())

        def read_on() -> Iterator[Reading]:
            nonlocal opened, reading
            for _ in range(_READINGS_MAX if self._metering is None else 1):
                if reading.mark >= end:
                    return
                reading = read_segments(connection, reading.mark, self._columns)
                if is_shared:
                    opened = openings.extend_openings(connection, opened, reading)
                yield reading

        summed = rollups.prepare_fold(connection, read_on(), self._standing)
        return _Found(after, reading, summed, opened if is_shared else openings.prepare_openings(connection))

    def _save(self, connection: sqlite3.Connection, found: _Found) -> None:
        rollups.save_fold(connection, found.rollups)
        openings.save_openings(connection, found.openings)

    def _fold_meters(self, metering: Metering, found: _Found) -> int:
        def prepare(connection: sqlite3.Connection) -> meters.MeterFold:
            shared = _share(connection, meters.NAME, found.after, found.reading)
            return meters.prepare_meters(connection, metering, shared)

        fold = self._store.read(prepare)
        if fold.segments:
            self._store.transact(lambda connection: meters.save_meters(connection, metering, fold))
        return fold.segments


def _share(connection: sqlite3.Connection, name: str, after: int, reading: Reading) -> Reading | None:
    """The reading, for a fold that goes on from where it begins; None for one that must read by itself."""
    return reading if reading.tables and find_high_water(connection, name) == after else None
