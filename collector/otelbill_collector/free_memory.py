"""How much memory the process keeps that nobody uses: less than allocators would by themselves. Owns these settings.

Arrays of a commit are a few megabytes each and soon freed. With an arena for each thread, and kept for the next
such array, they are a quarter of the sidecar's memory.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pyarrow as pa

from otelbill_collector.domain.instants import NANOS

_PAUSE_NANOS = 5 * NANOS  # giving back costs some milliseconds, and so does having again what is used in every commit
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h of glibc
_ARENAS = 2
_LARGE_BYTES = 1 << 20  # what is given back when it is freed


class MemoryKeeper:
    """Gives back, every few seconds, what the C library and Arrow hold for nobody. Make it before any thread starts."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(None)  # Any: its functions are found by name, and not all libraries have them
        if hasattr(self._library, "mallopt"):
            self._library.mallopt(_M_ARENA_MAX, _ARENAS)
            self._library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        self._next_nanos = 0

    def run(self, now_nanos: int) -> None:
        """Give back, if it is time for it."""
        if 0 <= self._next_nanos - now_nanos <= _PAUSE_NANOS:  # a clock set back does not put it off
            return
        self._next_nanos = now_nanos + _PAUSE_NANOS
        pa.default_memory_pool().release_unused()
        if hasattr(self._library, "malloc_trim"):
            self._library.malloc_trim(0)
