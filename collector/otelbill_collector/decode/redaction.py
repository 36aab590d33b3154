"""A span in its allow-listed form, as OTLP. Owns the re-encoding for dead letters; the list itself is `allowlist`."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from otelbill_collector.decode.allowlist import filter_attribute, filter_resource, filter_text
from otelbill_collector.decode.spans import SpanView, Value


def redact_span(span: SpanView) -> bytes:
    """An ExportTraceServiceRequest with this one span: ids, times, scope and allow-listed attributes.

    No events and no name: both may quote a prompt, and no rule reads them.
    """
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    for key in sorted(span.resource):
        _add(resource_spans.resource.attributes, key, filter_resource(key, span.resource.get(key)))
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = filter_text(span.scope_name, 128) or ""
    scope_spans.scope.version = filter_text(span.scope_version, 128) or ""
    out = scope_spans.spans.add(
        # An id of a wrong length stays wrong, but bounded: it must neither fill the disk nor become valid by a cut.
        trace_id=span.trace_id[:17],
        span_id=span.span_id[:9],
        parent_span_id=span.parent_span_id[:9],
        kind=max(0, min(5, span.kind)),
        start_time_unix_nano=span.started_nanos,
        end_time_unix_nano=span.ended_nanos,
    )
    out.status.code = max(0, min(2, span.status_code))  # type: ignore[assignment]
    for key, value in filter_attributes(span.attributes).items():
        _add(out.attributes, key, value)
    return request.SerializeToString(deterministic=True)


def filter_attributes(attributes: Mapping[str, Value]) -> dict[str, Value]:
    """The allow-listed attributes, keys sorted."""
    kept = {key: filter_attribute(key, attributes.get(key)) for key in sorted(attributes)}
    return {key: value for key, value in kept.items() if value is not None}


def _add(target: object, key: str, value: Value) -> None:
    if value is not None:
        target.append(KeyValue(key=key, value=build_any(value)))  # type: ignore[attr-defined]  # a repeated field


def build_any(value: Value) -> AnyValue:
    """The official AnyValue of a value."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, tuple):
        return AnyValue(array_value=ArrayValue(values=[build_any(item) for item in value]))
    return AnyValue(string_value=value or "")
