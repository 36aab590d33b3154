"""Real spans of every known emitter cost the same behind the Collector as without it, and lose their prompts there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbill_collector.app import build_rules
from otelbill_collector.config import load_config
from otelbill_collector.offline import rate_spans, read_spans
from tests.e2e.conftest import Deploy
from tests.e2e.processes import wait_for
from tests.e2e.senders import post_until_taken
from tests.e2e.sinks import Sink, open_sink

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

COMPARED = ("reason", "usage_source", "quantities", "caveats", "rating", "cost", "charge")
# The number of images stands only among their addresses, which are content: the call is held instead of counted.
HELD_BEHIND_THE_COLLECTOR = {"openinference-openai/image_generation"}


def _split_by_case(sink: Sink, cases: Mapping[str, bytes]) -> dict[str, ExportTraceServiceRequest]:
    """What arrived, case by case; span ids are unique in the corpus."""
    owners = {key: name for name, body in cases.items() for key in _list_span_keys(body)}
    arrived = {name: ExportTraceServiceRequest() for name in cases}
    for request in sink.requests:
        for resource_spans in request.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    target = arrived[owners[(span.trace_id, span.span_id)]].resource_spans.add()
                    target.resource.CopyFrom(resource_spans.resource)
                    scope = target.scope_spans.add()
                    scope.scope.CopyFrom(scope_spans.scope)
                    scope.spans.append(span)
    return arrived


def _list_span_keys(body: bytes) -> list[tuple[bytes, bytes]]:
    request = ExportTraceServiceRequest.FromString(body)
    scopes = [scope for resource_spans in request.resource_spans for scope in resource_spans.scope_spans]
    return [(span.trace_id, span.span_id) for scope in scopes for span in scope.spans]


def _list_billed(body: bytes) -> list[dict[str, Any]]:  # Any: values of the rated row
    """What is billed or held for these spans, without the choice among spans that describe one call."""
    rows = rate_spans(read_spans(body), build_rules(load_config(None, {})))
    kept = [{name: row[name] for name in COMPARED} for row in rows if row["billable"]]
    return sorted(kept, key=repr)


def test_the_collector_changes_no_bill(deploy: Deploy, shared_data: Path) -> None:
    """The allow-list must not cost a customer more or less than the same spans sent to otelbill directly."""
    folder = shared_data / "spans"
    cases = {path.parent.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*/spans.pb")}
    assert len(cases) > 200
    expected = sum(len(_list_span_keys(body)) for body in cases.values())
    with open_sink() as sink:
        deployment = deploy(backend=sink.endpoint, rated=False)
        for body in cases.values():
            post_until_taken(deployment.otlp_http, body)
        wait_for(f"{expected} spans arrive", 60, lambda: len(sink.find_spans()) >= expected)
        deployment.collector.stop()

    assert "CANARY-" not in str(sink.requests)
    arrived = _split_by_case(sink, cases)
    changed = {}
    for name, body in cases.items():
        direct, behind = _list_billed(body), _list_billed(arrived[name].SerializeToString())
        if direct != behind:
            changed[name] = (direct, behind)
    assert set(changed) == HELD_BEHIND_THE_COLLECTOR
    for _, behind in changed.values():
        assert [row["rating"] for row in behind] == ["held"]
