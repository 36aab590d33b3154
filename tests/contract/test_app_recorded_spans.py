"""Spans recorded from real instrumentations keep every usage number and lose every text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otelbill.content import strip_attributes

COUNTER = re.compile(r"(?<!max_)(usage|token_count|tokens?)(\.|$)")
CONTENT = re.compile(
    r"^(gen_ai\.(prompt|completion|input\.messages|output\.messages|system_instructions|tool\.)|llm\.(input|output)_messages"
    r"|llm\.(prompts|tools|invocation)|(in|out)put\.value|ai\.(prompt|toolCall|response\.(text|object|reasoning|toolCalls))"
    r"|traceloop\.entity|langfuse\.(observation|trace)\.(in|out)put|embedding\.embeddings)"
)


def test_every_recorded_counter_passes_and_no_content_does(shared_data: Path) -> None:
    """Across all dialects: numbers named as usage stay as they were; attributes known to hold content never stay."""
    counters = contents = 0
    for name, value in _list_attributes(shared_data / "spans"):
        kept = strip_attributes({name: value})
        if CONTENT.search(name):
            contents += 1
            assert kept == {}, name
        elif COUNTER.search(name) and isinstance(value, int | float) and not name.startswith("metadata."):
            counters += 1
            assert name in kept, name
            assert kept[name] == value or value != value, name
    assert counters > 1_000
    assert contents > 1_000


def test_what_passes_of_recorded_texts_is_short_and_has_no_sentence(shared_data: Path) -> None:
    """No text with a space in it passes, save in numbers of usage objects; a prompt has spaces."""
    passed = {
        kept
        for name, value in _list_attributes(shared_data / "spans")
        if isinstance(value, str)
        for kept in strip_attributes({name: value}).values()
        if isinstance(kept, str)
    }
    assert len(passed) > 50
    assert [text for text in passed if " " in text or len(text) > 1_000] == []


def _list_attributes(folder: Path) -> Iterator[tuple[str, object]]:
    for path in sorted(folder.glob("*/*/spans.pb")):
        request = ExportTraceServiceRequest.FromString(path.read_bytes())
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    for pair in span.attributes:
                        yield pair.key, _read_value(pair.value)


def _read_value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_read_value(item) for item in value.array_value.values)
    return None if kind is None else getattr(value, kind)
