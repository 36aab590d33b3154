"""OTLP requests for tests, built with the official protobuf messages. Times are nanoseconds, ids come from names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

T0 = 1_767_225_600 * 10**9  # 2026-01-01T00:00:00Z
SECOND = 10**9


@dataclass(frozen=True)
class TestSpan:
    """One span of a test. `name` also gives the ids, so equal names are the same span."""

    __test__ = False

    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    trace: str = "trace"
    parent: str | None = None
    started: int = T0
    ended: int = T0 + SECOND
    scope: str = "tests"
    status: int = 0
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def trace_id(name: str) -> bytes:
    """16 bytes that stand for a trace's name."""
    return hashlib.sha256(f"trace {name}".encode()).digest()[:16]


def span_id(name: str) -> bytes:
    """8 bytes that stand for a span's name."""
    return hashlib.sha256(f"span {name}".encode()).digest()[:8]


def build_any(value: Any) -> AnyValue:
    """The AnyValue of a Python value."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list | tuple):
        return AnyValue(array_value=ArrayValue(values=[build_any(item) for item in value]))
    return AnyValue(string_value=value)


def build_request(spans: Iterable[TestSpan], resource: Mapping[str, Any] | None = None) -> bytes:
    """ExportTraceServiceRequest bytes."""
    return build_message(spans, resource).SerializeToString()


def build_message(spans: Iterable[TestSpan], resource: Mapping[str, Any] | None = None) -> ExportTraceServiceRequest:
    """The same as a message."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    for key, value in (resource or {"service.name": "tests"}).items():
        resource_spans.resource.attributes.append(KeyValue(key=key, value=build_any(value)))
    for item in spans:
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.name = item.scope
        span = scope_spans.spans.add(
            trace_id=trace_id(item.trace),
            span_id=span_id(item.name),
            parent_span_id=span_id(item.parent) if item.parent else b"",
            name=item.name,
            kind=3,
            start_time_unix_nano=item.started,
            end_time_unix_nano=item.ended,
        )
        span.status.code = item.status  # type: ignore[assignment]
        for key, value in item.attributes.items():
            span.attributes.append(KeyValue(key=key, value=build_any(value)))
        for name, attributes in item.events:
            event = span.events.add(name=name)
            event.attributes.extend(KeyValue(key=key, value=build_any(value)) for key, value in attributes.items())
    return request


def chat(
    name: str,
    *,
    customer: str | None = "acme",
    tokens: tuple[int, int] = (100, 20),
    model: str = "gpt-4o-mini",
    response: str | None = None,
    **changes: Any,
) -> TestSpan:
    """A chat call in the GenAI conventions; the response id is the name's own unless given."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": response or f"resp-{name}",
        "gen_ai.usage.input_tokens": tokens[0],
        "gen_ai.usage.output_tokens": tokens[1],
    }
    if customer is not None:
        attributes["otelbill.customer.id"] = customer
    attributes.update(changes.pop("attributes", {}))
    # Every chat of a test stands in a trace of its own unless the test says otherwise.
    return TestSpan(name, attributes, trace=changes.pop("trace", name), **changes)
