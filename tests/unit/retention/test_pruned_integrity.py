"""What stays of pruned evidence is proven: the chain, the decisions, the sums. Copies keep it, damage is found."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from otelbill_collector.audit import find_damage
from otelbill_collector.ledger import pruning
from otelbill_collector.ledger.copies import back_up_ledger, restore_ledger
from otelbill_collector.ledger.findings import REPLAY, RESTORE, Report
from otelbill_collector.ledger.integrity import Checks
from otelbill_collector.ledger.pruning import PruningRefused
from otelbill_collector.ledger.replay import replay_derived
from otelbill_collector.ledger.sqlite import LEDGER_NAME, SqliteStore
from otelbill_collector.ledger.tombstones import find_pruned, list_prunings
from tests.retention_world import Desk, find_faults, look, make_call, prune
from tests.whole_ledger import CHECKS, dump_rows, tamper, verify

DAMAGE = [
    ("UPDATE segment SET digest = zeroblob(32) WHERE segment_id = 12", "segment 13", RESTORE),
    ("UPDATE segment SET digest = zeroblob(32) WHERE segment_id = 3", "pruning segments 1 to 12", RESTORE),
    ("UPDATE segment SET record_count = 9 WHERE segment_id = 3", "pruning segments 1 to 12", RESTORE),
    ("UPDATE segment SET ended_max = 9 WHERE segment_id = 3", "segment 3", RESTORE),
    ("DELETE FROM segment WHERE segment_id = 5", "segment 5", RESTORE),
    ("UPDATE segment SET body = x'00' WHERE segment_id = 5", "segment 5", RESTORE),
    ("UPDATE segment SET body = x'' WHERE segment_id = 20", "segment 20", RESTORE),
    ("DELETE FROM pruning", "pruning", RESTORE),
    ("UPDATE pruning SET policy = '1d'", "pruning 1", RESTORE),
    ("UPDATE pruning SET floor_nanos = 0", "pruning 1", RESTORE),
    ("UPDATE pruning_step SET sums = x'00'", "pruning_step 7", RESTORE),
    ("DELETE FROM pruning_step WHERE segment_last = 7", "pruning_step", RESTORE),
    ("DELETE FROM pruned_event", "pruned_event", RESTORE),
    ("UPDATE pruned_event SET segment_id = 99", "pruned_event", RESTORE),
    ("UPDATE high_water SET segment_id = 14 WHERE name = 'pruned'", "high_water pruned", RESTORE),
    ("UPDATE high_water SET segment_id = 3 WHERE name = 'pruned'", "segment", RESTORE),
    ("UPDATE rollup SET charge_attos = '1' WHERE hour_nanos < 1769904000000000000", "rollup", REPLAY),
    ("DELETE FROM rollup_day", "rollup_day", REPLAY),
    ("UPDATE high_water SET segment_id = 3 WHERE name = 'rollup'", "high_water rollup", REPLAY),
]


@pytest.fixture(scope="module")
def sound(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pruned ledger, closed; tests copy it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "_STEP_SEGMENTS", 7)
        desk = Desk(Path(shutil.copytree(filled, tmp_path_factory.mktemp("sound") / "ledger")))
        given = {"customer_id": "acme", "operator": "ann", "start": "2026-01-01", "unit": "input_tokens"}
        desk.operations.credits.give({**given, "units": "5000", "reason": "pilot"})
        prune(desk)
        desk.books.close()
        yield desk.books.folder


@pytest.fixture
def pruned(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy")) / LEDGER_NAME


def check(ledger: Path) -> Report:
    """Verify without Stripe, which this ledger does not have."""
    return verify(ledger, Checks(CHECKS.keys_of))


def test_a_pruned_ledger_is_whole_and_says_what_is_gone(pruned: Path) -> None:
    """Verification finds nothing, and its report names what it could not look at."""
    report = check(pruned)
    assert report.findings == []
    (note,) = [note for note in report.notes if note.startswith("prunings")]
    assert "evidence of 2026-01-10 to 2026-02-12 (segments 1 to 12) was pruned on 2027-04-20 by policy 13mo" in note
    assert (report.counts["segments"], report.counts["records"]) == (31, 18 * 3 + 1)


@pytest.mark.parametrize(("statement", "place", "remedy"), DAMAGE, ids=[item[0][:60] for item in DAMAGE])
def test_damage_to_what_stays_is_found(pruned: Path, statement: str, place: str, remedy: str) -> None:
    """Rows, decisions and sums of pruned evidence are proven, as the evidence was."""
    tamper(pruned, statement)
    findings = check(pruned).findings
    assert [item for item in findings if f"{item.table} {item.row_key}".startswith(place)], findings
    assert remedy in {item.remedy for item in findings}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rollup SET charge_attos = '1', quantities = 'no json'",
        "DELETE FROM rollup",
        "DELETE FROM rollup_day WHERE day_nanos < 1769904000000000000",
        "UPDATE high_water SET segment_id = 3 WHERE name = 'rollup'",
        "UPDATE credit_usage SET charge_attos = '1'",
        "DELETE FROM claim_chunk WHERE chunk_id = (SELECT max(chunk_id) FROM claim_chunk)",
    ],
)
def test_replay_repairs_what_is_derived_of_pruned_evidence_too(pruned: Path, damage: str) -> None:
    """Sums begin with what was kept of them, so that damage to a derived table costs nothing."""
    before = read_sums(pruned)
    tamper(pruned, damage)
    assert not check(pruned).ok
    store = SqliteStore(pruned.parent)
    found = store.transact(lambda connection: replay_derived(connection, CHECKS.keys_of))
    store.close()
    assert any(not item.equal for item in found) or "high_water" in damage
    assert check(pruned).findings == []
    assert read_sums(pruned) == before


def read_sums(ledger: Path) -> object:
    """The derived sums."""
    dump = dump_rows(ledger)
    assert isinstance(dump, dict)
    return [dump["rows"][table] for table in ("rollup", "rollup_day", "credit_usage")]


def test_a_start_does_not_mistake_what_was_pruned_for_damage(pruned: Path) -> None:
    """The check of the newest segments ends where bodies end."""
    store = SqliteStore(pruned.parent)
    assert find_damage(store) == []
    store.close()


def test_damaged_evidence_is_not_removed(desk: Desk) -> None:
    """What no longer fits the chain stays for whoever looks into it, and nothing is changed."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    desk.books.close()
    tamper(desk.books.store.path, "UPDATE segment SET body = x'00' WHERE segment_id = 9")
    desk.books.reopen()
    desk.wire()
    with pytest.raises(PruningRefused, match="segment 9 is not what was written"):
        desk.retention.apply(operator="ann")
    assert desk.read(list_prunings) == []
    assert [fault for fault in find_faults(desk) if "segment 9" in fault]


def test_a_backup_of_a_pruned_ledger_is_restored_as_it_was(desk: Desk, tmp_path: Path) -> None:
    """A copy has the decisions and sums; files are written for what there is, spans below the floor are refused."""
    prune(desk)
    before = look(desk)
    copy = tmp_path / "backup.sqlite"
    back_up_ledger(desk.books.store.path, copy, desk.now)
    assert check(copy).findings == []
    restore_ledger(copy, tmp_path / "other", desk.now)
    other = Desk(tmp_path / "other")
    other.fold()
    assert look(other) == before
    assert find_faults(other) == []
    assert other.books.post(make_call("acme", "2026-01"), now=desk.now).dead_lettered == 1
    other.books.close()


def test_a_backup_from_before_brings_the_evidence_back(desk: Desk, tmp_path: Path) -> None:
    """An older copy has everything, and the policy removes it again with the same result."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    copy = tmp_path / "backup.sqlite"
    back_up_ledger(desk.books.store.path, copy, desk.now)
    desk.retention.apply(operator="ann")
    before = look(desk)
    restore_ledger(copy, tmp_path / "other", desk.now)
    other = Desk(tmp_path / "other")
    assert (other.read(find_pruned), other.retention.plan().is_empty) == (0, True)  # its files are not written yet
    other.fold()
    assert other.retention.apply(operator="ann")["applied"]
    assert look(other) == before
    assert find_faults(other) == []
    other.books.close()


def test_tables_that_a_migration_empties_begin_with_what_was_kept(pruned: Path) -> None:
    """A later version may have every sum folded again: pruned segments are part of that."""
    before = read_sums(pruned)
    store = SqliteStore(pruned.parent)
    store.transact(lambda connection: [connection.execute(statement) for statement in EMPTYING])
    store.close()
    desk = Desk(pruned.parent)
    desk.fold()
    assert find_faults(desk) == []
    desk.books.close()
    assert read_sums(pruned) == before


EMPTYING = (
    *(f"DELETE FROM {table}" for table in ("rollup", "rollup_day", "credit_usage", "open_event", "derived_file")),
    "DELETE FROM high_water WHERE name IN ('rollup', 'credit', 'open', 'parquet')",
)
