"""The pace of calls to one account: a token bucket that yields to rate limits. Owns no clock of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from otelbill_collector.domain.instants import NANOS

SLOWEST_NANOS = NANOS  # never less than one call a second, or nothing would be found out


class Pacer:
    """Spaces calls at `rate_per_second`, with a burst of a tenth of a second's calls; safe to share among threads.

    `read_nanos` is a monotonic clock and `pause` waits a number of nanoseconds; both come from the edge.
    """

    def __init__(self, rate_per_second: int, *, read_nanos: Callable[[], int], pause: Callable[[int], None]) -> None:
        self._usual_nanos = NANOS // rate_per_second
        self._interval_nanos = self._usual_nanos
        self._burst_nanos = max(self._usual_nanos, NANOS // 10)
        self._read_nanos = read_nanos
        self._pause = pause
        self._next_nanos = read_nanos()
        self._lock = threading.Lock()

    @property
    def interval_nanos(self) -> int:
        """Present distance between two calls."""
        return self._interval_nanos

    def take(self) -> None:
        """Wait for the next place in the line."""
        with self._lock:
            now = self._read_nanos()
            place = max(self._next_nanos, now - self._burst_nanos)
            self._next_nanos = place + self._interval_nanos
        if place > now:
            self._pause(place - now)

    def slow_down(self) -> None:
        """Halve the pace: the account's limit was met."""
        with self._lock:
            self._interval_nanos = min(self._interval_nanos * 2, max(SLOWEST_NANOS, self._usual_nanos))

    def speed_up(self) -> None:
        """Recover a twentieth of the way after a call that went through."""
        with self._lock:
            self._interval_nanos = max(self._usual_nanos, self._interval_nanos - self._interval_nanos // 20)

    def rest(self, nanos: int) -> None:
        """Wait without taking a place: between the rounds of a flush."""
        self._pause(nanos)
