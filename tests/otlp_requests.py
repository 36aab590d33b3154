"""Export requests made by hand, so that a test says every byte that matters to it. Owns no assertions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

NANOS = 1_000_000_000
MODEL = "gpt-4o-mini"


def now_nanos() -> int:
    """The machine's clock; only tests of processes that read it too may ask."""
    return time.time_ns()


def make_id(seed: str, size: int) -> bytes:
    """`size` bytes that are the same for the same seed in every run."""
    return hashlib.blake2b(seed.encode(), digest_size=size).digest()


def make_value(value: Any) -> AnyValue:
    """AnyValue of a Python value; an AnyValue is taken as it is."""
    match value:
        case AnyValue():
            return value
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=[make_value(item) for item in value]))
        case _:
            return AnyValue(string_value=str(value))


def make_chat(
    seed: str,
    customer: str | None = "acme",
    *,
    input_tokens: Any = 100,
    output_tokens: Any = 20,
    at: int | None = None,
    **attributes: Any,
) -> Span:
    """A chat call span after the GenAI conventions, with ids from `seed`; `at` is its end in Unix nanoseconds.

    An attribute of value None is left out; dots are written as `__` in keywords.
    """
    end = now_nanos() if at is None else at
    values = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": f"chatcmpl-{seed}",
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.output_tokens": output_tokens,
        "otelbill.customer.id": customer,
        **{name.replace("__", "."): value for name, value in attributes.items()},
    }
    return Span(
        trace_id=make_id(f"trace {seed}", 16),
        span_id=make_id(f"span {seed}", 8),
        name=f"chat {MODEL}",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=max(end - NANOS // 2, 0),
        end_time_unix_nano=end,
        attributes=make_attributes(values),
    )


def make_attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    """Attributes in the order given, those of value None left out."""
    return [KeyValue(key=name, value=make_value(value)) for name, value in values.items() if value is not None]


def make_request(spans: Iterable[Span], *, scope: str = "test.client") -> ExportTraceServiceRequest:
    """One request with one resource and one scope."""
    scoped = ScopeSpans(scope=InstrumentationScope(name=scope, version="1.0"), spans=spans)
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[scoped])])


def encode(*spans: Span) -> bytes:
    """The bytes of one export request."""
    return make_request(spans).SerializeToString()
