"""Owns the kit for tests of metered code: its spans, and who pays for them. Does not own fakes of the sidecar."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otelbill import provider
from otelbill.frame import NO_FRAME, Frame, find_frame
from otelbill.processor import MeteringSpanProcessor

_lock = threading.Lock()
_collectors: dict[int, SpanCollector] = {}


class SpanCollector(SpanProcessor):
    """Keeps the finished spans of every `capture_spans()` block that is open."""

    def __init__(self) -> None:
        self.blocks: list[list[ReadableSpan]] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Keep `span` for every open block."""
        for spans in self.blocks:
            spans.append(span)


@contextmanager
def capture_spans() -> Iterator[list[ReadableSpan]]:
    """The spans that end inside the block, in the order in which they end, with their otelbill attributes.

    Joins the process's tracer provider, or makes one; nothing is sent unless `otelbill.configure()` was called.
    """
    collector = _require_collector(provider.require_provider(None))
    spans: list[ReadableSpan] = []
    collector.blocks = [*collector.blocks, spans]
    try:
        yield spans
    finally:
        collector.blocks = [block for block in collector.blocks if block is not spans]


def frame() -> Frame:
    """The frame in force; one of nothing but `None` outside every block."""
    return find_frame() or NO_FRAME


def _require_collector(present: TracerProvider) -> SpanCollector:
    """The collector of `present`. A processor cannot be taken out of a provider again, so there is one for good."""
    with _lock:
        collector = _collectors.get(id(present))
        if collector is None:
            collector = _collectors[id(present)] = SpanCollector()
            if not provider.status().is_configured:
                present.add_span_processor(MeteringSpanProcessor())
            present.add_span_processor(collector)
        return collector
