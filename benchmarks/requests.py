"""OTLP requests for load: encoded once, then made new in place. Owns the form of the load; sends nothing.

Ids, response ids, token counts and times of every span are overwritten with fresh ones, so that no request repeats
another and no two calls look alike by chance more often than in real traffic.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

Bytes = NDArray[np.uint8]

MODELS = (
    "gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini gpt-5 gpt-5-mini o3 o4-mini gpt-4-turbo gpt-4.1-nano gpt-5-nano o3-mini"
).split()
CUSTOMERS, STEPS = 5_000, 20
_ZIPF = 1.05
_JITTER_NANOS = 5 * 10**9  # spans end up to so long before they are sent
_CALL_NANOS = 800 * 10**6
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_ID_LENGTH = 24  # hex digits of a response id that change
_INPUT, _OUTPUT = 20_000, 1_000  # three and two bytes as varints; their low digits are overwritten


@dataclass(frozen=True, slots=True)
class Load:
    """What a request holds: spans, how many share a trace, and the share of plain HTTP spans (each third or none)."""

    spans: int = 512
    trace_spans: int = 1
    http_third: bool = False


class Template:
    """One encoded request whose spans are made new by `renew`."""

    def __init__(self, load: Load, seed: int) -> None:
        rng = random.Random(seed)
        self._rng = np.random.default_rng()  # never the same ids again: they would be repeats
        self._trace_of = np.arange(load.spans) // load.trace_spans
        message, marks = _build_message(load, rng)
        body = message.SerializeToString()
        self._body = np.frombuffer(body, dtype=np.uint8).copy()
        self._places = {name: _find_places(body, found) for name, found in marks.items()}

    @property
    def size_bytes(self) -> int:
        """Length of the request, which never changes."""
        return self._body.size

    def renew(self, now_nanos: int) -> memoryview:
        """Fresh spans that ended within the last seconds; the view is valid until the next call."""
        body, rng, places = self._body, self._rng, self._places
        traces = rng.integers(0, 256, (int(self._trace_of[-1]) + 1, 16), dtype=np.uint8)
        body[places["trace"]] = traces[self._trace_of]
        body[places["span"]] = rng.integers(0, 256, places["span"].shape, dtype=np.uint8)
        body[places["response"]] = _HEX[rng.integers(0, 16, places["response"].shape, dtype=np.uint8)]
        body[places["input"]] = rng.integers(128, 256, places["input"].shape, dtype=np.uint8)
        body[places["output"]] = rng.integers(128, 256, places["output"].shape, dtype=np.uint8)
        body[places["output"] + 1] = rng.integers(1, 16, places["output"].shape, dtype=np.uint8)
        ended = now_nanos - rng.integers(0, _JITTER_NANOS, len(self._trace_of))
        body[places["ended"]] = ended.astype("<u8").view(np.uint8).reshape(-1, 8)
        body[places["started"]] = (ended - _CALL_NANOS).astype("<u8").view(np.uint8).reshape(-1, 8)
        return body.data


def _find_places(body: bytes, marks: list[tuple[bytes, int, int]]) -> NDArray[np.int64]:
    """Indexes of the bytes to overwrite, a row per mark; (mark, offset within it, length). A mark stands once."""
    rows = []
    position = 0
    for mark, offset, length in marks:
        position = body.index(mark, position)
        rows.append(np.arange(position + offset, position + offset + length))
        position += len(mark)
    return np.array(rows, dtype=np.int64).reshape(len(rows), marks[0][2] if marks else 0)


Marks = dict[str, list[tuple[bytes, int, int]]]


def _build_message(load: Load, rng: random.Random) -> tuple[ExportTraceServiceRequest, Marks]:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.append(_text("service.name", "agents"))
    genai = resource.scope_spans.add()
    genai.scope.name, genai.scope.version = "opentelemetry.instrumentation.openai_v2", "2.4b0"
    plain = resource.scope_spans.add()
    plain.scope.name, plain.scope.version = "opentelemetry.instrumentation.httpx", "0.50b0"
    marks: Marks = {name: [] for name in ("trace", "span", "response", "input", "output", "ended", "started")}
    http = load.spans // 3 if load.http_third else 0
    for _ in range(load.spans - http):
        _add_call(genai, rng, marks)
    for _ in range(http):
        _add_http(plain, rng, marks)
    if not http:
        del resource.scope_spans[1]
    return request, marks


def _add_span(into: ScopeSpans, rng: random.Random, marks: Marks, name: str) -> Span:
    trace, span_id = rng.randbytes(16), rng.randbytes(8)
    started, ended = rng.randbytes(8), rng.randbytes(8)
    marks["trace"].append((trace, 0, 16))
    marks["span"].append((span_id, 0, 8))
    marks["started"].append((started, 0, 8))
    marks["ended"].append((ended, 0, 8))
    return into.spans.add(
        trace_id=trace,
        span_id=span_id,
        parent_span_id=rng.randbytes(8),
        name=name,
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=int.from_bytes(started, "little"),
        end_time_unix_nano=int.from_bytes(ended, "little"),
    )


def _add_call(into: ScopeSpans, rng: random.Random, marks: Marks) -> None:
    model = rng.choice(MODELS)
    response = f"chatcmpl-{rng.randbytes(_ID_LENGTH // 2).hex()}"
    customer = min(int(rng.paretovariate(_ZIPF)), CUSTOMERS)
    marks["response"].append((response.encode(), len("chatcmpl-"), _ID_LENGTH))
    spent = [_number("gen_ai.usage.input_tokens", _INPUT), _number("gen_ai.usage.output_tokens", _OUTPUT)]
    for name, pair, digits in (("input", spent[0], 3), ("output", spent[1], 2)):
        encoded = pair.SerializeToString()
        marks[name].append((encoded, len(encoded) - digits, digits - 1))  # the last digit keeps the varint's length
    span = _add_span(into, rng, marks, f"chat {model}")
    span.attributes.extend(
        [
            _text("gen_ai.operation.name", "chat"),
            _text("gen_ai.provider.name", "openai"),
            _text("gen_ai.request.model", model),
            _text("gen_ai.response.model", model),
            _text("gen_ai.response.id", response),
            *spent,
            _number("gen_ai.usage.cache_read.input_tokens", 1_024),
            _text("server.address", "api.openai.com"),
            _number("server.port", 443),
            _text("otelbill.customer.id", f"customer-{customer:04d}"),
            _text("otelbill.project.id", f"project-{customer % 7}"),
            _text("otelbill.run.id", f"run-{rng.randbytes(8).hex()}"),
            _text("otelbill.step", f"step-{rng.randrange(STEPS):02d}"),
        ]
    )


def _add_http(into: ScopeSpans, rng: random.Random, marks: Marks) -> None:
    span = _add_span(into, rng, marks, "POST")
    span.attributes.extend(
        [
            _text("http.request.method", "POST"),
            _text("url.full", f"https://api.openai.com/v1/chat/completions?{rng.randbytes(4).hex()}"),
            _text("server.address", "api.openai.com"),
            _number("server.port", 443),
            _number("http.response.status_code", 200),
        ]
    )


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _number(key: str, value: int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value))
