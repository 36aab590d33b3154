"""What is sent on holds nothing that no list knows."""

from __future__ import annotations

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbill_collector.export.otlp import annotate_request
from tests.spans import build_message, chat

SECRET = b"a prompt where no schema looks"


def test_fields_of_a_later_protocol_are_not_sent_on() -> None:
    """A field that this version does not know is kept by the parser, so it has to be left out by name of nothing."""
    message = build_message([chat("a")])
    span = message.resource_spans[0].scope_spans[0].spans[0]
    span.MergeFromString(b"\xfa\x7f" + bytes([len(SECRET)]) + SECRET)
    assert SECRET in message.SerializeToString()
    sent, spans = annotate_request(message.SerializeToString(), {}, ("otelbill",))
    assert spans == 1
    assert SECRET not in sent.SerializeToString()
    assert len(sent.resource_spans[0].scope_spans[0].spans[0].attributes) > 5


def test_scope_names_are_bounded_like_every_text() -> None:
    """Scope and span names are set by users and may hold anything."""
    message = build_message([chat("a")])
    message.resource_spans[0].scope_spans[0].scope.name = "somebody@example.com"
    sent, _ = annotate_request(message.SerializeToString(), {}, ("otelbill",))
    assert isinstance(sent, ExportTraceServiceRequest)
    assert b"example.com" not in sent.SerializeToString()
