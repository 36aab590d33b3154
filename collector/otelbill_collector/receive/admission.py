"""Who may send, and how much may be under way at once. Owns the bearer tokens' check and the bytes-in-flight bound."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from otelbill_collector.domain.records import Answer

RETRY_AFTER_SECONDS = 1


class Overloaded(Exception):
    """Too many bytes are under way; the sender should retry after RETRY_AFTER_SECONDS."""


@dataclass(frozen=True, slots=True)
class ReceiveLimits:
    """Bounds of one request and of all together, in bytes, and for how long one body may take to arrive."""

    body_bytes_max: int
    decompressed_bytes_max: int
    inflight_bytes_max: int
    body_seconds_max: float = 30.0


class Admission:
    """Counts bytes from the moment a body is being read until its answer is known."""

    def __init__(self, limits: ReceiveLimits, tokens: Sequence[str] = ()) -> None:
        self.limits = limits
        self._tokens = tuple(token.encode() for token in tokens)
        self._lock = threading.Lock()
        self._inflight_bytes = 0

    @property
    def inflight_bytes(self) -> int:
        """Bytes under way now."""
        return self._inflight_bytes

    def is_authorised(self, header: str | None) -> bool:
        """Whether an Authorization header carries one of the tokens; always true when none are configured."""
        if not self._tokens:
            return True
        scheme, _, given = (header or "").partition(" ")
        # Every token is compared, in constant time: the answer must not tell how much of one was right.
        matches = [hmac.compare_digest(given.strip().encode(), token) for token in self._tokens]
        return scheme.lower() == "bearer" and any(matches)

    @contextmanager
    def admit(self, size_bytes: int) -> Iterator[None]:
        """Hold `size_bytes` of the bound for the block. Raises Overloaded; a lone request is always admitted."""
        self._take(size_bytes)
        try:
            yield
        finally:
            self._release(size_bytes)

    def hold_until_done(self, size_bytes: int, submit: Callable[[], Future[Answer]]) -> Future[Answer]:
        """Submit, and hold the bytes until the future is done, also when nobody waits for it any more."""
        self._take(size_bytes)
        try:
            future = submit()
        except BaseException:
            self._release(size_bytes)
            raise
        future.add_done_callback(lambda _: self._release(size_bytes))
        return future

    def _take(self, size_bytes: int) -> None:
        with self._lock:
            if self._inflight_bytes and self._inflight_bytes + size_bytes > self.limits.inflight_bytes_max:
                raise Overloaded
            self._inflight_bytes += size_bytes

    def _release(self, size_bytes: int) -> None:
        with self._lock:
            self._inflight_bytes -= size_bytes
