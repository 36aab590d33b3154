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
    """Too much is under way; the sender should retry after RETRY_AFTER_SECONDS. `bound` names what was reached."""

    def __init__(self, bound: str, reason: str) -> None:
        super().__init__(reason)
        self.bound = bound


@dataclass(frozen=True, slots=True)
class ReceiveLimits:
    """Bounds of one request and of all together, in bytes; for how long one body may take; how many calls may wait."""

    body_bytes_max: int
    decompressed_bytes_max: int
    inflight_bytes_max: int
    body_seconds_max: float = 30.0
    waiting_calls_max: int = 1_000


class Admission:
    """Counts bytes from the moment a body is being read until its answer is known, by sender.

    A request may take, together with all that its sender has under way, half of what is then free. So one sender alone
    gets a third of the bound, many get less each, some room is always left, and the smaller a request the later it is
    refused: who sends little finds a place beside who sends much. A request that is alone in the house is always taken.
    """

    def __init__(
        self, limits: ReceiveLimits, tokens: Sequence[str] = (), count_refusal: Callable[[str], None] = lambda _: None
    ) -> None:
        self.limits = limits
        self.count_refusal = count_refusal
        self._tokens = tuple(token.encode() for token in tokens)
        self._lock = threading.Lock()
        self._inflight_bytes = 0
        self._senders: dict[str, int] = {}

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

    def find_room(self, sender: str, size_bytes: int) -> None:
        """Raises Overloaded where a request of that size would be refused now: nobody need read it to its end."""
        with self._lock:
            self._check(sender, size_bytes, held_bytes=0)

    @contextmanager
    def hold(self, sender: str) -> Iterator[Hold]:
        """What one request has under way, nothing at first; all of it is given back at the end of the block."""
        held = Hold(self, sender)
        try:
            yield held
        finally:
            held.release()

    def hold_until_done(self, sender: str, size_bytes: int, submit: Callable[[], Future[Answer]]) -> Future[Answer]:
        """Submit, and hold the bytes until the future is done, also when nobody waits for it any more."""
        held = Hold(self, sender)
        held.grow(size_bytes)
        try:
            future = submit()
        except BaseException:
            held.release()
            raise
        future.add_done_callback(lambda _: held.release())
        return future

    def take(self, sender: str, size_bytes: int, held_bytes: int) -> None:
        """Count `size_bytes` more for a request that holds `held_bytes`. Raises Overloaded."""
        with self._lock:
            self._check(sender, size_bytes, held_bytes)
            self._inflight_bytes += size_bytes
            self._senders[sender] = self._senders.get(sender, 0) + size_bytes

    def give_back(self, sender: str, size_bytes: int) -> None:
        """The reverse of `take`."""
        with self._lock:
            self._inflight_bytes -= size_bytes
            left = self._senders.get(sender, 0) - size_bytes
            if left:
                self._senders[sender] = left
            else:
                self._senders.pop(sender, None)

    def _check(self, sender: str, size_bytes: int, held_bytes: int) -> None:
        if self._inflight_bytes == held_bytes:
            return  # alone: a bound that is smaller than one large request must not refuse it for ever
        free = self.limits.inflight_bytes_max - self._inflight_bytes
        if size_bytes > free:
            raise Overloaded("inflight_bytes", "too many bytes under way; retry with backoff")
        if 2 * (self._senders.get(sender, 0) + size_bytes) > free:
            raise Overloaded("sender_share", "too many bytes of this sender under way; retry with backoff")


class Hold:
    """The bytes that one request has under way."""

    def __init__(self, admission: Admission, sender: str) -> None:
        self._admission = admission
        self._sender = sender
        self.size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Hold `size_bytes` altogether; less than what is held already changes nothing. Raises Overloaded."""
        more = size_bytes - self.size_bytes
        if more > 0:
            self._admission.take(self._sender, more, self.size_bytes)
            self.size_bytes = size_bytes

    def release(self) -> None:
        """Give everything back."""
        if self.size_bytes:
            self._admission.give_back(self._sender, self.size_bytes)
            self.size_bytes = 0


def name_sender(host: str, port: int | str) -> str:
    """What tells a sender apart: its address. On loopback all have the same, so there it is the connection."""
    return f"{host}:{port}" if host.startswith("127.") or host in ("::1", "localhost") else host
