"""The load of the benchmarks: every span is new, and what is said to be acknowledged was."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from benchmarks.packed import Packed
from benchmarks.peers import count_messages
from benchmarks.requests import Load, Pool
from benchmarks.senders import Sent, Traffic, send_load
from otelbill_collector.decode.wire import decode_request

NOW = 1_700_000_000_000_000_000
SUCCESS = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def make_pool(load: Load, connections: int = 1) -> Pool:
    return Pool(load, connections, templates=2, clock=lambda: NOW)


@pytest.mark.parametrize("load", [Load(64), Load(10), Load(30, trace_spans=8), Load(30, http_third=True)], ids=str)
def test_every_span_is_new(load: Load) -> None:
    """A load that repeats itself would measure duplicates: ids are new, times recent, token counts in range."""
    pool = make_pool(load, connections=2)
    spans, traces, responses = set(), set(), set()
    tokens = []
    takes = 3 * (1_024 // load.spans) + 1  # past the end of a template, and round the ring
    for turn in range(takes):
        for span in decode_request(bytes(pool.take(turn % 2))):
            spans.add((bytes(span.trace_id), bytes(span.span_id)))
            traces.add(bytes(span.trace_id))
            assert 0 < NOW - span.ended_nanos <= 5 * 10**9
            assert span.started_nanos < span.ended_nanos
            if "gen_ai.response.id" in span.attributes:
                responses.add(span.attributes["gen_ai.response.id"])
                tokens.append(
                    tuple(int(str(span.attributes[f"gen_ai.usage.{kind}_tokens"])) for kind in ("input", "output"))
                )
                assert len(span.attributes) == 14
    assert len(spans) == takes * load.spans
    assert len(traces) == takes * -(-load.spans // load.trace_spans)
    assert len(responses) == len(tokens) == takes * load.billable
    assert len(set(tokens)) > len(tokens) * 0.9
    assert all(16_384 <= taken < 32_768 and 128 <= made < 2_048 for taken, made in tokens)


def test_a_body_stays_until_its_connections_next() -> None:
    """A request that is still being sent does not change beneath: other connections take theirs meanwhile."""
    pool = make_pool(Load(16), connections=2)
    body = pool.take(0)
    before = bytes(body)
    for _ in range(300):
        pool.take(1)
    assert bytes(body) == before


def test_packed_requests_are_fresh_and_end() -> None:
    """Compressed requests are prepared, all different, and when they are used up the run ends."""
    packed = Packed(make_pool(Load(16)), 130)
    bodies = []
    while (body := packed.take(0)) is not None:
        bodies.append(gzip.decompress(body))
    assert len(bodies) == 130
    assert len({bytes(span.span_id) for body in bodies for span in decode_request(body)}) == 130 * 16


@contextmanager
def serve(answer: Callable[[int], list[bytes]]) -> Iterator[tuple[int, list[bytes]]]:
    """An HTTP receiver whose n-th answer is sent in these pieces; (port, the bodies it took)."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[bytes] = []
    lock = threading.Lock()

    def handle(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            while file.readline():
                length = 0
                while (line := file.readline().strip()) != b"":
                    name, _, value = line.partition(b":")
                    length = int(value) if name == b"content-length" else length
                body = file.read(length)
                with lock:
                    taken.append(body)
                    pieces = answer(len(taken))
                for piece in pieces:
                    connection.sendall(piece)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threads.append(threading.Thread(target=handle, args=(connection,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield listener.getsockname()[1], taken
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join()


def send(port: int, load: Load, traffic: Traffic) -> Sent:
    return send_load(port, make_pool(load, traffic.connections), traffic)


def test_http_counts_what_was_acknowledged() -> None:
    """Large bodies and answers in pieces: all arrive whole, and as many are counted as were answered."""
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 2\r\n\r\n\n", b"\0"]
    with serve(lambda number: pieces if number % 2 else [SUCCESS]) as (port, taken):
        sent = send(port, Load(2_000), Traffic(connections=3, seconds=60, requests_max=20))
    assert (sent.requests, sent.begun, len(sent.latencies), sent.failures) == (20, 20, 20, [])
    spans = [(bytes(span.trace_id), bytes(span.span_id)) for body in taken for span in decode_request(body)]
    assert len(spans) == len(set(spans)) == 20 * 2_000


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n\x0a\x04\x12\x02no",
    ],
)
def test_http_refusals_and_warnings_are_failures(bad: bytes) -> None:
    """A run in which a request was refused, or a span became a dead letter, is no measurement; the count is exact."""
    with serve(lambda number: [bad if number == 4 else SUCCESS]) as (port, _):
        sent = send(port, Load(2), Traffic(connections=1, seconds=60, requests_max=10))
    assert sent.requests == 3
    assert len(sent.failures) == 1
    assert "not a full success" in sent.failures[0]


def test_a_paced_load_is_begun_at_its_rate() -> None:
    """At a rate requests are begun when they are due, however fast the answers are."""
    with serve(lambda _: [SUCCESS]) as (port, _):
        sent = send(port, Load(2), Traffic(connections=4, seconds=0.2, rate=100))
    assert sent.requests == 20
    assert sent.seconds >= 0.19


@contextmanager
def serve_grpc(fail_at: int) -> Iterator[tuple[int, list[bytes]]]:
    """A gRPC receiver that refuses its n-th call."""
    taken: list[bytes] = []

    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        taken.append(body)
        if len(taken) == fail_at:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return b""

    method = grpc.unary_unary_rpc_method_handler(export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port, taken
    finally:
        server.stop(None).wait()


def test_grpc_counts_what_was_acknowledged() -> None:
    """Messages larger than HTTP/2's windows arrive whole over a connection that is used again and again."""
    with serve_grpc(fail_at=0) as (port, taken):
        sent = send(port, Load(2_000), Traffic("grpc", connections=3, seconds=60, requests_max=12))
        small = send(port, Load(3), Traffic("grpc", connections=2, seconds=60, requests_max=200))
    assert (sent.requests, sent.failures, small.requests, small.failures) == (12, [], 200, [])
    spans = [(bytes(span.trace_id), bytes(span.span_id)) for body in taken for span in decode_request(body)]
    assert len(spans) == len(set(spans)) == 12 * 2_000 + 200 * 3


def test_grpc_refusals_are_failures() -> None:
    """A status other than OK ends the run, and what was acknowledged before is what is counted."""
    with serve_grpc(fail_at=3) as (port, _):
        sent = send(port, Load(2), Traffic("grpc", connections=1, seconds=60, requests_max=10))
    assert sent.requests == 2
    assert "not a full success" in sent.failures[0]


def test_grpc_messages_may_be_compressed() -> None:
    """With gzip the receiver's own gRPC inflates what was prepared."""
    with serve_grpc(fail_at=0) as (port, taken):
        packed = Packed(make_pool(Load(100)), 5)
        sent = send_load(port, packed, Traffic("grpc", gzip=True, connections=1, seconds=60))
    assert (sent.requests, sent.failures) == (5, [])
    assert sum(1 for body in taken for _ in decode_request(body)) == 500


def test_messages_of_a_collectors_file_are_counted(tmp_path: Path) -> None:
    """What the peer has stored is counted by whole messages; one that is cut off does not count."""
    path = tmp_path / "spans.pb"
    path.write_bytes(
        b"".join(len(body).to_bytes(4, "big") + body for body in (b"abc", b"", b"x" * 500)) + b"\0\0\0\x09ab"
    )
    assert count_messages(path) == 3
