"""One span as the selection rules see it: names, times, and attributes that are decoded only when somebody asks.

Owns the read-only view. Does not own the wire format, nor what any attribute means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Value = bool | int | float | str | tuple["Value", ...] | None

STATUS_ERROR = 2
STATUS_OK = 1


@dataclass(frozen=True, slots=True)
class EventView:
    """A span event. Its attributes may hold prompt content and are read by name only."""

    name: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class SpanView:
    """A span with its scope and resource. Ids are raw bytes (16 and 8), times nanoseconds since the epoch, UTC.

    `attributes` and `resource` may be lazy: membership, `get` and iteration over the names are cheap, asking for all
    values is not.
    """

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    name: str
    kind: int
    started_nanos: int
    ended_nanos: int
    status_code: int
    scope_name: str
    scope_version: str
    resource: Mapping[str, Value]
    attributes: Mapping[str, Value]
    events: Sequence[EventView] = ()

    def count_attributes(self) -> int:
        """How many there are, without a look at any."""
        return len(self.attributes)
