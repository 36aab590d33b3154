"""What the local Stripe remembers: tables of JSON values, each commit all or nothing, optionally on disk.

On disk it is an append-only log, one line a commit, flushed before the answer leaves: it survives a killed process
(not a lost machine). Owns no rule of any resource.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from otelbill_collector.testing.stripe.errors import Json


@dataclass(frozen=True, slots=True)
class Change:
    """Set one row of one table."""

    table: str
    key: str
    value: Json


class Store:
    """Not thread-safe: the caller holds one lock from the first read to the commit."""

    def __init__(self, path: Path | None = None) -> None:
        """Load the log at `path` where it exists. A line cut short by a kill was never answered and is removed."""
        self._tables: dict[str, dict[str, Json]] = {}
        self._log: BinaryIO | None = None
        if path is not None:
            self._load(path)
            self._log = path.open("ab")

    def find(self, table: str, key: str) -> Json | None:
        """The row, or None."""
        return self._tables.get(table, {}).get(key)

    def iter_rows(self, table: str, scope: str) -> Iterator[Json]:
        """Rows of one account and mode in the order of their creation."""
        prefix = f"{scope}/"
        return (row for key, row in self._tables.get(table, {}).items() if key.startswith(prefix))

    def iter_all(self, table: str) -> Iterator[Json]:
        """Rows of every account and mode in the order of their creation."""
        return iter(self._tables.get(table, {}).values())

    def count(self, table: str) -> int:
        """Rows in the table; nothing is ever removed, so it also numbers the next one."""
        return len(self._tables.get(table, {}))

    def commit(self, changes: Sequence[Change]) -> None:
        """Apply all changes, first to the log."""
        if self._log is not None:
            line = json.dumps([[change.table, change.key, change.value] for change in changes])
            self._log.write(line.encode() + b"\n")
            self._log.flush()
        for change in changes:
            self._tables.setdefault(change.table, {})[change.key] = change.value

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _load(self, path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
        for line in whole.splitlines():
            for table, key, value in json.loads(line):
                self._tables.setdefault(table, {})[key] = value


def make_id(prefix: str, *parts: str | int) -> str:
    """An id that only depends on its parts, so that a run repeats itself."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
    return f"{prefix}_{digest[:24]}"
