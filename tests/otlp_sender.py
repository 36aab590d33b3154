"""Senders that behave as OTLP exporters do: one connection, and a request is sent again until it is acknowledged."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterable, Sequence
from http.client import HTTPConnection, HTTPException

_RETRYABLE = {429, 502, 503, 504}
_RETRY_SECONDS = 0.05


class Sender:
    """Sends bodies over HTTP from several threads; counts what was acknowledged and what was sent in vain."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._guard = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self.acknowledged: list[int] = []
        self.retries = 0
        self.refusals: list[tuple[int, bytes]] = []

    def send_all(self, bodies: Sequence[bytes], order: Iterable[int], *, threads: int) -> Sender:
        """Start to send `bodies[index]` for every index in `order`; does not wait."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in order:
            waiting.put(index)
        self._threads = [
            threading.Thread(target=self._send_waiting, args=(bodies, waiting), daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def count(self) -> int:
        """How many sendings were acknowledged."""
        with self._guard:
            return len(self.acknowledged)

    def is_done(self) -> bool:
        """Whether every thread has ended."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Give up what is not acknowledged, and wait for the threads."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _send_waiting(self, bodies: Sequence[bytes], waiting: queue.SimpleQueue[int]) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stopped.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                break
            if self._deliver(connection, bodies[index]):
                with self._guard:
                    self.acknowledged.append(index)
        connection.close()

    def _deliver(self, connection: HTTPConnection, body: bytes) -> bool:
        while not self._stopped.is_set():
            try:
                connection.request("POST", "/v1/traces", body, {"content-type": "application/x-protobuf"})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, HTTPException):
                connection.close()
            else:
                if answer.status == 200:
                    return True
                if answer.status not in _RETRYABLE:
                    with self._guard:
                        self.refusals.append((answer.status, text))
                    return False
            with self._guard:
                self.retries += 1
            self._stopped.wait(_RETRY_SECONDS)
        return False


def order_with_repeats(count: int, share: float, chance: random.Random) -> list[int]:
    """All of `range(count)`, and a share of them a second time at some later place."""
    order = list(range(count))
    for index in chance.sample(range(count), round(count * share)):
        order.insert(chance.randint(order.index(index) + 1, len(order)), index)
    return order
