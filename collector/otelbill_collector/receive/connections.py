"""How many HTTP connections are open at once, and how long their headers may be. Owns the choice of which one to close.

Past the bound a connection is closed that has no complete request under way: of the address with the most of them the
one that has waited longest. So who opens thousands, or sends a byte a second, loses them, and others find a place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from otelbill_collector.receive.admission import RETRY_AFTER_SECONDS

HEAD_BYTES_MAX = 65_536
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: %d\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    % RETRY_AFTER_SECONDS
)


class ConnectionBook:
    """The open connections of one listener. `count_refusal` is told `connections` for each that was closed."""

    def __init__(self, connections_max: int, count_refusal: Callable[[str], None] = lambda _: None) -> None:
        self.connections_max = connections_max
        self.count_refusal = count_refusal
        self._open: set[BoundedProtocol] = set()
        self._idle: dict[str, dict[BoundedProtocol, None]] = {}  # by address, oldest first

    @property
    def size(self) -> int:
        """Connections open now."""
        return len(self._open)

    def add(self, connection: BoundedProtocol) -> None:
        """Take a new connection, in the place of an idle one where there is no other."""
        if len(self._open) >= self.connections_max:
            self.count_refusal("connections")
            if not self._idle:
                connection.refuse()
                return
            crowd = max(self._idle.values(), key=len)
            victim = next(iter(crowd))
            self.remove(victim)
            victim.refuse()
        self._open.add(connection)
        self.mark_idle(connection)

    def remove(self, connection: BoundedProtocol) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        self.mark_busy(connection)

    def mark_idle(self, connection: BoundedProtocol) -> None:
        """It waits for a request, or for the rest of one."""
        if connection in self._open:
            self._idle.setdefault(connection.address, {})[connection] = None

    def mark_busy(self, connection: BoundedProtocol) -> None:
        """Its request is complete and waits for the answer."""
        idle = self._idle.get(connection.address, {})
        if idle.pop(connection, self) is None and not idle:
            del self._idle[connection.address]


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with a place in a book of connections and a bound on the head of a request."""

    def __init__(self, book: ConnectionBook, **given: Any) -> None:  # Any: what uvicorn hands to its protocols
        super().__init__(**given)
        self._book = book
        self._head_bytes = 0
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._book.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._book.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        in_body = before is not None and before.more_body
        super().data_received(data)
        if in_body or self.cycle is not before:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._book.count_refusal("head_bytes")
            self.send_400_response(f"The head of a request may have {HEAD_BYTES_MAX} bytes.")

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._book.mark_busy(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._book.mark_idle(self)

    def refuse(self) -> None:
        """Close; a sender that waits for an answer to what it has begun is told to come again."""
        begun = self._head_bytes > 0 if self.cycle is None or self.cycle.response_complete else True
        if (begun or self.cycle is None) and not (self.cycle is not None and self.cycle.response_started):
            self.transport.write(_REFUSAL)
        self.transport.close()
