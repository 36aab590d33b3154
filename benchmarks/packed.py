"""Requests compressed before they are sent: compressing fresh ones while sending would cost more than receiving them.

Every span is new here too. What is prepared suffices for the run that follows; one that used all of it up ended early.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from benchmarks.lines import Buffer
from benchmarks.senders import Bodies

GZIP_LEVEL = 1
_GZIP_FORMAT = 31
_THREADS = 2
_AT_ONCE = 64


class Packed:
    """So many requests of `bodies`, each gzip'ed by itself."""

    def __init__(self, bodies: Bodies, count: int) -> None:
        self._ready = self._pack(bodies, count)
        self.size_bytes = sum(map(len, self._ready))

    def take(self, _: int) -> bytes | None:
        """The next request; None when all were taken."""
        return self._ready.pop() if self._ready else None

    @staticmethod
    def _pack(bodies: Bodies, count: int) -> list[bytes]:
        source = _copy(bodies, count)
        packed: list[bytes] = []
        with ThreadPoolExecutor(_THREADS) as threads:
            while group := list(islice(source, _AT_ONCE)):
                packed.extend(threads.map(_compress, group))
        packed.reverse()  # the oldest is taken first
        return packed


def _copy(bodies: Bodies, count: int) -> Iterator[bytes]:
    for _ in range(count):
        body = bodies.take(0)
        if body is None:
            return
        yield bytes(body)


def _compress(body: Buffer) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    return packer.compress(body) + packer.flush()
