"""Forward-only schema migrations: numbered SQL files beside this module, applied once each, in one transaction each."""

from __future__ import annotations

import re
import sqlite3
from importlib import resources

from otelbill_collector.ledger.seals import register_seal

_NAME = re.compile(r"(\d{4})_\w+\.sql")


class SchemaTooNew(RuntimeError):
    """The ledger was written by a newer otelbill. Nothing is touched; the remedy is to upgrade this one."""


def list_migrations() -> list[tuple[int, str]]:
    """(number, SQL) of every migration in order. The numbers are 1, 2, 3, ... without gaps."""
    found = []
    for entry in (resources.files("otelbill_collector.ledger") / "migrations").iterdir():
        match = _NAME.fullmatch(entry.name)
        if match:
            found.append((int(match.group(1)), entry.read_text("utf-8")))
    found.sort()
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), "migration numbers have a gap"
    return found


def migrate_schema(connection: sqlite3.Connection, *, upto: int | None = None) -> int:
    """Bring the schema up to date, or to the version `upto`; returns its version. Raises SchemaTooNew."""
    register_seal(connection)
    (current,) = connection.execute("PRAGMA user_version").fetchone()
    migrations = list_migrations()
    if current > len(migrations):
        raise SchemaTooNew(
            f"the ledger has schema version {current}, this otelbill knows up to {len(migrations)}; upgrade otelbill"
        )
    for number, script in migrations[current:upto]:
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
    return len(migrations) if upto is None else max(current, upto)
