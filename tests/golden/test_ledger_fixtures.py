"""A ledger that any earlier version wrote is brought up to date, and says the same of its usage."""

from __future__ import annotations

from pathlib import Path

import pytest

from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.findings import REPLAY
from otelbill_collector.ledger.replay import replay_derived
from otelbill_collector.ledger.schema import list_migrations
from otelbill_collector.ledger.sqlite import LedgerUnavailable, SqliteStore
from tests.books import TestBooks
from tests.golden.ledger_fixtures import BY, list_fixtures, load_usage_rows, unpack_fixture
from tests.spans import chat
from tests.whole_ledger import CHECKS, verify


@pytest.mark.parametrize("name", list_fixtures())
def test_an_earlier_versions_ledger_is_migrated_and_whole(tmp_path: Path, name: str) -> None:
    """Usage is as it was, verification finds nothing, repeats are known and new spans are taken."""
    ledger = unpack_fixture(name, tmp_path / "ledger")
    books = TestBooks(ledger.parent)
    assert books.store.read(lambda conn: conn.execute("PRAGMA user_version").fetchone()) == (len(list_migrations()),)
    assert books.usage(*BY) == load_usage_rows(name)
    assert books.usage(*BY, fold=True) == load_usage_rows(name)
    receipt = books.post(chat("strange", model="model-nobody-knows"), chat("new after the upgrade"))
    assert (receipt.duplicate, receipt.accepted) == (1, 1)
    # The rules of claims may have changed since: then the keys are built again, and nothing else is needed.
    assert {finding.remedy for finding in verify(ledger).findings} <= {REPLAY}
    books.store.transact(lambda connection: replay_derived(connection, CHECKS.keys_of))
    Compactor(books.store).rebuild()
    books.close()
    assert verify(ledger).findings == []


@pytest.mark.parametrize("name", list_fixtures())
def test_an_earlier_versions_ledger_is_verified_as_it_is(tmp_path: Path, name: str) -> None:
    """A backup from before an upgrade can be checked without being changed."""
    ledger = unpack_fixture(name, tmp_path / "ledger")
    before = ledger.read_bytes()
    report = verify(ledger)
    assert {finding.remedy for finding in report.findings} <= {REPLAY}
    # Seals came with 5; credits, which came with 7, are folded otherwise since 12.
    assert bool(report.notes) == (name < "schema_0005" or "schema_0007" <= name < "schema_0012"), report.notes
    assert ledger.read_bytes() == before


def test_there_are_fixtures() -> None:
    """Migrations are tested from the first schema that left this repository on."""
    assert list_fixtures()[0] == "schema_0003"


def test_a_newer_ledger_is_not_touched(tmp_path: Path) -> None:
    """An old otelbill on a new ledger says so and changes nothing."""
    ledger = unpack_fixture(list_fixtures()[-1], tmp_path / "ledger")
    data = bytearray(ledger.read_bytes())
    data[60:64] = (9_999).to_bytes(4, "big")
    ledger.write_bytes(data)
    with pytest.raises(LedgerUnavailable, match="upgrade otelbill"):
        SqliteStore(ledger.parent)
    assert any("upgrade otelbill" in item.problem for item in verify(ledger).findings)
