"""The usual request takes a short way, with the same bounds and the same answers as every other."""

from __future__ import annotations

import asyncio
import gc
import gzip
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn
from google.rpc.status_pb2 import Status
from uvicorn.server import ServerState

from otelbill_collector.domain.records import Answer, Receipt, Refused, Rejection
from otelbill_collector.receive.admission import Admission, ReceiveLimits
from otelbill_collector.receive.connections import ConnectionBook
from otelbill_collector.receive.direct import BodyReader, DirectListener
from otelbill_collector.receive.http import NotAccepted, OtlpHttp

LIMITS = ReceiveLimits(100_000, 100_000, inflight_bytes_max=150_000, body_seconds_max=0.05)
RECEIPT = Receipt(spans=1, ignored=0, accepted=1, duplicate=0, dead_lettered=0)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711), "sockname": ("192.0.2.1", 4328)})
        self.written = b""
        self.closed = self.paused = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class House:
    """A listener with connections, and a writer that answers when told."""

    def __init__(self, tokens: tuple[str, ...] = (), limits: ReceiveLimits = LIMITS) -> None:
        self.submitted: list[bytes] = []
        self.futures: list[Future[Answer]] = []
        self.counted: list[str] = []
        self.refused: list[str] = []
        self.admission = Admission(limits, tokens, self.refused.append)
        self.tasks = 0
        door = OtlpHttp(self._submit, self.admission, lambda _, status: self.counted.append(status))

        async def application(scope: Any, receive: Any, send: Any) -> None:
            self.tasks += 1
            await door(scope, receive, send)

        self.book = ConnectionBook(10)
        self._make = DirectListener(self.book, door)
        self._config = uvicorn.Config(application, log_config=None, lifespan="off")
        self._state = ServerState()

    def _submit(self, body: bytes) -> Future[Answer]:
        self.submitted.append(body)
        self.futures.append(Future())
        return self.futures[-1]

    def connect(self) -> tuple[BodyReader, Transport]:
        protocol = self._make(config=self._config, server_state=self._state, app_state={})
        transport = Transport()
        protocol.connection_made(transport)
        return protocol, transport


def feed(protocol: BodyReader, data: bytes, sizes: Iterator[int] | None = None) -> None:
    """As the socket would: as much as the buffer takes, or in these sizes."""
    while data:
        buffer = protocol.get_buffer(-1)
        size = min(len(data), len(buffer), next(sizes) if sizes else len(data))
        buffer[:size] = data[:size]
        data = data[size:]
        protocol.buffer_updated(size)


def write_request(body: bytes, *headers: bytes, path: bytes = b"/v1/traces") -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: a", b"Content-Type: application/x-protobuf"]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), *headers, b"", body])


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def await_that(find: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not find():
            await asyncio.sleep(0.001)


def run(house: House, play: Callable[[House], Any]) -> None:
    asyncio.run(play(house))
    assert house.admission.inflight_bytes == 0


@pytest.mark.parametrize("cut", range(1, 260, 7))
def test_however_the_bytes_come_the_writer_gets_the_body(cut: int) -> None:
    """A head in one piece or in many, a body in pieces, a next request in the same read: the same bodies, in order."""
    house = House()
    bodies = [bytes([65 + number]) * 50 for number in range(3)]

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        wire = b"".join(write_request(body) for body in bodies)
        feed(protocol, wire, iter([cut] * 10_000))
        for number in range(len(bodies)):
            await await_that(lambda number=number: len(house.futures) > number)  # type: ignore[misc]
            house.futures[number].set_result(RECEIPT)
            await settle()
        await await_that(lambda: transport.written.count(b"HTTP/1.1 200 OK\r\n") == 3)
        assert not transport.closed

    run(house, play)
    assert house.submitted == bodies
    assert house.counted == ["200"] * 3


def test_the_usual_request_needs_no_task() -> None:
    """What exporters send all day is handed to the writer in the read that completes it, and answered in one write."""
    house = House()

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        for number in range(3):
            feed(protocol, write_request(b"x" * 60_000, b"Connection: keep-alive"))
            assert len(house.submitted) == number + 1
            assert house.admission.inflight_bytes == 60_000
            house.futures[-1].set_result(RECEIPT)
            await settle()
        head, _, body = transport.written.rpartition(b"\r\n\r\n")
        assert head.count(b"content-type: application/x-protobuf\r\ncontent-length: 0") == 3
        assert body == b""

    run(house, play)
    assert house.tasks == 0
    assert house.submitted == [b"x" * 60_000] * 3


@pytest.mark.parametrize(
    "wire",
    [
        write_request(b"body", path=b"/v1/logs"),
        write_request(b"body", b"Content-Encoding: deflate"),
        write_request(b""),
        write_request(b"x" * 100_001),
        write_request(b"body", b"Expect: 100-continue"),
        write_request(b"body", b"Connection: close"),
        write_request(b"body").replace(b"application/x-protobuf", b"application/json"),
        write_request(b"body").replace(b"POST", b"PUT"),
        write_request(b"body").replace(b"HTTP/1.1", b"HTTP/1.0"),
        write_request(b"body")
        .replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")
        .replace(b"body", b"0\r\n\r\n"),
    ],
)
def test_every_other_request_goes_the_long_way(wire: bytes) -> None:
    """What is not plain protobuf of known length is for the application that knows all; then the short way is open."""
    house = House()

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        feed(protocol, wire)
        await settle()
        for future in house.futures:
            future.set_result(RECEIPT)
        await await_that(lambda: transport.written.count(b"HTTP/1.1 ") > (b"100 Continue" in transport.written))
        assert house.tasks == 1
        if transport.closed:
            return
        feed(protocol, write_request(b"usual"))
        house.futures[-1].set_result(RECEIPT)
        await settle()
        assert house.submitted[-1] == b"usual"
        assert house.tasks == 1

    run(house, play)


def test_gzip_is_usual_too() -> None:
    """A small body is inflated at once, a large one beside the loop; both count with what they become."""
    house = House()
    small, large = b"x" * 50_000, secrets.token_bytes(20_000) + bytes(30_000)

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        for number, body in enumerate((small, large)):
            feed(protocol, write_request(gzip.compress(body), b"Content-Encoding: gzip"))
            assert body is large or len(house.submitted) == number + 1
            await await_that(lambda number=number: len(house.submitted) > number)  # type: ignore[misc]
            assert house.admission.inflight_bytes == 50_000
            house.futures[-1].set_result(RECEIPT)
            await settle()
        assert transport.written.count(b"HTTP/1.1 200") == 2

    run(house, play)
    assert house.submitted == [small, large]
    assert house.tasks == 0


@pytest.mark.parametrize("size", [100, 20_000], ids=["at once", "beside the loop"])
@pytest.mark.parametrize(("kind", "status"), [("cut", b"400"), ("bomb", b"413"), ("no room", b"429"), ("odd", b"500")])
def test_gzip_that_cannot_be_taken_is_refused(
    kind: str, status: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken bodies, bombs, what there is no room for, and faults of ours are answered and hold nothing."""
    house = House()
    noise = secrets.token_bytes(size)
    body = gzip.compress(noise + bytes(200_000 if kind == "bomb" else 60_000))
    if kind == "odd":
        monkeypatch.setattr(OtlpHttp, "_convert_body", lambda *_: [][0])

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        with house.admission.hold("another") as other:
            other.grow(60_000 if kind == "no room" else 1)
            feed(protocol, write_request(body[:-12] if kind == "cut" else body, b"Content-Encoding: gzip"))
            await await_that(lambda: transport.written.startswith(b"HTTP/1.1 " + status))

    run(house, play)
    assert house.submitted == []
    assert house.refused == (["sender_share"] if kind == "no room" else [])


@pytest.mark.parametrize("size", [100, 20_000], ids=["at once", "beside the loop"])
def test_what_was_inflated_of_a_bomb_does_not_wait_for_the_collector_of_cycles(size: int) -> None:
    """That runs rarely here, and several bombs at once would be several limits of memory."""
    house = House()
    gc.collect()
    gc.disable()
    try:
        run(house, partial(_send_bomb, gzip.compress(secrets.token_bytes(size) + bytes(200_000))))
        alive = [item for item in gc.get_objects() if isinstance(item, NotAccepted)]
        assert alive == []
    finally:
        gc.enable()


async def _send_bomb(body: bytes, house: House) -> None:
    protocol, transport = house.connect()
    feed(protocol, write_request(body, b"Content-Encoding: gzip"))
    await await_that(lambda: transport.written.startswith(b"HTTP/1.1 413"))


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (Refused("disk full"), b"503", "disk full"),
        (Rejection("not OTLP"), b"400", "not OTLP"),
        (ValueError("odd"), b"500", "internal error ValueError; see the collector's log"),
    ],
)
def test_what_the_writer_says_reaches_the_sender(answer: Any, status: bytes, said: str) -> None:
    """A refusal is retryable with a time, a rejection final, and a fault of ours no silence."""
    house = House()

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        feed(protocol, write_request(b"body"))
        if isinstance(answer, Exception):
            house.futures[0].set_exception(answer)
        else:
            house.futures[0].set_result(answer)
        await settle()
        head, _, body = transport.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert (b"retry-after: 1" in head) == (status == b"503")
        assert Status.FromString(body).message == said
        assert not transport.closed

    run(house, play)
    assert house.counted == [status.decode()]


def test_a_stranger_is_refused() -> None:
    """The short way asks for the token, too."""
    house = House(tokens=("secret",))

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        feed(protocol, write_request(b"body", b"Authorization: Bearer wrong"))
        await await_that(lambda: b"HTTP/1.1 401" in transport.written)
        feed(protocol, write_request(b"body", b"Authorization: Bearer secret"))
        house.futures[0].set_result(RECEIPT)
        await settle()
        assert b"HTTP/1.1 200" in transport.written

    run(house, play)
    assert house.submitted == [b"body"]


def test_a_body_for_which_there_is_no_room_is_read_and_set_aside() -> None:
    """A body that turns out too much for now is answered at once; its rest is not taken for the next request."""
    house = House(limits=ReceiveLimits(100_000, 100_000, inflight_bytes_max=1_000_000))

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        wire = write_request(b"x" * 90_000)
        with ExitStack() as others:
            others.enter_context(house.admission.hold("first")).grow(600_000)
            feed(protocol, wire[:20_000])
            for size in (170_000, 90_000, 45_000):
                others.enter_context(house.admission.hold(f"of {size}")).grow(size)
            feed(protocol, wire[20_000:60_000])
            assert b"HTTP/1.1 429" in transport.written
            feed(protocol, wire[60_000:])
        feed(protocol, write_request(b"small"))
        house.futures[0].set_result(RECEIPT)
        await settle()
        assert b"HTTP/1.1 200" in transport.written

    run(house, play)
    assert house.submitted == [b"small"]
    assert house.refused == ["sender_share"]
    assert house.tasks == 0


def test_where_there_is_no_room_from_the_start_the_long_way_refuses() -> None:
    """Who announces more than there is room for is told before the body comes, once."""
    house = House()

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        with house.admission.hold("another") as other:
            other.grow(100_000)
            feed(protocol, write_request(b"x" * 90_000)[:500])
            await await_that(lambda: b"HTTP/1.1 429" in transport.written)
        assert transport.written.count(b"HTTP/1.1") == 1
        protocol.connection_lost(ConnectionResetError())
        await settle()

    run(house, play)
    assert house.refused == ["inflight_bytes"]


@pytest.mark.parametrize("sent", [0, 900])
def test_a_body_that_does_not_come_is_given_up(sent: int) -> None:
    """A sender that announces and trickles, or sends nothing, is answered 503 with a time, and its bytes are free."""
    house = House()

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        head = write_request(b"x" * 90_000).index(b"\r\n\r\n") + 4
        feed(protocol, write_request(b"x" * 90_000)[: head + sent])
        assert 0 < house.admission.inflight_bytes <= 16_384
        await await_that(lambda: b"HTTP/1.1 503" in transport.written)
        assert house.admission.inflight_bytes == 0

    run(house, play)
    assert (house.submitted, house.refused) == ([], ["body_seconds"])


def test_a_sender_that_leaves_holds_nothing() -> None:
    """In the middle of a body at once; with the writer at work until that is done with the bytes."""
    house = House()

    async def play(house: House) -> None:
        protocol, _ = house.connect()
        feed(protocol, write_request(b"x" * 50_000)[:30_000])
        assert house.admission.inflight_bytes
        protocol.connection_lost(ConnectionResetError())
        assert house.admission.inflight_bytes == 0
        protocol, transport = house.connect()
        feed(protocol, write_request(b"x" * 50_000))
        protocol.connection_lost(ConnectionResetError())
        transport.close()
        assert house.admission.inflight_bytes == 50_000
        house.futures[0].set_result(RECEIPT)
        await settle()
        assert transport.written == b""

    run(house, play)
    assert house.counted == ["400", "200"]
    assert house.book.size == 0


def test_the_answers_of_one_commit_wake_the_loop_once() -> None:
    """A commit of many small requests costs the writer one wake-up, not one for each."""
    house = House()

    async def play(house: House) -> None:
        loop = asyncio.get_running_loop()
        wakes = 0
        usual = loop.call_soon_threadsafe

        def count(*given: Any, **named: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return usual(*given, **named)

        connections = [house.connect() for _ in range(5)]
        for protocol, _ in connections:
            feed(protocol, write_request(b"body"))
        loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        for future in house.futures:
            future.set_result(RECEIPT)
        assert wakes == 1
        await settle()
        assert all(transport.written.startswith(b"HTTP/1.1 200") for _, transport in connections)

    run(house, play)


def test_a_server_that_stops_answers_first() -> None:
    """Shutdown lets a request end and then closes its connection."""
    house = House()

    async def play(house: House) -> None:
        protocol, transport = house.connect()
        feed(protocol, write_request(b"body"))
        (inner,) = house._state.connections
        inner.shutdown()
        assert not transport.closed
        house.futures[0].set_result(RECEIPT)
        await settle()
        assert b"connection: close" in transport.written
        assert transport.closed
        with suppress(ConnectionResetError):
            protocol.connection_lost(None)

    run(house, play)
