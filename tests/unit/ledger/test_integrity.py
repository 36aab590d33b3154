"""A changed byte anywhere in the ledger is found, with what it touches and what to do."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from otelbill_collector.ledger.findings import REPLAY, RESTORE
from otelbill_collector.ledger.integrity import Checks
from otelbill_collector.ledger.schema import migrate_schema
from otelbill_collector.ledger.seals import SEALED, render_triggers
from tests.books import TestBooks
from tests.spans import chat
from tests.whole_ledger import CHECKS, dump_rows, flip_byte, make_ledger, tamper, verify

FLIPS = 200
# Two fields of the file's header that nothing depends on: the schema cookie and the version of SQLite that wrote last.
MEANINGLESS = (*range(40, 44), *range(96, 100))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a row in every table; tests copy it."""
    return make_ledger(tmp_path_factory.mktemp("sound") / "ledger")


@pytest.fixture
def ledger(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound.parent, tmp_path / "ledger")) / "ledger.sqlite"


def test_a_sound_ledger_has_no_findings(ledger: Path) -> None:
    """What verification says of an undamaged ledger is nothing, and it counts what it looked at."""
    report = verify(ledger)
    assert report.findings == []
    assert report.notes == []
    assert report.counts["segments"] == 8
    assert report.counts["records"] == 19
    assert min(report.counts.values()) > 0, report.counts


def test_every_table_of_the_ledger_is_filled(ledger: Path) -> None:
    """The damage below could otherwise miss a table."""
    connection = sqlite3.connect(ledger)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    empty = [name for name in tables if not connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]]
    connection.close()
    assert empty == ["claim_key", "instruction", "copy_event", "pruning", "pruning_step", "pruned_event"]


def test_every_column_is_proven_by_something() -> None:
    """A column that is neither chained, derived nor sealed could change unseen: new ones must join a list."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate_schema(connection)
    sealed = {item.table: {*item.key, *item.columns} for item in SEALED}
    otherwise = {
        "segment": {"body"},
        "claim_chunk": None,
        "claim_key": None,
        "rollup": None,
        "rollup_day": None,
        "credit_usage": None,
        "open_event": None,
        "price_version": None,
        "row_seal": None,
    }
    unproven = []
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if table not in sealed and table in (*otherwise, "stripe_intent_count"):
            continue
        unproven += [f"{table}.{name}" for name in columns - sealed.get(table, set()) - (otherwise.get(table) or set())]
    connection.close()
    assert unproven == []


def test_the_migration_holds_the_triggers_of_the_list(repository: Path) -> None:
    """What is sealed by the database is what verification compares."""
    folder = repository / "collector/otelbill_collector/ledger/migrations"
    sql = "".join(path.read_text() for path in sorted(folder.glob("*.sql")))
    assert [sealed.table for sealed in SEALED if render_triggers(sealed) not in sql] == []


DAMAGE = [
    ("UPDATE segment SET body = zeroblob(length(body)) WHERE segment_id = 3", "segment 3", RESTORE),
    ("UPDATE segment SET digest = zeroblob(32) WHERE segment_id = 4", "segment 4", RESTORE),
    ("UPDATE segment SET booked_nanos = booked_nanos + 1 WHERE segment_id = 2", "segment 2", RESTORE),
    ("UPDATE segment SET ended_max = ended_max + 1 WHERE segment_id = 2", "segment 2", RESTORE),
    ("UPDATE segment SET record_count = 9 WHERE segment_id = 2", "segment 2", RESTORE),
    ("DELETE FROM segment WHERE segment_id = 5", "segment 5", RESTORE),
    ("DELETE FROM segment WHERE segment_id = 8", "segment 8", RESTORE),
    ("UPDATE segment SET segment_id = 900 WHERE segment_id = 7", "segment 7", RESTORE),
    ("DELETE FROM claim_chunk WHERE chunk_id = 2", "claim_chunk segment 2", REPLAY),
    ("UPDATE claim_chunk SET body = substr(body, 17) WHERE chunk_id = 2", "claim_chunk 2", REPLAY),
    ("UPDATE claim_chunk SET body = zeroblob(length(body)) WHERE chunk_id = 2", "claim_chunk segment 2", REPLAY),
    ("UPDATE claim_chunk SET first_key = first_key - 1 WHERE chunk_id = 2", "claim_chunk 2", REPLAY),
    ("UPDATE claim_chunk SET run_id = 1", "claim_run", REPLAY),
    ("UPDATE claim_run SET day_max = day_max - 9", "claim_run", REPLAY),
    ("INSERT INTO claim_key VALUES (1, x'00', 3, 0)", "claim_key segment 3", REPLAY),
    ("UPDATE rollup SET charge_attos = charge_attos || '0' WHERE customer_id = 'acme'", "rollup", REPLAY),
    ("DELETE FROM rollup WHERE customer_id = 'globex'", "rollup", REPLAY),
    ("UPDATE rollup SET quantities = 'no json'", "rollup", REPLAY),
    ("UPDATE rollup_day SET charge_attos = '1' WHERE customer_id = 'acme'", "rollup_day", REPLAY),
    ("DELETE FROM rollup_day", "rollup_day", REPLAY),
    ("UPDATE high_water SET segment_id = 99 WHERE name = 'rollup'", "high_water rollup", REPLAY),
    ("UPDATE high_water SET segment_id = 2 WHERE name = 'stripe'", "stripe_window", None),
    ("UPDATE high_water SET segment_id = 99 WHERE name = 'parquet'", "high_water parquet", REPLAY),
    ("UPDATE high_water SET segment_id = 2 WHERE name = 'parquet'", "derived_file", REPLAY),
    ("UPDATE high_water SET segment_id = 99 WHERE name = 'ids'", "high_water ids", REPLAY),
    ("UPDATE high_water SET segment_id = 99 WHERE name = 'open'", "high_water open", REPLAY),
    ("UPDATE open_event SET event_id = 'nobody'", "open_event unpriced nobody", REPLAY),
    ("DELETE FROM open_event", "open_event unpriced", REPLAY),
    ("UPDATE derived_file SET digest = zeroblob(32)", "derived_file", REPLAY),
    ("DELETE FROM derived_file WHERE kind = 'records'", "derived_file", REPLAY),
    ("UPDATE price_version SET body = body || ' '", "price_version", RESTORE),
    ("DELETE FROM price_version", "price_version", RESTORE),
    ("UPDATE correction SET value = 'umbrella'", "correction 1", RESTORE),
    ("UPDATE resolution SET quantities = '{}'", "resolution 1", RESTORE),
    ("UPDATE dead_letter SET body = x'00'", "dead_letter", RESTORE),
    ("UPDATE due_group SET due_nanos = due_nanos + 1", "due_group", RESTORE),
    ("DELETE FROM due_group", "due_group", RESTORE),
    ("UPDATE stripe_intent SET value = value || '0' WHERE intent_id = 1", "stripe_intent", RESTORE),
    ("UPDATE stripe_intent SET state = 'accepted' WHERE state <> 'accepted'", "stripe_intent", RESTORE),
    ("UPDATE stripe_intent SET answer_message = 'x' WHERE intent_id = 1", "stripe_intent 1", RESTORE),
    ("UPDATE stripe_window SET amount = '1'", "stripe_window", None),
    ("UPDATE stripe_lane SET carry = '5'", "stripe_lane", RESTORE),
    ("UPDATE stripe_intent_count SET intents = intents + 1", "stripe_intent_count", RESTORE),
    ("UPDATE invoice SET content = content || ' '", "invoice", RESTORE),
    ("UPDATE invoice SET customer_id = 'umbrella'", "invoice 1", RESTORE),
    ("UPDATE invoice_event SET operator = 'eve'", "invoice_event 1", RESTORE),
    ("DELETE FROM invoice_event", "invoice_event 1", RESTORE),
    ("UPDATE stripe_stop SET retry_nanos = 0", "stripe_stop lane/9", RESTORE),
    ("UPDATE credit_grant SET amount = amount || '0'", "credit_grant", RESTORE),
    ("DELETE FROM credit_void", "credit_void", RESTORE),
    ("UPDATE credit_transfer SET amount = amount || '0' WHERE transfer_id = 1", "credit_transfer 1", RESTORE),
    ("DELETE FROM credit_transfer WHERE transfer_id = 3", "credit_transfer 3", RESTORE),
    ("UPDATE credit_charge SET charge_attos = '0'", "credit_charge 1", RESTORE),
    ("UPDATE credit_post SET dirty = 1", "credit_post acme", RESTORE),
    ("UPDATE credit_usage SET charge_attos = charge_attos || '0'", "credit_usage acme", REPLAY),
    ("DELETE FROM credit_usage", "credit_usage", REPLAY),
    ("UPDATE high_water SET segment_id = 99 WHERE name = 'credit'", "high_water credit", REPLAY),
    ("DELETE FROM row_seal WHERE table_name = 'correction'", "correction 1", RESTORE),
    ("INSERT INTO row_seal VALUES ('nothing', '1', x'00')", "row_seal", RESTORE),
    ("CREATE TABLE guest (a)", "guest", RESTORE),
    ("DROP INDEX resolution_by_event", "resolution resolution_by_event", RESTORE),
]


@pytest.mark.parametrize(("statement", "place", "remedy"), DAMAGE, ids=[item[0][:60] for item in DAMAGE])
def test_a_changed_row_is_found_and_named(ledger: Path, statement: str, place: str, remedy: str | None) -> None:
    """Whoever changes a row past otelbill, verification names the table and the row, and the way back."""
    tamper(ledger, statement)
    report = verify(ledger)
    named = [item for item in report.findings if f"{item.table} {item.row_key}".startswith(place)]
    assert named, report.findings
    assert remedy is None or remedy in {item.remedy for item in named}


def test_a_finding_says_whose_usage_it_touches(ledger: Path) -> None:
    """A damaged segment names customers, hours and events, from its records or, past reading, from its columns."""
    tamper(ledger, "UPDATE segment SET digest = zeroblob(32) WHERE segment_id = 8")
    (finding, *_) = verify(ledger).findings
    assert finding.touched.customers == ("acme", "globex")
    assert finding.touched.hours == ("2026-01-01T00:00:00Z",)
    assert len(finding.touched.events) == finding.touched.event_count == 3
    tamper(ledger, "UPDATE segment SET body = zeroblob(length(body)) WHERE segment_id = 8")
    (finding, *_) = verify(ledger).findings
    assert (finding.touched.hours, finding.touched.event_count) == (("2026-01-01T00:00:00Z",), 3)


def test_a_changed_digest_is_told_from_a_changed_body(ledger: Path) -> None:
    """The next segment proves which of the two it was: money is in doubt in one case only."""
    tamper(ledger, "UPDATE segment SET digest = zeroblob(32) WHERE segment_id = 4")
    problems = [item.problem for item in verify(ledger).findings if item.check == "segments"]
    assert len(problems) == 1
    assert "its records are intact" in problems[0]


def test_without_stripe_its_windows_are_left_out_and_said_so(ledger: Path) -> None:
    """What was not compared is a note, never silence."""
    report = verify(ledger, Checks(CHECKS.keys_of))
    assert report.ok
    assert [note for note in report.notes if "Stripe is not configured" in note]


def test_a_file_that_is_no_ledger_is_a_finding(tmp_path: Path) -> None:
    """Verification of anything ends with a report."""
    for name, content in (("empty", b""), ("text", b"no database " * 999), ("cut", b"SQLite format 3\0" + bytes(50))):
        (tmp_path / name).write_bytes(content)
        assert not verify(tmp_path / name).ok, name


@pytest.mark.slow
def test_no_flipped_byte_that_means_anything_goes_unnoticed(ledger: Path) -> None:
    """Verification finds every flip that a reader of the file could see, and survives all of them.

    A flip it does not report must have hit free space: then every row of every table reads as before.
    """
    rng = random.Random(20261121)
    before, size = dump_rows(ledger), ledger.stat().st_size
    assert isinstance(before, dict)
    meaningful = unnoticed = tried = 0
    while meaningful < FLIPS:
        tried += 1
        assert tried < FLIPS * 20, "the file is nearly all free space"
        offset, mask = rng.randrange(size), rng.randrange(1, 256)
        if offset in MEANINGLESS:
            continue
        flip_byte(ledger, offset, mask)
        if verify(ledger).ok:
            assert dump_rows(ledger) == before, f"byte {offset} ^ {mask} went unnoticed"
            unnoticed += 1
        else:
            meaningful += 1
        flip_byte(ledger, offset, mask)
    assert verify(ledger).ok
    assert unnoticed < tried


@pytest.mark.parametrize("seed", range(3))
def test_flips_in_every_segment_body_name_that_segment(ledger: Path, seed: int) -> None:
    """One byte of a body is enough, wherever it stands, and the segment is named."""
    rng = random.Random(seed)
    connection = sqlite3.connect(ledger)
    bodies = dict(connection.execute("SELECT segment_id, body FROM segment"))
    connection.close()
    for segment_id, body in bodies.items():
        place = rng.randrange(len(body))
        broken = body[:place] + bytes((body[place] ^ (1 << rng.randrange(8)),)) + body[place + 1 :]
        tamper(ledger, f"UPDATE segment SET body = x'{broken.hex()}' WHERE segment_id = {segment_id}")
        report = verify(ledger)
        assert [item.row_key for item in report.findings if item.check == "segments"] == [str(segment_id)]
        tamper(ledger, f"UPDATE segment SET body = x'{body.hex()}' WHERE segment_id = {segment_id}")
    assert verify(ledger).ok


def test_a_young_ledger_in_its_log_only_is_sound(tmp_path: Path) -> None:
    """Before the first checkpoint the file's own header is older than the log; that is no damage."""
    books = TestBooks(tmp_path / "ledger")
    books.post(chat("a"))
    assert verify(books.store.path).findings == []
    books.close()
    assert verify(books.store.path).findings == []
