"""Load for a receiver: connections in one thread, each with one request under way, and when each was acknowledged."""

from __future__ import annotations

import select
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.lines import Buffer, GrpcLine, HttpLine, Line, NotAcknowledged

_PATIENCE_SECONDS = 120.0  # for the answers to what is under way
_LOOK_SECONDS = 0.05


class Bodies(Protocol):
    """Where requests come from."""

    def take(self, connection: int) -> Buffer | None:
        """The next request, valid until that connection's next. None: there are no more."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """How a load is sent.

    `seconds` is how long new requests are begun. `rate` is requests a second, None as many as are acknowledged: then a
    request is late from the moment it was due, also where no connection was free for it.
    """

    protocol: str = "http"
    gzip: bool = False
    connections: int = 16
    seconds: float = 10.0
    requests_max: int | None = None  # ends the run early
    rate: float | None = None


@dataclass(slots=True)
class Sent:
    """What was acknowledged: number of requests, wall seconds from the first byte to the last answer, latencies."""

    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of this process, while sending
    latencies: array[float] = field(default_factory=lambda: array("d"))
    begun: int = 0
    failures: list[str] = field(default_factory=list)


def send_load(port: int, bodies: Bodies, traffic: Traffic, watch: Callable[[int], None] = lambda _: None) -> Sent:
    """Send until the time is over; every request waits for its answer before the connection's next.

    `watch` is told now and then how many requests are acknowledged. A failure ends the run.
    """
    with open_lines(port, traffic) as lines:
        run = _Run(lines, bodies, traffic, watch)
        started, cpu = time.monotonic(), time.process_time()
        try:
            run.send()
        except (OSError, TimeoutError) as error:  # shown with the figures; a failed run is no measurement
            run.sent.failures.append(repr(error))
        run.sent.seconds, run.sent.cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    return run.sent


@contextmanager
def open_lines(port: int, traffic: Traffic) -> Iterator[list[Line]]:
    """The connections, closed afterwards."""
    make = GrpcLine if traffic.protocol == "grpc" else HttpLine
    lines: list[Line] = []
    try:
        lines.extend(make(port, number, gzip=traffic.gzip) for number in range(traffic.connections))
        yield lines
    finally:
        for line in lines:
            line.close()


class _Run:
    def __init__(self, lines: list[Line], bodies: Bodies, traffic: Traffic, watch: Callable[[int], None]) -> None:
        self.sent = Sent()
        self._bodies, self._traffic, self._watch = bodies, traffic, watch
        self._free = deque(lines)
        self._lines = {line.socket.fileno(): line for line in lines}
        self._poll = select.epoll()
        for number in self._lines:
            # Edges: a connection is looked at when something changed, and nothing is registered anew.
            self._poll.register(number, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._begun_at = time.monotonic()
        self._watched_at = 0.0

    def send(self) -> None:
        """Until all that was begun is acknowledged. Raises NotAcknowledged, TimeoutError."""
        with self._poll:
            while (due := self._begin_due()) is not None or len(self._free) < len(self._lines):
                self._take_answers(due)
                if (now := time.monotonic()) > self._watched_at + _LOOK_SECONDS:
                    self._watched_at = now
                    self._watch(self.sent.requests)

    def _begin_due(self) -> float | None:
        """Begin what is due; when the next is, or None when no more are begun."""
        sent, traffic, free = self.sent, self._traffic, self._free
        end = self._begun_at + traffic.seconds
        while True:
            now = time.monotonic()
            due = now if traffic.rate is None else self._begun_at + sent.begun / traffic.rate
            if max(due, now) >= end or sent.begun == traffic.requests_max:
                return None
            if due > now or not free:
                return due
            body = self._bodies.take(free[0].number)
            if body is None:
                return None
            line = free.popleft()
            line.started = due
            line.begin(body)
            sent.begun += 1

    def _take_answers(self, due: float | None) -> None:
        wait = _PATIENCE_SECONDS
        if due is not None and self._free:
            wait = max(0.0, due - time.monotonic())
            if wait:  # finer than epoll's milliseconds
                select.select([self._poll], [], [], wait)
                wait = 0.0
        events = self._poll.poll(wait)
        if not events and wait:
            raise TimeoutError(f"{len(self._lines) - len(self._free)} requests were not answered")
        for number, event in events:
            line = self._lines[number]
            if event & select.EPOLLOUT:
                line.flush()
            if event & ~select.EPOLLOUT and line.receive():
                self.sent.latencies.append(time.monotonic() - line.started)
                self.sent.requests += 1
                self._free.append(line)


__all__ = ["Bodies", "NotAcknowledged", "Sent", "Traffic", "open_lines", "send_load"]
