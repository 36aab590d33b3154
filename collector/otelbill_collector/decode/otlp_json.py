"""OTLP/JSON to OTLP/protobuf, so that there is one decoder. Owns what JSON spells differently: hex ids, big integers.

An integer that does not fit 64 bits is carried on as text; the span's rule then names it in a dead letter, and its
neighbours are not lost with it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson
from google.protobuf.json_format import ParseDict, ParseError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbill_collector.decode.wire import MalformedRequest

Json = Any  # parsed JSON; every use below checks the type before it trusts it

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_NESTING_MAX = 32
# Ten microseconds each to convert. Braces within texts count too, but no text is made of so many.
_OBJECTS_MAX = 500_000


def convert_json(body: bytes) -> bytes:
    """Protobuf bytes of an OTLP/JSON trace request. Raises MalformedRequest with the first place that is wrong."""
    objects = body.count(b"{")
    if objects > _OBJECTS_MAX:
        raise MalformedRequest(f"{objects} objects in one body, the limit is {_OBJECTS_MAX}; send smaller batches")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise MalformedRequest("the body is not a JSON object with resourceSpans")
    for span in _walk_spans(document):
        _rewrite_span(span)
    try:
        message = ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (ParseError, RecursionError, TypeError, ValueError) as error:
        raise MalformedRequest("the body is not an OTLP/JSON ExportTraceServiceRequest") from error
    return message.SerializeToString()


def _walk_spans(document: dict[str, Json]) -> list[dict[str, Json]]:
    spans: list[dict[str, Json]] = []
    for resource_spans in _require_list(document, "resourceSpans", "resource_spans"):
        for scope_spans in _require_list(resource_spans, "scopeSpans", "scope_spans"):
            spans.extend(_require_list(scope_spans, "spans"))
    return spans


def _require_list(parent: dict[str, Json], *names: str) -> list[dict[str, Json]]:
    for name in names:
        if name in parent and parent[name] is not None:
            items = parent[name]
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise MalformedRequest(f"{name} is not a list of objects")
            return items
    return []


def _rewrite_span(span: dict[str, Json]) -> None:
    for name in ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"):
        if name in span:
            span[name] = _convert_hex(name, span[name])
    for link in _require_list(span, "links"):
        for name in ("traceId", "spanId"):
            if name in link:
                link[name] = _convert_hex(name, link[name])
    _rewrite_attributes(span)
    for event in _require_list(span, "events"):
        _rewrite_attributes(event)


def _convert_hex(name: str, text: Json) -> str:
    try:
        return base64.b64encode(bytes.fromhex(text or "")).decode()
    except (ValueError, TypeError, binascii.Error) as error:
        raise MalformedRequest(f"{name} is not a hex string") from error


def _rewrite_attributes(owner: dict[str, Json]) -> None:
    for attribute in _require_list(owner, "attributes"):
        _rewrite_value(attribute.get("value"), 0)


def _rewrite_value(value: Json, depth: int) -> None:
    """Turn an intValue outside 64 bits into text, in place; deeper than OTLP's own limits is malformed."""
    if not isinstance(value, dict):
        return
    if depth > _NESTING_MAX:
        raise MalformedRequest(f"attribute values nest deeper than {_NESTING_MAX}")
    for name in ("intValue", "int_value"):
        number = value.get(name)
        if number is not None and not _fits_int64(number):
            del value[name]
            value["stringValue"] = str(number)[:32]
    for name in ("arrayValue", "array_value"):
        inner = value.get(name)
        if isinstance(inner, dict):
            items = inner.get("values") or ()
            if not isinstance(items, list | tuple):
                raise MalformedRequest(f"{name}.values is not a list")
            for item in items:
                _rewrite_value(item, depth + 1)


def _fits_int64(number: Json) -> bool:
    try:
        return isinstance(number, int | str) and _INT64_MIN <= int(number) <= _INT64_MAX
    except ValueError:
        return False
