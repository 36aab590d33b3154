"""A claim group that trips a fault when it is decided again keeps nobody else waiting, and is tried again later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from otelbill_collector.domain.usage import Candidate, Decision
from otelbill_collector.ledger.journal import list_due
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat

LATER = NOW + 600 * SECOND
MUCH_LATER = LATER + 7_200 * SECOND


def make_agent(name: str) -> TestSpan:
    """A parent whose residual waits for late children."""
    said = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 300,
        "gen_ai.usage.output_tokens": 60,
        "otelbill.customer.id": name,
    }
    return TestSpan("agent", said, trace=name, started=T0, ended=T0 + 5 * SECOND)


def count_due(books: TestBooks, now: int) -> int:
    return len(books.store.read(lambda connection: list_due(connection, now, 1_000)))


def list_charges(books: TestBooks, *customers: str) -> list[object]:
    return [row for row in books.usage("customer", "reason") if row["customer"] in customers]


def post_agents(books: TestBooks) -> None:
    for name in ("first", "faulty", "last"):
        child = chat(f"child-of-{name}", trace=name, parent="agent", tokens=(100, 20), customer=name, ended=T0 + SECOND)
        books.post(make_agent(name), child, now=T0 + 10 * SECOND)


def plant_fault(books: TestBooks) -> None:
    """Decisions over the trace `faulty` raise, as a defect in the rules would."""
    rules = books.books._rules
    decide = rules.decide

    def decide_or_fail(candidates: Sequence[Candidate], now_nanos: int) -> Sequence[Decision]:
        if any(candidate.customer_id == "faulty" for candidate in candidates):
            raise ZeroDivisionError("planted")
        return decide(candidates, now_nanos)

    object.__setattr__(rules, "decide", decide_or_fail)


def test_a_faulty_group_holds_up_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guarantee: every group but the faulty one is decided when it is due; the fault is logged with its group, which
    stays booked as it was and is decided once the fault is mended.
    """
    books, sound = TestBooks(tmp_path / "faulty"), TestBooks(tmp_path / "sound")
    post_agents(books)
    post_agents(sound)
    assert count_due(books, LATER) >= 3
    plant_fault(books)
    with caplog.at_level(logging.ERROR):
        books.books.post_due(LATER)
    assert "cannot be decided again now" in caplog.text
    assert count_due(books, LATER) == 0
    sound.books.post_due(LATER)
    assert list_charges(books, "first", "last") == list_charges(sound, "first", "last")
    books.reopen()
    for item in (books, sound):
        item.books.post_due(MUCH_LATER)
        assert count_due(item, MUCH_LATER) == 0
    assert books.usage("customer", "model") == sound.usage("customer", "model")
    for item in (books, sound):
        item.close()


def test_a_store_that_refuses_puts_nothing_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a full disk is no fault of a group; all stay due and are decided when the store writes again."""
    books = TestBooks(tmp_path)
    post_agents(books)
    due = count_due(books, LATER)

    def refuse(_work: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(books.books.store, "transact", refuse)
        with pytest.raises(OSError, match="no space"):
            books.books.post_due(LATER)
    assert count_due(books, LATER) == due
    books.books.post_due(LATER)
    assert count_due(books, LATER) == 0
    books.close()
