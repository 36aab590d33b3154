"""Which spans in columns have company that only rules can judge, and what is remembered to tell. Owns that memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.ids import TWIN_KEYS_FROM, is_twin_key
from otelbill_collector.domain.span_columns import Bytes
from otelbill_collector.ledger.claim_search import ClaimSearch
from otelbill_collector.ledger.members import ColumnSingles, join_keys
from otelbill_collector.ledger.recent_keys import Earlier, RecentKeys
from otelbill_collector.ledger.stored_emitters import StoredEmitters
from otelbill_collector.ledger.twin_keys import TwinKeys
from otelbill_collector.native.links import find_company
from otelbill_collector.native.loading import find_library

_STRANGERS_MAX = 2_048
_ASKED_MAX = 512  # twin keys of a commit whose stored emitters are asked for
_RECENT_SHARE = 3  # as many keys of spans in columns as of others are held: they take a tenth of the memory
_TWIN_SHARE = 20  # and so many of which only the emitter is known: what is forgotten costs a look-up in segments


class Meeting(NamedTuple):
    """Which spans in columns have company, the earlier spans of the others' traces, and which keys were seen before."""

    company: NDArray[np.bool_]
    earlier: list[Earlier]
    seen: NDArray[np.bool_]


class ColumnCompany:
    """Keys of spans booked by columns, and emitters of twin keys. Not thread-safe."""

    def __init__(self, keys_max: int, search: ClaimSearch) -> None:
        self._search = search
        self.recent = RecentKeys(keys_max * _RECENT_SHARE)
        self.is_pruned = False  # then runs may lack keys of what was stored once
        self._twins = TwinKeys(keys_max * _TWIN_SHARE)
        self._stored = StoredEmitters(search)

    def meet(
        self,
        connection: sqlite3.Connection,
        identified: IdentifiedColumns,
        met: NDArray[np.bool_],
        company: NDArray[np.bool_],
        *,
        others: bytes,
        held: Collection[bytes],
    ) -> Meeting:
        """Which spans have company: perhaps stored (`met`, by key), held as members (`held`), among the batch's other
        spans (whose keys are `others`), or in the batch under another key than that of their trace or, with a span of
        another emitter, a twin key. What `company` says beforehand stands. A span has company when one of its trace
        has.

        The others are, with those of their trace in these columns and the earlier ones that are given, whole groups.
        """
        keys, key_starts = identified.keys, identified.key_starts
        emitters = self.recent.find_emitters(identified.spans)
        earlier: list[Earlier] = []
        seen = met.copy()
        if met.any():
            last = self.recent.meet(keys, key_starts, emitters, met)
            self._twins.meet(keys, key_starts, emitters, met)
            self._clear_strangers(connection, keys, (met, seen), held)
            self._clear_own(connection, identified, met, held)
            if last.any():
                earlier, missing = self.recent.list_earlier(last)
                company |= missing
        find_company(keys, key_starts, emitters, met, others, company)
        return Meeting(company, earlier, seen)

    def _clear_strangers(
        self,
        connection: sqlite3.Connection,
        keys: Bytes,
        marks: tuple[NDArray[np.bool_], ...],
        held: Collection[bytes],
    ) -> None:
        """Unmark keys that the filter took for stored ones and that no run has. Where there are many they stay."""
        places = np.flatnonzero(marks[0])
        if self.is_pruned or len(places) > _STRANGERS_MAX:
            return
        places = places[[keys[place].tobytes() not in held for place in places.tolist()]]
        if len(places):
            strangers = places[~self._search.mark_stored(connection, keys[places])]
            for mark in marks:
                mark[strangers] = False

    def _clear_own(
        self,
        connection: sqlite3.Connection,
        identified: IdentifiedColumns,
        met: NDArray[np.bool_],
        held: Collection[bytes],
    ) -> None:
        """Unmark twin keys of which only spans of the same emitter are stored, and remember it. Where there are many
        they stay.
        """
        keys, spans = identified.keys, identified.spans
        places = np.flatnonzero(met & (keys[:, 0] >= TWIN_KEYS_FROM))
        if self.is_pruned or len(places) > _ASKED_MAX:
            return
        rows = np.searchsorted(identified.key_starts, places, side="right") - 1
        emitters = [spans.templates[code].emitter for code in spans.template[rows].tolist()]
        own = [
            place
            for place, emitter in zip(places.tolist(), emitters, strict=True)
            if keys[place].tobytes() not in held and self._stored.has_only(connection, keys[place].tobytes(), emitter)
        ]
        if own:
            met[own] = False
            numbers = self.recent.find_emitters(spans)[np.searchsorted(identified.key_starts, own, side="right") - 1]
            self._twins.note(keys[own], numbers, np.zeros(len(own), dtype=np.bool_))

    def add(self, singles: ColumnSingles, seen: NDArray[np.bool_]) -> None:
        """Hold the keys of spans without company; `seen` by `meet`, of each key."""
        emitters = self.recent.repeat_emitters(singles)
        self.recent.add(singles, emitters, seen)
        self._twins.note(singles.rated.keys, emitters, seen)

    def note_others(self, found: Sequence[tuple[str, bytes, bool]]) -> None:
        """Emitter and key of spans that did not come in columns, and whether the key was seen before."""
        twins = [item for item in found if is_twin_key(item[1])]
        if twins and find_library() is not None:
            emitters = np.array([self.recent.number_emitter(emitter) for emitter, _, _ in twins], dtype=np.int32)
            seen = np.array([known for _, _, known in twins], dtype=np.bool_)
            self._twins.note(join_keys([key for _, key, _ in twins]), emitters, seen)

    def forget(self) -> None:
        """Drop everything."""
        self.recent.forget()
        self._twins.forget()
        self._stored.forget()
