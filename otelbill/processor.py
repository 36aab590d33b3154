"""Owns what is put on every span when it starts: the frame in force, or that of its parent.
Does not own delivery (`shipper`) nor what may leave the process (`content`).
"""

from __future__ import annotations

from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otelbill import attributes
from otelbill.frame import Frame, find_frame
from otelbill.guard import Guard, count
from otelbill.tracer import SCOPE_NAME

LIVE_SPANS_MAX: Final = 65_536
_WHO_PAYS: Final = frozenset({attributes.CUSTOMER_ID, attributes.PROJECT_ID, attributes.RUN_ID})

# OpenTelemetry calls processors unguarded: an exception of ours would replace the host's own.
_START = Guard("processor.on_start")
_END = Guard("processor.on_end")


class MeteringSpanProcessor(SpanProcessor):
    """Puts customer, project, run, step and attempt on every span below a frame, auto-instrumented ones included.

    A span started with an explicit parent in a context without a frame inherits from that parent, as long as the
    parent is still open. An attribute that the span was created with is not overwritten.
    """

    def __init__(self, *, live_spans_max: int = LIVE_SPANS_MAX) -> None:
        self._live: dict[int, Frame] = {}
        self._live_spans_max = live_spans_max

    @property
    def live_spans(self) -> int:
        """Open spans with a frame. One that only grows means spans that are never ended, and so never billed."""
        return len(self._live)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Put the frame on `span`."""
        with _START:
            frame = find_frame(parent_context) or self._find_parents_frame(span)
            if frame is None:
                return
            self._remember(span, frame)
            scope = span.instrumentation_scope
            if scope is None or scope.name != SCOPE_NAME:  # our own spans are made with their frame on them
                span.set_attributes(_select_missing(span, frame))

    def on_end(self, span: ReadableSpan) -> None:
        """Forget `span`."""
        with _END:
            if span.context is not None:
                self._live.pop(span.context.span_id, None)

    def _find_parents_frame(self, span: Span) -> Frame | None:
        return None if span.parent is None else self._live.get(span.parent.span_id)

    def _remember(self, span: Span, frame: Frame) -> None:
        if len(self._live) >= self._live_spans_max:
            self._live.pop(next(iter(self._live)), None)
            count("live_spans_forgotten")
        self._live[span.get_span_context().span_id] = frame


def _select_missing(span: Span, frame: Frame) -> dict[str, str | int]:
    """The frame's attributes; without who pays, where the span's maker has named a customer himself."""
    given = span.attributes
    if not given or attributes.CUSTOMER_ID not in given:
        return frame.span_attributes
    return {name: value for name, value in frame.span_attributes.items() if name not in _WHO_PAYS}
