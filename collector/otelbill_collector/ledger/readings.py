"""New segments, read once for all that is folded from them. Owns how many at a time; names come as codes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from otelbill_collector.ledger.journal import list_tables

_SEGMENTS_MAX = 2_048
_ROWS_MAX = 100_000  # some 25 MB of columns


@dataclass(frozen=True, slots=True)
class Reading:
    """Columns of successive segments up to `mark`."""

    mark: int
    tables: Sequence[tuple[int, pa.Table]]

    def join(self) -> pa.Table:
        """All of them as one table. There must be one."""
        return pa.concat_tables([table for _, table in self.tables])


def read_segments(connection: sqlite3.Connection, after: int, columns: Sequence[str]) -> Reading:
    """The next segments past one, as many as are folded at once."""
    tables: list[tuple[int, pa.Table]] = []
    mark, rows = after, 0
    for segment_id, table in list_tables(connection, after, columns=columns, dictionaries=True):
        tables.append((segment_id, table))
        mark, rows = segment_id, rows + table.num_rows
        if len(tables) >= _SEGMENTS_MAX or rows >= _ROWS_MAX:
            break
    return Reading(mark, tables)
