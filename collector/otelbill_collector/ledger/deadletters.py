"""Dead letters: spans that no rule can process, kept with the reason and replayable. Owns their table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from otelbill_collector.domain.records import DeadLetter

_COLUMNS = "letter_id, received_nanos, code, field, value, hint, trace_id, span_id, body"


def save_dead_letter(connection: sqlite3.Connection, letter: DeadLetter) -> bool:
    """Keep a letter; False when it is already kept (the same span with the same fault, sent again)."""
    inserted = connection.execute(
        f"INSERT INTO dead_letter ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            letter.letter_id,
            letter.received_nanos,
            letter.code,
            letter.field,
            letter.value,
            letter.hint,
            letter.trace_id,
            letter.span_id,
            letter.body,
        ),
    ).rowcount
    return bool(inserted)


def list_dead_letters(connection: sqlite3.Connection, *, limit: int = 1_000) -> list[DeadLetter]:
    """Letters that were not replayed, oldest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM dead_letter WHERE replayed_nanos IS NULL ORDER BY received_nanos, letter_id LIMIT ?",
        (limit,),
    )
    return [DeadLetter(*row) for row in rows]


def find_dead_letter(connection: sqlite3.Connection, letter_id: str) -> DeadLetter | None:
    """One letter by its id, replayed or not."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM dead_letter WHERE letter_id = ?", (letter_id,)).fetchone()
    return None if row is None else DeadLetter(*row)


def count_dead_letters(connection: sqlite3.Connection) -> int:
    """How many letters wait."""
    (count,) = connection.execute("SELECT count(*) FROM dead_letter WHERE replayed_nanos IS NULL").fetchone()
    return int(count)


def mark_replayed(connection: sqlite3.Connection, letter_ids: Iterable[str], now_nanos: int) -> None:
    """Note that letters went through the pipeline again without fault."""
    connection.executemany(
        "UPDATE dead_letter SET replayed_nanos = ? WHERE letter_id = ?", [(now_nanos, item) for item in letter_ids]
    )
