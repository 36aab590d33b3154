"""What a receiver tells a sender, the same for both protocols. Owns the codes of each outcome."""

from __future__ import annotations

from dataclasses import dataclass

from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otelbill_collector.domain.records import Receipt

OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 0, 3, 8, 13, 14, 16
_HTTP_TO_RPC = {400: INVALID_ARGUMENT, 401: UNAUTHENTICATED, 413: INVALID_ARGUMENT, 415: INVALID_ARGUMENT}
_HTTP_TO_RPC |= {404: INVALID_ARGUMENT, 405: INVALID_ARGUMENT, 429: RESOURCE_EXHAUSTED, 500: INTERNAL, 503: UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not accepted: an HTTP status, its gRPC twin, the reason, and whether the sender should try again."""

    http_status: int
    reason: str

    @property
    def rpc_code(self) -> int:
        return _HTTP_TO_RPC[self.http_status]

    @property
    def retryable(self) -> bool:
        return self.http_status in (429, 503)


def build_response(receipt: Receipt) -> ExportTraceServiceResponse:
    """The success answer. Dead letters are kept here, so they are not counted as rejected; the sender is warned."""
    response = ExportTraceServiceResponse()
    if receipt.dead_lettered:
        response.partial_success.error_message = (
            f"{receipt.dead_lettered} of {receipt.spans} spans could not be processed and are kept as dead letters; "
            "see `otelbill dead-letters list`"
        )
    return response


def build_status(refusal: Refusal) -> Status:
    """The error body that OTLP/HTTP wants."""
    return Status(code=refusal.rpc_code, message=refusal.reason)
