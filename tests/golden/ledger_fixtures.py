"""Ledgers of every schema version, as they were written then: `python -m tests.golden.ledger_fixtures` adds today's.

A fixture is `schema_NNNN.sqlite.gz` and `schema_NNNN.json`, what `otelbill usage` said of it. It is written once, by
the version that had the schema, and never again.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from otelbill_collector.ledger.schema import list_migrations
from tests.books import TestBooks
from tests.whole_ledger import make_ledger

FOLDER = Path(__file__).with_name("ledgers")
BY = ("customer", "model", "hour")


def list_fixtures() -> list[str]:
    """Names of all fixtures, oldest schema first."""
    return sorted(path.name.removesuffix(".sqlite.gz") for path in FOLDER.glob("*.sqlite.gz"))


def unpack_fixture(name: str, folder: Path) -> Path:
    """Write a fixture as the ledger of a folder."""
    folder.mkdir(parents=True)
    ledger = folder / "ledger.sqlite"
    ledger.write_bytes(gzip.decompress((FOLDER / f"{name}.sqlite.gz").read_bytes()))
    return ledger


def load_usage_rows(name: str) -> list[dict[str, Any]]:
    """What usage was then."""
    rows: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())
    return rows


def write_fixture(ledger: Path, name: str) -> None:
    """Pack a closed ledger. Refuses to change a fixture."""
    packed = FOLDER / f"{name}.sqlite.gz"
    if packed.exists():
        raise SystemExit(f"{packed.name} exists; a fixture is never written again")
    FOLDER.mkdir(exist_ok=True)
    packed.write_bytes(gzip.compress(ledger.read_bytes(), mtime=0))
    books = TestBooks(ledger.parent)
    (FOLDER / f"{name}.json").write_text(json.dumps(books.usage(*BY), indent=1) + "\n")
    books.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write_fixture(make_ledger(Path(made) / "ledger"), f"schema_{len(list_migrations()):04d}")
