"""Pruned evidence leaves everything that follows from it as it was; what is gone is gone, and never booked again."""

from __future__ import annotations

import sqlite3

from otelbill_collector.ledger.claim_runs import read_entries
from otelbill_collector.ledger.compaction import RECORDS, Compactor, list_files
from otelbill_collector.ledger.deadletters import list_dead_letters
from otelbill_collector.ledger.sqlite import count_free_bytes
from otelbill_collector.ledger.tombstones import find_pruned
from tests.retention_world import Desk, find_faults, look, make_call, make_job, prune, replay


def test_what_follows_from_pruned_evidence_is_as_it_was(desk: Desk) -> None:
    """Rollups, usage, invoices and drafts are the same after pruning, after replay and after a restart."""
    desk.close_months("2026-01", "2026-02", "2026-03")
    before = look(desk)
    answer = desk.retention.apply(operator="ann")
    assert answer["applied"]
    assert answer["held_by"] == []
    assert desk.read(find_pruned) == 12  # January and February; March reaches above the floor
    for _ in range(2):
        assert look(desk) == before
        assert find_faults(desk) == []
        assert [item.table for item in replay(desk).values() if not item.equal] == []
    desk.books.reopen()
    desk.wire()
    assert look(desk) == before
    desk.close_months("2026-04")
    assert find_faults(desk) == []


def test_what_is_gone_is_gone(desk: Desk) -> None:
    """Bodies, claim keys and files of pruned segments are removed, and their room is used again."""
    prune(desk)

    def count(connection: sqlite3.Connection) -> tuple[int, int]:
        (bodies,) = connection.execute("SELECT count(*) FROM segment WHERE length(body) > 0").fetchone()
        (segments,) = connection.execute("SELECT count(*) FROM segment").fetchone()
        return bodies, segments

    assert desk.read(count) == (19, 31)
    entries = desk.read(lambda conn: [read_entries(body) for (body,) in conn.execute("SELECT body FROM claim_chunk")])
    assert min(int(item["segment"].min()) for item in entries) == 13
    Compactor(desk.books.store).trim(desk.now)
    assert min(row.segment_first for row in desk.read(list_files) if row.kind == RECORDS) == 13
    assert sum(row.entries for row in desk.read(list_files) if row.kind == RECORDS) == 18 * 3 + 1
    assert find_faults(desk) == []
    assert desk.read(count_free_bytes) > 0
    size = desk.books.store.size_bytes()
    desk.books.store.shrink()
    assert desk.read(count_free_bytes) == 0
    assert desk.books.store.size_bytes() < size
    assert find_faults(desk) == []


def test_a_retry_of_a_pruned_span_is_never_booked_again(desk: Desk) -> None:
    """It becomes a dead letter that says why; one above the floor is a duplicate as before."""
    prune(desk)
    before = look(desk)
    old, kept = make_call("acme", "2026-01"), make_call("acme", "2026-04")
    for _ in range(2):
        receipt = desk.books.post(old, kept, now=desk.now)
        assert (receipt.accepted, receipt.duplicate, receipt.dead_lettered) == (0, 1, 1)
        desk.books.reopen()
        desk.wire()
    (letter,) = desk.read(list_dead_letters)
    assert letter.code == "evidence_pruned"
    assert "pruned by retention" in letter.hint
    assert desk.operations.replay_dead_letters() == {"replayed": 0, "still_dead": 1}
    desk.fold()
    assert look(desk) == before


def test_a_retry_of_a_pruned_event_with_an_id_of_its_own_is_known_at_any_time(desk: Desk) -> None:
    """`otelbill.event.id` names one event across spans and months, also when its evidence is gone."""
    prune(desk)
    retry, other = make_job("again", desk.now), make_job("other", desk.now, "job 8")
    for _ in range(2):
        desk.books.reopen()
        receipt = desk.books.post(retry, now=desk.now)
        assert (receipt.accepted, receipt.duplicate, receipt.dead_lettered) == (0, 0, 1)
    assert len(desk.read(list_dead_letters)) == 1
    assert desk.books.post(other, now=desk.now).accepted == 1
    assert find_faults(desk) == []
