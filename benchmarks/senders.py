"""Load for a sidecar: connections that send fresh requests back to back and note when each was acknowledged."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from benchmarks.requests import Load, Template

_GRPC_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
Send = Callable[[memoryview], None]


@dataclass(frozen=True, slots=True)
class Traffic:
    """How a load is sent. `gzip` compresses at level 1; `seconds` is how long new requests are begun."""

    protocol: str = "http"
    gzip: bool = False
    connections: int = 8
    seconds: float = 5.0
    requests_max: int | None = None  # per connection; ends the run early


@dataclass(slots=True)
class Sent:
    """What was acknowledged: number of requests, wall seconds from the first byte to the last answer, latencies."""

    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of this process, while sending
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def send_load(port: int, load: Load, traffic: Traffic) -> Sent:
    """Send until the time is over; every request waits for its answer before the connection's next."""
    sent = Sent()
    lock, ready = threading.Lock(), threading.Barrier(traffic.connections + 1)

    def run(number: int) -> None:
        template = Template(load, seed=number)
        latencies: list[float] = []
        try:
            send = connect(port, traffic)
            ready.wait()
            deadline = time.monotonic() + traffic.seconds
            while time.monotonic() < deadline and len(latencies) != traffic.requests_max:
                body = template.renew(time.time_ns())
                started = time.monotonic()
                send(body)
                latencies.append(time.monotonic() - started)
        except Exception as error:  # noqa: BLE001 shown with the figures; a failed run is no measurement
            with lock:
                sent.failures.append(repr(error))
            ready.abort()
        with lock:
            sent.requests += len(latencies)
            sent.latencies.extend(latencies)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(traffic.connections)]
    for thread in threads:
        thread.start()
    ready.wait()
    started, cpu = time.monotonic(), time.process_time()
    for thread in threads:
        thread.join()
    sent.seconds, sent.cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    return sent


def connect(port: int, traffic: Traffic) -> Send:
    """A connection to a sidecar: sends one request and returns when it was acknowledged."""
    if traffic.protocol == "grpc":
        return _connect_grpc(port, traffic)
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    encoding = b"content-encoding: gzip\r\n" if traffic.gzip else b""

    def send(body: memoryview) -> None:
        content = _compress(body) if traffic.gzip else body
        head = (
            b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-protobuf\r\n"
            + encoding
            + b"content-length: %d\r\n\r\n" % len(content)
        )
        connection.sendall(head)
        connection.sendall(content)
        _read_answer(connection)

    return send


def _compress(body: memoryview) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()


def _read_answer(connection: socket.socket) -> None:
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = connection.recv(65_536)
        if not chunk:
            raise ConnectionError("the sidecar closed the connection")
        answer += chunk
    head, _, rest = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    while len(rest) < length:
        rest += connection.recv(65_536)
    if b" 200 " not in lines[0] + b" " or rest:
        raise ConnectionError(f"not a full success: {lines[0]!r} {rest[:200]!r}")


def _connect_grpc(port: int, traffic: Traffic) -> Send:
    compression = grpc.Compression.Gzip if traffic.gzip else grpc.Compression.NoCompression
    # Without the private pool all channels of the process would share one connection.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", compression=compression, options=options)
    export = channel.unary_unary(_GRPC_METHOD, request_serializer=None, response_deserializer=None)

    def send(body: memoryview) -> None:
        answer = export(bytes(body), timeout=120)
        if answer:
            raise ConnectionError(f"not a full success: {answer[:200]!r}")

    return send
