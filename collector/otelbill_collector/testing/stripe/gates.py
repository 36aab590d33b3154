"""What keeps requests apart: one at a time per Idempotency-Key, one per lane where switched on, so many a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from otelbill_collector.testing.stripe.call import LaneLock
from otelbill_collector.testing.stripe.errors import StripeRefusal
from otelbill_collector.testing.stripe.events import Lane
from otelbill_collector.testing.stripe.idempotency import KeyedRequest


class Gates:
    """Thread-safe. A held gate refuses at once; nobody waits."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running_keys: set[str] = set()
        self._busy_lanes: set[Lane] = set()
        self._second: tuple[int, int] = (0, 0)  # and the requests counted in it

    @contextmanager
    def hold_key(self, keyed: KeyedRequest | None) -> Iterator[None]:
        """Refuse with 409 while another request of the same key runs."""
        if keyed is None:
            yield
            return
        with self._guard:
            if keyed.row in self._running_keys:
                message = "There is currently another in-progress request using this Idempotent Key."
                raise StripeRefusal(message, status=409, kind="idempotency_error", code="idempotency_key_in_use")
            self._running_keys.add(keyed.row)
        try:
            yield
        finally:
            with self._guard:
                self._running_keys.discard(keyed.row)

    @contextmanager
    def hold_lane(self, lane: Lane | None, lock: LaneLock) -> Iterator[None]:
        """Refuse while another event of the same meter and customer runs, where the switch says so."""
        if lane is None or lock is LaneLock.OFF:
            yield
            return
        with self._guard:
            if lane in self._busy_lanes:
                raise refuse_locked(int(lock.value))
            self._busy_lanes.add(lane)
        try:
            yield
        finally:
            with self._guard:
                self._busy_lanes.discard(lane)

    def check_rate(self, now: int, rate_max: int | None) -> None:
        """Count a request in the second `now` and refuse those past the limit; None is no limit."""
        if rate_max is None:
            return
        with self._guard:
            second, count = self._second
            self._second = (now, count + 1 if now == second else 1)
            exceeded = self._second[1] > rate_max
        if exceeded:
            raise refuse_rate("global-rate")


def refuse_rate(reason: str, status: int = 429) -> StripeRefusal:
    """The answer to a rate limit; the client library does not retry it by itself."""
    headers = {"Stripe-Rate-Limited-Reason": reason}
    return StripeRefusal("Request rate limit exceeded.", status=status, code="rate_limit", headers=headers)


def refuse_locked(status: int) -> StripeRefusal:
    """The answer to a held lock; the header makes the client library retry it."""
    message = "This object cannot be accessed right now because another API request is accessing it."
    return StripeRefusal(message, status=status, code="lock_timeout", headers={"Stripe-Should-Retry": "true"})
