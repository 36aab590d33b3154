"""What a large request will weigh in memory, before it is parsed. Owns the count of its elements and nothing they say.

An empty span is two bytes on the wire and 130 parsed: 64 MiB of them would be 4 GiB. Bodies up to WEIGHED_BYTES are not
looked at, for their size bounds them. Larger ones are walked down to the spans; what spans hold is counted in slices,
by a schema in which it stays bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

WEIGHED_BYTES = 2_097_152
EVENTS_PER_SPAN = 10  # on average over a request's limit of spans: a streamed answer may have an event per piece
ATTRIBUTES_PER_SPAN = 30  # likewise: of spans, events and resources together
_SLICE_BYTES = 1_048_576
_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "otelbill.weight"
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_SPAN_ATTRIBUTES, _SPAN_EVENTS, _EVENT_ATTRIBUTES = 9, 11, 3


class TooHeavy(ValueError):
    """More elements than a request may have; the message names both numbers."""


def _build_slice_class() -> type[Message]:
    file = descriptor_pb2.FileDescriptorProto(name="otelbill/weight.proto", package=_PACKAGE, syntax="proto3")
    span = file.message_type.add(name="Span")
    for name, number in (("attributes", _SPAN_ATTRIBUTES), ("events", _SPAN_EVENTS)):
        span.field.add(name=name, number=number, label=_Field.LABEL_REPEATED, type=_Field.TYPE_BYTES)
    spans = file.message_type.add(name="Slice").field.add(name="spans", number=2, label=_Field.LABEL_REPEATED)
    spans.type, spans.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.Span"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Slice"))


_Slice = _build_slice_class()


def weigh_request(body: bytes, spans_max: int) -> None:
    """Raises TooHeavy past `spans_max` spans, or so many times as many events or attributes; ValueError if broken."""
    if len(body) > WEIGHED_BYTES:
        _Scale(body, spans_max).weigh()


class _Scale:
    """Counts of one body, checked as they grow."""

    def __init__(self, body: bytes, spans_max: int) -> None:
        self._body = body
        self._spans_max = spans_max
        self._counts = {"spans": 0, "scopes and resources": 0, "span events": 0, "attributes": 0}
        self._limits = {
            "spans": spans_max,
            "scopes and resources": 2 * spans_max,
            "span events": spans_max * EVENTS_PER_SPAN,
            "attributes": spans_max * ATTRIBUTES_PER_SPAN,
        }

    def weigh(self) -> None:
        for number, start, stop in walk_fields(self._body, 0, len(self._body)):
            if number == 1:
                self._add("scopes and resources", 1)
                self._weigh_resource(start, stop)

    def _weigh_resource(self, start: int, stop: int) -> None:
        for number, at, end in walk_fields(self._body, start, stop):
            if number == 1:
                self._count_fields(at, end, {1: "attributes"})
            elif number == 2:
                self._add("scopes and resources", 1)
                self._weigh_scope(at, end)

    def _weigh_scope(self, start: int, stop: int) -> None:
        """Spans stand one after the other, so a slice of them is a message too."""
        first = last = start
        for number, at, end in walk_fields(self._body, start, stop):
            if number != 2:
                continue
            self._add("spans", 1)
            if end - at > _SLICE_BYTES:
                self._count_fields(at, end, {_SPAN_ATTRIBUTES: "attributes", _SPAN_EVENTS: "span events"})
                self._weigh_slice(first, last)
                first = end
            elif end - first > _SLICE_BYTES:
                self._weigh_slice(first, last)
                first = last
            last = end
        self._weigh_slice(first, last)

    def _weigh_slice(self, start: int, stop: int) -> None:
        if stop <= start:
            return
        parsed = cast(Any, _Slice())  # Any: the class is made at run time
        try:
            parsed.ParseFromString(self._body[start:stop])
        except DecodeError as error:
            raise ValueError("a span is no protobuf message") from error
        attributes = 0
        for span in parsed.spans:
            attributes += len(span.attributes)
            if span.events:
                self._add("span events", len(span.events))
                for event in span.events:
                    attributes += sum(number == _EVENT_ATTRIBUTES for number, _, _ in walk_fields(event, 0, len(event)))
        self._add("attributes", attributes)

    def _count_fields(self, start: int, stop: int, names: dict[int, str]) -> None:
        """One by one: of a part that is too large to be parsed for its count."""
        for number, at, end in walk_fields(self._body, start, stop):
            if number in names:
                self._add(names[number], 1)
                if names[number] == "span events":
                    self._count_fields(at, end, {_EVENT_ATTRIBUTES: "attributes"})

    def _add(self, name: str, count: int) -> None:
        self._counts[name] += count
        if self._counts[name] > self._limits[name]:
            raise TooHeavy(
                f"{self._counts[name]} or more {name} in one request, the limit is {self._limits[name]}; "
                "send smaller batches"
            )


def walk_fields(body: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of every length-delimited field between `at` and `stop`. Raises ValueError."""
    while at < stop:
        tag = body[at]
        at += 1
        if tag >= 0x80:
            tag, at = _read_varint(body, at - 1, stop)
        kind = tag & 7
        if kind == _DELIMITED:
            size = body[at] if at < stop else 0x80
            at += 1
            if size >= 0x80:
                size, at = _read_varint(body, at - 1, stop)
            end = at + size
            if end > stop:
                raise ValueError("a field ends beyond its message")
            yield tag >> 3, at, end
            at = end
        elif kind == _VARINT:
            _, at = _read_varint(body, at, stop)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        else:
            raise ValueError("a group, which OTLP does not have")


def _read_varint(body: bytes, at: int, stop: int) -> tuple[int, int]:
    number = shift = 0
    while at < stop and shift < 70:
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("a number does not end")
