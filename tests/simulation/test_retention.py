"""Months with retention beside the same months without: bills, sums and credits are equal, and nothing is booked twice.

OTELBILL_SEEDS names the stories to simulate ("1,2" unless set). Time is an argument everywhere: months take seconds.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.billing import CloseRequest, list_summaries
from otelbill_collector.config import Config
from otelbill_collector.config.values import Customer, Retention
from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, parse_instant
from otelbill_collector.domain.records import Receipt
from otelbill_collector.domain.retention import RetentionPolicy
from otelbill_collector.explanation import explain_identifier
from otelbill_collector.ledger import pruning
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.tombstones import find_pruned, list_prunings
from tests.retention_world import CUSTOMERS, Desk, find_faults, look, replay
from tests.sidecar_process import REPOSITORY, build_environment
from tests.spans import SECOND, TestSpan, build_request, chat, trace_id
from tests.whole_ledger import verify

SEEDS = [int(text) for text in os.environ.get("OTELBILL_SEEDS", "1,2").split(",")]
START, END = parse_instant("2026-01-01"), parse_instant("2026-08-20")
STRIDE = 8 * DAY_NANOS
LATE_MAX = 35 * DAY_NANOS
FOREVER = Config(customers={"globex": Customer(time_zone="Asia/Kathmandu", anchor_day=20)})
POLICY = replace(FOREVER, retention=Retention(RetentionPolicy("60d")))
_KILLS = 8


class Story:
    """The same life of two ledgers, of which one forgets."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.chance = chance
        self.kept, self.pruned = Desk(folder / "kept", FOREVER), Desk(folder / "pruned", POLICY)
        self.desks = (self.kept, self.pruned)
        self.sent: list[bytes] = []
        self.calls: list[TestSpan] = []
        self.late: list[tuple[int, TestSpan]] = []
        self.count = self.refused = 0

    def set_time(self, now: int) -> None:
        """Both clocks."""
        for desk in self.desks:
            desk.now = now

    def send(self, now: int) -> None:
        """New calls, sessions whose sum is to be billed once, late ones, and repeats of any age."""
        chance = self.chance
        spans = [item for at, item in self.late if at <= now]
        self.late = [item for item in self.late if item[0] > now]
        for _ in range(chance.randint(2, 5)):
            self.count += 1
            name = f"call {self.count}"
            ended = now - chance.randrange(STRIDE)
            tokens = (chance.randint(1, 9_000), chance.randint(1, 900))
            customer = chance.choice(CUSTOMERS)
            span = chat(name, customer=customer, tokens=tokens, started=ended - SECOND, ended=ended, trace=name)
            self.calls.append(span)
            if chance.random() < 0.2:
                self.late.append((ended + chance.randrange(LATE_MAX), span))
            else:
                spans.append(span)
        body = build_request(spans)
        repeats = [chance.choice(self.sent) for _ in range(2)] if self.sent else []
        self.sent.append(body)
        for request in (body, *repeats):
            answers = [desk.books.carry([request], now)[0] for desk in self.desks]
            assert all(isinstance(answer, Receipt) for answer in answers)
            one, other = (answer for answer in answers if isinstance(answer, Receipt))
            assert one.accepted == other.accepted
            assert one.duplicate == other.duplicate + other.dead_lettered
            self.refused += other.dead_lettered

    def correct(self, now: int) -> None:
        """Void one of the newer calls, where it was sent already."""
        span = self.chance.choice(self.calls[-8:])
        for desk in self.desks:
            found = desk.read(lambda conn: find_event(conn, span))
            if found is not None:
                desk.books.books.correct(Wish((found,), "ann", f"void at {now}", now, void=True))
        self.calls.remove(span)

    def close(self, customer: str) -> None:
        """Close and approve whatever is over, a period after the other."""
        for desk in self.desks:
            period = desk.config.find_calendar(customer).find_period(START)
            done = {row["period"] for row in desk.read(lambda conn: list_summaries(conn, customer_id=customer))}
            while period.end_nanos + DAY_NANOS <= desk.now:
                if period.label not in done:
                    answer = desk.billing.close(CloseRequest(customer, period.label, "ann"))
                    ids = [item["invoice_id"] for item in answer["closed"]]
                    assert not answer["refused"], answer
                    desk.billing.approve(ids, operator="ann", reason="checked")
                period = desk.config.find_calendar(customer).next_period(period)

    def forget(self) -> None:
        """What the sidecar does once an hour, cut short now and then as by a kill, and gone on with after a start."""
        desk = self.pruned
        desk.retention.run(desk.now)
        if self.chance.random() < 0.3:
            desk.books.reopen()
            desk.wire()
        while desk.retention.run(desk.now):
            pass
        Compactor(desk.books.store).trim(desk.now)

    def compare(self) -> None:
        """All that both can tell is equal."""
        one, other = (look_at(desk) for desk in self.desks)
        assert one == other


def find_event(connection: Any, span: TestSpan) -> str | None:
    """The event of a call; None where it was not sent yet. Any: a connection."""
    try:
        records = explain_identifier(connection, trace_id(span.trace).hex())["records"]
    except LookupError:
        return None
    return str(records[0]["event_id"])


def look_at(desk: Desk) -> dict[str, Any]:
    """Sums, credits and invoices."""
    found = look(desk, customers=())
    for name in ("open_event", "stripe_window", "stripe_lane", "credit_transfer"):
        found["ledger"][name] = len(found["ledger"][name])
    names = ("customer_id", "period", "state", "total", "lines")
    rows = desk.read(list_summaries)
    return {**found, "invoices": [[row[name] for name in names] for row in rows]}


@pytest.mark.parametrize("seed", SEEDS)
def test_months_with_retention_bill_what_months_without_do(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: whatever is late, repeated, corrected, closed, killed or replayed, forgetting changes no sum."""
    monkeypatch.setattr(pruning, "_STEP_SEGMENTS", 5)
    story = Story(tmp_path, chance := random.Random(seed))
    given = {"customer_id": "acme", "operator": "ann", "start": "2026-01-01", "units": "90000", "unit": "input_tokens"}
    granted = START + chance.randrange(END - START)
    for now in range(START + STRIDE, END, STRIDE):
        story.set_time(now)
        story.send(now)
        if chance.random() < 0.3:
            story.correct(now)
        for desk in story.desks:
            if granted <= now:
                desk.operations.credits.give({**given, "reason": "pilot"})
            desk.fold()
        granted = END if granted <= now else granted
        for customer in CUSTOMERS:
            if chance.random() < 0.5:
                story.close(customer)
        for desk in story.desks:
            desk.fold()
        story.forget()
        if chance.random() < 0.1:
            assert [item.table for item in replay(story.pruned).values() if not item.equal] == []
    story.compare()
    assert find_faults(story.pruned) == []
    assert len(story.pruned.read(list_prunings)) > 1
    assert story.refused > 0, "no repeat was older than the floor"
    assert [item.table for item in replay(story.pruned).values() if not item.equal] == []
    story.compare()
    for desk in story.desks:
        desk.books.close()


# Small steps, so that a kill falls between any two of them.
_CHILD = """
import sys
from pathlib import Path
from otelbill_collector.ledger import pruning
from otelbill_collector.ledger.sqlite import SqliteStore
pruning._STEP_SEGMENTS = 1
pruner = pruning.Pruner(SqliteStore(Path(sys.argv[1])), None)
print("ready", flush=True)
while pruner.advance():
    pass
"""


@pytest.mark.slow
def test_a_killed_pruning_leaves_a_whole_ledger_and_is_carried_on(tmp_path: Path) -> None:
    """Guarantee: after each kill the ledger is whole and every sum as before; the next start goes on."""
    desk = Desk(tmp_path / "ledger", replace(POLICY, retention=Retention(RetentionPolicy("13mo"), closed_only=False)))
    for number in range(60):
        ended = parse_instant("2026-01-10") + number * HOUR_NANOS
        calls = [chat(f"{number}/{call}", ended=ended, trace=f"{number}/{call}") for call in range(3)]
        desk.books.post(*calls, now=ended)
    desk.books.post(chat("newest", ended=desk.now, trace="newest"), now=desk.now)
    desk.fold()
    before = look(desk, customers=())
    plan = desk.retention.plan()
    assert plan.extent.last == 60
    assert desk.retention._begin(plan, "ann")
    desk.books.close()
    chance = random.Random(7)
    stages = set()
    for _ in range(_KILLS):
        command = [sys.executable, "-c", _CHILD, str(tmp_path / "ledger")]
        with subprocess.Popen(command, env=build_environment(), cwd=REPOSITORY, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            threading.Event().wait(chance.random() / 4)  # somewhere inside
            child.kill()
        desk.books.reopen()
        desk.wire()
        stages.add(desk.read(find_pruned))
        assert look(desk, customers=()) == before
        desk.books.close()
        assert [
            item.describe() for item in verify(desk.books.store.path).findings if item.check != "stripe windows"
        ] == []
    assert len(stages) > 1, "every kill fell at the same place, so this showed nothing"
    desk.books.reopen()
    desk.wire()
    desk.retention.apply(operator="ann")
    assert desk.read(find_pruned) == 60
    assert look(desk, customers=()) == before
    assert find_faults(desk) == []
    desk.books.close()
