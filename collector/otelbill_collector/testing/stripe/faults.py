"""Faults that a test scripts: which request they hit, what they do to it, and whether its work was done.

Owns the script and the record of what happened; the server carries the faults out.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from otelbill_collector.testing.stripe.errors import Json


class FaultKind(StrEnum):
    """What goes wrong. The first group never does the request's work, the second does it before the fault shows."""

    RESET_BEFORE_READ = "reset_before_read"
    ERROR_BEFORE_COMMIT = "error_before_commit"
    RATE_LIMIT = "rate_limit"  # 429 with Stripe-Rate-Limited-Reason: the SDK does not retry it
    LOCK_TIMEOUT = "lock_timeout"  # 429 (or another status) with Stripe-Should-Retry: true

    ERROR_AFTER_COMMIT = "error_after_commit"
    RESET_AFTER_COMMIT = "reset_after_commit"
    DELAY = "delay"  # the answer comes after `seconds`, when the client may be gone
    GARBAGE = "garbage"  # 200 with a body that is not JSON
    TRUNCATED = "truncated"  # 200 with half of the body


_NEVER_COMMIT = (
    FaultKind.RESET_BEFORE_READ,
    FaultKind.ERROR_BEFORE_COMMIT,
    FaultKind.RATE_LIMIT,
    FaultKind.LOCK_TIMEOUT,
)
_DEFAULT_STATUS = {FaultKind.RATE_LIMIT: 429, FaultKind.LOCK_TIMEOUT: 429}


@dataclass(frozen=True, slots=True)
class Fault:
    """Hits `times` matching requests from the `nth` on, counted from when it was scripted.

    `route` is "METHOD /path" with shell wildcards. `saved` says whether the error answer is kept under the
    Idempotency-Key, as Stripe keeps a 500; None means so exactly for status 500.
    """

    kind: FaultKind
    route: str = "POST /v1/billing/meter_events"
    nth: int = 1
    times: int = 1
    status: int | None = None
    seconds: float = 0.0
    reason: str = "endpoint-rate"
    saved: bool | None = None

    @property
    def commits(self) -> bool:
        """Whether a valid request that it hits has its effect."""
        return self.kind not in _NEVER_COMMIT

    @property
    def answer_status(self) -> int:
        """Status of the error answer."""
        return self.status or _DEFAULT_STATUS.get(self.kind, 500)

    @property
    def is_saved(self) -> bool:
        """Whether the error answer is replayed for its Idempotency-Key."""
        return self.answer_status == 500 if self.saved is None else self.saved


@dataclass(frozen=True, slots=True)
class FiredFault:
    """A fault that hit a request; `committed` says whether this very request changed anything."""

    fault: Fault
    request_id: str
    committed: bool


class FaultScript:
    """Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: list[tuple[Fault, int]] = []  # with the number of matching requests seen so far
        self._fired: list[FiredFault] = []

    def add(self, fault: Fault) -> None:
        """Script one more fault. Where two hit the same request, the first scripted one does."""
        with self._guard:
            self._waiting.append((fault, 0))

    def clear(self) -> None:
        """Forget the faults that have not hit yet."""
        with self._guard:
            self._waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """Count this request and return the fault that hits it, if any."""
        hit: Fault | None = None
        with self._guard:
            remaining: list[tuple[Fault, int]] = []
            for fault, seen_before in self._waiting:
                seen = seen_before + fnmatchcase(f"{method} {path}", fault.route)
                if hit is None and seen > seen_before and seen >= fault.nth:
                    hit = fault
                if seen < fault.nth + fault.times - 1:
                    remaining.append((fault, seen))
            self._waiting = remaining
        return hit

    def record(self, fault: Fault, request_id: str, *, committed: bool) -> None:
        """Note that the fault hit."""
        with self._guard:
            self._fired.append(FiredFault(fault, request_id, committed))

    @property
    def fired(self) -> list[FiredFault]:
        """Faults that hit, oldest first."""
        with self._guard:
            return list(self._fired)

    def to_json(self) -> Json:
        """Waiting and fired faults."""
        with self._guard:
            waiting = [asdict(fault) for fault, _ in self._waiting]
            return {"waiting": waiting, "fired": [asdict(fired) for fired in self._fired]}
