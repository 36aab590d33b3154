"""The local Stripe's clock: real time until a test sets it, then it stands still until it is advanced."""

from __future__ import annotations

import threading
import time


class SettableClock:
    """Whole Unix seconds. Thread-safe."""

    def __init__(self, now: int | None = None) -> None:
        """`now` freezes the clock from the beginning; None follows real time."""
        self._guard = threading.Lock()
        self._frozen = now

    def now(self) -> int:
        """The current second."""
        with self._guard:
            return int(time.time()) if self._frozen is None else self._frozen

    def set(self, now: int | None) -> None:
        """Stand still at `now`; None follows real time again."""
        with self._guard:
            self._frozen = now

    def advance(self, seconds: int) -> int:
        """Freeze the clock `seconds` after its current time and return that."""
        with self._guard:
            self._frozen = (int(time.time()) if self._frozen is None else self._frozen) + seconds
            return self._frozen
