"""One export request cut into parts that hold some of its spans. Owns the cut and nothing of what a span means.

Spans stay the bytes they were: in the schema below a span is `bytes`, and what is not named there is carried along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "otelbill.cut"
# message -> (repeated field, number, message type or None for bytes)
_SCHEMA = (
    ("ScopeSpans", "spans", 2, None),
    ("ResourceSpans", "scope_spans", 2, "ScopeSpans"),
    ("Request", "resource_spans", 1, "ResourceSpans"),
)


def _build_request_class() -> type[Message]:
    file = descriptor_pb2.FileDescriptorProto(name="otelbill/cut.proto", package=_PACKAGE, syntax="proto3")
    for name, field_name, number, target in _SCHEMA:
        message = file.message_type.add(name=name)
        field = message.field.add(name=field_name, number=number, label=_Field.LABEL_REPEATED, type=_Field.TYPE_BYTES)
        if target is not None:
            field.type = _Field.TYPE_MESSAGE
            field.type_name = f".{_PACKAGE}.{target}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Request"))


_Request = _build_request_class()


@dataclass(frozen=True, slots=True)
class CutRequest:
    """A parsed request and the place of each span in it: (resource, scope, index)."""

    parsed: Any  # Any: the class is made at run time from the schema above
    places: tuple[tuple[int, int, int], ...]

    def build_part(self, start: int, stop: int) -> bytes:
        """A request with spans `start` to `stop` (excluded) in wire order, under their own resources and scopes."""
        part = cast(Any, _Request())
        last: tuple[int, int] | None = None
        for resource, scope, index in self.places[start:stop]:
            given = self.parsed.resource_spans[resource].scope_spans[scope]
            if last is None or last[0] != resource:
                part.resource_spans.append(_strip(self.parsed.resource_spans[resource], "scope_spans"))
            if last != (resource, scope):
                part.resource_spans[-1].scope_spans.append(_strip(given, "spans"))
            part.resource_spans[-1].scope_spans[-1].spans.append(given.spans[index])
            last = (resource, scope)
        return cast(bytes, part.SerializeToString())


def cut_request(body: bytes) -> CutRequest | None:
    """The cut of a request; None where `body` is not an export request."""
    parsed = cast(Any, _Request())
    try:
        parsed.ParseFromString(body)
    except DecodeError:
        return None
    places = [
        (resource, scope, index)
        for resource, resource_spans in enumerate(parsed.resource_spans)
        for scope, scope_spans in enumerate(resource_spans.scope_spans)
        for index in range(len(scope_spans.spans))
    ]
    return CutRequest(parsed, tuple(places))


def _strip(message: Any, field: str) -> Any:
    """A copy without the named field: what the schema does not know is still in it."""
    children: Sequence[Any] = getattr(message, field)
    if not children:
        return message
    bare = type(message)()
    kept = message.SerializeToString()
    bare.ParseFromString(kept)
    bare.ClearField(field)
    return bare
