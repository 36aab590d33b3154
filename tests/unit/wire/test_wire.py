"""The trimmed decoder gives what the official schema gives, from protobuf and from JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbill_collector.decode.otlp_json import convert_json
from otelbill_collector.decode.spans import SpanView, Value
from otelbill_collector.decode.wire import MalformedRequest, TooManySpans, decode_request, decode_value
from tests.spans import TestSpan, build_any, build_message, build_request

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=300),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple),
)


@given(scalars)
def test_a_value_is_read_as_the_official_schema_wrote_it(value: Value) -> None:
    """Hand-decoded scalars equal what was encoded, whatever the length or sign."""
    assert decode_value(build_any(value).SerializeToString()) == value


@given(st.binary(max_size=64))
def test_no_bytes_make_the_value_decoder_fail(raw: bytes) -> None:
    """A broken AnyValue is None or a value, never an exception: one attribute must not cost a batch."""
    decode_value(raw)


@pytest.mark.parametrize("tag", range(256))
@pytest.mark.parametrize("rest", [b"", b"\x80", b"\xff" * 12, b"\x05ab"])
def test_no_cut_value_makes_the_value_decoder_fail(tag: int, rest: bytes) -> None:
    """The same for every first byte, with its rest cut off at each place that the hand-written decoder looks at."""
    decode_value(bytes([tag]) + rest)


@pytest.mark.parametrize(("what", "per_span"), [("spans", 0), ("span events", 1)])
def test_too_many_of_anything_is_refused_before_a_view_is_made(what: str, per_span: int) -> None:
    """Two bytes on the wire must not become a kilobyte of memory before they are counted."""
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for _ in range(11):
        spans.add()
    for _ in range(101 * per_span):
        spans[0].events.add()
    limit = 10 + per_span
    assert decode_request(build_message([TestSpan("a")]).SerializeToString(), limit)
    if per_span:
        assert len(decode_request(message.SerializeToString(), limit)) == 11
        for _ in range(10):
            spans[0].events.add()
    with pytest.raises(TooManySpans, match=f" {what} in one request"):
        decode_request(message.SerializeToString(), limit)


@given(st.binary(max_size=200))
def test_bytes_are_a_request_or_malformed(raw: bytes) -> None:
    """The trimmed schema takes no body that the official one refuses."""
    try:
        spans = decode_request(raw)
    except MalformedRequest:
        return
    official = ExportTraceServiceRequest.FromString(raw)
    assert len(spans) == sum(len(s.spans) for r in official.resource_spans for s in r.scope_spans)


def test_the_last_of_two_equal_keys_wins() -> None:
    """Duplicate attribute keys are resolved the way OTLP's maps are."""
    message = build_message([TestSpan("a", {"k": 1})])
    message.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="k").value.int_value = 2
    (span,) = decode_request(message.SerializeToString())
    assert span.attributes["k"] == 2
    assert "missing" not in span.attributes
    assert span.attributes.get("missing") is None
    with pytest.raises(KeyError):
        span.attributes["missing"]


def test_asking_for_a_missing_key_does_not_create_it() -> None:
    """A protobuf map adds a key on read access; a view must not change what it shows."""
    (span,) = decode_request(build_request([TestSpan("a", {"k": 1})]))
    span.attributes.get("other")
    assert list(span.attributes) == ["k"]


def test_json_and_protobuf_give_the_same_spans() -> None:
    """Hex ids, numbers as text and enums by number: one decoder behind both encodings."""
    spans = [TestSpan("a", {"n": 5, "s": "x", "d": 1.5, "b": True, "l": ("p", "q")}, events=(("e", {"k": 7}),))]
    message = build_message(spans)
    assert _flatten(decode_request(convert_json(_to_otlp_json(message)))) == _flatten(
        decode_request(message.SerializeToString())
    )


def test_an_integer_past_64_bits_becomes_text_and_its_neighbours_stay() -> None:
    """One impossible number in JSON is that span's problem alone."""
    document = json.loads(_to_otlp_json(build_message([TestSpan("a", {"n": 5}), TestSpan("b", {"n": 6})])))
    scopes = document["resourceSpans"][0]["scopeSpans"]
    scopes[0]["spans"][0]["attributes"][0]["value"] = {"intValue": str(2**63)}
    first, second = decode_request(convert_json(json.dumps(document).encode()))
    assert first.attributes["n"] == str(2**63)
    assert second.attributes["n"] == 6


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"resourceSpans": 5}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": 5}]}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": "x"}]}]}]}',
    ],
)
def test_json_that_is_not_otlp_is_malformed(body: bytes) -> None:
    """A wrong shape is told to the sender; nothing is guessed."""
    with pytest.raises(MalformedRequest):
        convert_json(body)


def test_the_recorded_corpus_decodes_alike_in_both_encodings(shared_data: Path) -> None:
    """227 real requests of 60 emitters: protobuf, JSON and the official schema agree on every attribute."""
    cases = sorted((shared_data / "spans").glob("*/*/spans.pb"))
    assert cases
    for case in cases:
        views = decode_request(case.read_bytes())
        assert _flatten(views) == _flatten(decode_request(convert_json(case.with_suffix(".json").read_bytes())))
        official = ExportTraceServiceRequest.FromString(case.read_bytes())
        spans = [span for r in official.resource_spans for s in r.scope_spans for span in s.spans]
        for view, span in zip(views, spans, strict=True):
            assert (view.trace_id, view.span_id, view.ended_nanos) == (
                span.trace_id,
                span.span_id,
                span.end_time_unix_nano,
            )
            assert set(view.attributes) == {attribute.key for attribute in span.attributes}


def _flatten(spans: list[SpanView]) -> list[object]:
    return [
        (
            span.trace_id,
            span.span_id,
            span.parent_span_id,
            span.name,
            span.kind,
            span.started_nanos,
            span.ended_nanos,
            span.status_code,
            span.scope_name,
            span.scope_version,
            {key: _comparable(span.attributes[key]) for key in span.attributes},
            {key: _comparable(span.resource[key]) for key in span.resource},
            [
                (event.name, {key: _comparable(event.attributes[key]) for key in event.attributes})
                for event in span.events
            ],
        )
        for span in spans
    ]


def _comparable(value: Value) -> object:
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def _to_otlp_json(message: ExportTraceServiceRequest) -> bytes:
    """OTLP/JSON differs from protobuf's own JSON in its ids: hex instead of base64."""
    document = MessageToDict(message, use_integers_for_enums=True)
    for resource_spans, original in zip(document["resourceSpans"], message.resource_spans, strict=True):
        for scope_spans, scope in zip(resource_spans["scopeSpans"], original.scope_spans, strict=True):
            for span, source in zip(scope_spans["spans"], scope.spans, strict=True):
                span["traceId"], span["spanId"] = source.trace_id.hex(), source.span_id.hex()
                if source.parent_span_id:
                    span["parentSpanId"] = source.parent_span_id.hex()
    return json.dumps(document).encode()
