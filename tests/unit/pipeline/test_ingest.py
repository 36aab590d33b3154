"""The writer answers after the commit, isolates a request that trips a fault, and drains before it ends."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence

import pytest

from otelbill_collector.domain.records import Receipt, Refused
from otelbill_collector.ingest import GroupCommitter, Pipeline
from otelbill_collector.isolation import Isolated
from otelbill_collector.pipeline import Batch, Carried, Request

RECEIPT = Receipt(spans=0, ignored=0, accepted=0, duplicate=0, dead_lettered=0)


def _give_up(_: Request, fault: Exception) -> Isolated:
    raise fault


def _pipeline(carry: Callable[[Sequence[Request]], Carried]) -> Pipeline:
    """A pipeline that does everything when it books."""
    return Pipeline(lambda requests: Batch(requests, ()), lambda batch: carry(batch.requests), carry)


def _start(pipeline: Pipeline) -> GroupCommitter:
    committer = GroupCommitter(
        pipeline,
        observe=lambda requests, carried: None,
        isolate=_give_up,
        batch_bytes_max=1_000,
        linger_seconds=0.001,
    )
    committer.start()
    return committer


def _committer(carry: Callable[[Sequence[Request]], Carried], observe: object = None) -> GroupCommitter:
    return GroupCommitter(
        _pipeline(carry),
        observe=observe if callable(observe) else (lambda requests, carried: None),
        isolate=_give_up,
        batch_bytes_max=1_000,
        linger_seconds=0.001,
    )


def _accept(requests: Sequence[Request]) -> Carried:
    return Carried(tuple(RECEIPT for _ in requests), None)


def test_requests_that_arrive_during_a_commit_share_the_next_one() -> None:
    """Group commit: one fsync for all that waited, and each gets its own answer."""
    batches: list[int] = []
    first_running, release = threading.Event(), threading.Event()

    def carry(requests: Sequence[Request]) -> Carried:
        batches.append(len(requests))
        first_running.set()
        assert release.wait(10)
        return _accept(requests)

    committer = _committer(carry)
    committer.start()
    futures = [committer.submit(Request(b"a", 0))]
    assert first_running.wait(10)
    futures += [committer.submit(Request(b"b", 0)) for _ in range(5)]
    assert not futures[0].done()
    release.set()
    assert [future.result(10) for future in futures] == [RECEIPT] * 6
    committer.stop()
    assert batches == [1, 5]


def _book_when(release: threading.Event, running: threading.Event, booked: list[int]) -> Callable[[Batch], Carried]:
    """Booking that notes how many requests it has, says that it runs, and waits."""

    def book(batch: Batch) -> Carried:
        booked.append(len(batch.requests))
        running.set()
        assert release.wait(10)
        return _accept(batch.requests)

    return book


def test_requests_are_read_while_those_before_them_are_booked() -> None:
    """Reading asks no ledger: it does not wait for the commit in progress, and all that was read shares the next."""
    batches: list[int] = []
    running, release, read = threading.Event(), threading.Event(), threading.Semaphore(0)

    def prepare(requests: Sequence[Request]) -> Batch:
        for _ in requests:
            read.release()
        return Batch(requests, ())

    committer = _start(Pipeline(prepare, _book_when(release, running, batches), _accept))
    futures = [committer.submit(Request(b"a", 0))]
    assert running.wait(10)
    assert read.acquire(timeout=10)
    for _ in range(3):
        futures.append(committer.submit(Request(b"b", 0)))
        assert read.acquire(timeout=10), "it was not read before the commit ended"
    release.set()
    assert [future.result(10) for future in futures] == [RECEIPT] * 4
    committer.stop()
    assert batches == [1, 3]


def test_what_is_read_ahead_and_what_is_committed_together_is_bounded() -> None:
    """However much waits: a commit takes no more than its bound, and no more than for one is read before its turn."""
    size, count, bound = 100, 60, 1_000  # the bound of _start
    read: list[int] = []
    booked: list[int] = []
    running, release = threading.Event(), threading.Event()

    def prepare(requests: Sequence[Request]) -> Batch:
        read.append(len(requests))
        return Batch(requests, ())

    committer = _start(Pipeline(prepare, _book_when(release, running, booked), _accept))
    futures = [committer.submit(Request(bytes(size), 0)) for _ in range(count)]
    assert running.wait(10)
    threading.Event().wait(0.3)  # would read on, did nothing keep it from that
    ahead = sum(read) - booked[0]
    release.set()
    assert [future.result(10) for future in futures] == [RECEIPT] * count
    committer.stop()
    assert ahead <= 2 * bound // size
    assert sum(read) == sum(booked) == count
    assert max(booked) <= bound // size


def test_requests_that_cannot_be_read_together_are_carried_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """A fault in reading a batch keeps nobody out who can be read alone, and neither those before nor after it."""

    def prepare(requests: Sequence[Request]) -> Batch:
        if any(request.body == b"poison" for request in requests):
            raise ZeroDivisionError
        return Batch(requests, ())

    def carry(requests: Sequence[Request]) -> Carried:
        return _accept(prepare(requests).requests)

    committer = _start(Pipeline(prepare, lambda batch: _accept(batch.requests), carry))
    futures = {body: committer.submit(Request(body, 0)) for body in (b"a", b"poison", b"b", b"c")}
    with pytest.raises(Refused, match="ZeroDivisionError"):
        futures.pop(b"poison").result(10)
    assert [future.result(10) for future in futures.values()] == [RECEIPT] * 3
    committer.stop()
    assert "could not be booked" in caplog.text


def test_a_store_that_refuses_makes_senders_retry_and_the_next_batch_tries_again() -> None:
    """Disk full: nothing is acknowledged, nothing stops; when there is room again it goes on by itself."""
    full = [True]

    def carry(requests: Sequence[Request]) -> Carried:
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        return _accept(requests)

    committer = _committer(carry)
    committer.start()
    with pytest.raises(Refused, match="disk is full"):
        committer.submit(Request(b"a", 0)).result(10)
    full[0] = False
    assert committer.submit(Request(b"a", 0)).result(10) == RECEIPT
    committer.stop()


def test_one_request_that_trips_a_fault_does_not_keep_its_neighbours_out(caplog: pytest.LogCaptureFixture) -> None:
    """The batch is carried again one by one: the others are answered, the one stays with its sender, loudly."""
    started = threading.Event()

    def carry(requests: Sequence[Request]) -> Carried:
        assert started.wait(10)
        if any(request.body == b"poison" for request in requests):
            raise ZeroDivisionError
        return _accept(requests)

    committer = _committer(carry)
    committer.start()
    bodies = (b"first", b"a", b"poison", b"b")
    futures = [committer.submit(Request(body, 0)) for body in bodies]
    started.set()
    assert futures[1].result(10) == RECEIPT
    assert futures[3].result(10) == RECEIPT
    with pytest.raises(Refused, match="ZeroDivisionError"):
        futures[2].result(10)
    committer.stop()
    assert "could not be booked" in caplog.text


def test_a_fault_in_metrics_does_not_undo_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """What is committed is answered, whatever happens to those who only watch."""

    def observe(requests: Sequence[Request], carried: Carried) -> None:
        raise ValueError("no such label")

    committer = _committer(_accept, observe)
    committer.start()
    assert committer.submit(Request(b"a", 0)).result(10) == RECEIPT
    committer.stop()
    assert "could not be reported" in caplog.text


def test_stopping_commits_everything_submitted_before() -> None:
    """A clean shutdown drains."""
    committer = _committer(_accept)
    futures = [committer.submit(Request(b"x" * 400, 0)) for _ in range(20)]
    committer.start()
    committer.stop()
    assert all(future.done() and future.result() == RECEIPT for future in futures)


def test_a_sender_that_gives_up_does_not_end_the_writer() -> None:
    """A cancelled RPC (deadline, disconnect, shutdown) cancels its future; everybody else is still answered."""
    running, release = threading.Event(), threading.Event()

    def carry(requests: Sequence[Request]) -> Carried:
        running.set()
        assert release.wait(10)
        return _accept(requests)

    committer = _committer(carry)
    committer.start()
    committer.submit(Request(b"a", 0)).cancel()
    assert running.wait(10)
    committer.submit(Request(b"b", 0)).cancel()
    release.set()
    assert committer.submit(Request(b"c", 0)).result(10) == RECEIPT
    committer.stop()


def test_a_steady_trickle_of_requests_does_not_put_off_the_commit() -> None:
    """The linger is counted from the first request of a batch: later arrivals do not start it again."""
    linger, spacing, requests = 0.2, 0.05, 40
    committer = GroupCommitter(
        _pipeline(_accept),
        observe=lambda requests, carried: None,
        isolate=_give_up,
        batch_bytes_max=1_000_000,
        linger_seconds=linger,
    )
    committer.start()
    first = committer.submit(Request(b"a", 0))
    tick = threading.Event()
    arrived = 1
    while not first.done() and arrived < requests:
        tick.wait(spacing)
        committer.submit(Request(b"b", 0))
        arrived += 1
    committer.stop()
    assert first.result() == RECEIPT
    assert arrived < requests, "the first sender waited for as long as others kept coming"
