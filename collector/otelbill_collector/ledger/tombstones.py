"""What retention has removed: the decisions, the marks, and how it is told to whoever asks for it. Reads only.

A pruned segment keeps its row (id, times, count, digest) with an empty body. `pruning` says which were decided to go,
by what policy; the mark `pruned` says up to which segment the bodies are gone.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from otelbill_collector.domain.instants import format_instant

PRUNED = "pruned"  # the mark: the last segment without a body
KEYS = "pruned_keys"  # and up to which segment claim keys are gone
FILES = "parquet_from"  # and up to which segment files beside the ledger hold nothing


class Pruning(NamedTuple):
    """A decision to remove the bodies of segments: who, when, by what policy. Events before the floor are final."""

    segment_first: int
    segment_last: int
    ended_min: int
    ended_max: int
    record_count: int
    digest: bytes  # SHA-256 over the rows of the segments, without their bodies
    floor_nanos: int
    policy: str
    operator: str
    at_nanos: int

    def describe(self) -> str:
        """One sentence for messages."""
        first, last, day = (format_instant(nanos)[:10] for nanos in (self.ended_min, self.ended_max, self.at_nanos))
        return (
            f"evidence of {first} to {last} (segments {self.segment_first} to {self.segment_last}) was pruned on {day}"
            f" by policy {self.policy} ({self.operator})"
        )


_COLUMNS = ", ".join(Pruning._fields)


def find_pruned(connection: sqlite3.Connection, mark: str = PRUNED, *, schema: str = "main") -> int:
    """Id of the last segment that retention has removed; 0 where nothing was."""
    row = connection.execute(f"SELECT segment_id FROM {schema}.high_water WHERE name = ?", (mark,)).fetchone()
    return 0 if row is None else int(row[0])


def find_floor(connection: sqlite3.Connection) -> int:
    """Events before this instant are final: none is booked, corrected or invoiced any more. 0 where all may be."""
    (floor,) = connection.execute("SELECT coalesce(max(floor_nanos), 0) FROM pruning").fetchone()
    return int(floor)


def find_pruned_end(connection: sqlite3.Connection) -> int:
    """The first instant of event time after everything that was decided to go; 0 where nothing was."""
    (last,) = connection.execute("SELECT max(ended_max) FROM pruning").fetchone()
    return 0 if last is None else int(last) + 1


def list_prunings(connection: sqlite3.Connection) -> list[Pruning]:
    """All decisions, oldest first."""
    return [Pruning(*row) for row in connection.execute(f"SELECT {_COLUMNS} FROM pruning ORDER BY segment_last")]


def describe_segment(connection: sqlite3.Connection, segment_id: int) -> str:
    """Why a segment has no body."""
    query = f"SELECT {_COLUMNS} FROM pruning WHERE segment_last >= ? ORDER BY segment_last LIMIT 1"
    row = connection.execute(query, (segment_id,)).fetchone()
    return f"segment {segment_id} has no body" if row is None else Pruning(*row).describe()


def describe_absence(connection: sqlite3.Connection) -> str | None:
    """What answers from records no longer hold; None where nothing was pruned."""
    prunings = list_prunings(connection)
    if not prunings:
        return None
    first, last = prunings[0], prunings[-1]
    whole = last._replace(segment_first=first.segment_first, ended_min=min(item.ended_min for item in prunings))
    return whole._replace(ended_max=max(item.ended_max for item in prunings)).describe()


def is_pruned_event(connection: sqlite3.Connection, key: bytes) -> bool:
    """Whether an event with an id of its own (`otelbill.event.id`), named by its claim key, was pruned."""
    return connection.execute("SELECT 1 FROM pruned_event WHERE key = ?", (key,)).fetchone() is not None
