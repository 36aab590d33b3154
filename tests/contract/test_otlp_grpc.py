"""OTLP over gRPC has the outcomes of OTLP over HTTP: status codes, RetryInfo, and nothing stored for a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.otlp_requests import encode, make_chat
from tests.sidecar_process import Sidecar, await_value

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
Export = Callable[..., bytes]


def _open(sidecar: Sidecar) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
    return grpc.insecure_channel(f"127.0.0.1:{sidecar.grpc_port}", options)


def _bind(channel: grpc.Channel, method: str = _METHOD) -> Export:
    def send(body: bytes, **options: object) -> bytes:
        call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
        return call(body, timeout=30, wait_for_ready=True, **options)

    return send


@pytest.fixture
def export(shared_sidecar: Sidecar) -> Iterator[Export]:
    with _open(shared_sidecar) as channel:
        yield _bind(channel)


def test_a_span_is_the_same_over_grpc_and_http(shared_sidecar: Sidecar, export: Export) -> None:
    """Guarantee: the transport is no part of an event: the retry over the other one is a duplicate."""
    body = encode(make_chat("grpc", "grpc-same"))
    assert not ExportTraceServiceResponse.FromString(export(body)).HasField("partial_success")
    assert shared_sidecar.export(body).status_code == 200
    assert shared_sidecar.usage("customer", customer="grpc-same")[0]["events"] == 1


def test_compressed_messages_count(shared_sidecar: Sidecar, export: Export) -> None:
    """Guarantee: gRPC's own compression is transparent."""
    export(encode(make_chat("grpc gzip", "grpc-gzip")), compression=grpc.Compression.Gzip)
    assert shared_sidecar.quantities("grpc-gzip")["requests"] == 1


def test_malformed_bytes_are_an_invalid_argument(shared_sidecar: Sidecar, export: Export) -> None:
    """Guarantee: what no retry can mend gets a code that exporters do not retry."""
    before = shared_sidecar.usage()
    for body in (b"\xff\xff\xff\xff", encode(make_chat("cut", "grpc-cut"))[:-3]):
        with pytest.raises(grpc.RpcError) as caught:
            export(body)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(caught.value.details()) > 10
    assert shared_sidecar.usage() == before


def test_an_oversized_message_is_refused(shared_sidecar: Sidecar, export: Export) -> None:
    """Guarantee: the limit holds on gRPC as well, compressed or not, and the listener goes on."""
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        with pytest.raises(grpc.RpcError) as caught:
            export(b"\0" * (70 << 20), compression=compression)
        assert caught.value.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}
    export(encode(make_chat("after oversized", "grpc-after")))
    assert shared_sidecar.quantities("grpc-after")["requests"] == 1


def test_another_method_is_unimplemented(shared_sidecar: Sidecar) -> None:
    """Guarantee: a wrong path has gRPC's own answer for it."""
    with _open(shared_sidecar) as channel, pytest.raises(grpc.RpcError) as caught:
        _bind(channel, "/opentelemetry.proto.collector.trace.v1.TraceService/Import")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_broken_span_is_a_dead_letter_and_its_batch_goes_on(shared_sidecar: Sidecar, export: Export) -> None:
    """Guarantee: rules are the same behind both transports."""
    export(encode(make_chat("grpc good", "grpc-mixed"), make_chat("grpc bad", "grpc-mixed", input_tokens=-1)))
    assert shared_sidecar.usage("customer", customer="grpc-mixed")[0]["events"] == 1


def test_without_the_token_a_call_is_unauthenticated(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: UNAUTHENTICATED without or with a wrong token, and nothing is stored."""
    sidecar = new_sidecar({"tokens": ["a-long-secret-1"]}).start()
    body = encode(make_chat("grpc token"))
    with _open(sidecar) as channel:
        export = _bind(channel)
        for metadata in ([], [("authorization", "Bearer wrong")], [("authorization", "a-long-secret-1")]):
            with pytest.raises(grpc.RpcError) as caught:
                export(body, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert sidecar.usage() == []
        export(body, metadata=[("authorization", "Bearer a-long-secret-1")])
    assert sidecar.usage()[0]["events"] == 1


def _check_retry_info(error: grpc.RpcError) -> None:
    assert error.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    status = Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    info = RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.retry_delay.ToNanoseconds() > 0


def test_overload_carries_retry_info(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: exporters retry RESOURCE_EXHAUSTED only with RetryInfo, so it is there; a retry loses nothing."""
    limits = {"body_bytes": 60_000, "decompressed_bytes": 60_000, "inflight_bytes": 60_000, "commit_linger_ms": 200}
    sidecar = new_sidecar({"limits": limits}).start()
    bodies = [encode(*(make_chat(f"{batch}/{number}", "load") for number in range(100))) for batch in range(8)]
    refused: list[bytes] = []

    def send(body: bytes) -> None:
        try:
            export(body)
        except grpc.RpcError as error:
            _check_retry_info(error)
            refused.append(body)

    with _open(sidecar) as channel:
        export = _bind(channel)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, bodies))
        assert refused, "eight requests at once fit into the room of one, so this run showed nothing"
        while refused:
            again, refused = refused, []
            for body in again:
                send(body)
    assert await_value(sidecar.usage, "usage is there")[0]["events"] == 800
