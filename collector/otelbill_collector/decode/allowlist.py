"""Which attributes may be kept on disk or sent on, by exact name or prefix. Owns the list and the shape of text values.

Everything that is not named here stays in the request's memory and is gone with it: prompts, completions, tool
arguments, headers, user-supplied metadata. A list of what to remove would miss the next attribute name.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from otelbill_collector.decode.spans import Value

TEXT_MAX = 256
_TOKEN_TEXT_MAX = 40

EXACT = frozenset(
    """
    otelbill.customer.id otelbill.project.id otelbill.step otelbill.run.id otelbill.attempt otelbill.meter
    otelbill.quantity otelbill.unit otelbill.billable otelbill.reason otelbill.event.id otelbill.schema.version
    gen_ai.operation.name gen_ai.provider.name gen_ai.system gen_ai.request.model gen_ai.response.model
    gen_ai.response.id gen_ai.response.finish_reasons gen_ai.output.type gen_ai.token.type gen_ai.request.stream
    gen_ai.request.max_tokens gen_ai.request.temperature gen_ai.request.top_p gen_ai.request.choice.count
    gen_ai.request.encoding_formats gen_ai.embeddings.dimension.count gen_ai.openai.api_base gen_ai.openai.api_version
    gen_ai.openai.request.service_tier gen_ai.openai.response.service_tier gen_ai.request.service_tier
    gen_ai.response.service_tier openai.request.service_tier openai.response.service_tier
    anthropic.request.service_tier anthropic.response.service_tier gen_ai.is_streaming llm.is_streaming
    gen_ai.tool.name gen_ai.tool.type gen_ai.agent.id gen_ai.agent.name gen_ai.workflow.name gen_ai.data_source.id
    llm.request.type llm.model_name llm.provider llm.system llm.response.id openinference.span.kind
    embedding.model_name reranker.model_name session.id
    traceloop.span.kind traceloop.entity.name traceloop.workflow.name
    ai.operationId ai.model.id ai.model.provider ai.response.id ai.response.model ai.response.finishReason
    langfuse.observation.type langfuse.observation.model.name langfuse.observation.level
    langsmith.span.kind langsmith.trace.name logfire.span_type logfire.level_num
    aws.request_id http.request.method http.response.status_code http.status_code http.method http.route
    http.request.resend_count server.address server.port network.protocol.name rpc.system rpc.service rpc.method
    db.system db.system.name db.operation.name messaging.system error.type response_id
    """.split()
)
PREFIXES = (
    "gen_ai.usage.",
    "gen_ai.aggregated_usage.",
    "llm.token_count.",
    "llm.usage.",
    "llm.cost.",
    "ai.usage.",
    "anthropic.usage.",
    "openai.usage.",
)
# Usage objects as JSON text: only their numbers pass.
USAGE_OBJECTS = frozenset({"gen_ai.usage.raw", "langfuse.observation.usage_details", "usage"})
RESOURCE_EXACT = frozenset(
    """
    service.name service.namespace service.version service.instance.id deployment.environment.name
    deployment.environment telemetry.sdk.name telemetry.sdk.language telemetry.sdk.version host.name k8s.pod.name
    k8s.namespace.name cloud.provider cloud.region openinference.project.name
    """.split()
)

_EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN_TEXT = re.compile(r"[\w.+:/-]+", re.ASCII)
_UNIT = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def filter_attribute(key: str, value: Value) -> Value:
    """The value as it may be kept, or None. Text is capped; mail addresses and control characters do not pass."""
    if key in USAGE_OBJECTS:
        return filter_usage_object(value) if isinstance(value, str) else None
    if key in EXACT:
        return _filter_scalar(value)
    if key.startswith(PREFIXES):
        return _filter_number(value)
    return None


def filter_resource(key: str, value: Value) -> Value:
    """The same for resource attributes."""
    return _filter_scalar(value) if key in RESOURCE_EXACT else None


def filter_text(text: str, limit: int = TEXT_MAX) -> str | None:
    """Short names and ids only."""
    if len(text) > limit or _CONTROL.search(text) or _EMAIL.search(text):
        return None
    return text


def _filter_scalar(value: Value) -> Value:
    if isinstance(value, str):
        return filter_text(value)
    if isinstance(value, tuple):
        items = tuple(_filter_scalar(item) for item in value[:16] if not isinstance(item, tuple))
        return tuple(item for item in items if item is not None)
    return value


def _filter_number(value: Value) -> Value:
    """Numbers, and text that could be meant as one: a broken count must stay visible, a sentence must not."""
    if isinstance(value, str):
        return value if len(value) <= _TOKEN_TEXT_MAX and _TOKEN_TEXT.fullmatch(value) else "<text>"
    return None if isinstance(value, tuple) else value


def filter_usage_object(text: str) -> str | None:
    """A JSON usage object reduced to its numbers; None where there are none."""
    if len(text) > 16_384:
        return None
    try:
        numbers = _keep_numbers(orjson.loads(text), 0)
    except orjson.JSONDecodeError:
        return None
    return orjson.dumps(numbers).decode() if numbers else None


def _keep_numbers(node: Any, depth: int) -> Any:
    """Any: parsed JSON, checked type by type."""
    if isinstance(node, bool):
        return None
    if isinstance(node, int | float):
        return node
    if isinstance(node, dict) and depth < 6:
        kept = {key: _keep_numbers(item, depth + 1) for key, item in node.items() if _UNIT.fullmatch(key)}
        return {key: item for key, item in kept.items() if item is not None} or None
    return None
