"""OTLP/HTTP as a raw ASGI application: POST /v1/traces, protobuf or JSON, gzip. Owns HTTP's side of the answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from otelbill_collector.decode.otlp_json import convert_json
from otelbill_collector.decode.wire import MalformedRequest
from otelbill_collector.domain.records import Answer, Receipt, Refused, Rejection
from otelbill_collector.receive.admission import RETRY_AFTER_SECONDS, Admission, Hold, Overloaded, name_sender
from otelbill_collector.receive.answers import Refusal, build_response, build_status
from otelbill_collector.receive.inflate import TooLarge, UnknownEncoding, inflate_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Submit = Callable[[bytes], "Future[Answer]"]
Count = Callable[[str, str], None]
Headers = list[tuple[bytes, bytes]]
Rendered = tuple[bytes, bytes, bytes]  # status line, header lines, body

_log = logging.getLogger("otelbill.receive")

_NOTHING = Receipt(spans=0, ignored=0, accepted=0, duplicate=0, dead_lettered=0)
TRACES_PATH = "/v1/traces"
# Signals without usage are taken and set aside, so that an app may point its whole OTLP export here.
QUIET_PATHS = ("/v1/metrics", "/v1/logs")
_INLINE_BYTES_MAX = 8_192  # fifty usual spans; inflated a thousandfold it is still done in milliseconds
# A body that has announced much and sent little holds little: it is counted as it comes, up to twice ahead.
FIRST_BYTES = 16_384
PROTOBUF, JSON = "application/x-protobuf", "application/json"


class NotAccepted(Exception):
    """A request that is refused, with what its sender is told."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(status, reason)


class OtlpHttp:
    """The application. `submit` hands a protobuf body to the writer; `count` is told protocol and status."""

    def __init__(self, submit: Submit, admission: Admission, count: Count) -> None:
        self.submit = submit
        self.admission = admission
        self._count = count
        # One thread each: what is inflated but not yet admitted is one body at a time, and JSON is slow.
        self._converters = {
            kind: ThreadPoolExecutor(1, thread_name_prefix="otelbill-convert") for kind in (PROTOBUF, JSON)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        content_type = given.get("content-type", "").partition(";")[0].strip().lower()
        try:
            message: Message = await self._accept(scope, given, content_type, receive)
        except NotAccepted as error:
            status, message = error.refusal.http_status, build_status(error.refusal)
        else:
            status = 200
        headers, body = self._render(status, message, content_type)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def render_outcome(self, done: Future[Answer]) -> Rendered:
        """What the sender of a protobuf request is told of its answer, which is here."""
        error = done.exception()
        if isinstance(error, Refused):
            return self.render_refusal(503, str(error))
        if error is not None:  # the sender keeps its request
            _log.error("a request could not be answered", exc_info=error)
            return self.render_refusal(500, f"internal error {type(error).__name__}; see the collector's log")
        answer = done.result()
        if isinstance(answer, Rejection):
            return self.render_refusal(400, answer.reason)
        return self._render_lines(200, build_response(answer))

    def render_refusal(self, status: int, reason: str) -> Rendered:
        """The same of a refusal."""
        return self._render_lines(status, build_status(Refusal(status, reason)))

    def describe_slowness(self) -> str:
        """Why a body that took too long was refused."""
        seconds = self.admission.limits.body_seconds_max
        return f"the body took longer than {seconds:g} s to arrive; send smaller batches"

    def _render_lines(self, status: int, message: Message) -> Rendered:
        headers, body = self._render(status, message, PROTOBUF)
        return STATUS_LINE[status], b"".join(b"%b: %b\r\n" % pair for pair in headers), body

    async def _accept(self, scope: Scope, headers: dict[str, str], content_type: str, receive: Receive) -> Message:
        self._check_request(scope, headers, content_type)
        announced = self._read_length(headers)
        sender = name_sender(*(scope.get("client") or ("unknown", 0)))
        try:
            self.admission.find_room(sender, announced)
            with self.admission.hold(sender) as held:
                body = await self._read_body(receive, announced, held)
                if scope["path"] != TRACES_PATH:
                    return build_response(_NOTHING)
                wire = await self._convert(body, headers.get("content-encoding", "").strip().lower(), content_type)
                held.grow(max(len(wire), len(body)))
                answer = await asyncio.wrap_future(self.submit(wire))
        except Overloaded as error:
            self.admission.count_refusal(error.bound)
            raise NotAccepted(429, str(error)) from None
        except Refused as error:
            raise NotAccepted(503, str(error)) from error
        if isinstance(answer, Rejection):
            raise NotAccepted(400, answer.reason)
        return build_response(answer)

    def _check_request(self, scope: Scope, headers: dict[str, str], content_type: str) -> None:
        if scope["path"] not in (TRACES_PATH, *QUIET_PATHS):
            raise NotAccepted(404, f"there is nothing at {scope['path'][:64]}; traces go to {TRACES_PATH}")
        if scope["method"] != "POST":
            raise NotAccepted(405, "use POST")
        if not self.admission.is_authorised(headers.get("authorization")):
            raise NotAccepted(401, "send one of the configured tokens as Authorization: Bearer TOKEN")
        if content_type not in (PROTOBUF, JSON):
            raise NotAccepted(415, f"Content-Type {content_type[:64]!r} is not OTLP; send {PROTOBUF} or {JSON}")

    def _read_length(self, headers: dict[str, str]) -> int:
        limit = self.admission.limits.body_bytes_max
        text = headers.get("content-length", "")
        length = int(text) if text.isdigit() else min(limit, 65_536)
        if length > limit:
            raise NotAccepted(413, f"the body has {length} bytes, the limit is {limit}; send smaller batches")
        return length

    async def _read_body(self, receive: Receive, announced: int, held: Hold) -> bytes:
        """The whole body, admitted into `held` as it comes."""
        seconds = self.admission.limits.body_seconds_max
        try:
            async with asyncio.timeout(seconds):
                return await self._read_chunks(receive, announced, held)
        except TimeoutError:
            self.admission.count_refusal("body_seconds")
            raise NotAccepted(503, self.describe_slowness()) from None

    async def _read_chunks(self, receive: Receive, announced: int, held: Hold) -> bytes:
        limit = self.admission.limits.body_bytes_max
        chunks: list[bytes] = []
        size = 0
        held.grow(min(announced, FIRST_BYTES))
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise NotAccepted(400, "the connection closed before the body was complete")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise NotAccepted(413, f"the body is larger than {limit} bytes; send smaller batches")
            if size > held.size_bytes:
                held.grow(max(size, min(announced, 2 * size)))
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)

    async def _convert(self, body: bytes, encoding: str, content_type: str) -> bytes:
        """Plain protobuf as it is; large work beside the event loop, which has others to answer meanwhile."""
        if len(body) <= _INLINE_BYTES_MAX or (content_type == PROTOBUF and encoding in ("", "identity")):
            return self._convert_body(body, encoding, content_type)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._converters[content_type], self._convert_body, body, encoding, content_type
        )

    def inflate(self, body: bytes) -> Future[bytes | Refusal]:
        """A gzip'ed protobuf body as plain bytes, or why it is refused; beside the event loop unless small."""
        if len(body) > _INLINE_BYTES_MAX:
            return self._converters[PROTOBUF].submit(self._inflate, body)
        done: Future[bytes | Refusal] = Future()
        try:
            done.set_result(self._inflate(body))
        except Exception as error:  # noqa: BLE001 as beside the loop: who asks for the result gets it
            done.set_exception(error)
        return done

    def _inflate(self, body: bytes) -> bytes | Refusal:
        try:
            return self._convert_body(body, "gzip", PROTOBUF)
        except NotAccepted as error:
            return error.refusal  # without the error, whose traceback would keep alive what was inflated

    def _convert_body(self, body: bytes, encoding: str, content_type: str) -> bytes:
        try:
            limits = self.admission.limits
            # JSON becomes objects of ten times its size before it is protobuf.
            limit = limits.body_bytes_max if content_type == JSON else limits.decompressed_bytes_max
            plain = inflate_body(body, encoding, limit)
            return convert_json(plain) if content_type == JSON else plain
        except TooLarge as error:
            raise NotAccepted(413, str(error)) from error
        except UnknownEncoding as error:
            raise NotAccepted(415, str(error)) from error
        except MalformedRequest as error:
            raise NotAccepted(400, str(error)) from error
        except ValueError as error:
            raise NotAccepted(400, str(error)) from error

    def _render(self, status: int, message: Message, content_type: str) -> tuple[Headers, bytes]:
        """Headers and body of an answer, which is counted with it."""
        self._count("http", str(status))
        as_json = content_type == JSON
        body = MessageToJson(message, indent=None).encode() if as_json else message.SerializeToString()
        headers = [(b"content-type", (JSON if as_json else PROTOBUF).encode()), (b"content-length", b"%d" % len(body))]
        if status in (429, 503):
            headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
        if status == 405:
            headers.append((b"allow", b"POST"))
        return headers, body
