"""kill -9 while segments become files and files are merged: nothing half is registered, nothing is lost or double."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.ledger.compaction import RECORDS, Compactor, list_files
from otelbill_collector.ledger.queries import QueryLimits, open_query
from tests.books import NOW, TestBooks
from tests.sidecar_process import REPOSITORY, build_environment
from tests.spans import SECOND, T0, chat
from tests.whole_ledger import verify

_KILLS = 12
_SEGMENTS = 30
# Small steps, so that a kill falls between any two of them.
_CHILD = """
import sys
from pathlib import Path
from otelbill_collector.ledger import compaction
from otelbill_collector.ledger.sqlite import SqliteStore
compaction._STEP_RECORDS = 4
store = SqliteStore(Path(sys.argv[1]))
compactor = compaction.Compactor(store)
print("ready", flush=True)
while True:
    compactor.rebuild()
"""


@pytest.mark.slow
def test_a_killed_compactor_leaves_a_whole_ledger(tmp_path: Path) -> None:
    """Guarantee: after each kill files are whole or not registered, and every query has every record once."""
    books = TestBooks(tmp_path / "ledger")
    for number in range(_SEGMENTS):
        ended = T0 - number % 3 * DAY_NANOS + number * SECOND
        books.post(*(chat(f"{number}/{call}", ended=ended) for call in range(3)))
    books.close()
    chance = random.Random(6)
    registered = set()
    for _ in range(_KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(tmp_path / "ledger")],
            env=build_environment(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            threading.Event().wait(chance.random() / 2)  # somewhere inside
            child.kill()
        assert verify(books.store.path).findings == []
        books.reopen()
        registered.add(len(books.store.read(lambda connection: list_files(connection, RECORDS))))
        with open_query(
            books.store, "SELECT count(*), count(DISTINCT record_id) FROM records", QueryLimits(None, None)
        ) as answer:
            assert list(answer.rows) == [(_SEGMENTS * 3, _SEGMENTS * 3)]
        books.close()
    assert len(registered) > 1, "every kill fell between two rebuilds, so this showed nothing"
    books.reopen()
    compactor = Compactor(books.store)
    compactor.compact_all()
    compactor.sweep(NOW, -(2**62))
    named = {row.name for row in books.store.read(list_files)}
    folder = tmp_path / "ledger" / "parquet"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == named
    books.close()
    assert verify(books.store.path).findings == []
