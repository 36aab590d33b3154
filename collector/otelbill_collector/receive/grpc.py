"""OTLP/gRPC: TraceService/Export on raw request bytes. Owns gRPC's side of the answers; gzip is gRPC's own.

A call is taken as a stream of one message, which is the same on the wire: so a message is read only when it is its
turn, and what is not read yet stays with its sender. gRPC's own bound on calls refuses without advice to retry.
"""

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
from otelbill_collector.receive.admission import RETRY_AFTER_SECONDS, Admission, Overloaded, name_sender
from otelbill_collector.receive.answers import Refusal, build_response
from otelbill_collector.receive.turns import Turns, split_peer

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_STREAMS_MAX = 256
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class OtlpGrpc:
    """The Export method. `submit` hands a protobuf body to the writer; `count` is told protocol and status."""

    def __init__(
        self, submit: Callable[[bytes], Future[Answer]], admission: Admission, count: Callable[[str, str], None]
    ) -> None:
        self._submit = submit
        self._admission = admission
        self._count = count
        self.turns = Turns(admission.limits)

    async def export(self, messages: Any, context: Any) -> bytes:
        """Any: grpc.aio's iterator and ServicerContext are generic over types that raw bytes do not have."""
        answer = await self._accept(messages, context)
        if isinstance(answer, Refusal):
            code = _CODES[answer.rpc_code]
            self._count("grpc", code.name)
            if answer.retryable:
                context.set_trailing_metadata((("grpc-status-details-bin", _build_retry_details(answer)),))
            await context.abort(code, answer.reason)
        self._count("grpc", "OK")
        assert isinstance(answer, ExportTraceServiceResponse)
        return answer.SerializeToString()

    async def _accept(self, messages: Any, context: Any) -> ExportTraceServiceResponse | Refusal:
        metadata = dict(context.invocation_metadata() or ())
        if not self._admission.is_authorised(metadata.get("authorization")):
            return Refusal(401, "send one of the configured tokens as authorization: Bearer TOKEN")
        sender = name_sender(*split_peer(context.peer()))
        try:
            async with self.turns.take(sender):
                body = await self._read(messages)
                held = self._admission.hold_until_done(sender, len(body), lambda: self._submit(body))
            answer = await asyncio.wrap_future(held)
        except Overloaded as error:
            self._admission.count_refusal(error.bound)
            return Refusal(429, str(error))
        except Refused as error:
            return Refusal(503, str(error))
        if isinstance(answer, Rejection):
            return Refusal(400, answer.reason)
        return build_response(answer)

    async def _read(self, messages: Any) -> bytes:
        """The call's one message. Raises Overloaded where it takes too long."""
        seconds = self._admission.limits.body_seconds_max
        try:
            async with asyncio.timeout(seconds):
                async for body in messages:
                    return bytes(body)
        except TimeoutError:
            reason = f"the message took longer than {seconds:g} s to arrive; send smaller batches"
            raise Overloaded("body_seconds", reason) from None
        return b""


def _build_retry_details(refusal: Refusal) -> bytes:
    details = AnyMessage()
    details.Pack(RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS)))
    status: bytes = Status(code=refusal.rpc_code, message=refusal.reason, details=[details]).SerializeToString()
    return status


def build_server(service: OtlpGrpc, *, message_bytes_max: int, connections_max: int) -> grpc.aio.Server:
    """A gRPC server with the one method, not yet bound to a port."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.max_allowed_incoming_connections", connections_max),
            ("grpc.max_concurrent_streams", _STREAMS_MAX),  # of one connection; its sender queues what is above
            ("grpc.so_reuseport", 0),  # a second process on the port must fail, not share it
        ]
    )
    handler = grpc.stream_unary_rpc_method_handler(service.export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
    return server
