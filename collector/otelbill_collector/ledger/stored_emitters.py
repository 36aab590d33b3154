"""Whose spans a stored twin key has, read from one column of the segments that it leads to. Owns a few such columns.

Twin keys link spans of different emitters only. Where memory has forgotten whose they were, the emitters answer for a
hundredth of what it takes to read the spans: nearly all equal calls are of one emitter.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict

import pyarrow as pa

from otelbill_collector.ledger.claim_search import ClaimSearch
from otelbill_collector.ledger.journal import list_bodies
from otelbill_collector.ledger.segments import decode_table

_SEGMENTS_MAX = 64


class StoredEmitters:
    """Asks the ledger. Not thread-safe."""

    def __init__(self, search: ClaimSearch) -> None:
        self._search = search
        self._columns: OrderedDict[int, pa.DictionaryArray] = OrderedDict()

    def has_only(self, connection: sqlite3.Connection, key: bytes, emitter: str) -> bool:
        """Whether spans of a key are stored, and all that may be its are of the emitter."""
        entries = self._search.find_of_any_day(connection, key)
        return bool(entries) and all(self._find(connection, *entry) == emitter for entry in entries)

    def forget(self) -> None:
        """After a transaction failed: another segment may get the number of one that was not written."""
        self._columns.clear()

    def _find(self, connection: sqlite3.Connection, segment: int, position: int) -> str | None:
        if segment not in self._columns:
            ((_, body),) = list_bodies(connection, segment + 1, after=segment - 1)
            self._columns[segment] = decode_table(body, ("emitter",), dictionaries=True)["emitter"].combine_chunks()
            if len(self._columns) > _SEGMENTS_MAX:
                self._columns.popitem(last=False)
        found: str | None = self._columns[segment][position].as_py()
        return found
