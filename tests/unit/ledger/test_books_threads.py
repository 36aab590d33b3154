"""The books are used by several threads: the writer, the jobs and the API. What they share changes under one lock."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.domain.ids import derive_event_id
from otelbill_collector.ledger.corrections import Wish
from tests.books import NOW, TestBooks
from tests.spans import chat, span_id, trace_id


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def test_nobody_books_between_a_rollback_and_the_forgetting_of_what_it_undid(
    books: TestBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread that came in between would find spans booked that no disk has, and acknowledge them."""
    rolled_back, go_on = threading.Event(), threading.Event()
    transact = books.store.transact

    def fail(work: Any) -> Any:
        try:
            with monkeypatch.context() as patch:
                patch.setattr("otelbill_collector.ledger.booking.save_due", _refuse)
                return transact(work)
        except sqlite3.OperationalError:
            monkeypatch.setattr(books.store, "transact", transact)
            rolled_back.set()
            go_on.wait(1)  # the other thread has all the time it wants
            raise

    monkeypatch.setattr(books.store, "transact", fail)
    losing = threading.Thread(target=lambda: _swallow(lambda: books.post(chat("a"))))
    losing.start()
    assert rolled_back.wait(10)
    answers: list[Any] = []
    other = threading.Thread(target=lambda: answers.append(books.post(chat("a"))))
    other.start()
    other.join(0.5)
    go_on.set()
    losing.join(10)
    other.join(10)
    assert [(answer.accepted, answer.duplicate) for answer in answers] == [(1, 0)]
    assert books.totals()["events"] == 1


def test_an_instruction_that_could_not_be_kept_moves_nothing(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an operator's instruction is being written, no other booking may already follow it."""
    books.post(chat("a", customer="acme"))
    event_id = derive_event_id(trace_id("a"), span_id("a"), None)
    waiting, go_on = threading.Event(), threading.Event()
    transact = books.store.transact

    def hold(work: Any) -> Any:
        monkeypatch.setattr(books.store, "transact", transact)
        waiting.set()
        go_on.wait(1)
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(books.store, "transact", hold)
    given = Wish((event_id,), "op", "test", NOW, customer_id="globex")
    losing = threading.Thread(target=lambda: _swallow(lambda: books.books.correct(given)))
    losing.start()
    assert waiting.wait(10)
    other = threading.Thread(target=lambda: books.post(chat("b", customer="acme", trace="a")))
    other.start()
    other.join(0.5)
    go_on.set()
    losing.join(10)
    other.join(10)
    assert [row["customer"] for row in books.usage()] == ["acme"]


def _refuse(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def _swallow(work: Any) -> None:
    with pytest.raises(sqlite3.OperationalError):
        work()
