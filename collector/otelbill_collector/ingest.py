"""Group commit: the next commit takes all that arrived during the last one. Owns the two threads and their queues.

A request's future is resolved only after its transaction is durable. When the store refuses (disk full, read-only),
every request of the batch is refused as retryable, nothing is acknowledged, and the next batch tries again.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from otelbill_collector.domain.records import Answer, Refused
from otelbill_collector.isolation import STORE_FAULTS, Isolated
from otelbill_collector.pipeline import Batch, Carried, Request, join_batches

_log = logging.getLogger("otelbill.ingest")


@dataclass(slots=True)
class Pending:
    """A request that waits for its commit."""

    request: Request
    answer: Future[Answer]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The way of requests in two halves, the first of which asks no ledger, and the whole of it for one at a time."""

    read: Callable[[Sequence[Request]], Batch]
    book: Callable[[Batch], Carried]
    carry: Callable[[Sequence[Request]], Carried]


@dataclass(frozen=True, slots=True)
class _Ready:
    """Requests that wait for their commit, and what was read of them, or why they could not be read together."""

    pending: Sequence[Pending]
    size: int  # bytes of the requests
    read: Batch | Exception


class GroupCommitter:
    """A reader and a writer thread: a batch is read while the one before it is booked.

    `observe` sees each committed batch (metrics, forwarding). `isolate` carries a request that trips a fault of ours,
    without the spans that are at fault.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        observe: Callable[[Sequence[Request], Carried], None],
        isolate: Callable[[Request, Exception], Isolated],
        batch_bytes_max: int,
        linger_seconds: float,
    ) -> None:
        self._pipeline = pipeline
        self._observe = observe
        self._isolate = isolate
        self._batch_bytes_max = batch_bytes_max
        self._linger_seconds = linger_seconds
        # Bounded by the admission of bytes in flight, which every receiver asks before it submits.
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._ready: list[_Ready] = []
        self._has_ended = False
        self._changed = threading.Condition()  # guards the two
        self._reader = threading.Thread(target=self._run_reader, name="otelbill-reader")
        self._writer = threading.Thread(target=self._run_writer, name="otelbill-writer")

    def start(self) -> None:
        """Start both threads."""
        self._reader.start()
        self._writer.start()

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future gives its answer after the commit, or raises Refused."""
        pending = Pending(request, Future())
        # A sender that gives up must not cancel what the writer will answer: setting a cancelled future raises.
        pending.answer.set_running_or_notify_cancel()
        self._queue.put(pending)
        return pending.answer

    def stop(self) -> None:
        """Commit everything submitted so far, then end the threads."""
        self._queue.put(None)
        self._reader.join()
        self._writer.join()

    def _run_reader(self) -> None:
        stopping = False
        while not stopping:
            pending, stopping = self._take_waiting()
            ready = [self._read(pending)] if pending else []
            with self._changed:
                self._ready += ready
                self._has_ended = stopping
                self._changed.notify_all()
                # What is read takes several times the memory of what was sent: no more than the next commit takes.
                self._changed.wait_for(lambda: sum(part.size for part in self._ready) < self._batch_bytes_max)

    def _read(self, pending: Sequence[Pending]) -> _Ready:
        size = sum(len(item.request.body) for item in pending)
        try:
            return _Ready(pending, size, self._pipeline.read([item.request for item in pending]))
        except Exception as fault:  # noqa: BLE001 the writer isolates it
            return _Ready(pending, size, fault)

    def _run_writer(self) -> None:
        while parts := self._take_ready():
            self._commit(parts)

    def _take_ready(self) -> list[_Ready]:
        """What is read and makes one commit, or one part that could not be read; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._has_ended)
            count = size = 0
            for part in self._ready:
                size += part.size
                if count and (size > self._batch_bytes_max or isinstance(part.read, Exception)):
                    break
                count += 1
                if isinstance(part.read, Exception):
                    break
            taken, self._ready = self._ready[:count], self._ready[count:]
            self._changed.notify_all()
            return taken

    def _take_waiting(self) -> tuple[list[Pending], bool]:
        first = self._queue.get()
        if first is None:
            return [], True
        taken, size = [first], len(first.request.body)
        # One linger for all: were it counted from each arrival, a steady trickle would put off the commit.
        deadline = time.monotonic() + self._linger_seconds
        while size < self._batch_bytes_max:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return taken, False
            if item is None:
                return taken, True
            taken.append(item)
            size += len(item.request.body)
        return taken, False

    def _commit(self, parts: Sequence[_Ready]) -> None:
        waiting = [item for part in parts for item in part.pending]
        try:
            batches = join_batches([_require_read(part) for part in parts])
        except Exception as fault:  # noqa: BLE001 reported there; the senders keep their requests
            self._isolate_fault(waiting, fault)
            return
        for batch in batches:
            pending, waiting = waiting[: len(batch.requests)], waiting[len(batch.requests) :]
            self._book(pending, batch)

    def _book(self, pending: Sequence[Pending], batch: Batch) -> None:
        try:
            carried = self._pipeline.book(batch)
        except sqlite3.OperationalError as error:
            self._refuse_all(pending, error)
        except Exception as error:  # noqa: BLE001 reported there; the senders keep their requests
            self._isolate_fault(pending, error)
        else:
            self._settle(pending, carried)

    def _settle(self, pending: Sequence[Pending], carried: Carried) -> None:
        for item, answer in zip(pending, carried.answers, strict=True):
            item.answer.set_result(answer)
        self._report([item.request for item in pending], carried)

    def _isolate_fault(self, pending: Sequence[Pending], fault: Exception) -> None:
        """A fault of ours must not keep neighbours out: requests are committed one by one, then around the spans."""
        if len(pending) == 1:
            self._carry_around(pending[0], fault)
            return
        for item in pending:
            try:
                carried = self._pipeline.carry([item.request])
            except sqlite3.OperationalError as error:
                self._refuse_all([item], error)
            except Exception as error:  # noqa: BLE001 reported there
                self._carry_around(item, error)
            else:
                self._settle([item], carried)

    def _carry_around(self, item: Pending, error: Exception) -> None:
        try:
            isolated = self._isolate(item.request, error)
        except STORE_FAULTS as fault:
            self._refuse_all([item], fault)
        except Exception as fault:  # noqa: BLE001 logged with its traceback; the sender keeps its request
            _log.error("a request could not be booked and stays with its sender", exc_info=fault)
            item.answer.set_exception(Refused(f"internal error {type(fault).__name__}; see the collector's log"))
        else:
            item.answer.set_result(isolated.answer)
            _log.error("a request was booked around the spans that tripped a fault", exc_info=error)
            for part in isolated.parts:
                self._report([part.request], part.carried)

    def _refuse_all(self, pending: Sequence[Pending], fault: Exception) -> None:
        _log.error("the ledger refuses to write, senders are asked to retry: %s", fault)
        for item in pending:
            item.answer.set_exception(Refused(f"the ledger cannot be written now: {fault}"))

    def _report(self, requests: Sequence[Request], carried: Carried) -> None:
        try:
            self._observe(requests, carried)
        except Exception:  # noqa: BLE001 logged with its traceback
            # What is observed is committed and answered; a fault here concerns metrics or forwarding only.
            _log.exception("a committed batch could not be reported to metrics or forwarding")


def _require_read(part: _Ready) -> Batch:
    """What was read. Raises what kept it from being read."""
    if isinstance(part.read, Exception):
        raise part.read
    return part.read
