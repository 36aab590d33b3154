"""Owns the spans between their end and the sidecar's answer: a bounded queue, one thread, retries, a bounded exit.
Does not own what of a span may leave (`content`) nor the request (`delivery`).

The SDK's batch processor is not used: it overwrites the oldest spans when it is full, counts nothing, gives a failed
batch up, and can hold the program's exit for 30 seconds.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otelbill.config import Settings
from otelbill.content import strip_spans
from otelbill.delivery import Outcome, Post
from otelbill.errors import DeliveryError
from otelbill.guard import Guard, absorb

BACKOFF_FIRST_SECONDS: Final = 0.5
BACKOFF_MAX_SECONDS: Final = 5.0

_TAKE = Guard("shipper.take")
_ROUND = Guard("shipper.round")


@dataclass(frozen=True, slots=True)
class ShipperCounts:
    """Spans by what became of them: `taken == delivered + refused + waiting`; `overflowed` were never taken."""

    taken: int
    delivered: int
    refused: int
    waiting: int
    overflowed: int

    def __post_init__(self) -> None:
        assert self.taken == self.delivered + self.refused + self.waiting, "every taken span has one fate"


@dataclass(frozen=True, slots=True)
class Package:
    """Serialised spans of one request, and how many they are."""

    body: bytes
    spans: int


class Shipper(SpanProcessor):
    """Sends every sampled span to the sidecar, in batches, from one daemon thread that starts with the first span.

    A sidecar that is away costs one warning; spans wait, serialised after the first second, and are sent when it comes
    back. A full queue takes no more spans and counts them. They are in memory only: a killed process loses them.
    """

    def __init__(self, post: Post, settings: Settings) -> None:
        self._post = post
        self._queue_max_spans = settings.queue_max_spans
        self._batch_max_spans = min(settings.batch_max_spans, settings.queue_max_spans)
        self._interval_seconds = settings.flush_interval_millis / 1_000
        self._exit_seconds = settings.exit_timeout_millis / 1_000
        self._exit_at: float | None = None
        self._is_closing = False
        self._taken = self._delivered = self._refused = self._overflowed = 0
        self._start_afresh()
        itself = weakref.WeakMethod(self._start_afresh)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: (again := itself()) and again())

    def _start_afresh(self) -> None:
        """Empty queue, new locks, no thread: at the start and in a forked child, whose parent sends its own spans."""
        self._queue: deque[ReadableSpan] = deque()
        self._packages: deque[Package] = deque()
        # A reentrant lock and a reentrant queue: the garbage collector may close a metered generator, whose span ends
        # and comes back here, in any line of ours. `threading.Event` would hang the host there.
        self._lock = threading.RLock()
        self._round_ended = threading.Condition(self._lock)
        self._signals: SimpleQueue[None] = SimpleQueue()
        self._is_signalled = False
        self._thread: threading.Thread | None = None
        self._rounds = 0
        self._is_urgent = False
        self._backoff_seconds = 0.0
        self._resume_at = 0.0
        self._taken = self._delivered + self._refused

    def on_end(self, span: ReadableSpan) -> None:
        """Take `span`, if it is sampled."""
        with _TAKE:
            if span.context is not None and span.context.trace_flags.sampled:
                self._take(span)

    def counts(self) -> ShipperCounts:
        """Spans by what became of them, so far."""
        with self._lock:
            waiting = self._taken - self._delivered - self._refused
            return ShipperCounts(self._taken, self._delivered, self._refused, waiting, self._overflowed)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits now; `False` if something still waits after one attempt or `timeout_millis`."""
        return self._flush(timeout_millis / 1_000)

    def flush_at_exit(self) -> None:
        """Send what waits, within the time that exit may take in all."""
        self._flush(self._find_exit_seconds())

    def shutdown(self) -> None:
        """Send what waits, within the time that exit may take in all; later spans are not taken."""
        self._flush(self._find_exit_seconds())
        self._is_closing = True
        self._signal()
        waiting = self.counts().waiting
        if waiting:
            hint = "is the sidecar running? spans are kept in memory only"
            absorb(DeliveryError("spans_lost_at_exit", f"{waiting} spans were not delivered", hint=hint), place="exit")

    def _find_exit_seconds(self) -> float:
        """What is left of the exit's time; it starts with the first call, so two calls do not take twice as long."""
        if self._exit_at is None:
            self._exit_at = time.monotonic() + self._exit_seconds
        return max(0.0, self._exit_at - time.monotonic())

    def _take(self, span: ReadableSpan) -> None:
        with self._lock:
            if self._is_closing or self._taken - self._delivered - self._refused >= self._queue_max_spans:
                self._overflowed += 1
                is_first = self._overflowed == 1
            else:
                self._taken += 1
                self._queue.append(span)
                is_first = False
            if self._thread is None and not self._is_closing:
                self._thread = threading.Thread(target=self._run, name="otelbill-shipper", daemon=True)
                self._thread.start()
        if is_first:
            hint = "start the sidecar or raise OTELBILL_QUEUE_MAX_SPANS"
            absorb(DeliveryError("queue_full", "the span queue is full, or closed", hint=hint), place="shipper")
        if len(self._queue) >= self._batch_max_spans:
            self._signal()

    def _signal(self) -> None:
        """Wake the thread; once is enough until it has woken."""
        if not self._is_signalled:
            self._is_signalled = True
            self._signals.put(None)

    def _await_signal(self) -> None:
        with suppress(Empty):
            self._signals.get(timeout=self._interval_seconds)
        self._is_signalled = False

    def _flush(self, seconds: float) -> bool:
        with self._lock:
            if self._thread is None or self._taken == self._delivered + self._refused:
                return True
            # The round under way may have begun before the last span; the one after it has not.
            last_round = self._rounds + 2
            self._is_urgent = True
            self._signal()
            self._round_ended.wait_for(lambda: self._is_settled() or self._rounds >= last_round, seconds)
            self._is_urgent = False
            return self._is_settled()

    def _is_settled(self) -> bool:
        return self._taken == self._delivered + self._refused

    def _run(self) -> None:
        attach(Context())  # the thread starts in the context of whoever ended the first span
        while not self._is_closing:
            self._await_signal()
            with _ROUND:
                self._pack()
                self._send()
            with self._lock:
                self._rounds += 1
                self._round_ended.notify_all()
                if self._is_urgent and not self._is_settled():
                    self._signal()

    def _pack(self) -> None:
        """Serialise the queue. A span object holds 2.9 kB, its serialised form a tenth of that."""
        while self._queue:
            spans = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_max_spans))]
            kept = strip_spans(spans)
            packages = pack_spans(kept)
            self._packages.extend(packages)
            unusable = len(spans) - sum(package.spans for package in packages)
            if unusable:
                with self._lock:
                    self._refused += unusable

    def _send(self) -> None:
        while self._packages and (self._is_urgent or time.monotonic() >= self._resume_at):
            package = self._packages[0]
            outcome = self._post(package.body)
            if outcome.kind == "later":
                self._postpone(outcome)
                return
            self._packages.popleft()
            self._backoff_seconds = 0.0
            with self._lock:
                if outcome.kind == "delivered":
                    self._delivered += package.spans
                else:
                    self._refused += package.spans
            if outcome.kind == "refused":
                hint = "compare the versions of otelbill in the app and in the sidecar"
                absorb(
                    DeliveryError("spans_refused", f"the sidecar refused spans: {outcome.reason}", hint=hint),
                    place="shipper",
                )

    def _postpone(self, outcome: Outcome) -> None:
        self._backoff_seconds = min(max(BACKOFF_FIRST_SECONDS, self._backoff_seconds * 2), BACKOFF_MAX_SECONDS)
        pause = self._backoff_seconds if outcome.retry_after_seconds is None else outcome.retry_after_seconds
        self._resume_at = time.monotonic() + pause
        hint = "start it with `otelbill collector`, or set OTELBILL_ENDPOINT; the app runs on and spans wait"
        absorb(
            DeliveryError("sidecar_unreachable", f"the sidecar does not take spans: {outcome.reason}", hint=hint),
            place="shipper",
        )


def pack_spans(spans: Sequence[ReadableSpan]) -> list[Package]:
    """One package of `spans`; where they cannot be serialised together, one for each that can be alone."""
    if not spans:
        return []
    with Guard("shipper.serialise"):
        return [Package(encode_spans(spans).SerializeToString(), len(spans))]
    if len(spans) == 1:
        return []
    return [package for span in spans for package in pack_spans([span])]
