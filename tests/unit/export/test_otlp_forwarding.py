"""Every span goes on to the tracing backend, with its cost and without content; what cannot go is counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.export.otlp import ForwardSettings, OtlpForwarder, SpanKey, annotate_request
from otelbill_collector.pipeline import Request, carry_batch
from tests.books import NOW, TestBooks
from tests.spans import TestSpan, build_request, chat, span_id, trace_id

ALL_NAMES = ("otelbill", "gen_ai", "openinference", "langfuse")
SECRET = "CANARY-PROMPT"


class Backend:
    """A tracing backend that answers from a script and keeps what it took."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.taken: list[ExportTraceServiceRequest] = []
        self.changed = threading.Condition()
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with backend.changed:
                    status = backend.script.pop(0) if backend.script else 200
                    if status == 200:
                        backend.taken.append(ExportTraceServiceRequest.FromString(body))
                    backend.changed.notify_all()
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep the test output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """URL that takes traces."""
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def wait_for(self, count: int) -> None:
        """Until so many requests were taken."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= count, 20)


@pytest.fixture
def backend() -> Iterator[Backend]:
    opened = Backend()
    yield opened
    opened.server.shutdown()
    opened.server.server_close()


def _book(folder: Path, *spans: TestSpan) -> tuple[bytes, dict[SpanKey, UsageRecord]]:
    books = TestBooks(folder)
    body = build_request(spans)
    carried = carry_batch([Request(body, NOW)], books.stages, NOW)
    books.close()
    (members,) = carried.list_members()
    return body, {
        (item.candidate.trace_id, item.candidate.span_id): item.booked for item in members if item.booked is not None
    }


def _attributes(request: ExportTraceServiceRequest, name: str) -> dict[str, object]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                if span.span_id == span_id(name):
                    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}
    raise AssertionError(name)


def test_a_booked_span_carries_its_amounts_under_every_name_asked_for(tmp_path: Path) -> None:
    """otelbill's own names hold exact text; other tools' names hold the doubles they read."""
    body, booked = _book(tmp_path, chat("a"))
    request, count = annotate_request(body, booked, ALL_NAMES)
    found = _attributes(request, "a")
    assert count == 1
    assert (found["otelbill.cost"], found["otelbill.charge"], found["otelbill.currency"]) == (
        "0.000027",
        "0.000027",
        "USD",
    )
    assert found["otelbill.price.version"]
    assert found["gen_ai.usage.cost"] == found["llm.cost.total"] == 0.000027
    assert orjson.loads(str(found["langfuse.observation.cost_details"])) == {"total": 0.000027}


def test_names_that_were_not_asked_for_stay_away(tmp_path: Path) -> None:
    """A backend that computes costs itself must not meet ours under its own names by accident."""
    body, booked = _book(tmp_path, chat("a"))
    request, _ = annotate_request(body, booked, ("otelbill",))
    assert not {"gen_ai.usage.cost", "llm.cost.total"} & set(_attributes(request, "a"))


def test_what_is_not_priced_shows_no_cost(tmp_path: Path) -> None:
    """Unknown is not zero, in a trace as well; spans that do not bill show nothing."""
    body, booked = _book(tmp_path, chat("a", model="model-nobody-knows"), TestSpan("web", {"http.method": "GET"}))
    request, count = annotate_request(body, booked, ALL_NAMES)
    assert count == 2
    assert "llm.cost.total" not in _attributes(request, "a")
    assert "otelbill.cost" not in _attributes(request, "a")
    assert _attributes(request, "web") == {"http.method": "GET"}


def test_content_does_not_go_on(tmp_path: Path) -> None:
    """Prompts, events, status texts, unknown attributes and resource labels stay behind; ids and parents stay right."""
    body, booked = _book(
        tmp_path,
        chat(
            "a",
            parent="root",
            attributes={"gen_ai.input.messages": SECRET, "input.value": SECRET, "my.note": SECRET},
            events=(("gen_ai.choice", {"content": SECRET}),),
        ),
    )
    message = ExportTraceServiceRequest.FromString(body)
    message.resource_spans[0].scope_spans[0].spans[0].status.message = SECRET
    message.resource_spans[0].resource.attributes.add(key="team.note").value.string_value = SECRET
    request, _ = annotate_request(message.SerializeToString(), booked, ALL_NAMES)
    assert SECRET.encode() not in request.SerializeToString()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    assert (span.trace_id, span.parent_span_id) == (trace_id("a"), span_id("root"))


def test_a_backend_that_is_away_gets_its_spans_later(backend: Backend, tmp_path: Path) -> None:
    """503 and refused connections are tried again; each request arrives once, in order."""
    body, booked = _book(tmp_path, chat("a"))
    counts: list[tuple[str, int]] = []
    backend.script = [503, 429]
    forwarder = OtlpForwarder(ForwardSettings(backend.endpoint), lambda *pair: counts.append(pair))
    forwarder.start()
    forwarder.offer(body, booked)
    backend.wait_for(1)
    forwarder.stop()
    assert counts == [("sent", 1)]
    assert forwarder.waiting_spans == 0
    assert "otelbill.cost" in _attributes(backend.taken[0], "a")


def test_a_backend_that_refuses_is_not_asked_again(backend: Backend) -> None:
    """A 400 will not become a 200; the spans are counted as rejected and the next ones go."""
    counts: list[tuple[str, int]] = []
    backend.script = [400]
    forwarder = OtlpForwarder(ForwardSettings(backend.endpoint), lambda *pair: counts.append(pair))
    forwarder.start()
    forwarder.offer(build_request([chat("a")]), {})
    forwarder.offer(build_request([chat("b")]), {})
    backend.wait_for(1)
    forwarder.stop()
    assert counts == [("rejected", 1), ("sent", 1)]


def test_the_queue_is_bounded_and_the_overflow_counted() -> None:
    """When the backend is away for longer than the queue lasts, memory stays bounded and the loss is visible."""
    counts: list[tuple[str, int]] = []
    forwarder = OtlpForwarder(
        ForwardSettings("http://127.0.0.1:9/", queue_spans_max=3), lambda *pair: counts.append(pair)
    )
    for name in "abcde":
        forwarder.offer(build_request([chat(name)]), {})
    assert forwarder.waiting_spans == 3
    assert counts == [("overflow", 1), ("overflow", 1)]
