"""OTLP requests for load: encoded once, then made new in place. Owns the form of the load; sends nothing.

Ids, response ids, token counts and times of every span are overwritten with fresh ones, so that no request repeats
another and no two calls look alike by chance more often than in real traffic.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

Places = NDArray[np.int64]
Marks = dict[str, list[tuple[bytes, int]]]  # by column: bytes that stand once in a request, and where in them it begins

MODELS = (
    "gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini gpt-5 gpt-5-mini o3 o4-mini gpt-4-turbo gpt-4.1-nano gpt-5-nano o3-mini"
).split()
CUSTOMERS, STEPS = 5_000, 20
_ZIPF = 1.05
_JITTER_NANOS = 5 * 10**9  # spans end up to so long before they are sent
_CALL_NANOS = 800 * 10**6
_WORD_MAX = 2**64 - 1
_RENEWED_TOGETHER = 1_024  # spans, about
_ID_LENGTH = 24  # letters of a response id that change
_INPUT, _OUTPUT = 20_000, 1_000  # three and two bytes as varints, overwritten but for the last of three
_NOT_LAST = np.uint16(0x8080)  # two bytes of a varint after which more come
_TWO_BYTES, _AT_LEAST = np.uint16(0x0F7F), np.uint16(0x0180)  # a varint of two bytes, 128 to 2,047
_LOW_FOUR, _LETTER = np.uint64(0x0F0F_0F0F_0F0F_0F0F), np.uint64(0x4141_4141_4141_4141)  # "A" to "P"


@dataclass(frozen=True, slots=True)
class Load:
    """What a request holds: spans, how many share a trace, and the share of plain HTTP spans (each third or none)."""

    spans: int = 512
    trace_spans: int = 1
    http_third: bool = False

    @property
    def billable(self) -> int:
        """Spans of a request that are calls."""
        return self.spans - (self.spans // 3 if self.http_third else 0)


class Template:
    """Encoded requests whose spans are made new by `renew`: `requests` small ones at once, for what a call costs."""

    def __init__(self, load: Load, seed: int, requests: int = 1) -> None:
        rng = random.Random(seed)
        self._rng = np.random.Generator(np.random.SFC64())  # from the system: the same ids again would be repeats
        messages = [_build_message(load, rng) for _ in range(requests)]
        bodies = [message.SerializeToString() for message, _ in messages]
        self._body = np.frombuffer(b"".join(bodies), dtype=np.uint8).copy()
        ends = np.cumsum([len(body) for body in bodies]).tolist()
        self._views = [self._body.data[end - len(body) : end] for body, end in zip(bodies, ends, strict=True)]
        # Words at any byte, so that a column of the spans is one assignment.
        self._words = np.ndarray((self._body.size - 7,), "<u8", self._body.data, 0, (1,))
        self._pairs = np.ndarray((self._body.size - 1,), "<u2", self._body.data, 0, (1,))
        places = [
            _find_places(body, marks, end - len(body))
            for body, (_, marks), end in zip(bodies, messages, ends, strict=True)
        ]
        self._places = {name: np.concatenate([found[name] for found in places]) for name in places[0]}
        self._places["response"] = (self._places["response"][:, None] + np.arange(0, _ID_LENGTH, 8)).ravel()
        traces = np.arange(load.spans) // load.trace_spans
        self._traces = requests * (int(traces[-1]) + 1)
        self._trace_of = (np.arange(requests)[:, None] * (int(traces[-1]) + 1) + traces).ravel()

    @property
    def size_bytes(self) -> int:
        """Length of the requests together, which never changes."""
        return self._body.size

    def renew(self, now_nanos: int) -> list[memoryview]:
        """Requests of fresh spans that ended within the last seconds; the views are valid until the next call."""
        words, pairs, places = self._words, self._pairs, self._places
        spans, calls = self._trace_of.size, places["input"].size
        drawn = _Drawn(self._rng, 2 * self._traces + 2 * spans + (_ID_LENGTH // 8 + 1) * calls)
        for start in (0, 8):
            words[places["trace"] + start] = drawn.take(self._traces)[self._trace_of]
        words[places["span"]] = drawn.take(spans)
        ended = np.uint64(now_nanos) - drawn.take(spans) % np.uint64(_JITTER_NANOS)
        words[places["ended"]] = ended
        words[places["started"]] = ended - np.uint64(_CALL_NANOS)
        words[places["response"]] = (drawn.take(_ID_LENGTH // 8 * calls) & _LOW_FOUR) + _LETTER
        tokens = drawn.take(calls).view("<u2")
        pairs[places["input"]] = tokens[:calls] | _NOT_LAST
        pairs[places["output"]] = tokens[calls : 2 * calls] & _TWO_BYTES | _AT_LEAST
        return self._views


class _Drawn:
    """Random words, drawn in one go and dealt out."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self._words = rng.integers(0, _WORD_MAX, count, dtype=np.uint64, endpoint=True)
        self._next = 0

    def take(self, count: int) -> NDArray[np.uint64]:
        """The next ones."""
        self._next += count
        return self._words[self._next - count : self._next]


def _find_places(body: bytes, marks: Marks, base: int) -> dict[str, Places]:
    """Where each column's bytes begin, `base` added, a place per mark. A mark is (bytes, offset) and stands once."""
    found = {}
    for name, listed in marks.items():
        rows, position = [], 0
        for mark, offset in listed:
            position = body.index(mark, position)
            rows.append(base + position + offset)
            position += len(mark)
        found[name] = np.array(rows, dtype=np.int64)
    return found


class Pool:
    """Fresh requests without end, for so many connections: each has its own templates and uses them in turn.

    What `take` gives is valid until the connection's next, so nothing is copied while it is sent.
    """

    def __init__(
        self, load: Load, connections: int, templates: int = 64, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.load = load
        self._clock = clock
        together = max(1, _RENEWED_TOGETHER // load.spans)
        each = max(1, templates // connections)
        made = [Template(load, seed, together) for seed in range(each * connections)]
        self._templates = [cycle(made[first::connections]) for first in range(connections)]
        self._ready: list[Iterator[memoryview]] = [iter(()) for _ in range(connections)]

    def take(self, connection: int) -> memoryview:
        """The connection's next request."""
        for body in self._ready[connection]:
            return body
        self._ready[connection] = ready = iter(next(self._templates[connection]).renew(self._clock()))
        return next(ready)


def _build_message(load: Load, rng: random.Random) -> tuple[ExportTraceServiceRequest, Marks]:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.append(_text("service.name", "agents"))
    genai = resource.scope_spans.add()
    genai.scope.name, genai.scope.version = "opentelemetry.instrumentation.openai_v2", "2.4b0"
    plain = resource.scope_spans.add()
    plain.scope.name, plain.scope.version = "opentelemetry.instrumentation.httpx", "0.50b0"
    marks: Marks = {name: [] for name in ("trace", "span", "response", "input", "output", "ended", "started")}
    http = load.spans - load.billable
    for _ in range(load.billable):
        _add_call(genai, rng, marks)
    for _ in range(http):
        _add_http(plain, rng, marks)
    if not http:
        del resource.scope_spans[1]
    return request, marks


def _add_span(into: ScopeSpans, rng: random.Random, marks: Marks, name: str) -> Span:
    trace, span_id = rng.randbytes(16), rng.randbytes(8)
    started, ended = rng.randbytes(8), rng.randbytes(8)
    marks["trace"].append((trace, 0))
    marks["span"].append((span_id, 0))
    marks["started"].append((started, 0))
    marks["ended"].append((ended, 0))
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
    marks["response"].append((response.encode(), len("chatcmpl-")))
    spent = [_number("gen_ai.usage.input_tokens", _INPUT), _number("gen_ai.usage.output_tokens", _OUTPUT)]
    for name, pair, digits in (("input", spent[0], 3), ("output", spent[1], 2)):
        encoded = pair.SerializeToString()
        marks[name].append((encoded, len(encoded) - digits))  # of three digits the last is kept, and so the length
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
