"""Span views from official OTLP protobuf messages, for tests. Owns the translation, nothing of the wire decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from otelbill_collector.decode.spans import EventView, SpanView, Value


def read_views(path: Path) -> list[SpanView]:
    """All spans of an ExportTraceServiceRequest file, in file order."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(path.read_bytes())
    return list(list_views(request))


def list_views(request: ExportTraceServiceRequest) -> Iterator[SpanView]:
    """Views of all spans in a request."""
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield SpanView(
                    trace_id=span.trace_id,
                    span_id=span.span_id,
                    parent_span_id=span.parent_span_id,
                    name=span.name,
                    kind=span.kind,
                    started_nanos=span.start_time_unix_nano,
                    ended_nanos=span.end_time_unix_nano,
                    status_code=span.status.code,
                    scope_name=scope_spans.scope.name,
                    scope_version=scope_spans.scope.version,
                    resource=resource,
                    attributes=_attributes(span.attributes),
                    events=tuple(EventView(event.name, _attributes(event.attributes)) for event in span.events),
                )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if which == "bytes_value":
        return value.bytes_value.hex()
    if which == "kvlist_value":
        return tuple(pair.key for pair in value.kvlist_value.values)
    found: Value = getattr(value, which)
    return found
