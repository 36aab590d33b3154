"""Spans whose time or ids cannot be are kept as dead letters with the reason, over HTTP and gRPC alike."""

from __future__ import annotations

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.otlp_requests import NANOS, encode, make_chat, now_nanos
from tests.sidecar_process import Sidecar

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_YEAR_1980 = 315_532_800 * NANOS


def _export_http(sidecar: Sidecar, body: bytes) -> ExportTraceServiceResponse:
    answer = sidecar.export(body)
    assert answer.status_code == 200
    return ExportTraceServiceResponse.FromString(answer.content)


def _export_grpc(sidecar: Sidecar, body: bytes) -> ExportTraceServiceResponse:
    with grpc.insecure_channel(f"127.0.0.1:{sidecar.grpc_port}", [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)
        return ExportTraceServiceResponse.FromString(call(body, timeout=30, wait_for_ready=True))


@pytest.mark.parametrize("export", [_export_http, _export_grpc], ids=["http", "grpc"])
@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("future", "event_time_in_future"),
        ("1980", "event_time_too_old"),
        ("none", "event_time_missing"),
        ("no trace", "invalid_trace_id"),
        ("no span", "invalid_span_id"),
    ],
)
def test_a_span_that_cannot_be_is_kept_with_its_reason(
    shared_sidecar: Sidecar, request: pytest.FixtureRequest, export: object, case: str, code: str
) -> None:
    """Guarantee: taken and answered with a warning, not lost, not booked; its neighbour is booked."""
    name = request.node.name
    at = {"future": now_nanos() + 3600 * NANOS, "1980": _YEAR_1980, "none": 0}.get(case)
    odd = make_chat(f"{name} odd", f"{name} odd", at=at, otelbill__step=name[-40:])
    if case.startswith("no "):
        odd.ClearField("trace_id" if case == "no trace" else "span_id")
    before = len(shared_sidecar.get("/v1/dead-letters").json())
    response = (_export_http if export is _export_http else _export_grpc)(
        shared_sidecar, encode(odd, make_chat(f"{name} good", f"{name} good"))
    )
    assert "1 of 2 spans" in response.partial_success.error_message
    assert response.partial_success.rejected_spans == 0, "kept here, so its sender need not keep it"
    letters = shared_sidecar.get("/v1/dead-letters").json()
    assert len(letters) == before + 1
    assert code in {letter["code"] for letter in letters}
    assert shared_sidecar.quantities(f"{name} good")["requests"] == 1
    assert shared_sidecar.quantities(f"{name} odd") == {}
