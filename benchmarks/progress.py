"""How far a long benchmark is, on standard error. Prints nothing else, and only where somebody looks."""

from __future__ import annotations

import sys
import time

_WIDTH = 40


class Progress:
    """A bar of `total` steps, drawn anew with each `show`."""

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._started = time.monotonic()

    def show(self, done: int) -> None:
        """So much is done."""
        if not sys.stderr.isatty():
            return
        rate = done / max(time.monotonic() - self._started, 0.001)
        bar = "#" * min(_WIDTH, _WIDTH * done // max(self._total, 1))
        text = f"\r[{bar:<{_WIDTH}}] {done:,} of {self._total:,} {self._what}, {rate:,.0f}/s "
        print(text, end="\n" if done >= self._total else "", file=sys.stderr, flush=True)
