"""Finds and loads the native library, once a process. Owns that, and how arrays are handed to C."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.build import LIBRARY, digest_sources

_log = logging.getLogger("otelbill.native")


@cache
def find_library() -> ctypes.CDLL | None:
    """The loaded library, or None where there is none that fits; said once in the log."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.ob_sources.restype = ctypes.c_char_p
        found = library.ob_sources().decode()
    except (OSError, AttributeError):
        _log.warning("no native library: spans are read ten times slower; `python -m otelbill_collector.native.build`")
        return None
    if found != digest_sources():
        _log.warning("the native library is of other sources; run `python -m otelbill_collector.native.build`")
        return None
    return library


def point_at(array: NDArray[Any]) -> int:
    """Address of an array's first byte, for C. The array must be contiguous and outlive the call."""
    if not array.flags.c_contiguous:
        raise ValueError("C reads contiguous arrays only")
    return int(array.ctypes.data)


def make_array(shape: int | tuple[int, ...], kind: str) -> NDArray[Any]:
    """An array for C to fill."""
    return np.empty(shape, dtype=kind)
