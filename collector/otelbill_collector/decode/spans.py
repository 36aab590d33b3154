"""A span as the rules see it. Owns the view's fields; does not own how they were encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = bool | int | float | str | tuple["Value", ...] | None


@dataclass(frozen=True, slots=True)
class EventView:
    """One span event: its name and its (lazily decoded) attributes."""

    name: str
    attributes: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class SpanView:
    """One span. Ids are raw bytes, times nanoseconds UTC, `kind` and `status_code` the OTLP enum numbers.

    `attributes` decodes a value when it is asked for; asking only for what a rule needs keeps prompt content encoded.
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
