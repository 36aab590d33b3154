"""Whose message is read next over gRPC, which tells nobody a message's size before it is there. Owns these queues.

So many messages are read at once that they fit into the bytes in flight even if each is as large as one may be; the
calls behind them wait, and each sender waits mostly for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote

from otelbill_collector.receive.admission import Overloaded, ReceiveLimits

_PER_SENDER = 0.5  # of all turns, for one sender at a time
_TURNS_MIN = 2


class Turns:
    """Turns to read a message. A call that finds `waiting_max` others waiting, or waits too long, is refused."""

    def __init__(self, limits: ReceiveLimits) -> None:
        self.turns_max = max(_TURNS_MIN, limits.inflight_bytes_max // limits.body_bytes_max)
        self.waiting_max = limits.waiting_calls_max
        self.waiting = 0
        self._seconds_max = limits.body_seconds_max
        self._all = asyncio.Semaphore(self.turns_max)
        self._senders: dict[str, tuple[asyncio.Semaphore, list[int]]] = {}

    @asynccontextmanager
    async def take(self, sender: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it for the block. Raises Overloaded."""
        if self.waiting >= self.waiting_max:
            raise Overloaded("waiting_calls", "too many calls wait for their turn; retry with backoff")
        own, users = self._senders.setdefault(
            sender, (asyncio.Semaphore(max(1, int(self.turns_max * _PER_SENDER))), [0])
        )
        users[0] += 1
        try:
            await self._wait(own)
            try:
                yield
            finally:
                own.release()
                self._all.release()
        finally:
            users[0] -= 1
            if not users[0]:
                self._senders.pop(sender, None)

    async def _wait(self, own: asyncio.Semaphore) -> None:
        if not own.locked() and not self._all.locked():  # as nearly always: no timer for it
            await own.acquire()
            await self._all.acquire()
            return
        self.waiting += 1
        try:
            async with asyncio.timeout(self._seconds_max):
                await own.acquire()
                try:
                    await self._all.acquire()
                except BaseException:
                    own.release()
                    raise
        except TimeoutError:
            raise Overloaded("waiting_calls", "the call waited too long for its turn; retry with backoff") from None
        finally:
            self.waiting -= 1


def split_peer(peer: str) -> tuple[str, str]:
    """(host, port) of gRPC's name for the other side, such as `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    _, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port
