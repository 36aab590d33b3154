"""Owns the copy of a span that may leave the process: allow-listed attributes, no events, no links, no error text.
Does not own the list (`allow_list`) nor where spans go (`shipper`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status

from otelbill import guard
from otelbill.allow_list import EMAIL, AttributeValue, find_resource_rule, find_rule

NAME_MAX_CHARS: Final = 128

# What keeps instrumentations from recording prompts in the first place. Variables that the user has set stay.
CAPTURE_OFF: Final[Mapping[str, str]] = {
    "TRACELOOP_TRACE_CONTENT": "false",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "false",
    "OPENINFERENCE_HIDE_INPUTS": "true",
    "OPENINFERENCE_HIDE_OUTPUTS": "true",
    "OPENINFERENCE_HIDE_INPUT_MESSAGES": "true",
    "OPENINFERENCE_HIDE_OUTPUT_MESSAGES": "true",
    "OPENINFERENCE_HIDE_INPUT_TEXT": "true",
    "OPENINFERENCE_HIDE_OUTPUT_TEXT": "true",
    "OPENINFERENCE_HIDE_INPUT_IMAGES": "true",
    "OPENINFERENCE_HIDE_EMBEDDING_VECTORS": "true",
    "OPENINFERENCE_HIDE_EMBEDDINGS_VECTORS": "true",
    "OPENINFERENCE_HIDE_EMBEDDINGS_TEXT": "true",
    "OPENINFERENCE_HIDE_LLM_INVOCATION_PARAMETERS": "true",
    "OPENINFERENCE_HIDE_LLM_PROMPTS": "true",
    "OPENINFERENCE_HIDE_LLM_TOOLS": "true",
    "OPENLIT_CAPTURE_MESSAGE_CONTENT": "false",
    "ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE": "metadata_only",
    "AZURE_TRACING_GEN_AI_CONTENT_RECORDING_ENABLED": "false",
    "SEMANTICKERNEL_EXPERIMENTAL_GENAI_ENABLE_OTEL_DIAGNOSTICS_SENSITIVE": "false",
    "ADK_CAPTURE_MESSAGE_CONTENT_IN_SPANS": "false",
}


class AllowListExporter(SpanExporter):
    """Hands stripped copies of spans to `inner`. Put it around any exporter whose backend must not see content."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export stripped copies; `FAILURE` if `inner` says so."""
        return self._inner.export(strip_spans(spans))

    def shutdown(self) -> None:
        """Shut `inner` down."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush `inner`."""
        return self._inner.force_flush(timeout_millis)


def strip_spans(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    """Copies of `spans` that may leave. Each resource is copied once, so that they still travel as one group."""
    resources: dict[int, Resource] = {}
    stripped = []
    for span in spans:
        with guard.Guard("content.strip"):  # a span that cannot be stripped stays here; the others go
            resource = resources.get(id(span.resource))
            if resource is None:
                resource = resources[id(span.resource)] = strip_resource(span.resource)
            stripped.append(strip_span(span, resource))
    return stripped


def strip_span(span: ReadableSpan, resource: Resource) -> ReadableSpan:
    """A copy of `span` with allow-listed attributes only, under `resource`."""
    return ReadableSpan(
        name=strip_name(span.name),
        context=None if span.context is None else _strip_context(span.context),
        parent=None if span.parent is None else _strip_context(span.parent),
        resource=resource,
        attributes=strip_attributes(span.attributes or {}),
        kind=span.kind,
        instrumentation_scope=_strip_scope(span.instrumentation_scope),
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
    )


def strip_attributes(given: Mapping[str, object]) -> dict[str, AttributeValue]:
    """The attributes of `given` that may leave, in the form in which they may."""
    kept: dict[str, AttributeValue] = {}
    for name, value in given.items():
        rule = find_rule(name)
        if rule is not None and (passed := rule(value)) is not None:
            kept[name] = passed
    return kept


def strip_resource(resource: Resource) -> Resource:
    """A copy of `resource` with service, environment and SDK only."""
    kept: dict[str, AttributeValue] = {}
    for name, value in resource.attributes.items():
        rule = find_resource_rule(name)
        if rule is not None and (passed := rule(value)) is not None:
            kept[name] = passed
    return Resource(kept)


def strip_name(name: str) -> str:
    """`name` cut to 128 characters, without e-mail addresses and unprintable characters."""
    cut = name[:NAME_MAX_CHARS]
    if "@" in cut:
        cut = EMAIL.sub("[email]", cut)
    return cut if cut.isprintable() else "".join(character if character.isprintable() else " " for character in cut)


def _strip_context(context: SpanContext) -> SpanContext:
    if not context.trace_state:
        return context
    return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)


def _strip_scope(scope: InstrumentationScope | None) -> InstrumentationScope | None:
    if scope is None or not scope.attributes:
        return scope
    return InstrumentationScope(scope.name, scope.version, scope.schema_url)
