"""Look-ups of claim keys in the runs, through a sieve for each run in memory. Owns the sieves and their bound.

A ledger of fifty million spans has two hundred runs. A sieve says of nearly all of them that a key is not there, so
that a look-up reads the few that may have it, and to learn that a key is stored nowhere costs microseconds. A run
never changes, and one that took the place of others has a number of its own. The sieve of a small one is made when it
is first asked for, by the writer; those of others beside the commits (`make_sieves`), and until then these are read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.ledger.claim_runs import (
    Run,
    find_in_table,
    has_table,
    list_recent_runs,
    list_runs,
    load_prefixes,
    read_prefixes,
    search_run,
)
from otelbill_collector.ledger.key_filters import KeyFilter, Prefixes, mark_in_each
from otelbill_collector.ledger.known_keys import KnownKeys
from otelbill_collector.ledger.sqlite import SqliteStore

_BITS_PER_KEY = 12  # of runs that have not the key, one in 250 is read
_SIEVED_MIN = 256  # entries: a smaller run is read as soon as asked
_AT_ONCE_MAX = 1 << 17  # entries of which the writer makes sieves in one commit: more would hold it up


class ClaimSearch:
    """Runs of an open ledger, as the writer sees them inside its transactions. But for `make_sieves` not thread-safe.

    At most `entries_max` entries are in sieves, those of the newest days; other runs are searched without one.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._sieves: dict[Run, KeyFilter] = {}
        self._made: dict[Run, KeyFilter] = {}  # beside the commits; the writer takes them over, or drops them
        self._unsettled: list[Run] = []  # sieves made in the transaction in progress: their runs may yet vanish

    def sieve(self, run: Run, prefixes: Prefixes) -> None:
        """Make the sieve of a run that was read."""
        if len(prefixes) >= _SIEVED_MIN:
            self._sieves[run] = _make_sieve(prefixes)
            self._unsettled.append(run)

    def make_sieves(self, store: SqliteStore) -> int:
        """Make the sieves that are missing, of committed runs; returns how many. For a thread beside the writer's."""
        done = 0
        for run in store.read(lambda connection: self._list_sieved(list_runs(connection))):
            if run in self._sieves or run in self._made:
                continue
            prefixes = store.read(lambda connection, run=run: load_prefixes(connection, run.run_id))  # type: ignore[misc]
            if len(prefixes) == run.entries:  # it is not gone meanwhile
                self._made[run] = _make_sieve(prefixes)
                done += 1
        return done

    def find(self, connection: sqlite3.Connection, day: int, key: bytes) -> list[tuple[int, int]]:
        """(segment, position) of the bookings under a key within a day of `day`; may hold others' and of other days."""
        return self._find(connection, key, (day - 1, day, day + 1))

    def find_of_any_day(self, connection: sqlite3.Connection, key: bytes) -> list[tuple[int, int]]:
        """The same whatever the day."""
        return self._find(connection, key, None)

    def list_stored(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the keys of which `mark_stored` says so."""
        marks = self.mark_stored(connection, np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16))
        return [key for key, stored in zip(keys, marks.tolist(), strict=True) if stored]

    def mark_stored(self, connection: sqlite3.Connection, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """For each of the keys [m, 16] whether something is stored that begins like it, on whatever day."""
        prefixes = read_prefixes(keys)
        stored = np.zeros(len(keys), dtype=np.bool_)
        for run, places in self._list_hits(connection, prefixes, None):
            for place in places.tolist():
                if not stored[place]:
                    stored[place] = next(search_run(connection, run.run_id, int(prefixes[place])), None) is not None
        for place in np.flatnonzero(~stored).tolist() if has_table(connection) else ():
            stored[place] = bool(find_in_table(connection, keys[place].tobytes()))
        return stored

    def settle(self) -> None:
        """After a commit: the runs that it left are there to stay."""
        self._unsettled.clear()

    def forget(self) -> None:
        """After a transaction failed: another run may get the number of one that was not written."""
        for run in self._unsettled:
            self._sieves.pop(run, None)
        self._unsettled.clear()

    def _find(
        self, connection: sqlite3.Connection, key: bytes, days: tuple[int, int, int] | None
    ) -> list[tuple[int, int]]:
        prefixes = read_prefixes([key])
        found: list[tuple[int, int]] = []
        for run, _ in self._list_hits(connection, prefixes, days):
            found.extend(search_run(connection, run.run_id, int(prefixes[0])))
        found.extend(find_in_table(connection, key, days))
        return found

    def _list_hits(
        self, connection: sqlite3.Connection, prefixes: Prefixes, days: tuple[int, int, int] | None
    ) -> list[tuple[Run, NDArray[np.intp]]]:
        """The runs that may have any of the keys, and the places of those keys."""
        runs = self._refresh(connection)
        asked = [run for run in runs if days is None or (run.day_max >= days[0] and run.day_min <= days[-1])]
        sieved = [run for run in asked if run in self._sieves]
        marks = mark_in_each([self._sieves[run] for run in sieved], prefixes)
        every = np.arange(len(prefixes))
        hits = [(run, every) for run in asked if run not in self._sieves]
        hits += [
            (sieved[number], np.flatnonzero(marks[number])) for number in np.flatnonzero(marks.any(axis=1)).tolist()
        ]
        return hits

    def _refresh(self, connection: sqlite3.Connection) -> Sequence[Run]:
        """The runs there are; those among the newest that can have a sieve get one, what is gone loses it."""
        runs = list_runs(connection)
        kept = set(self._list_sieved(runs))
        for run in self._sieves.keys() - kept:
            del self._sieves[run]
        room = _AT_ONCE_MAX
        for run in kept - self._sieves.keys():
            if (made := self._made.pop(run, None)) is not None:
                self._sieves[run] = made
            elif run.entries <= room:
                room -= run.entries
                self.sieve(run, load_prefixes(connection, run.run_id))
        for run in set(self._made) - kept:  # a copy made at once: another thread may add to it
            self._made.pop(run, None)
        return runs

    def _list_sieved(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that can have a sieve: the newest."""
        room, found = self._entries_max, []
        for run in sorted(runs, key=lambda run: run.day_max, reverse=True):
            if run.entries < _SIEVED_MIN:
                continue
            room -= run.entries
            if room < 0:
                break
            found.append(run)
        return found


def _make_sieve(prefixes: Prefixes) -> KeyFilter:
    made = KeyFilter(len(prefixes), _BITS_PER_KEY)
    made.add(prefixes)
    return made


def fill_filters(connection: sqlite3.Connection, known: KnownKeys, search: ClaimSearch, keys_max: int) -> None:
    """Have the keys of the newest days remembered, as many as there is room for, and the sieves of their runs made."""
    recent = list(list_recent_runs(connection, keys_max))
    known.expect(sum(run.entries for _, run in recent if run is not None))

    def enter(run: Run, prefixes: Prefixes, day: int) -> None:
        known.add(prefixes, day)
        search.sieve(run, prefixes)

    with ThreadPoolExecutor(1) as executor:  # the next run is read meanwhile: the native library needs no lock
        entering: Future[None] | None = None
        for day, run in recent:
            prefixes = load_prefixes(connection, run.run_id) if run is not None else None
            if entering is not None:
                entering.result()
            if run is None or prefixes is None:  # no room for this day and those before
                known.covered_from = day + 1
                return
            entering = executor.submit(enter, run, prefixes, day)
        if entering is not None:
            entering.result()
