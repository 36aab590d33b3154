"""From a span to a candidate: from memory for spans off the wire, by the rules for others. Owns that choice only."""

from __future__ import annotations

from otelbill_collector.decode.recall import select_wire_span
from otelbill_collector.decode.rules import read_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.wire import WireSpan
from otelbill_collector.domain.usage import Candidate


def select_span(span: SpanView) -> Candidate | None:
    """The candidate this span is, or None when it has nothing to do with billing (a plain HTTP span)."""
    return select_wire_span(span) if type(span) is WireSpan else read_span(span)
