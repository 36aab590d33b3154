"""Derived tables follow from the segments alone: built again, they are the same rows."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from otelbill_collector.ledger.replay import Replayed, ReplayRefused, replay_derived
from otelbill_collector.ledger.sqlite import SqliteStore
from tests.whole_ledger import CHECKS, dump_rows, make_ledger, tamper, verify


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return make_ledger(tmp_path / "ledger")


def replay(ledger: Path) -> dict[str, Replayed]:
    store = SqliteStore(ledger.parent)
    try:
        found = store.transact(lambda connection: replay_derived(connection, CHECKS.keys_of))
    finally:
        store.close()
    return {item.table: item for item in found}


def list_rows(ledger: Path, table: str) -> object:
    dump = dump_rows(ledger)
    assert isinstance(dump, dict)
    return dump["rows"][table]


def test_replay_gives_the_same_rows_byte_for_byte(ledger: Path) -> None:
    """Claim keys and rollups up to the mark are what stood there; what came after the mark is folded."""
    keys = [list_rows(ledger, table) for table in ("claim_run", "claim_chunk")]
    found = replay(ledger)
    assert all(item.equal and (item.rows or item.table == "claim_key") for item in found.values())
    assert [list_rows(ledger, table) for table in ("claim_run", "claim_chunk")] == keys
    rollups = list_rows(ledger, "rollup")
    assert all(item.equal for item in replay(ledger).values())
    assert list_rows(ledger, "rollup") == rollups
    assert verify(ledger).ok


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rollup SET charge_attos = '1', quantities = 'no json'",
        "DELETE FROM rollup",
        "INSERT INTO claim_key VALUES (1, x'00', 2, 0)",
        "DELETE FROM claim_chunk WHERE chunk_id = 1",
        "UPDATE claim_chunk SET body = zeroblob(length(body))",
        "UPDATE claim_run SET day_max = 0, entries = 7",
        "DELETE FROM claim_run WHERE run_id = 2",
        "UPDATE high_water SET segment_id = 99 WHERE name = 'rollup'",
        "UPDATE credit_usage SET charge_attos = '1'",
        "DELETE FROM credit_usage WHERE customer_id = 'acme'",
    ],
)
def test_replay_repairs_what_is_derived(ledger: Path, damage: str) -> None:
    """Whatever became of a derived table, the ledger is whole afterwards, and the report says what was wrong."""
    tamper(ledger, damage)
    assert not verify(ledger).ok
    found = replay(ledger)
    assert verify(ledger).findings == []
    assert "high_water" in damage or any(not item.equal for item in found.values())


def test_replay_from_damaged_segments_changes_nothing(ledger: Path) -> None:
    """Nothing is derived from evidence that is not proven, and the segment is named."""
    tamper(ledger, "UPDATE segment SET digest = zeroblob(32) WHERE segment_id = 2", "DELETE FROM rollup")
    before = dump_rows(ledger)
    with pytest.raises(ReplayRefused, match="segment 2"):
        replay(ledger)
    assert dump_rows(ledger) == before


def test_replay_leaves_stripe_as_it_is(ledger: Path) -> None:
    """Windows carry what was settled into intents that may be at Stripe: they are not rebuilt."""
    tables = ("stripe_lane", "stripe_window", "stripe_intent", "stripe_intent_count")
    before = [list_rows(ledger, table) for table in tables]
    replay(ledger)
    assert [list_rows(ledger, table) for table in tables] == before


def test_without_the_seal_function_sealed_rows_cannot_be_written(ledger: Path) -> None:
    """Another program cannot change state by accident: the database refuses."""
    connection = sqlite3.connect(ledger)
    with pytest.raises(sqlite3.OperationalError, match="otelbill_seal"):
        connection.execute("UPDATE correction SET value = 'umbrella'")
    connection.close()
