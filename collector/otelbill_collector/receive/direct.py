"""The usual request, protobuf of known length, plain or gzip, from the socket to the writer without a task of its own.

Every other request of the connection is `receive.http`'s, and so is the text of every answer. What is here: which
requests are usual, their bytes as they come, and their answers, those of one commit at one waking.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import httptools

from otelbill_collector.domain.records import Answer
from otelbill_collector.receive.admission import Hold, Overloaded, name_sender
from otelbill_collector.receive.answers import Refusal
from otelbill_collector.receive.connections import BoundedProtocol, ConnectionBook
from otelbill_collector.receive.http import FIRST_BYTES, PROTOBUF, TRACES_PATH, OtlpHttp

_T = TypeVar("_T")
_READ_BYTES = 262_144  # of one read, into one buffer that all connections share
_HEAD_BYTES = 2_048  # a longer head, or one that comes in pieces, is not usual
_PATH, _TYPE = TRACES_PATH.encode(), PROTOBUF.encode()
# With one of these a request is not usual, whatever its value. uvicorn reads the sender from the last.
_UNUSUAL = {b"transfer-encoding", b"expect", b"upgrade", b"x-forwarded-for"}


class Answers:
    """From other threads to the loop's: the answers of one commit wake the loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[Callable[[], None]] = deque()
        self._woken = False

    def watch(self, future: Future[_T], tell: Callable[[Future[_T]], None]) -> None:
        """Call `tell` in the loop when the future is done."""
        future.add_done_callback(lambda done: self._put(partial(tell, done)))

    def _put(self, tell: Callable[[], None]) -> None:
        self._ready.append(tell)
        if not self._woken:  # set after the look: at worst the loop wakes twice
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deal)

    def _deal(self) -> None:
        self._woken = False
        while self._ready:
            self._ready.popleft()()


class DirectRequest:
    """One usual request. uvicorn sees it where its own cycle would be, hence the names of the first lines."""

    __slots__ = (
        *("response_started", "response_complete", "disconnected", "more_body", "keep_alive", "message_event"),
        *("chunks", "held", "left", "packed", "size", "timer"),
    )

    def __init__(self, held: Hold, length: int, lose: Callable[[], None], *, packed: bool) -> None:
        self.response_started = self.response_complete = self.disconnected = False
        self.more_body = self.keep_alive = True
        self.message_event = _LostSignal(lose)
        self.chunks: list[bytes] = []
        self.held = held
        self.packed = packed
        self.left, self.size = length, 0
        self.timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """Its body is here, or nobody waits for it any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _LostSignal:
    """What uvicorn sets when a connection is lost."""

    __slots__ = ("set",)

    def __init__(self, lose: Callable[[], None]) -> None:
        self.set = lose


class DirectProtocol(BoundedProtocol):
    """A connection whose usual requests go to `door` directly. Fed by `BodyReader`, with heads by themselves."""

    def __init__(self, book: ConnectionBook, door: OtlpHttp, answers: Answers, **given: Any) -> None:
        super().__init__(book, **given)
        self._door = door
        self._answers = answers
        self._direct: DirectRequest | None = None  # whose body is being read
        self._between = True  # the parser has seen nothing of the next request
        self._offered = False  # the parser is given one whole head

    def take(self, view: memoryview) -> None:
        """Bytes from the socket, valid during the call."""
        while view and self.parser is not None:
            if self._direct is not None:
                used = min(len(view), self._direct.left)
                self._take_body(self._direct, view[:used])
                view = view[used:]
                continue
            end = bytes(view[:_HEAD_BYTES]).find(b"\r\n\r\n") + 4 if self._between else 0
            if end <= 4:
                self.data_received(bytes(view))
                return
            self._offered = True
            self.data_received(bytes(view[:end]))
            self._offered = False
            view = view[end:]
        if self._direct is not None and self._direct.timer is None and not self._direct.response_complete:
            seconds = self._door.admission.limits.body_seconds_max
            self._direct.timer = self.loop.call_later(seconds, self._expire, self._direct)

    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        request = self._find_usual() if self._offered else None
        if request is None:
            super().on_headers_complete()
            return
        self._direct = self.cycle = request  # type: ignore[assignment]  # see DirectRequest

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._direct is not None and not self._between and self.parser is not None:
            # This one waits for a body that it will not see.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._between = True

    def _find_usual(self) -> DirectRequest | None:
        """The request whose head is complete, if it is usual and there is room for it."""
        if self.url != _PATH or self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        if self.flow.write_paused or not (self.cycle is None or self.cycle.response_complete):
            return None
        length, is_protobuf, packed, authorization = 0, False, False, None
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value) if value.isdigit() else 0
            elif name == b"content-type":
                is_protobuf = value == _TYPE
            elif name == b"content-encoding" and value == b"gzip":
                packed = True
            elif name == b"authorization":
                authorization = value.decode("latin-1")
            elif (
                name in _UNUSUAL
                or name == b"content-encoding"
                or (name == b"connection" and value.lower() != b"keep-alive")
            ):
                return None
        admission = self._door.admission
        if not is_protobuf or not 0 < length <= admission.limits.body_bytes_max:
            return None
        if not admission.is_authorised(authorization):
            return None
        sender = name_sender(*(self.client or ("unknown", 0)))
        held = Hold(admission, sender)
        try:
            admission.find_room(sender, length)
            held.grow(min(length, FIRST_BYTES))
        except Overloaded:
            held.release()
            return None
        return DirectRequest(held, length, self._lose, packed=packed)

    def _take_body(self, request: DirectRequest, piece: memoryview) -> None:
        request.left -= len(piece)
        if not request.left:
            self._direct = None
            request.more_body = False
        if request.response_complete:  # refused before its end: the rest is read and set aside
            return
        request.chunks.append(bytes(piece))
        request.size += len(piece)
        try:
            if request.size > request.held.size_bytes:
                request.held.grow(max(request.size, min(request.size + request.left, 2 * request.size)))
        except Overloaded as error:
            self._door.admission.count_refusal(error.bound)
            self._answer(request, *self._door.render_refusal(429, str(error)))
            return
        if request.left:
            return
        request.stop_timer()
        self._book.mark_busy(self)
        chunks, request.chunks = request.chunks, []
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if not request.packed:
            self._submit(request, body)
        elif (inflated := self._door.inflate(body)).done():
            self._take_inflated(request, inflated)
        else:
            self._answers.watch(inflated, partial(self._take_inflated, request))

    def _take_inflated(self, request: DirectRequest, inflated: Future[bytes | Refusal]) -> None:
        if inflated.exception() is not None:
            self._tell(request, inflated)
        elif isinstance(found := inflated.result(), Refusal):
            self._answer(request, *self._door.render_refusal(found.http_status, found.reason))
        else:
            self._admit_inflated(request, found)

    def _admit_inflated(self, request: DirectRequest, wire: bytes) -> None:
        try:
            request.held.grow(len(wire))
        except Overloaded as error:
            self._door.admission.count_refusal(error.bound)
            self._answer(request, *self._door.render_refusal(429, str(error)))
        else:
            self._submit(request, wire)

    def _submit(self, request: DirectRequest, wire: bytes) -> None:
        try:
            self._answers.watch(self._door.submit(wire), partial(self._tell, request))
        except Exception as error:  # noqa: BLE001 as what the writer raises
            failed: Future[Answer] = Future()
            failed.set_exception(error)
            self._tell(request, failed)

    def _tell(self, request: DirectRequest, future: Future[Any]) -> None:  # Any: an answer, or bytes that failed
        self._answer(request, *self._door.render_outcome(future))

    def _expire(self, request: DirectRequest) -> None:
        request.timer = None
        self._door.admission.count_refusal("body_seconds")
        self._answer(request, *self._door.render_refusal(503, self._door.describe_slowness()))

    def _answer(self, request: DirectRequest, status: bytes, headers: bytes, body: bytes) -> None:
        """To the sender, if it is still there; its bytes are given back in any case."""
        request.stop_timer()
        request.held.release()
        request.chunks = []
        request.response_started = request.response_complete = True
        if request.disconnected or self.transport.is_closing():
            return
        common = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        end = b"\r\n" if request.keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((status, common, headers, end, body)))
        if not request.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _lose(self) -> None:
        """The connection is gone: a body that will never be whole is given up."""
        request, self._direct = self._direct, None
        if request is not None and not request.response_complete:
            request.response_complete = True
            request.stop_timer()
            request.held.release()
            self._door.render_refusal(400, "the connection closed before the body was complete")  # counts it


class BodyReader(asyncio.BufferedProtocol):
    """Reads into the one buffer, for a DirectProtocol, which wants to see bytes before they are copied."""

    def __init__(self, buffer: memoryview, inner: DirectProtocol) -> None:
        self._buffer = buffer
        self._inner = inner

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 as asyncio has it
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._inner.take(self._buffer[:nbytes])

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class DirectListener:
    """Makes the protocols of one listener; called by uvicorn for each connection."""

    def __init__(self, book: ConnectionBook, door: OtlpHttp) -> None:
        self._book = book
        self._door = door
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._answers: Answers | None = None

    def __call__(self, **given: Any) -> BodyReader:  # Any: what uvicorn hands to its protocols
        if self._answers is None:
            self._answers = Answers(asyncio.get_running_loop())
        return BodyReader(self._buffer, DirectProtocol(self._book, self._door, self._answers, **given))
