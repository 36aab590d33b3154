"""Hostile and careless senders against a real sidecar: bounded, answered, and others are unharmed."""

from __future__ import annotations

import gzip
import resource
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tests.otlp_requests import encode, make_chat
from tests.sidecar_process import Sidecar, await_value

MEBI = 1 << 20
CONNECTIONS = 300
_PEAK_BYTES_MAX = 1024 * MEBI  # 64 MiB of empty spans alone were 4 GiB when they were parsed before they were counted
_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path_factory.mktemp("overload"), {"limits": {"connections": CONNECTIONS}}).start()
    yield made
    made.close()


class Neighbour:
    """A sender of one small request after another; `slowest` is the longest that it waited for an answer."""

    def __init__(self, sidecar: Sidecar, name: str) -> None:
        self._sidecar, self._name = sidecar, name
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.statuses: list[int] = []
        self.failures: list[Exception] = []

    def __enter__(self) -> Neighbour:
        self._thread.start()
        await_value(lambda: self.statuses, "the neighbour is answered")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._stop()
            return
        before = len(self.statuses)
        await_value(lambda: len(self.statuses) > before + 2 or self.failures, "the neighbour is still answered")
        self._stop()
        assert self.failures == []
        assert set(self.statuses) == {200}
        assert self._sidecar.usage(customer=self._name)[0]["events"] == len(self.statuses)

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _send(self) -> None:
        headers = {"content-type": "application/x-protobuf"}
        transport = httpx.HTTPTransport(retries=2)  # a connection that was closed while it was idle is opened again
        with httpx.Client(timeout=60, trust_env=False, transport=transport) as client:
            while not self._stopped.is_set():
                body = encode(make_chat(f"{self._name}/{len(self.statuses)}", self._name))
                try:
                    answer = client.post(self._sidecar.traces_url, content=body, headers=headers)
                except httpx.HTTPError as error:
                    self.failures.append(error)
                    return
                self.statuses.append(answer.status_code)
                self._stopped.wait(0.01)


def _wrap(tag: int, body: bytes) -> bytes:
    size, out = len(body), bytearray([tag])
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + body


def _scope(spans: bytes) -> bytes:
    return _wrap(0x0A, _wrap(0x12, spans))


def _make_empty_spans(size: int) -> bytes:
    return _scope(b"\x12\x00" * (size // 2))


def _read_peak_bytes(sidecar: Sidecar) -> int:
    try:
        lines = Path(f"/proc/{sidecar.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        pytest.skip("this system does not tell a process's peak memory")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


_HTTP_BOMBS: dict[str, tuple[Callable[[], bytes], int]] = {
    "64 MB of empty spans": (lambda: gzip.compress(_make_empty_spans(63 * MEBI), 1), 400),
    "a million spans": (lambda: gzip.compress(_make_empty_spans(2_000_000), 1), 400),
    "256 MB of zeros": (lambda: _compress_zeros(256), 413),
    "a string of 17 MB": (lambda: encode(make_chat("long", "long", gen_ai__prompt="x" * (17 * MEBI))), 413),
    "five million JSON objects": (lambda: gzip.compress(b'{"resourceSpans":[' + b"{}," * 5_000_000 + b"{}]}", 1), 400),
    "64 MB of JSON": (lambda: gzip.compress(b'{"resourceSpans":[' + b"{}," * 20_000_000 + b"{}]}", 1), 413),
}


def _compress_zeros(mebibytes: int) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return b"".join([packer.compress(bytes(MEBI)) for _ in range(mebibytes)]) + packer.flush()


@pytest.mark.parametrize("name", _HTTP_BOMBS)
def test_a_bomb_is_answered_and_memory_stays_bounded(sidecar: Sidecar, name: str) -> None:
    """Guarantee: several at once are each refused for what they are, and a neighbour is served meanwhile."""
    make, status = _HTTP_BOMBS[name]
    body = make()
    encoding = {"content_encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
    kind = "application/json" if "JSON" in name else "application/x-protobuf"
    with Neighbour(sidecar, f"beside {name}"), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: sidecar.export(body, content_type=kind, **encoding), range(4)))
    assert {answer.status_code for answer in answers} <= {status, 429}
    assert status in {answer.status_code for answer in answers}
    peak = _read_peak_bytes(sidecar)
    assert peak < _PEAK_BYTES_MAX


def test_ten_thousand_attributes_and_long_strings_are_one_span_s_matter(sidecar: Sidecar) -> None:
    """Guarantee: a span with too many attributes is a dead letter, one with a long text is booked without it."""
    crowded = make_chat("crowded", "odd", **{f"a{number}": number for number in range(10_000)})
    wordy = make_chat("wordy", "odd", gen_ai__prompt="x" * (15 * MEBI))
    with Neighbour(sidecar, "beside odd spans"):
        assert "1 of 2 spans" in sidecar.export(encode(crowded, make_chat("plain", "odd"))).text
        assert sidecar.export(encode(wordy)).status_code == 200
    assert sidecar.usage(customer="odd")[0]["events"] == 2
    (letter,) = [item for item in sidecar.list_json("dead-letters", "list") if item["code"] == "too_many_attributes"]
    assert letter["value"] == "10008"
    assert sidecar.metrics("otelbill_ledger_bytes")[""] < 10 * MEBI, "texts are not kept"


def _call(channel: grpc.Channel, body: bytes, **options: object) -> grpc.StatusCode:
    call = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)
    try:
        call(body, timeout=60, wait_for_ready=True, **options)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
            details = dict(error.trailing_metadata() or ())
            (packed,) = Status.FromString(details["grpc-status-details-bin"]).details
            assert packed.Is(RetryInfo.DESCRIPTOR), "a refusal without RetryInfo is final to a sender"
        return code
    return grpc.StatusCode.OK


def test_a_crowd_of_large_grpc_calls_is_read_in_turns(sidecar: Sidecar) -> None:
    """Guarantee: sixty calls of 15 MB at once are answered, a neighbour is served, and memory stays bounded."""
    heavy = encode(make_chat("heavy", "crowd", gen_ai__prompt="x" * (15 * MEBI)))
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with Neighbour(sidecar, "beside grpc"), ThreadPoolExecutor(20) as pool:
        channels = [grpc.insecure_channel(f"127.0.0.1:{sidecar.grpc_port}", options) for _ in range(20)]
        codes = list(pool.map(lambda number: _call(channels[number % 20], heavy), range(60)))
        bombs = [_call(channels[0], _make_empty_spans(15 * MEBI), compression=grpc.Compression.Gzip) for _ in range(2)]
        for channel in channels:
            channel.close()
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes.count(grpc.StatusCode.OK) > 0
    assert set(bombs) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert sidecar.usage(customer="crowd")[0]["events"] == 1
    peak = _read_peak_bytes(sidecar)
    assert peak < _PEAK_BYTES_MAX


_HEAD = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 16000000\r\n"


@contextmanager
def _open_many(port: int, count: int, opening: bytes) -> Iterator[list[socket.socket]]:
    """Connections that say `opening` and no more; all are closed with the block."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            made.append(connection)
            with suppress(OSError):  # refused already
                connection.sendall(opening)
        yield made


def _count_files(sidecar: Sidecar) -> int:
    folder = Path(f"/proc/{sidecar.pid}/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.fixture
def open_files() -> Iterator[int]:
    """How many connections this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 11_000 if hard == resource.RLIM_INFINITY else min(11_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield min(10_000, max(soft, wanted) - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "opening", [b"", b"POST /v1/tr", _HEAD + b"\r\nabc"], ids=["silent", "in the head", "in the body"]
)
def test_ten_thousand_connections_leave_room_for_others(sidecar: Sidecar, open_files: int, opening: bytes) -> None:
    """Guarantee: silent and half-sent connections lose their place to others, and no more are open than may be."""
    with (
        Neighbour(sidecar, f"beside connections {len(opening)}"),
        _open_many(sidecar.http_port, open_files, opening) as many,
    ):
        assert sidecar.metrics("otelbill_connections")[""] <= CONNECTIONS
        assert _count_files(sidecar) < CONNECTIONS + 100
        assert many[0].recv(100)[:12] == b"HTTP/1.1 503"

        def is_counted() -> bool:
            return sidecar.metrics("otelbill_refusals_total").get('bound="connections"', 0) >= open_files - CONNECTIONS

        await_value(is_counted, "each connection that was closed is counted")


def test_ten_thousand_grpc_and_api_connections_leave_room_too(sidecar: Sidecar, open_files: int) -> None:
    """Guarantee: the other two ports are bounded as well; health and spans are answered meanwhile."""
    with Neighbour(sidecar, "beside grpc connections"):
        for port in (sidecar.grpc_port, sidecar.api_port):
            with _open_many(port, open_files // 2, b""):
                assert sidecar.get("/healthz").status_code == 200


def test_endless_headers_are_cut(sidecar: Sidecar) -> None:
    """Guarantee: a head without an end is answered 400 and closed."""
    with socket.create_connection(("127.0.0.1", sidecar.http_port), timeout=30) as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\nx: ")
        answer = b""
        for _ in range(1_000):
            try:
                connection.sendall(b"x" * 1_000)
            except OSError:
                break
        connection.settimeout(10)
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b"HTTP/1.1 400"
    assert answer.startswith(b"HTTP/1.1 400")
    assert sidecar.metrics("otelbill_refusals_total")['bound="head_bytes"'] == 1


def test_a_sender_of_many_huge_requests_does_not_starve_one_of_small_ones(sidecar: Sidecar) -> None:
    """Guarantee: while one fills its share and is told to wait, every request of the other is taken."""
    huge = [encode(make_chat(f"huge {number}", "huge", gen_ai__prompt="x" * (14 * MEBI))) for number in range(3)]
    with Neighbour(sidecar, "beside huge"), ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda number: sidecar.export(huge[number % 3]), range(80)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    peak = _read_peak_bytes(sidecar)
    assert peak < _PEAK_BYTES_MAX
