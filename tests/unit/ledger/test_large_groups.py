"""A long trace costs a little for every span, and is billed in the end as if it had come at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from otelbill_collector.domain.usage import Candidate, Decision
from otelbill_collector.ledger import large_groups
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.large_groups import choose_due
from otelbill_collector.ledger.segments import build_record
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat

SPANS = 300
LATER = NOW + 3_600 * SECOND


def make_trace(rng: Random) -> list[TestSpan]:
    """An agent that says who pays, steps beneath it, calls beneath those, some of them described twice."""
    agent = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 10**6,
        "gen_ai.usage.output_tokens": 10**5,
        "otelbill.customer.id": "acme",
    }
    spans = [TestSpan("agent", agent, trace="long", started=T0, ended=T0 + SPANS * SECOND)]
    for number in range(SPANS):
        started = T0 + number * SECOND
        parent = "agent" if number % 3 else rng.choice(["agent", f"call-{max(0, number - 1)}"])
        spans.append(
            chat(
                f"call-{number}",
                customer=None,
                trace="long",
                parent=parent,
                response=f"chatcmpl-{number // 2 if number % 10 < 2 else number:08d}",
                tokens=(100 + number, 7),
                scope=rng.choice(["client", "framework"]),
                started=started,
                ended=started + SECOND // 2,
            )
        )
    return spans


def list_standing(books: TestBooks) -> dict[str, tuple[object, ...]]:
    """What is in force of every event."""
    records = books.store.read(
        lambda connection: [build_record(row) for _, table in list_tables(connection, 0) for row in table.to_pylist()]
    )
    bookings = {record.event_id: record for record in records if record.sign > 0}  # the last revision stands
    return {event: (record.content, record.decision, record.amounts) for event, record in bookings.items()}


def post(books: TestBooks, spans: list[TestSpan], size: int) -> None:
    for start in range(0, len(spans), size):
        books.post(*spans[start : start + size], now=NOW + start * SECOND // 10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("restart", [False, True])
def test_a_long_trace_in_any_pieces_ends_as_the_whole(tmp_path: Path, seed: int, restart: bool) -> None:
    """Guarantee: decisions put off are made, after a restart too, and leave what one request would have left."""
    rng = Random(seed)
    spans = make_trace(rng)
    whole, pieces = TestBooks(tmp_path / "whole"), TestBooks(tmp_path / "pieces")
    whole.post(*spans)
    rng.shuffle(spans)
    post(pieces, spans, 3)
    if restart:
        pieces.reopen()
    for books in (whole, pieces):
        books.books.post_due(LATER)
    assert list_standing(pieces) == list_standing(whole)
    assert pieces.usage("customer", "model", "reason") == whole.usage("customer", "model", "reason")
    assert pieces.post(*spans, now=LATER).duplicate == len(spans)
    for books in (whole, pieces):
        books.close()


def test_every_span_of_a_large_group_is_booked_at_once(tmp_path: Path) -> None:
    """Guarantee: acknowledged is booked. A span that joins a large group is billed in the same transaction, to the
    customer of its ancestors.
    """
    books = TestBooks(tmp_path)
    spans = make_trace(Random(1))
    books.post(*spans[:200])
    before = len(list_standing(books))
    books.post(spans[200])
    standing = list_standing(books)
    assert len(standing) == before + 1
    (row,) = [row for row in books.usage("trace", "customer") if row["customer"] == "acme"]
    assert row["events"] > 150
    assert not [row for row in books.usage("customer") if row["customer"] is None]
    books.close()


def test_a_long_trace_is_decided_a_bounded_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: work grows with the spans, not with their square."""
    counts = {}
    for limit in (large_groups.LARGE_MEMBERS, 10**9):
        monkeypatch.setattr(large_groups, "LARGE_MEMBERS", limit)
        counts[limit] = count_decisions(tmp_path / str(limit))
    assert counts[10**9] > 20_000
    assert counts[64] < 8_000


def count_decisions(folder: Path) -> int:
    """How many spans are looked at to decide a long trace that comes two spans at a time."""
    books, decided = TestBooks(folder), 0
    rules = books.books._rules
    decide = rules.decide

    def count(candidates: Sequence[Candidate], now_nanos: int) -> Sequence[Decision]:
        nonlocal decided
        decided += len(candidates)
        return decide(candidates, now_nanos)

    object.__setattr__(rules, "decide", count)
    post(books, make_trace(Random(2)), 2)
    books.books.post_due(LATER)
    books.close()
    return decided


def test_the_pause_grows_with_the_group() -> None:
    """All that joins within one pause is decided at one instant; a larger group is decided less often."""
    now = 1_000 * SECOND
    assert choose_due(100, now) == choose_due(100, now + SECOND) == 1_000 * SECOND + 8 * SECOND
    assert choose_due(1_000_000, now) > now
    assert choose_due(20_000, now) % (32 * SECOND) == 0
