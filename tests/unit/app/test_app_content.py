"""Nothing leaves the app that is not on the list, whatever an instrumentation invents."""

from __future__ import annotations

import json

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.span import NonRecordingSpan

from otelbill import AllowListExporter, content
from otelbill.content import strip_attributes, strip_name, strip_spans

CANARY = "canary-7f3a my social security number is 078-05-1120"


def test_a_span_full_of_content_leaves_as_numbers_and_names() -> None:
    """Attributes, events, links, status text, trace state, resource and scope: the canary survives in none of them."""
    exporter = InMemorySpanExporter()
    resource = Resource({"service.name": "app", "process.command_args": CANARY, "host.name": CANARY})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(AllowListExporter(exporter)))
    tracer = provider.get_tracer("openai", "1", attributes={"x": CANARY})
    remote = SpanContext(1, 2, True, TraceFlags(1), TraceState([("vendor", "canary-7f3a")]))
    span = tracer.start_span(
        "chat gpt-4o",
        set_span_in_context(NonRecordingSpan(remote)),
        links=[Link(remote, {"x": CANARY})],
        attributes={
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.input.messages": CANARY,
            "gen_ai.prompt.0.content": CANARY,
            "gen_ai.usage.new_field_of_2027": CANARY,
            "gen_ai.response.id": CANARY,
            "gen_ai.agent.name": CANARY,
            "brand.new.place": CANARY,
        },
    )
    span.add_event("gen_ai.user.message", {"content": CANARY})
    span.set_status(StatusCode.ERROR, CANARY)
    span.end()
    [left] = exporter.get_finished_spans()
    assert dict(left.attributes or {}) == {"gen_ai.usage.input_tokens": 12, "gen_ai.request.model": "gpt-4o"}
    assert left.status.status_code is StatusCode.ERROR
    assert dict(left.resource.attributes) == {"service.name": "app"}
    assert (left.context.trace_id, left.parent.span_id) == (1, 2)  # type: ignore[union-attr]
    assert "canary" not in left.to_json() + repr(left.instrumentation_scope) + repr(left.context.trace_state)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value", "passed"),
    [
        ("gen_ai.usage.input_tokens", 12, 12),
        ("gen_ai.usage.completion_tokens", 5.0, 5.0),
        ("gen_ai.usage.input_tokens", "12", "12"),
        ("gen_ai.usage.input_tokens", "twelve secrets", None),
        ("gen_ai.usage.input_tokens", True, None),
        ("gen_ai.usage.input_tokens", 2**63, None),
        ("llm.token_count.prompt_details.cache_read", 7, 7),
        ("ai.usage.inputTokenDetails.cacheReadTokens", 7, 7),
        ("gen_ai.request.model", "gpt-4o", "gpt-4o"),
        ("gen_ai.request.model", "please write a poem", None),
        ("gen_ai.request.model", "x" * 257, None),
        ("gen_ai.request.model", "a\nb", None),
        ("gen_ai.request.model", "\ud800", None),
        ("gen_ai.request.stop_sequences", ("secret",), None),
        ("gen_ai.response.finish_reasons", ("stop", "write a poem"), ("stop",)),
        ("llm.is_streaming", "True", "True"),
        ("llm.is_streaming", ("x",), None),
        ("gen_ai.openai.api_base", "https://user:pw@api.deepseek.com:443/v1?key=s", "https://api.deepseek.com:443"),
        ("gen_ai.openai.api_base", "https://[broken", None),
        ("user.id", "u-17", "u-17"),
        ("user.id", "jane@example.com", None),
        ("otelbill.customer.id", "Acme Ltd", "Acme Ltd"),
        ("otelbill.quantity", "0.25", "0.25"),
        ("otelbill.unknown", "x", None),
        ("gen_ai.usage.raw", '{"input_tokens":3,"note":"secret","d":{"x":1}}', '{"input_tokens":3,"d":{"x":1}}'),
        ("llm.openai.usage", "{'completion_tokens': 5, 'details': None}", '{"completion_tokens":5}'),
        ("gen_ai.usage.raw", '["secret"]', None),
        ("gen_ai.usage.raw", '{"my secret is long": 1}', None),
        ("gen_ai.usage.raw", "[" * 100_000, None),
        ("gen_ai.usage.raw", "[" * 16_000, None),
        ("ai.response.text", "secret", None),
    ],
)
def test_each_form_lets_through_what_it_says(name: str, value: object, passed: object) -> None:
    """A listed name is not enough: the value must have the listed form."""
    assert strip_attributes({name: value}).get(name) == passed


def test_span_names_are_cut_and_cleaned() -> None:
    """A span name keeps 128 characters, no e-mail address, nothing unprintable."""
    assert strip_name("mail jane@example.com now") == "mail [email] now"
    assert len(strip_name("x" * 500)) == 128
    assert strip_name("a\ud800\nb") == "a  b"


def test_a_span_that_cannot_be_stripped_stays_and_the_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """One span that trips our code is not sent as it is, and does not keep the others."""
    provider = TracerProvider(shutdown_on_exit=False)
    spans = [provider.get_tracer("t").start_span(name) for name in ("good", "bad", "fine")]
    strip = content.strip_name

    def fail_on_bad(name: str) -> str:
        if name == "bad":
            raise RuntimeError(name)
        return strip(name)

    monkeypatch.setattr(content, "strip_name", fail_on_bad)
    assert [span.name for span in strip_spans(spans)] == ["good", "fine"]  # type: ignore[arg-type]


def test_nested_numbers_hold_no_text_at_any_depth() -> None:
    """Usage objects keep their numbers only, down to a bounded depth."""
    value = json.dumps(
        {"a": [{"tokens": 1, "text": "secret"}, "secret"], "b": {"c": {"d": {"e": {"f": {"g": {"h": 9}}}}}}}
    )
    assert strip_attributes({"gen_ai.usage.raw": value}) == {"gen_ai.usage.raw": '{"a":[{"tokens":1}]}'}
