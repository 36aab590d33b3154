"""Owns the wall between our faults and the host: caught, counted, logged once for each code.
Does not own the host's exceptions; those pass through untouched everywhere.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from types import TracebackType

from otelbill import config
from otelbill.errors import OtelbillError

_log = logging.getLogger("otelbill")
# Reentrant: the garbage collector may close a metered generator, and so come back here, in any line of ours.
_lock = threading.RLock()
_counts: Counter[str] = Counter()


class Guard:
    """A `with` block that our faults do not leave. One instance may be shared by all threads: it has no state.

    Catches `Exception` only, so `KeyboardInterrupt` and cancellation pass. In strict mode nothing is caught.
    """

    __slots__ = ("place",)

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        return absorb(error, place=self.place)


def absorb(error: Exception, *, place: str) -> bool:
    """Count `error`, log it the first time its code is seen; return whether it stays here (`False` in strict mode)."""
    code = error.code if isinstance(error, OtelbillError) else f"{place}.{type(error).__name__}"
    with _lock:
        _counts[code] += 1
        is_first = _counts[code] == 1
    if is_first:
        # The message of a foreign exception may quote the host's data, so only our own messages are written out.
        message = str(error) if isinstance(error, OtelbillError) else type(error).__name__
        _log.warning("otelbill: %s in %s: %s. Further ones are only counted: otelbill.status()", code, place, message)
    return not config.current().strict


def report(error: OtelbillError, *, place: str) -> None:
    """Take an error that has no `with Guard` around it; raises it in strict mode.

    Raises:
        OtelbillError: `error`, in strict mode.
    """
    if not absorb(error, place=place):
        raise error


def count(code: str) -> None:
    """Count a condition that is not worth a line in the log."""
    with _lock:
        _counts[code] += 1


def list_faults() -> dict[str, int]:
    """Times each code was seen in this process."""
    with _lock:
        return dict(_counts)


def forget() -> None:
    """Empty the counts, so that the next fault is logged again (for tests)."""
    with _lock:
        _counts.clear()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # the lock may be held by a thread that the child does not have
