"""Instants as integer nanoseconds since the Unix epoch, UTC. Owns their text form and the cutting of time into slices.

Intervals are half-open: [start, end). The domain never asks what time it is; `now` comes in as an argument.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

NANOS = 1_000_000_000
MINUTE_NANOS = 60 * NANOS
HOUR_NANOS = 3_600 * NANOS
DAY_NANOS = 24 * HOUR_NANOS

_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2})?)(?:\.(\d{1,9}))?)?([Zz]|[+-]\d{2}:\d{2})?", re.ASCII
)


def format_instant(nanos: int) -> str:
    """RFC 3339 with `Z`; the fraction appears only when there is one ("2026-11-21T00:00:00Z", "...00.5Z")."""
    seconds, fraction = divmod(nanos, NANOS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{f'{fraction:09d}'.rstrip('0')}Z" if fraction else f"{text}Z"


def parse_instant(text: str) -> int:
    """Nanoseconds of an RFC 3339 instant or a date (midnight UTC). No offset means UTC. Raises ValueError."""
    match = _RFC3339.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not an RFC 3339 time such as 2026-11-21T13:00:00Z, nor a date such as 2026-11-21"
        )
    date, clock, fraction, offset = match.groups()
    zone = "+00:00" if offset in (None, "Z", "z") else offset
    moment = datetime.fromisoformat(f"{date}T{clock or '00:00'}{zone}")
    whole = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _SECOND
    return whole * NANOS + int((fraction or "0").ljust(9, "0"))


_SECOND = datetime(1970, 1, 1, 0, 0, 1) - datetime(1970, 1, 1)  # noqa: DTZ001 a difference has no zone


def floor_slice(nanos: int, length_nanos: int) -> int:
    """Start of the slice [start, start + length) of UTC time that holds `nanos`."""
    return nanos - nanos % length_nanos
