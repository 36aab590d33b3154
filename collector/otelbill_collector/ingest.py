"""Group commit: the next commit takes all that arrived during the last one. Owns the writer thread and its queue.

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
from otelbill_collector.pipeline import Carried, Request

_log = logging.getLogger("otelbill.ingest")


@dataclass(slots=True)
class Pending:
    """A request that waits for its commit."""

    request: Request
    answer: Future[Answer]


class GroupCommitter:
    """One writer thread. `carry` is the pipeline; `observe` sees each committed batch (metrics, forwarding).

    `isolate` carries a request that trips a fault of ours, without the spans that are at fault.
    """

    def __init__(
        self,
        carry: Callable[[Sequence[Request]], Carried],
        *,
        observe: Callable[[Sequence[Request], Carried], None],
        isolate: Callable[[Request, Exception], Isolated],
        batch_bytes_max: int,
        linger_seconds: float,
    ) -> None:
        self._carry = carry
        self._observe = observe
        self._isolate = isolate
        self._batch_bytes_max = batch_bytes_max
        self._linger_seconds = linger_seconds
        # Bounded by the admission of bytes in flight, which every receiver asks before it submits.
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="otelbill-writer")

    def start(self) -> None:
        """Start the writer."""
        self._thread.start()

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future gives its answer after the commit, or raises Refused."""
        pending = Pending(request, Future())
        # A sender that gives up must not cancel what the writer will answer: setting a cancelled future raises.
        pending.answer.set_running_or_notify_cancel()
        self._queue.put(pending)
        return pending.answer

    def stop(self) -> None:
        """Commit everything submitted so far, then end the writer."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch, stopping = self._take_batch()
            if batch:
                self._commit(batch)

    def _take_batch(self) -> tuple[list[Pending], bool]:
        first = self._queue.get()
        if first is None:
            return [], True
        batch, size = [first], len(first.request.body)
        # One linger for the batch: were it counted from each arrival, a steady trickle would put off the commit.
        deadline = time.monotonic() + self._linger_seconds
        while size < self._batch_bytes_max:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch, False
            if item is None:
                return batch, True
            batch.append(item)
            size += len(item.request.body)
        return batch, False

    def _commit(self, batch: Sequence[Pending]) -> None:
        try:
            carried = self._carry([item.request for item in batch])
        except sqlite3.OperationalError as error:
            _log.error("the ledger refuses to write, senders are asked to retry: %s", error)
            self._refuse(batch, f"the ledger cannot be written now: {error}")
        except Exception as error:  # noqa: BLE001 reported below; the senders keep their requests
            self._isolate_fault(batch, error)
        else:
            for item, answer in zip(batch, carried.answers, strict=True):
                item.answer.set_result(answer)
            self._report([item.request for item in batch], carried)

    def _isolate_fault(self, batch: Sequence[Pending], error: Exception) -> None:
        """A fault of ours must not keep neighbours out: requests are committed one by one, then around the spans."""
        if len(batch) > 1:
            for item in batch:
                self._commit([item])
            return
        (item,) = batch
        try:
            isolated = self._isolate(item.request, error)
        except STORE_FAULTS as fault:
            _log.error("the ledger refuses to write, the sender is asked to retry: %s", fault)
            self._refuse(batch, f"the ledger cannot be written now: {fault}")
        except Exception as fault:  # noqa: BLE001 logged with its traceback; the sender keeps its request
            _log.error("a request could not be booked and stays with its sender", exc_info=fault)
            self._refuse(batch, f"internal error {type(fault).__name__}; see the collector's log")
        else:
            item.answer.set_result(isolated.answer)
            _log.error("a request was booked around the spans that tripped a fault", exc_info=error)
            for part in isolated.parts:
                self._report([part.request], part.carried)

    def _refuse(self, batch: Sequence[Pending], why: str) -> None:
        for item in batch:
            item.answer.set_exception(Refused(why))

    def _report(self, requests: Sequence[Request], carried: Carried) -> None:
        try:
            self._observe(requests, carried)
        except Exception:  # noqa: BLE001 logged with its traceback
            # What is observed is committed and answered; a fault here concerns metrics or forwarding only.
            _log.exception("a committed batch could not be reported to metrics or forwarding")
