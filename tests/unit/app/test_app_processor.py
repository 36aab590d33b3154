"""Every span below a frame says who pays, whoever made it, and the processor never breaks the host."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

import otelbill
from otelbill import guard
from otelbill.processor import MeteringSpanProcessor


class Ended(SpanProcessor):
    """Keeps ended spans."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Keep it."""
        self.spans.append(span)


def test_spans_of_others_below_a_frame_carry_it() -> None:
    """A span that knows nothing of otelbill is attributed, and one outside every frame stays as it was."""
    tracer, ended, _ = _make_tracer()
    with otelbill.customer("acme", project="p"):
        tracer.start_span("inside").end()
    tracer.start_span("outside").end()
    inside, outside = (_attributes_of(span) for span in ended.spans)
    assert inside == {"otelbill.customer.id": "acme", "otelbill.project.id": "p", "otelbill.schema.version": "1"}
    assert outside == {}


def test_a_child_inherits_from_its_parent_where_the_context_is_gone() -> None:
    """Callbacks that pass a parent explicitly, in a context without frame, still bill the parent's customer."""
    tracer, ended, processor = _make_tracer()
    with otelbill.customer("acme"):
        parent = tracer.start_span("parent")
    assert processor.live_spans == 1
    child = tracer.start_span("child", trace.set_span_in_context(parent, Context()))
    tracer.start_span("grandchild", trace.set_span_in_context(child, Context())).end()
    child.end()
    parent.end()
    assert {_attributes_of(span)["otelbill.customer.id"] for span in ended.spans} == {"acme"}
    assert processor.live_spans == 0


def test_a_customer_named_on_the_span_itself_stays() -> None:
    """An explicit customer is more exact than the frame's; the frame's project and run are not mixed in."""
    tracer, ended, _ = _make_tracer()
    with otelbill.customer("acme", project="p", run="r"):
        tracer.start_span("x", attributes={"otelbill.customer.id": "globex"}).end()
    assert _attributes_of(ended.spans[0]) == {"otelbill.customer.id": "globex", "otelbill.schema.version": "1"}


def test_open_spans_are_remembered_up_to_a_bound() -> None:
    """Spans that are never ended do not fill the memory; what is forgotten is counted."""
    tracer, _, processor = _make_tracer(live_spans_max=2)
    with otelbill.customer("acme"):
        spans = [tracer.start_span(str(number)) for number in range(4)]
    assert processor.live_spans == 2
    for span in spans:
        span.end()
    assert processor.live_spans == 0
    assert guard.list_faults() == {"live_spans_forgotten": 2}


def test_our_faults_stay_in_the_processor(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """OpenTelemetry does not guard processors; a bug of ours is caught, counted and logged once, without its text."""

    def fail(_context: object) -> None:
        raise RuntimeError("text of the user")

    monkeypatch.setattr("otelbill.processor.find_frame", fail)
    tracer, ended, _ = _make_tracer()
    for _ in range(3):
        tracer.start_span("x").end()
    assert len(ended.spans) == 3
    assert guard.list_faults() == {"processor.on_start.RuntimeError": 3}
    assert len(caplog.records) == 1
    assert "text of the user" not in caplog.text


def _make_tracer(live_spans_max: int = 100) -> tuple[trace.Tracer, Ended, MeteringSpanProcessor]:
    provider = TracerProvider(shutdown_on_exit=False)
    processor, ended = MeteringSpanProcessor(live_spans_max=live_spans_max), Ended()
    provider.add_span_processor(processor)
    provider.add_span_processor(ended)
    return provider.get_tracer("somebody.else"), ended, processor


def _attributes_of(span: ReadableSpan) -> Mapping[str, object]:
    return dict(span.attributes or {})
