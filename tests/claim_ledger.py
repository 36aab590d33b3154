"""A ledger of claim keys by itself, and the plain way to look one up: in every run. Owns no assertions."""

from __future__ import annotations

import hashlib
import sqlite3

from otelbill_collector.ledger.claim_runs import find_in_table, list_runs, read_prefixes, search_run
from otelbill_collector.ledger.schema import migrate_schema

DAY = 20_000


def make_key(number: int) -> bytes:
    """A claim key; equal numbers give equal keys."""
    return hashlib.sha256(str(number).encode()).digest()[:16]


def open_ledger() -> sqlite3.Connection:
    """An empty ledger in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate_schema(connection)
    return connection


def find_claims(connection: sqlite3.Connection, key: bytes, day: int | None = None) -> list[tuple[int, int]]:
    """(segment, position) of the bookings under a key, within a day of `day` or whenever."""
    days = None if day is None else (day - 1, day, day + 1)
    prefix = int(read_prefixes([key])[0])
    found: list[tuple[int, int]] = []
    for run in list_runs(connection):
        if days is None or (run.day_max >= days[0] and run.day_min <= days[-1]):
            found.extend(search_run(connection, run.run_id, prefix))
    return found + find_in_table(connection, key, days)
