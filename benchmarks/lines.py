"""One connection of a load: a request, its answer, the next. Owns the bytes of HTTP/1.1 and HTTP/2; no threads.

Sockets do not block; a body must stay as it is until its request is acknowledged.
gRPC is written by hand: one stream at a time, headers without a table, so that no header block depends on another.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

Buffer = bytes | memoryview
_ANSWER_BYTES = 8_192
_PARTS_MAX = 1_000  # of one sendmsg; the kernel takes 1,024
_SUCCESSES = (b"", b"\n\0")  # an ExportTraceServiceResponse without a warning


class NotAcknowledged(ConnectionError):
    """An answer that is not a full success, or none."""


class Line:
    """What both protocols share: a socket and what it has not taken yet."""

    def __init__(self, port: int, number: int) -> None:
        self.number = number
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.started = 0.0  # when its request was due, by the caller's clock
        self._pending: list[Buffer] = []

    def begin(self, body: Buffer) -> None:
        """Send a request; never while another waits for its answer."""
        raise NotImplementedError

    def receive(self) -> bool:
        """Read what is there; whether the request was acknowledged. Raises NotAcknowledged."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Send what is left; whether nothing is."""
        while self._pending:
            try:
                sent = self.socket.sendmsg(self._pending[:_PARTS_MAX])
            except BlockingIOError:
                return False
            if sent == sum(map(len, self._pending)):
                self._pending = []
                break
            self._pending = _drop_front(self._pending, sent)
        return True

    def _read(self) -> bytes:
        """All that is there: who waits for edges is not told again of a rest."""
        found = b""
        while True:
            try:
                read = self.socket.recv(_ANSWER_BYTES)
            except BlockingIOError:
                return found
            if not read:
                raise NotAcknowledged("the receiver closed the connection")
            found += read
            if len(read) < _ANSWER_BYTES:
                return found

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def _drop_front(parts: Sequence[Buffer], size: int) -> list[Buffer]:
    for place, part in enumerate(parts):
        if size < len(part):
            return [memoryview(part)[size:], *parts[place + 1 :]]
        size -= len(part)
    return []


class HttpLine(Line):
    """OTLP over HTTP/1.1, kept alive."""

    def __init__(self, port: int, number: int = 0, *, gzip: bool = False) -> None:
        super().__init__(port, number)
        self.socket.setblocking(False)
        encoding = b"content-encoding: gzip\r\n" if gzip else b""
        self._head = (
            b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-protobuf\r\n"
            + encoding
            + b"content-length: %d\r\n\r\n"
        )
        self._answer = b""
        self._success = b""  # a whole answer that was one: the next is mostly the same

    def begin(self, body: Buffer) -> None:
        """Send head and body."""
        self._pending = [self._head % len(body), body]
        self.flush()

    def receive(self) -> bool:
        """See Line."""
        read = self._read()
        if read == self._success and not self._answer:
            return True
        self._answer += read
        head, end, content = self._answer.partition(b"\r\n\r\n")
        if not end:
            return False
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if len(content) < length:
            return False
        if not lines[0].startswith(b"http/1.1 200") or content not in _SUCCESSES:
            raise NotAcknowledged(f"not a full success: {lines[0]!r} {content[:200]!r}")
        self._success, self._answer = self._answer, b""
        return True


_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_HEAD_BYTES = 9
_STREAM_WINDOW, _FRAME_BYTES = 65_535, 16_384  # HTTP/2's initial values
_SET_TABLE, _SET_WINDOW, _SET_FRAME = 1, 4, 5
# `grpc-status: 0` as a literal, name and number plain or in Huffman's code.
_STATUS_OK = tuple(
    name + value
    for name in (b"\x0bgrpc-status", b"\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f")
    for value in (b"\x010", b"\x81\x07")
)
_METHOD = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return _frame_head(len(content), kind, flags, stream) + content


def _frame_head(size: int, kind: int, flags: int, stream: int) -> bytes:
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, stream)


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that enters no table; both lengths under 127."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _build_headers(*, gzip: bool) -> bytes:
    known = b"\x83\x86"  # POST, http: places in HTTP/2's own table
    given = {b":path": _METHOD, b":authority": b"localhost", b"content-type": b"application/grpc", b"te": b"trailers"}
    if gzip:
        given[b"grpc-encoding"] = b"gzip"
    return known + b"".join(_literal(name, value) for name, value in given.items())


class GrpcLine(Line):
    """OTLP over gRPC, one call at a time, within the receiver's windows."""

    def __init__(self, port: int, number: int = 0, *, gzip: bool = False) -> None:
        super().__init__(port, number)
        self._headers = _build_headers(gzip=gzip)
        self._flag = b"\x01" if gzip else b"\x00"
        self._stream = -1
        self._body: Buffer = b""  # what windows have not let out yet
        self._frame_bytes, self._first_window = _FRAME_BYTES, _STREAM_WINDOW
        self._window = self._all_window = _STREAM_WINDOW
        self._read_bytes, self._content = b"", b""
        settings = _frame(_SETTINGS, 0, 0, struct.pack(">HI", _SET_TABLE, 0))
        room = _frame(_WINDOW, 0, 0, struct.pack(">I", 2**31 - 1 - _STREAM_WINDOW))
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + room)
        self._greeted = False
        while not self._greeted:
            self.receive()
        self.socket.setblocking(False)

    def begin(self, body: Buffer) -> None:
        """Send the call's head and as much of the message as may go."""
        self._stream += 2
        self._window = self._first_window
        self._content = b""
        self._pending.append(_frame(_HEADERS, _END_HEADERS, self._stream, self._headers))
        self._body = body
        self._send_message(self._flag + len(body).to_bytes(4, "big"))

    def _send_message(self, prefix: bytes = b"") -> None:
        while self._body and (room := min(self._frame_bytes, self._window, self._all_window)) > len(prefix):
            size = min(room - len(prefix), len(self._body))
            last = size == len(self._body)
            whole = size + len(prefix)
            self._pending += [_frame_head(whole, _DATA, _END_STREAM if last else 0, self._stream) + prefix]
            self._pending.append(memoryview(self._body)[:size])
            self._body, prefix = memoryview(self._body)[size:], b""
            self._window -= whole
            self._all_window -= whole
        self.flush()

    def receive(self) -> bool:
        """See Line."""
        self._read_bytes += self._read()
        done = False
        while len(self._read_bytes) >= _HEAD_BYTES:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", self._read_bytes)
            end = _HEAD_BYTES + (high << 16 | low)
            if len(self._read_bytes) < end:
                break
            content, self._read_bytes = self._read_bytes[_HEAD_BYTES:end], self._read_bytes[end:]
            done |= self._take_frame(kind, flags, stream & 0x7FFF_FFFF, content)
        if self._pending or self._body:
            self._send_message()
        return done

    def _take_frame(self, kind: int, flags: int, stream: int, content: bytes) -> bool:
        """Whether the call ended in success with it."""
        if kind in (_DATA, _HEADERS):
            return self._take_answer(kind, flags, content)
        if kind == _WINDOW:
            self._widen(stream, *struct.unpack(">I", content))
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(content)
        elif kind == _PING and not flags & _ACK:
            self._pending.append(_frame(_PING, _ACK, 0, content))
        elif kind in (_RESET, _GOAWAY):
            raise NotAcknowledged(f"the receiver ended the call: frame {kind}, {content[:200]!r}")
        return False

    def _take_answer(self, kind: int, flags: int, content: bytes) -> bool:
        if kind == _DATA:
            self._content += content
        if not flags & _END_STREAM:
            return False
        if not any(status in content for status in _STATUS_OK) or self._content[5:] not in _SUCCESSES:
            raise NotAcknowledged(f"not a full success: {content[:300]!r} {self._content[:200]!r}")
        return True

    def _widen(self, stream: int, more: int) -> None:
        if not stream:
            self._all_window += more
        elif stream == self._stream:
            self._window += more

    def _take_settings(self, content: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", content):
            if name == _SET_WINDOW:
                self._window += value - self._first_window
                self._first_window = value
            elif name == _SET_FRAME:
                self._frame_bytes = value
        self._pending.append(_frame(_SETTINGS, _ACK, 0))
        self._greeted = True
