"""Spans and candidates by hand, for tests: only what a test says differs from a plain successful OpenAI call."""

from __future__ import annotations

import hashlib
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any

from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import SpanView, Value
from otelbill_collector.domain.usage import Candidate

T0 = 1_790_000_000_000_000_000
SECOND = 1_000_000_000


class LazyAttributes(Mapping[str, Value]):
    """Attributes like the wire decoder's: membership, get and names are free, taking all values is a fault."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> ValuesView[Value]:
        raise AssertionError("values() decodes content")

    def items(self) -> ItemsView[str, Value]:
        raise AssertionError("items() decodes content")


def make_id(name: str, length: int) -> bytes:
    """Stable bytes for a readable name."""
    return hashlib.sha256(name.encode()).digest()[:length]


def make_span(attributes: Mapping[str, Value], **changes: Any) -> SpanView:
    """A span of one second. `trace`, `span`, `parent` are readable names; `start`, `end` seconds after T0."""
    start, end = changes.pop("start", 0.0), changes.pop("end", 1.0)
    trace, span, parent = changes.pop("trace", "t"), changes.pop("span", "s"), changes.pop("parent", None)
    view = SpanView(
        trace_id=make_id(trace, 16),
        span_id=make_id(trace + span, 8),
        parent_span_id=make_id(trace + parent, 8) if parent else b"",
        name="chat model",
        kind=3,
        started_nanos=T0 + int(start * SECOND),
        ended_nanos=T0 + int(end * SECOND),
        status_code=0,
        scope_name="acme.llm",
        scope_version="1.0",
        resource={"service.name": "shop"},
        attributes=LazyAttributes(attributes),
    )
    for name, value in changes.items():
        setattr(view, name, value)
    return view


def list_chat_attributes(**changes: Value) -> dict[str, Value]:
    """Attributes of a chat call after the GenAI conventions; keywords are full names with `__` for dots."""
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
    }
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            attributes.pop(key, None)
        else:
            attributes[key] = value
    return attributes


def select(attributes: Mapping[str, Value], **changes: Any) -> Candidate:
    """The candidate of a span by hand; fails when the span is none."""
    candidate = select_span(make_span(attributes, **changes))
    assert candidate is not None, "not a candidate"
    return candidate


def make_call(**changes: Any) -> Candidate:
    """A selected chat call. Attribute names (`gen_ai__...`) and span fields may be mixed."""
    names = {name: value for name, value in changes.items() if "__" in name}
    rest = {name: value for name, value in changes.items() if "__" not in name}
    return select(list_chat_attributes(**names), **rest)
