"""The agent week as OTLP requests: byte templates, patched by columns. Owns the form of its spans; sends nothing.

All spans of a kind have one length (trace_state fills up), so that spans are one matrix. Numbers are varints padded to
five bytes, which protobuf allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.week_shape import Chunk, Ints

Bytes = NDArray[np.uint8]
OPENAI = """
    gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini gpt-5 gpt-5-mini o3 o4-mini gpt-4-turbo gpt-4.1-nano gpt-5-nano o3-mini o1
    gpt-4 gpt-3.5-turbo gpt-5.1 gpt-5.2 gpt-5.4 gpt-5.4-mini gpt-5.5
""".split()
ANTHROPIC = """
    claude-haiku-4-5 claude-opus-4-0 claude-opus-4-1 claude-opus-4-5 claude-opus-4-6 claude-opus-4-7
    claude-sonnet-4-0 claude-sonnet-4-5 claude-sonnet-4-6 claude-3-opus-latest
""".split()
GOOGLE = """
    gemini-2.0-flash gemini-2.0-flash-lite gemini-2.5-flash gemini-2.5-flash-lite gemini-2.5-pro gemini-1.5-flash
    gemini-1.5-pro
""".split()
CATALOGUE = [
    *(("openai", name) for name in OPENAI),
    *(("anthropic", name) for name in ANTHROPIC),
    *(("gcp.gemini", name) for name in GOOGLE),
]
_INPUT, _CACHED, _OUTPUT = (1 << 34) + 1, (1 << 34) + 2, (1 << 34) + 3  # five bytes each, to be found again
_CALL_NANOS = 800 * 10**6
_MARKS = {"trace": b"TTTTTTTTTTTTTTTT", "span": b"SSSSSSSS", "parent": b"PPPPPPPP"}
_STARTED, _ENDED = b"AAAAAAAA", b"BBBBBBBB"


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _number(key: str, value: int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value))


def encode_varint(value: int, size: int = 0) -> bytes:
    """A varint, padded to `size` bytes when that is more."""
    out = bytearray()
    while value > 127 or len(out) + 1 < size:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


@dataclass(frozen=True, slots=True)
class Kind:
    """Spans of one kind: a row of bytes per model, and where each column stands in a row."""

    rows: Bytes
    places: dict[str, slice]

    def fill(self, model: Ints, columns: dict[str, Bytes]) -> Bytes:
        """The spans, a row each; a column is an array of (spans, bytes)."""
        body = self.rows[model]
        for name, values in columns.items():
            body[:, self.places[name]] = values
        return body


def build_kind(fixed: Span, varying: list[Span], marks: dict[str, bytes]) -> Kind:
    """Templates of `fixed` merged with each of `varying`, all of one length."""
    head = fixed.SerializeToString()
    tails = [span.SerializeToString() for span in varying]
    longest = max(map(len, tails)) + 3
    rows = []
    for tail in tails:
        room = longest - len(tail)
        pad = b"\x1a" + encode_varint(room - 3, 2) + b"p" * (room - 3)
        rows.append(_field(2, head + tail + pad))
    found = {name: rows[0].index(mark) for name, mark in marks.items()}
    places = {name: slice(at, at + len(marks[name])) for name, at in found.items()}
    return Kind(np.array([np.frombuffer(row, np.uint8) for row in rows]), places)


def to_digits(numbers: Ints, width: int) -> Bytes:
    """Decimal digits as text, with leading zeros."""
    powers = 10 ** np.arange(width - 1, -1, -1)
    return (numbers[:, None] // powers % 10 + 48).astype(np.uint8)


def to_varints(numbers: Ints) -> Bytes:
    """Five bytes each; for numbers under 2**35."""
    groups = (numbers[:, None] >> np.arange(0, 35, 7)) & 127
    groups[:, :4] |= 128
    return groups.astype(np.uint8)


def to_words(numbers: Ints) -> Bytes:
    """Eight bytes each, little-endian."""
    return np.ascontiguousarray(numbers.astype("<i8")).view(np.uint8).reshape(-1, 8)


class WeekRequests:
    """Requests from chunks of the week; ids are those of the week's numbers, salted by `seed`."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._turn, self._call, self._tool = _build_turn(), _build_call(), _build_tool()
        scope = InstrumentationScope(name="opentelemetry.instrumentation.agents")
        self._scope = _field(1, scope.SerializeToString())
        self._head = _field(1, Resource(attributes=[_text("service.name", "coding-agent")]).SerializeToString())

    def encode(self, chunk: Chunk, number: int, turns_each: int) -> Iterator[bytes]:
        """Export requests of a chunk's spans, so many turns each; `number` says which chunk, so that ids differ."""
        rng = np.random.default_rng((self._seed, number))
        turns = chunk.session.size
        traces, roots = _random(rng, turns, 16), _random(rng, turns, 8)
        ended = to_words(chunk.ended_nanos)
        started = to_words(chunk.ended_nanos - _CALL_NANOS)
        named = {"customer": to_digits(chunk.customer, 4), "run": to_digits(chunk.session, 12)}
        root = {"trace": traces, "span": roots, "started": started, "ended": ended, **named}
        calls, tools = chunk.call_turn, chunk.tool_turn
        call = {
            **_beneath(rng, calls, traces, roots, started, ended),
            "response": to_digits(chunk.call, 12),
            "input": to_varints(chunk.prompt),
            "cached": to_varints(chunk.cached),
            "output": to_varints(chunk.completion),
        }
        tool = _beneath(rng, tools, traces, roots, started, ended)
        rows = [
            self._turn.fill(np.zeros(turns, np.int64), root),
            self._call.fill(chunk.model[calls], call),
            self._tool.fill(np.zeros(tools.size, np.int64), tool),
        ]
        bounds = np.arange(0, turns + turns_each, turns_each)
        cuts = np.stack([np.searchsorted(turn, bounds) for turn in (np.arange(turns), calls, tools)], axis=1)
        for first, last in pairwise(cuts):
            yield self._join([part[start:end] for part, start, end in zip(rows, first, last, strict=True)])

    def _join(self, rows: list[Bytes]) -> bytes:
        """One request of these spans, in one copy."""
        size = len(self._scope) + sum(part.size for part in rows)
        spans = b"\x12" + encode_varint(size)
        head = b"\x0a" + encode_varint(len(self._head) + len(spans) + size) + self._head + spans + self._scope
        return b"".join([head, *(part.data for part in rows)])


def _random(rng: np.random.Generator, count: int, size: int) -> Bytes:
    return rng.integers(0, 256, (count, size), dtype=np.uint8)


def _beneath(
    rng: np.random.Generator, turn: Ints, traces: Bytes, roots: Bytes, started: Bytes, ended: Bytes
) -> dict[str, Bytes]:
    return {
        "trace": traces[turn],
        "span": _random(rng, turn.size, 8),
        "parent": roots[turn],
        "started": started[turn],
        "ended": ended[turn],
    }


def _make_span(parent: bool, attributes: list[KeyValue]) -> Span:
    return Span(
        trace_id=_MARKS["trace"],
        span_id=_MARKS["span"],
        parent_span_id=_MARKS["parent"] if parent else b"",
        start_time_unix_nano=int.from_bytes(_STARTED, "little"),
        end_time_unix_nano=int.from_bytes(_ENDED, "little"),
        attributes=attributes,
    )


def _marks(parent: bool, **more: bytes) -> dict[str, bytes]:
    ids = {name: mark for name, mark in _MARKS.items() if parent or name != "parent"}
    return {**ids, "started": _STARTED, "ended": _ENDED, **more}


def _build_turn() -> Kind:
    names = [
        _text("otelbill.step", "turn"),
        _text("otelbill.customer.id", "customer-CCCC"),
        _text("otelbill.run.id", "run-RRRRRRRRRRRR"),
    ]
    marks = _marks(False, customer=b"CCCC", run=b"R" * 12)
    return build_kind(_make_span(False, names), [Span(name="turn")], marks)


def _build_call() -> Kind:
    numbers = {"input": _INPUT, "cached": _CACHED, "output": _OUTPUT}
    fixed = [
        _text("gen_ai.operation.name", "chat"),
        _text("gen_ai.response.id", "resp-IIIIIIIIIIII"),
        _number("gen_ai.usage.input_tokens", _INPUT),
        _number("gen_ai.usage.cache_read.input_tokens", _CACHED),
        _number("gen_ai.usage.output_tokens", _OUTPUT),
    ]
    varying = []
    for provider, model in CATALOGUE:
        names = {"gen_ai.provider.name": provider, "gen_ai.request.model": model, "gen_ai.response.model": model}
        attributes = [_text(key, value) for key, value in names.items()]
        varying.append(Span(name=f"chat {model}", kind=Span.SPAN_KIND_CLIENT, attributes=attributes))
    more = {name: encode_varint(value) for name, value in numbers.items()}
    return build_kind(_make_span(True, fixed), varying, _marks(True, response=b"I" * 12, **more))


def _build_tool() -> Kind:
    fixed = [_text("gen_ai.operation.name", "execute_tool"), _text("gen_ai.tool.name", "read_file")]
    return build_kind(_make_span(True, fixed), [Span(name="execute_tool read_file")], _marks(True))
