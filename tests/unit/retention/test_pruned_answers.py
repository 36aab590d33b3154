"""Whoever asks for what is gone is told so, by what policy and when, and never gets a silently smaller answer."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner

from otelbill_collector.archive import pack_invoice
from otelbill_collector.cli import cli
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.explanation import NothingFound, explain_identifier
from otelbill_collector.isolation import Isolator
from otelbill_collector.ledger.books import UnknownEvent
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.deadletters import list_dead_letters
from otelbill_collector.ledger.periods import list_invoices
from otelbill_collector.ledger.queries import QueryLimits, open_query
from otelbill_collector.ledger.repricing import Scope
from otelbill_collector.pipeline import Request, carry_batch
from tests.retention_world import MONTHS, Desk, look, make_call, prune
from tests.spans import build_request, chat, trace_id

TOLD = r"evidence of 2026-01-10 to 2026-02-12 \(segments 1 to 12\) was pruned on 2027-04-20 by policy 13mo \(ann\)"


def test_sums_that_only_records_can_tell_are_refused_below_the_floor(desk: Desk) -> None:
    """By run, trace or parts of an hour there is no smaller answer; a later time is answered as before."""
    later = {"from_nanos": parse_instant("2026-03-01")}
    before = desk.books.usage("trace", **later)
    prune(desk)
    assert len(desk.books.usage("customer", "hour")) == 2 * 3 * len(MONTHS) + 1
    for query in ({"by": ("trace",)}, {"by": ("customer",), "from_nanos": parse_instant("2026-01-10T00:00:01Z")}):
        by = query.pop("by")
        with pytest.raises(EvidencePruned, match=TOLD):
            desk.books.usage(*by, **query)  # type: ignore[arg-type]
    assert desk.books.usage("trace", **later) == before


def test_explain_says_what_it_cannot_show(desk: Desk) -> None:
    """An id of pruned evidence is not simply unknown, and what is found says that there may have been more."""
    prune(desk)
    Compactor(desk.books.store).trim(desk.now)
    with pytest.raises(NothingFound, match=TOLD):
        desk.read(lambda conn: explain_identifier(conn, trace_id(make_call("acme", "2026-01").trace).hex()))
    found = desk.read(lambda conn: explain_identifier(conn, trace_id(make_call("acme", "2026-04").trace).hex()))
    assert len(found["records"]) == 1
    assert found["pruned"].startswith("evidence of 2026-01-10 to 2026-02-12")
    invoice = desk.read(list_invoices)[0]
    found = desk.read(lambda conn: explain_identifier(conn, invoice.lines[0].line_id))
    assert [line["records"] for line in found["invoice_lines"]] == [None]
    assert found["pruned"]
    assert desk.read(lambda conn: explain_identifier(conn, invoice.invoice_id))["invoice_lines"]


def test_an_invoice_cannot_be_packed_without_its_records(desk: Desk) -> None:
    """`otelbill export` of a pruned period is refused; of a later one it has everything."""
    prune(desk)
    first, *_, last = desk.read(list_invoices)
    with pytest.raises(EvidencePruned, match=TOLD):
        desk.read(lambda conn: pack_invoice(conn, first.invoice_id, BytesIO()))
    assert desk.read(lambda conn: pack_invoice(conn, last.invoice_id, BytesIO()))["records"] == 9


def test_a_query_over_records_says_what_it_does_not_have(desk: Desk) -> None:
    """SQL over records is answered from what there is, with a note; SQL over sums is whole and has none."""
    prune(desk)
    for sql, noted in (("SELECT count(*) FROM records", True), ("SELECT count(*) FROM rollups", False)):
        with open_query(desk.books.store, sql, QueryLimits(None, None)) as answer:
            assert bool(answer.pruned) is noted
            assert list(answer.rows)
    Compactor(desk.books.store).trim(desk.now)
    with open_query(desk.books.store, "SELECT count(*) FROM records", QueryLimits(None, None)) as answer:
        assert list(answer.rows) == [(3 * 3 * 2 * 3 + 1,)]


def test_what_is_final_cannot_be_corrected(desk: Desk) -> None:
    """Below the floor nothing is adjusted, resolved or rated again, also where its evidence still stands."""
    late = desk.read(lambda conn: explain_identifier(conn, trace_id("late").hex()))["records"][0]["event_id"]
    prune(desk)
    with pytest.raises(EvidencePruned, match="lies before 2026-03-20T00:00:00Z, where all is final"):
        desk.books.books.correct(Wish((late,), "ann", "test", desk.now, void=True))
    with pytest.raises(UnknownEvent, match=TOLD):
        desk.books.books.correct(Wish(("0" * 32,), "ann", "test", desk.now, void=True))
    words = {"operator": "ann", "reason": "test", "now_nanos": desk.now, "progress": lambda done, total: None}
    with pytest.raises(EvidencePruned, match="rated again"):
        desk.books.books.rerate(Rater(), Scope(), **words)
    assert desk.books.books.rerate(Rater(), Scope(from_nanos=parse_instant("2026-03-20")), **words) == 0
    kept = desk.read(lambda conn: explain_identifier(conn, trace_id(make_call("acme", "2026-04").trace).hex()))
    event = kept["records"][0]["event_id"]
    assert desk.books.books.correct(Wish((event,), "ann", "test", desk.now, void=True)).records


def test_a_trace_that_goes_on_from_pruned_evidence_is_not_decided_without_it(desk: Desk) -> None:
    """A span whose group reaches back to what is gone is kept as a dead letter: half a group could be billed twice."""
    days = [parse_instant(f"2026-02-{day}") for day in range(10, 29)] + [
        parse_instant(f"2026-03-{day:02d}") for day in range(1, 21)
    ]
    for number, ended in enumerate(days):
        desk.books.post(chat(f"long {number}", customer="acme", ended=ended, trace="long"), now=ended)
    desk.fold()
    prune(desk)
    before = look(desk)
    desk.books.reopen()
    desk.wire()
    request = Request(build_request([chat("one more", customer="acme", ended=days[-1] + 1, trace="long")]), desk.now)

    def carry(requests: object) -> object:
        return carry_batch(requests, desk.books.stages, desk.now)  # type: ignore[arg-type]

    isolator = Isolator(carry, lambda letters: desk.books.books.post((), letters, desk.now).kept)  # type: ignore[arg-type]
    with pytest.raises(EvidencePruned) as caught:
        carry([request])
    answer = isolator.isolate(request, caught.value).answer
    assert answer.dead_lettered == 1  # type: ignore[union-attr]
    (letter,) = desk.read(list_dead_letters)
    assert letter.code == "evidence_pruned"
    desk.fold()
    assert look(desk) == before


def test_the_command_line_plans_applies_and_tells(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`retention plan | apply | shrink`, and what other commands say afterwards."""
    desk.close_months("2026-01", "2026-02", "2026-03", customers=("acme",))
    desk.books.close()
    (tmp_path / "otelbill.yaml").write_text("retention: {evidence: 13mo}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.time_ns", lambda: desk.now)

    def run(*words: str, fails: bool = False) -> str:
        result = CliRunner().invoke(cli, [*words, "--data-dir", str(tmp_path / "ledger")])
        assert bool(result.exit_code) is fails, result.output
        return result.output

    shown = run("retention", "plan")
    assert "globex 2026-01 is not closed" in shown
    assert "otelbill close globex --period 2026-01" in shown
    planned = json.loads(run("retention", "plan", "--json", "--evidence", "400d"))
    assert (planned["segments"], planned["pruned"], planned["policy"]) == (None, [], "400d")
    assert "globex 2026-01 is not closed" in run("retention", "apply", fails=True)
    assert "is not a number of days or months" in run("retention", "plan", "--evidence", "soon", fails=True)
    for month in MONTHS[:3]:
        run("close", "globex", "--period", month)
    ids = [row["invoice_id"] for row in map(json.loads, run("invoices", "list", "--json").splitlines())]
    run("invoices", "approve", *ids[3:])
    assert "evidence" not in run("explain", ids[0])
    applied = json.loads(run("retention", "apply", "--operator", "ann", "--json"))
    assert (applied["applied"], applied["segments"], applied["records"]) == (True, {"first": 1, "last": 12}, 37)
    assert "1-12" in run("retention", "plan")
    assert "was pruned on 2027-04-20" in run("usage", "--by", "trace", fails=True)
    assert "was pruned on 2027-04-20" in run("query", "SELECT count(*) FROM usage")
    assert "was pruned on 2027-04-20" in run("explain", ids[0])
    assert "was pruned on 2027-04-20" in run("export", "--invoice", ids[0], fails=True)
    assert json.loads(run("retention", "shrink", "--json"))["bytes_after"] > 0
    assert "nothing is wrong" in run("verify")
    desk.books.reopen()
