"""The corpus of recorded spans as values: its cases, and copies of them whose identities are their own.

Owns reading and renaming. Does not know what any case should cost: that is asked of `offline`, case by case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.wire import decode_request

RECORDED_NANOS = 1_795_132_800 * 10**9  # 2026-11-20T00:00:00Z: prices are those of the recordings
SPACING_NANOS = 600 * 10**9  # far past the length of a case and every grace
_ID_TAIL = 8
_ID_LENGTH_MIN = 10  # as in claims: shorter ones identify nothing


@dataclass(frozen=True)
class Case:
    """One recorded case: its name (`emitter/situation`) and the bytes of its export request."""

    name: str
    body: bytes


@dataclass(frozen=True)
class Sent:
    """One span with what stands around it in a request."""

    resource: Resource
    scope: InstrumentationScope
    span: Span


def load_cases(shared_data: Path) -> list[Case]:
    """Every case, by name."""
    folder = shared_data / "spans"
    paths = sorted(folder.glob("*/*/spans.pb"))
    return [Case(path.parent.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]


def make_distinct(case: Case, start_nanos: int) -> Case:
    """The case with trace, span and response ids of its own, beginning at `start_nanos`.

    Response ids are renamed wherever they stand, also inside JSON, so that what one layer says of a call still meets
    what another layer says of it. Relative times stay.
    """
    request = ExportTraceServiceRequest()
    request.ParseFromString(case.body)
    names = {old: _rename_text(old, case.name) for old in _list_response_ids(case.body)}
    spans = [sent.span for sent in list_sent(request)]
    if not spans:
        return case
    shift = start_nanos - min(span.start_time_unix_nano for span in spans)
    for span in spans:
        _rename_span(span, case.name, shift)
        _replace_pairs(span.attributes, names)
        for event in span.events:
            event.time_unix_nano += shift
            _replace_pairs(event.attributes, names)
    return Case(case.name, request.SerializeToString())


def list_sent(request: ExportTraceServiceRequest) -> Iterator[Sent]:
    """Every span of a request."""
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Sent(resource_spans.resource, scope_spans.scope, span)


def parse_sent(body: bytes) -> list[Sent]:
    """Every span of a request's bytes."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return list(list_sent(request))


def build_body(sent: Iterable[Sent]) -> bytes:
    """One export request of these spans."""
    request = ExportTraceServiceRequest()
    for item in sent:
        resource_spans = request.resource_spans.add()
        resource_spans.resource.CopyFrom(item.resource)
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.CopyFrom(item.scope)
        scope_spans.spans.add().CopyFrom(item.span)
    return request.SerializeToString()


def spread_cases(cases: Sequence[Case]) -> list[Case]:
    """Distinct copies, ten minutes apart: equal numbers at one time in two cases would rightly be one call."""
    return [make_distinct(case, RECORDED_NANOS + number * SPACING_NANOS) for number, case in enumerate(cases)]


def _list_response_ids(body: bytes) -> list[str]:
    found = {c.response_id for view in decode_request(body) if (c := select_span(view)) is not None and c.response_id}
    # Longest first, so that an id that is part of another does not break it.
    return sorted((item for item in found if len(item) >= _ID_LENGTH_MIN), key=lambda item: (-len(item), item))


def _rename_text(old: str, case: str) -> str:
    return old[:-_ID_TAIL] + hashlib.sha256(f"{case} {old}".encode()).hexdigest()[:_ID_TAIL]


def _rename_bytes(old: bytes, case: str) -> bytes:
    return hashlib.sha256(case.encode() + old).digest()[: len(old)]


def _rename_span(span: Span, case: str, shift: int) -> None:
    span.trace_id = _rename_bytes(span.trace_id, case)
    span.span_id = _rename_bytes(span.span_id, case)
    span.parent_span_id = _rename_bytes(span.parent_span_id, case)
    span.start_time_unix_nano += shift
    span.end_time_unix_nano += shift
    for link in span.links:
        link.trace_id = _rename_bytes(link.trace_id, case)
        link.span_id = _rename_bytes(link.span_id, case)


def _replace_pairs(pairs: Iterable[KeyValue], names: dict[str, str]) -> None:
    for pair in pairs:
        _replace_value(pair.value, names)


def _replace_value(value: AnyValue, names: dict[str, str]) -> None:
    match value.WhichOneof("value"):
        case "string_value":
            text = value.string_value
            for old, new in names.items():
                text = text.replace(old, new)
            value.string_value = text
        case "array_value":
            for item in value.array_value.values:
                _replace_value(item, names)
        case "kvlist_value":
            _replace_pairs(value.kvlist_value.values, names)
