"""OTLP wire bytes to span views, without an object per attribute. Owns the trimmed schema and the attribute values.

The schema below is wire-compatible with opentelemetry-proto: a repeated KeyValue is read as map<string, bytes>, so the
parser hands over each attribute's value still encoded, and a value is decoded only when a rule asks for its key. Prompt
content is skipped that way: it never becomes a Python string. See docs/decisions/0003-decode.md for the measurements.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otelbill_collector.decode.spans import EventView, SpanView, Value
from otelbill_collector.decode.weight import EVENTS_PER_SPAN, TooHeavy, weigh_request

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bytes": _Field.TYPE_BYTES,
    "string": _Field.TYPE_STRING,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
    "fixed64": _Field.TYPE_FIXED64,
}

# message -> (field, number, type); "*" repeats, "{}" is map<string, bytes>.
_SCHEMA: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Scope": (("name", 1, "string"), ("version", 2, "string")),
    "Status": (("code", 3, "int32"),),
    "Event": (("name", 2, "string"), ("attributes", 3, "{}")),
    "Resource": (("attributes", 1, "{}"),),
    "Span": (
        ("trace_id", 1, "bytes"),
        ("span_id", 2, "bytes"),
        ("parent_span_id", 4, "bytes"),
        ("name", 5, "string"),
        ("kind", 6, "int32"),
        ("start_time_unix_nano", 7, "fixed64"),
        ("end_time_unix_nano", 8, "fixed64"),
        ("attributes", 9, "{}"),
        ("events", 11, "*Event"),
        ("status", 15, "Status"),
    ),
    "ScopeSpans": (("scope", 1, "Scope"), ("spans", 2, "*Span")),
    "ResourceSpans": (("resource", 1, "Resource"), ("scope_spans", 2, "*ScopeSpans")),
    "Request": (("resource_spans", 1, "*ResourceSpans"),),
}
_PACKAGE = "otelbill.trimmed"


class MalformedRequest(ValueError):
    """The body is not an ExportTraceServiceRequest: the sender is told (400, INVALID_ARGUMENT), nothing is stored."""


class TooManySpans(MalformedRequest):
    """More spans or events than one request may hold; the message names both numbers."""


_EVENT_TAGS = (b"\x5a", b"\xda")  # first byte of field 11 with a length, as it is written and written too long


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind == "{}":
        entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=_Field.TYPE_BYTES, label=_Field.LABEL_OPTIONAL)
        field.label = _Field.LABEL_REPEATED
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{message.name}.{entry_name}"
        return
    if kind.startswith("*"):
        field.label = _Field.LABEL_REPEATED
    target = kind.lstrip("*")
    if target in _SCALARS:
        field.type = _SCALARS[target]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{target}"


def _build_classes() -> dict[str, type[Message]]:
    """A class for each message. All are kept: those that nobody holds are made anew for every request."""
    file = descriptor_pb2.FileDescriptorProto(name="otelbill/trimmed.proto", package=_PACKAGE, syntax="proto3")
    for message_name, fields in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind in fields:
            _add_field(message, name, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA}


_CLASSES = _build_classes()
_Request = _CLASSES["Request"]


class AttributeView(Mapping[str, Value]):
    """Attributes of one span, resource or event: keys are known, values are decoded when asked for (last one wins)."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: Mapping[str, bytes]) -> None:
        self._encoded = encoded

    def __getitem__(self, key: str) -> Value:
        # A protobuf map creates a missing key on [] access, so look before reading.
        if key not in self._encoded:
            raise KeyError(key)
        return decode_value(self._encoded[key])

    def get(self, key: str, default: Any = None) -> Any:  # Any: the signature of Mapping.get
        raw = self._encoded.get(key)
        return default if raw is None else _decode_cached(raw) if len(raw) <= _CACHED_BYTES_MAX else decode_value(raw)

    def __contains__(self, key: object) -> bool:
        return key in self._encoded

    def __iter__(self) -> Iterator[str]:
        return iter(self._encoded)

    def __len__(self) -> int:
        return len(self._encoded)

    def find_text(self, key: str) -> memoryview | None:
        """The UTF-8 bytes of a text, not copied and not checked; None where the value is no text."""
        raw = self._encoded.get(key)
        if raw is None or len(raw) < 2 or raw[0] != _STRING:
            return None
        size, start = (raw[1], 2) if raw[1] < 0x80 else _read_varint(raw, 1)
        return memoryview(raw)[start:] if start + size == len(raw) else None

    def encoded(self, key: str) -> bytes:
        """The value's wire bytes, for copying it without decoding."""
        return self._encoded[key]


_STRING, _BOOL, _INT, _DOUBLE = 0x0A, 0x10, 0x18, 0x21
_read_double = struct.Struct("<d").unpack_from


def decode_value(raw: bytes) -> Value:
    """One encoded AnyValue: scalars by hand, arrays by the official schema; maps and bytes carry no usage: None."""
    if len(raw) < 2:  # no AnyValue with a value is shorter
        return None
    tag = raw[0]
    if tag == _STRING:
        size, start = raw[1], 2
        if size >= 0x80:
            size, start = _read_varint(raw, 1)
        if start + size == len(raw):
            return raw[start:].decode("utf-8", "replace")
    elif tag == _INT:
        number, end = _read_varint(raw, 1)
        if end == len(raw):
            return number - (1 << 64) if number >= 1 << 63 else number
    elif tag == _DOUBLE and len(raw) == 9:
        return cast(float, _read_double(raw, 1)[0])
    elif tag == _BOOL and len(raw) == 2:
        return raw[1] != 0
    return _decode_official(raw)


# Models, customers, steps and small counts come again and again; long texts do not, and would only take memory.
_CACHED_BYTES_MAX = 64
_decode_cached = lru_cache(maxsize=32_768)(decode_value)


def _read_varint(raw: bytes, start: int) -> tuple[int, int]:
    number = shift = 0
    for index in range(start, min(len(raw), start + 10)):
        byte = raw[index]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, index + 1
        shift += 7
    return 0, -1


def _decode_official(raw: bytes) -> Value:
    try:
        return _convert_any(AnyValue.FromString(raw))
    except DecodeError:
        return None


def _convert_any(value: AnyValue) -> Value:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bool_value":
            return value.bool_value
        case "array_value":
            return tuple(_convert_any(item) for item in value.array_value.values)
        case _:
            return None


@dataclass(slots=True, eq=False)
class Scope:
    """What the spans of one ScopeSpans share. `memory` is the selection's own: what it knows of this scope."""

    name: str
    version: str
    resource: AttributeView
    memory: Any = None  # Any: the decoder knows nothing of selection


class WireSpan(SpanView):
    """A span still in the parser's memory: its fields are read all at once, when somebody asks for the first."""

    __slots__ = ("message", "scope")

    def __init__(self, message: Any, scope: Scope) -> None:  # Any: the class is made at run time
        self.message = message
        self.scope = scope

    def __getattr__(self, name: str) -> Any:
        # Only reached while the slots of SpanView are empty.
        _fill_span(self)
        return object.__getattribute__(self, name)

    def count_attributes(self) -> int:
        """How many there are, without a look at any."""
        return len(self.message.attributes)


def _fill_span(view: WireSpan) -> None:
    span, scope = view.message, view.scope
    events = span.events
    view.trace_id = span.trace_id
    view.span_id = span.span_id
    view.parent_span_id = span.parent_span_id
    view.name = span.name
    view.kind = span.kind
    view.started_nanos = span.start_time_unix_nano
    view.ended_nanos = span.end_time_unix_nano
    view.status_code = span.status.code
    view.scope_name = scope.name
    view.scope_version = scope.version
    view.resource = scope.resource
    view.attributes = AttributeView(span.attributes)
    view.events = tuple(EventView(event.name, AttributeView(event.attributes)) for event in events) if events else ()


def decode_request(body: bytes, spans_max: int | None = None) -> list[SpanView]:
    """All spans of one ExportTraceServiceRequest, in wire order. Raises MalformedRequest, TooManySpans."""
    request = cast(Any, _Request())  # Any: the class is made at run time from the schema above
    try:
        if spans_max is not None:
            weigh_request(body, spans_max)
        request.ParseFromString(body)
    except TooHeavy as error:
        raise TooManySpans(str(error)) from error
    except (DecodeError, ValueError) as error:
        raise MalformedRequest("the body is not an OTLP ExportTraceServiceRequest in protobuf") from error
    if spans_max is not None:
        _check_counts(request, body, spans_max)
    views: list[SpanView] = []
    for resource_spans in request.resource_spans:
        resource = AttributeView(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            scope = Scope(scope_spans.scope.name, scope_spans.scope.version, resource)
            views += [WireSpan(span, scope) for span in scope_spans.spans]
    return views


def _check_counts(request: Any, body: bytes, spans_max: int) -> None:
    """Before any view is made: an empty span or event is two bytes on the wire and a thousand in memory."""
    scopes = [scope_spans for resource_spans in request.resource_spans for scope_spans in resource_spans.scope_spans]
    spans = sum(len(scope_spans.spans) for scope_spans in scopes)
    if spans > spans_max:
        raise TooManySpans(f"{spans} spans in one request, the limit is {spans_max}; send smaller batches")
    limit = spans_max * EVENTS_PER_SPAN
    if sum(map(body.count, _EVENT_TAGS)) <= limit:  # nearly always: no event stands without its tag
        return
    events = sum(len(span.events) for scope_spans in scopes for span in scope_spans.spans)
    if events > limit:
        raise TooManySpans(f"{events} span events in one request, the limit is {limit}; send smaller batches")
