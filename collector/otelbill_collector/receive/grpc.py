"""OTLP/gRPC: TraceService/Export on raw request bytes. Owns gRPC's side of the answers; gzip is gRPC's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otelbill_collector.domain.records import Answer, Refused, Rejection
from otelbill_collector.receive.admission import RETRY_AFTER_SECONDS, Admission, Overloaded
from otelbill_collector.receive.answers import Refusal, build_response

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class OtlpGrpc:
    """The Export method. `submit` hands a protobuf body to the writer; `count` is told protocol and status."""

    def __init__(
        self, submit: Callable[[bytes], Future[Answer]], admission: Admission, count: Callable[[str, str], None]
    ) -> None:
        self._submit = submit
        self._admission = admission
        self._count = count

    async def export(self, body: bytes, context: Any) -> bytes:
        """Any: grpc.aio's ServicerContext is generic over types that raw bytes do not have."""
        answer = await self._accept(body, context)
        if isinstance(answer, Refusal):
            code = _CODES[answer.rpc_code]
            self._count("grpc", code.name)
            if answer.retryable:
                context.set_trailing_metadata((("grpc-status-details-bin", _build_retry_details(answer)),))
            await context.abort(code, answer.reason)
        self._count("grpc", "OK")
        assert isinstance(answer, ExportTraceServiceResponse)
        return answer.SerializeToString()

    async def _accept(self, body: bytes, context: Any) -> ExportTraceServiceResponse | Refusal:
        metadata = dict(context.invocation_metadata() or ())
        if not self._admission.is_authorised(metadata.get("authorization")):
            return Refusal(401, "send one of the configured tokens as authorization: Bearer TOKEN")
        try:
            held = self._admission.hold_until_done(len(body), lambda: self._submit(body))
            answer = await asyncio.wrap_future(held)
        except Overloaded:
            return Refusal(429, "too many bytes under way; retry with backoff")
        except Refused as error:
            return Refusal(503, str(error))
        if isinstance(answer, Rejection):
            return Refusal(400, answer.reason)
        return build_response(answer)


def _build_retry_details(refusal: Refusal) -> bytes:
    details = AnyMessage()
    details.Pack(RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS)))
    status: bytes = Status(code=refusal.rpc_code, message=refusal.reason, details=[details]).SerializeToString()
    return status


def build_server(service: OtlpGrpc, *, message_bytes_max: int) -> grpc.aio.Server:
    """A gRPC server with the one method, not yet bound to a port."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.so_reuseport", 0),  # a second process on the port must fail, not share it
        ]
    )
    handler = grpc.unary_unary_rpc_method_handler(service.export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
    return server
