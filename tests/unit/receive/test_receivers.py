"""Both receivers answer every outcome with the right code, within bounds, and only after the commit."""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from google.rpc.status_pb2 import Status

from otelbill_collector.domain.records import Answer, Receipt, Refused, Rejection
from otelbill_collector.receive.admission import Admission, Hold, Overloaded, ReceiveLimits, name_sender
from otelbill_collector.receive.grpc import OtlpGrpc
from otelbill_collector.receive.http import OtlpHttp
from otelbill_collector.receive.inflate import TooLarge, UnknownEncoding, inflate_body
from otelbill_collector.receive.turns import Turns, split_peer
from tests.spans import build_request, chat

LIMITS = ReceiveLimits(body_bytes_max=10_000, decompressed_bytes_max=20_000, inflight_bytes_max=15_000)
PROTOBUF = {"content-type": "application/x-protobuf"}
RECEIPT = Receipt(spans=1, ignored=0, accepted=1, duplicate=0, dead_lettered=0)


class Door:
    """The ASGI application with a scripted writer behind it."""

    def __init__(
        self, answer: Answer | Exception = RECEIPT, tokens: tuple[str, ...] = (), limits: ReceiveLimits = LIMITS
    ) -> None:
        self.submitted: list[bytes] = []
        self.counted: list[tuple[str, str]] = []
        self.admission = Admission(limits, tokens)
        self._answer = answer
        self.application = OtlpHttp(self._submit, self.admission, lambda *pair: self.counted.append(pair))

    def _submit(self, body: bytes) -> Future[Answer]:
        self.submitted.append(body)
        future: Future[Answer] = Future()
        if isinstance(self._answer, Exception):
            future.set_exception(self._answer)
        else:
            future.set_result(self._answer)
        return future

    def post(
        self, body: bytes, headers: Mapping[str, str] = PROTOBUF, path: str = "/v1/traces", method: str = "POST"
    ) -> tuple[int, dict[str, str], bytes]:
        """One request; (status, headers, body) of the answer."""
        sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "path": path,
            "method": method,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.application(scope, receive, send))
        start, content = sent
        return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, content["body"]


BODY = build_request([chat("a")])
_ODD_VALUE = {"key": "k", "value": {"arrayValue": {"values": 5}}}
_ODD_ARRAY = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [_ODD_VALUE]}]}]}]}).encode()


def test_a_body_reaches_the_writer_as_it_was_sent() -> None:
    """Protobuf goes through untouched, gzip unpacked, JSON converted."""
    door = Door()
    assert door.post(BODY)[0] == 200
    assert door.post(gzip.compress(BODY), {**PROTOBUF, "content-encoding": "gzip"})[0] == 200
    assert door.submitted == [BODY, BODY]
    assert door.post(b'{"resourceSpans": []}', {"content-type": "application/json; charset=utf-8"})[0] == 200
    assert door.submitted[2] == b""


@pytest.mark.parametrize(
    ("body", "headers", "path", "method", "status"),
    [
        (BODY, {"content-type": "text/plain"}, "/v1/traces", "POST", 415),
        (BODY, {}, "/v1/traces", "POST", 415),
        (BODY, PROTOBUF, "/v2/traces", "POST", 404),
        (BODY, PROTOBUF, "/v1/traces", "GET", 405),
        (BODY, {**PROTOBUF, "content-encoding": "br"}, "/v1/traces", "POST", 415),
        (BODY, {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces", "POST", 400),
        (gzip.compress(BODY)[:-12], {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces", "POST", 400),
        (gzip.compress(bytes(200_000)), {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces", "POST", 413),
        (bytes(10_001), PROTOBUF, "/v1/traces", "POST", 413),
        (b"", {**PROTOBUF, "content-length": "10001"}, "/v1/traces", "POST", 413),
        (b"{", {"content-type": "application/json"}, "/v1/traces", "POST", 400),
        (_ODD_ARRAY, {"content-type": "application/json"}, "/v1/traces", "POST", 400),
    ],
)
def test_what_cannot_be_accepted_is_answered_and_never_submitted(
    body: bytes, headers: dict[str, str], path: str, method: str, status: int
) -> None:
    """A clear status and a reason in the format of the request; nothing reaches the writer."""
    door = Door()
    code, answer_headers, answer = door.post(body, headers, path, method)
    assert code == status
    assert door.submitted == []
    if answer_headers["content-type"] == "application/json":
        assert json.loads(answer)["message"]
    else:
        assert Status.FromString(answer).message
    assert door.counted == [("http", str(status))]
    assert door.admission.inflight_bytes == 0


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_large_body_is_converted_beside_the_event_loop(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen megabytes of JSON take seconds, in which health checks and all other senders must be answered."""
    threads: list[threading.Thread] = []

    def watch(body: bytes, *rest: Any) -> bytes:
        threads.append(threading.current_thread())
        return inflate_body(body, *rest)

    monkeypatch.setattr("otelbill_collector.receive.http.inflate_body", watch)
    document = json.dumps({"resourceSpans": [], "rest": secrets.token_hex(8_000)}).encode()[:-2] + b'"}'
    limits = ReceiveLimits(body_bytes_max=100_000, decompressed_bytes_max=100_000, inflight_bytes_max=200_000)
    headers = {"content-type": "application/json", "content-encoding": encoding}
    body = gzip.compress(document) if encoding else document
    assert Door(limits=limits).post(body, headers)[0] == 200
    assert threads
    assert threads[0] is not threading.main_thread()


def test_metrics_and_logs_are_taken_and_set_aside() -> None:
    """An app may point its whole OTLP export here; only traces carry usage."""
    door = Door()
    assert door.post(b"whatever", PROTOBUF, "/v1/logs")[0] == 200
    assert door.submitted == []


class Stream:
    """A body in pieces; `look` runs before each piece, and a piece of None never comes."""

    def __init__(self, pieces: list[bytes | None], look: Callable[[], None] = lambda: None) -> None:
        self._pieces = pieces
        self._look = look

    async def __call__(self) -> dict[str, Any]:
        self._look()
        piece = self._pieces.pop(0)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}


def _post_stream(door: Door, stream: Stream, *, announced: int | None = None) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/x-protobuf"), (b"transfer-encoding", b"chunked")]
    if announced is not None:
        headers[1] = (b"content-length", str(announced).encode())
    scope = {"type": "http", "path": "/v1/traces", "method": "POST", "headers": headers}
    asyncio.run(asyncio.wait_for(door.application(scope, stream, send), 20))
    return int(sent[0]["status"])


def test_a_body_without_a_length_is_held_as_it_grows() -> None:
    """Chunked senders count with what they have sent; together they cannot pass the bound of bytes in flight."""
    limits = ReceiveLimits(body_bytes_max=300_000, decompressed_bytes_max=300_000, inflight_bytes_max=300_000)
    door, held = Door(limits=limits), []
    status = _post_stream(door, Stream([bytes(100_000)] * 3, lambda: held.append(door.admission.inflight_bytes)))
    assert (status, held) == (200, [16_384, 100_000, 200_000])
    with door.admission.hold("another") as other:
        other.grow(250_000)
        assert _post_stream(door, Stream([bytes(100_000)] * 3)) == 429
    assert door.admission.inflight_bytes == 0


def test_a_sender_that_trickles_does_not_hold_its_place_for_ever() -> None:
    """A body that does not arrive in time is refused with Retry-After, and its bytes are free for others."""
    limits = ReceiveLimits(
        body_bytes_max=10_000, decompressed_bytes_max=20_000, inflight_bytes_max=15_000, body_seconds_max=0.05
    )
    door = Door(limits=limits)
    assert _post_stream(door, Stream([b"a", None])) == 503
    assert door.submitted == []
    assert door.admission.inflight_bytes == 0


def test_bytes_of_an_aborted_call_are_held_until_the_writer_is_done_with_them() -> None:
    """A sender that cancels and sends again must not fill the writer's queue beyond the bound."""
    admission, future = Admission(LIMITS), Future[Answer]()
    service = OtlpGrpc(lambda _: future, admission, lambda *_: None)

    class Context:
        def invocation_metadata(self) -> tuple[()]:
            return ()

        def peer(self) -> str:
            return "ipv4:127.0.0.1:4711"

    async def messages() -> AsyncIterator[bytes]:
        yield BODY

    async def cancel() -> None:
        task = asyncio.create_task(service.export(messages(), Context()))
        while not admission.inflight_bytes:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    future.set_running_or_notify_cancel()
    asyncio.run(cancel())
    assert admission.inflight_bytes == len(BODY)
    future.set_result(RECEIPT)
    assert admission.inflight_bytes == 0


def test_a_refusal_says_when_to_come_back() -> None:
    """A disk that is full is a 503 with Retry-After, not a loss and not a success."""
    status, headers, _ = Door(Refused("disk full")).post(BODY)
    assert status == 503
    assert headers["retry-after"] == "1"


def test_a_rejection_is_final() -> None:
    """A malformed request is a 400, so that the sender does not try again."""
    assert Door(Rejection("not OTLP")).post(BODY)[0] == 400


def test_dead_letters_are_a_warning_not_a_rejection() -> None:
    """The span is kept here; the sender is told and must not resend."""
    dead = Receipt(spans=2, ignored=0, accepted=1, duplicate=0, dead_lettered=1)
    _, _, body = Door(dead).post(BODY, {"content-type": "application/x-protobuf"})
    assert b"1 of 2 spans" in body


def test_tokens_keep_strangers_out() -> None:
    """With tokens configured, none or a wrong one is 401 and the body is not even read."""
    door = Door(tokens=("secret-1", "secret-2"))
    assert door.post(BODY)[0] == 401
    assert door.post(BODY, {**PROTOBUF, "authorization": "Bearer wrong"})[0] == 401
    assert door.post(BODY, {**PROTOBUF, "authorization": "Basic secret-1"})[0] == 401
    assert door.post(BODY, {**PROTOBUF, "authorization": "Bearer secret-2"})[0] == 200


def _hold_all(admission: Admission, sender: str, size: int) -> tuple[list[Hold], str]:
    """As many requests of that size as the sender gets in, and what the next one is refused for."""
    held: list[Hold] = []
    while True:
        hold = Hold(admission, sender)
        try:
            hold.grow(size)
        except Overloaded as error:
            return held, error.bound
        held.append(hold)


def test_bytes_under_way_are_bounded_and_given_back() -> None:
    """However many send, no more than the bound is under way, and all of it is free again afterwards."""
    admission = Admission(LIMITS)
    with ExitStack() as stack:
        for number in range(200):
            for hold in _hold_all(admission, f"10.0.0.{number}", 500)[0]:
                stack.callback(hold.release)
        assert 10_000 < admission.inflight_bytes <= 15_000
    assert admission.inflight_bytes == 0


def test_a_lone_request_is_always_taken() -> None:
    """A bound smaller than one large body must not refuse it for ever, also when it comes in pieces."""
    admission = Admission(LIMITS)
    with admission.hold("10.0.0.1") as held:
        held.grow(1_000_000)
        held.grow(2_000_000)
        held.grow(5)
        assert admission.inflight_bytes == 2_000_000
    assert admission.inflight_bytes == 0


def test_who_sends_much_leaves_room_for_who_sends_little() -> None:
    """A sender that fills its share is refused for that, and others get in beside it."""
    admission = Admission(ReceiveLimits(1_000, 1_000, inflight_bytes_max=300_000))
    huge, why = _hold_all(admission, "10.0.0.1", 1_000)
    assert (len(huge), why) == (100, "sender_share")
    small, _ = _hold_all(admission, "10.0.0.2", 10)
    assert sum(hold.size_bytes for hold in small) > 60_000
    for hold in huge[:50]:
        hold.release()
    admission.find_room("10.0.0.2", 10)
    with pytest.raises(Overloaded):
        admission.find_room("10.0.0.1", 100_000)


def test_many_connections_of_large_requests_leave_room_for_small_ones() -> None:
    """Where senders cannot be told apart by address, the larger request is refused earlier."""
    admission = Admission(ReceiveLimits(1_000, 1_000, inflight_bytes_max=300_000))
    for port in range(1_000):
        with suppress(Overloaded):
            Hold(admission, name_sender("127.0.0.1", port)).grow(16_000)
    with pytest.raises(Overloaded):
        admission.find_room(name_sender("127.0.0.1", 1_001), 16_000)
    admission.find_room(name_sender("127.0.0.1", 1_001), 10_000)


def test_a_sender_is_told_apart_by_its_address() -> None:
    """By host over the network; by connection on loopback, where all have one host."""
    assert name_sender("192.0.2.7", 4711) == name_sender("192.0.2.7", 4712) == "192.0.2.7"
    assert name_sender("127.0.0.1", 4711) != name_sender("127.0.0.1", 4712)
    assert split_peer("ipv6:%5B::1%5D:4711") == ("::1", "4711")
    assert split_peer("ipv4:192.0.2.7:4711") == ("192.0.2.7", "4711")
    assert split_peer("unix:") == ("", "")


def test_a_full_house_answers_429() -> None:
    """Overload is retryable and says so, and the bound that was reached is counted."""
    refused: list[str] = []
    door = Door()
    door.admission.count_refusal = refused.append
    with door.admission.hold("another") as other:
        other.grow(14_900)
        status, headers, _ = door.post(BODY, {**PROTOBUF, "content-length": str(len(BODY))})
    assert (status, headers["retry-after"]) == (429, "1")
    assert refused == ["inflight_bytes"]


def test_a_body_that_is_announced_and_does_not_come_holds_little() -> None:
    """Who announces megabytes and sends a byte must not fill the house for those who send."""
    limits = ReceiveLimits(10**6, 10**6, inflight_bytes_max=10**6, body_seconds_max=0.05)
    door, held = Door(limits=limits), []
    stream = Stream([b"a", b"b", None], lambda: held.append(door.admission.inflight_bytes))
    assert _post_stream(door, stream, announced=900_000) == 503
    assert max(held) <= 16_384


def test_calls_wait_for_their_turn_and_a_crowd_of_one_sender_for_itself() -> None:
    """Over gRPC a size is known too late: few messages are read at once, and a newcomer does not wait for the crowd."""
    turns = Turns(ReceiveLimits(1, 1, inflight_bytes_max=4, body_seconds_max=0.1, waiting_calls_max=5))
    refused: list[str] = []

    async def read(sender: str, done: asyncio.Event) -> str:
        try:
            async with turns.take(sender):
                await done.wait()
                return "read"
        except Overloaded as error:
            refused.append(error.bound)
            return "refused"

    async def run() -> None:
        never, now = asyncio.Event(), asyncio.Event()
        now.set()
        crowd = [asyncio.create_task(read("crowd", never)) for _ in range(9)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert turns.waiting == 5
        crowd_waits = await asyncio.gather(*crowd[2:])
        assert crowd_waits == ["refused"] * 7
        assert await read("newcomer", now) == "read"
        never.set()
        assert await asyncio.gather(*crowd[:2]) == ["read"] * 2
        assert await read("crowd", now) == "read"
        assert turns.waiting == 0

    asyncio.run(run())
    assert refused == ["waiting_calls"] * 7


def test_inflating_stops_at_the_limit() -> None:
    """A bomb costs the limit, not its size; broken and unknown encodings are told apart."""
    assert inflate_body(gzip.compress(b"x" * 100), "gzip", 100) == b"x" * 100
    assert inflate_body(zlib.compress(b"x"), "deflate", 100) == b"x"
    with pytest.raises(TooLarge):
        inflate_body(gzip.compress(b"x" * 101), "gzip", 100)
    with pytest.raises(UnknownEncoding):
        inflate_body(b"x", "zstd", 100)
    with pytest.raises(ValueError, match="cut off"):
        inflate_body(gzip.compress(b"x" * 100)[:-9], "gzip", 1_000)
