"""Apps as the Collector sees them: spans with prompts in every known place, and a sender that retries like an SDK.

Owns what is sent; the amounts the tests expect follow from `INPUT_TOKENS`, `OUTPUT_TOKENS` and OpenAI's public price
of gpt-4o-mini, 0.15 and 0.60 USD per million tokens.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence

import httpx
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from tests.e2e.processes import wait_for

CANARY = "CANARY-4f1d-tell-nobody"
MODEL = "gpt-4o-mini"
INPUT_TOKENS = 1_000
OUTPUT_TOKENS = 500
COST_OF_CALL = "0.00045"  # 1,000 x 0.15 + 500 x 0.60, per million, USD
CHARGE_OF_CALL = "0.000675"  # with the deployment's markup of 50 %
GEN_AI_SPAN = f"chat {MODEL}"
OPENINFERENCE_SPAN = "ChatCompletion"
ROOT_SPAN = "answer_ticket"


def send_conversation(endpoint: str, customer: str) -> str:
    """One trace through the real OpenTelemetry SDK: a root, a gen_ai call and an OpenInference call. Its trace id."""
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
    provider = TracerProvider(resource=Resource({"service.name": "support-bot", "process.command": f"bot {CANARY}"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    frame = {"otelbill.customer.id": customer, "otelbill.step": "draft"}
    tracer = provider.get_tracer("support_bot")
    with tracer.start_as_current_span(
        ROOT_SPAN, attributes={**frame, "input.value": CANARY, "my.own.prompt": CANARY}
    ) as root:
        trace_id = format(root.get_span_context().trace_id, "032x")
        _send_gen_ai_call(provider, frame)
        _send_openinference_call(provider, frame)
    provider.shutdown()
    return trace_id


def _send_gen_ai_call(provider: TracerProvider, frame: dict[str, str]) -> None:
    """As the GenAI semantic conventions name it, with content capture on."""
    attributes: dict[str, str | int] = {
        **frame,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": f"chatcmpl-{secrets.token_hex(12)}",
        "gen_ai.usage.input_tokens": INPUT_TOKENS,
        "gen_ai.usage.output_tokens": OUTPUT_TOKENS,
        "gen_ai.usage.raw": json.dumps({"prompt_tokens": INPUT_TOKENS, "note": CANARY}),
        "gen_ai.usage.remark": f"{CANARY} was asked",
        "gen_ai.input.messages": json.dumps([{"role": "user", "content": CANARY}]),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "content": CANARY}]),
        "gen_ai.system_instructions": CANARY,
        "gen_ai.tool.call.arguments": CANARY,
        "traceloop.entity.input": CANARY,
        "http.request.header.authorization": CANARY,
    }
    tracer = provider.get_tracer("opentelemetry.instrumentation.genai.openai", "1.0.0")
    with tracer.start_as_current_span(GEN_AI_SPAN, kind=SpanKind.CLIENT, attributes=attributes) as span:
        span.add_event("gen_ai.user.message", {"content": CANARY})
        span.add_event(f"the user said {CANARY}")
        span.set_status(Status(StatusCode.ERROR, f"content filter: {CANARY}"))


def _send_openinference_call(provider: TracerProvider, frame: dict[str, str]) -> None:
    """As OpenInference's instrumentation of the OpenAI client writes it."""
    answer = {"id": f"chatcmpl-{secrets.token_hex(12)}", "choices": [{"message": {"content": CANARY}}]}
    attributes: dict[str, str | int] = {
        **frame,
        "openinference.span.kind": "LLM",
        "llm.provider": "openai",
        "llm.system": "openai",
        "llm.model_name": MODEL,
        "llm.token_count.prompt": INPUT_TOKENS,
        "llm.token_count.completion": OUTPUT_TOKENS,
        "llm.token_count.total": INPUT_TOKENS + OUTPUT_TOKENS,
        "llm.input_messages.0.message.content": CANARY,
        "llm.output_messages.0.message.content": CANARY,
        "llm.invocation_parameters": json.dumps({"system": CANARY}),
        "input.value": CANARY,
        "output.value": json.dumps(answer),
        "output.mime_type": "application/json",
        "metadata": json.dumps({"ticket": CANARY}),
    }
    tracer = provider.get_tracer("openinference.instrumentation.openai", "0.1.40")
    with tracer.start_as_current_span(OPENINFERENCE_SPAN, attributes=attributes) as span:
        span.record_exception(ValueError(CANARY))


def build_calls(customers: Sequence[str], count: int) -> bytes:
    """An ExportTraceServiceRequest with `count` calls, the customers taking turns; ids are random, times are now."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.genai.openai"
    scope.scope.version = "1.0.0"
    now = time.time_ns()
    for number in range(count):
        span = scope.spans.add(
            trace_id=secrets.token_bytes(16),
            span_id=secrets.token_bytes(8),
            name=GEN_AI_SPAN,
            kind=3,
            start_time_unix_nano=now - 1_000_000_000,
            end_time_unix_nano=now,
        )
        texts = {
            "otelbill.customer.id": customers[number % len(customers)],
            "otelbill.step": "draft",
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": MODEL,
            "gen_ai.response.model": MODEL,
            "gen_ai.response.id": f"chatcmpl-{secrets.token_hex(12)}",
        }
        span.attributes.extend(KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in texts.items())
        counts = {"gen_ai.usage.input_tokens": INPUT_TOKENS, "gen_ai.usage.output_tokens": OUTPUT_TOKENS}
        span.attributes.extend(KeyValue(key=key, value=AnyValue(int_value=number)) for key, number in counts.items())
    return request.SerializeToString()


def post_until_taken(endpoint: str, body: bytes, seconds: float = 60.0) -> None:
    """POST as an SDK does: again after every answer that is not a success."""

    def post() -> bool:
        try:
            headers = {"content-type": "application/x-protobuf"}
            return httpx.post(f"{endpoint}/v1/traces", content=body, headers=headers, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    wait_for("the Collector takes the spans", seconds, post)
