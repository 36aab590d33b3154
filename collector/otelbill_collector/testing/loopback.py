"""A small threaded HTTP/1.1 server on 127.0.0.1: connections, framing, resets and a clean stop.

Owns the wire only; what is answered is up to the stand-in that derives from it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_SERVE_POLL_SECONDS = 0.05
_STOP_SECONDS_MAX = 5.0
# SO_LINGER with zero seconds: close() answers with RST instead of FIN, as a crashed peer does.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `headers` have lower-case names; `read_body` takes the body off the wire and need not be called."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    read_body: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. A `bytes` body is sent with its length; any other iterable is streamed chunk by chunk.

    With `cut` the connection ends early: bytes are declared in full and sent in half, a stream misses its last chunk.
    """

    status: int
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


class ConnectionReset(Exception):
    """Raised by `respond` to drop the connection with RST instead of answering."""


class LoopbackServer:
    """Base of the stand-ins: `with Stand() as server: server.base_url`. Each connection has its own daemon thread."""

    def __init__(self, *, port: int = 0) -> None:
        """Bind 127.0.0.1 at `port` (0 picks a free one); raises OSError when it is taken. Serving begins with start."""
        self._http = _Http(("127.0.0.1", port), self)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def respond(self, request: Request) -> Reply:
        """Answer one request. Called from several threads at once."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        """The bound TCP port."""
        return int(self._http.server_address[1])

    @property
    def base_url(self) -> str:
        """Address without a trailing slash and without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Serve in the background until `stop`."""
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(_SERVE_POLL_SECONDS,), name="loopback-server", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Refuse new connections, end the open ones and wait for their threads. May be called twice."""
        self._stopping.set()
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join(_STOP_SECONDS_MAX)
            self._thread = None
        self._http.end_connections()
        self._http.server_close()

    def pause(self, seconds: float) -> None:
        """Sleep inside `respond` or a streamed body; returns at once when the server stops."""
        self._stopping.wait(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve_until_signal(server: LoopbackServer, name: str) -> None:
    """Run as a program: print one line "NAME listening on URL", then serve until SIGTERM or SIGINT."""
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with server:
        sys.stdout.write(f"{name} listening on {server.base_url}\n")
        sys.stdout.flush()
        done.wait()


class _Http(HTTPServer):
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: LoopbackServer) -> None:
        self.owner = owner
        self._guard = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer asks the resolver for the host's name here, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        thread = threading.Thread(target=self._serve_connection, args=(request, client_address), daemon=True)
        with self._guard:
            self._open[request] = thread
        thread.start()

    def _serve_connection(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client went away, or stop() ended the connection
        finally:
            with self._guard:
                self._open.pop(request, None)
            self.shutdown_request(request)

    def end_connections(self) -> None:
        with self._guard:
            connections = list(self._open.items())
        for connection, thread in connections:
            with contextlib.suppress(OSError):  # already closed by its own thread
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(_STOP_SECONDS_MAX)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # buffered, one packet per answer: unbuffered writes meet delayed ACKs at 40 ms each
    disable_nagle_algorithm = True
    server: _Http

    def _serve(self) -> None:
        url = urlsplit(self.path)
        body = _Body(self)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, url.query, headers, body.read)
        try:
            reply = self.server.owner.respond(request)
        except ConnectionReset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close_connection = True
            return
        body.read()  # what the answer did not need must leave the wire before the next request
        self._send(reply)

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status, HTTPStatus(reply.status).phrase if reply.status in _PHRASES else "Unknown")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if isinstance(reply.body, bytes):
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: len(reply.body) // 2] if reply.cut else reply.body)
        else:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._send_chunks(reply.body)
            if not reply.cut:
                self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        self.close_connection = self.close_connection or reply.cut

    def _send_chunks(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.flush()

    def version_string(self) -> str:
        return "loopback"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: tests and the demo own the terminal."""


_PHRASES = frozenset(int(status) for status in HTTPStatus)


class _Body:
    """The body of one request, read at most once."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        self._content: bytes | None = None

    def read(self) -> bytes:
        if self._content is None:
            length = int(self._handler.headers.get("Content-Length") or 0)
            chunked = "chunked" in (self._handler.headers.get("Transfer-Encoding") or "")
            self._content = self._read_chunks() if chunked else self._handler.rfile.read(length)
        return self._content

    def _read_chunks(self) -> bytes:
        parts: list[bytes] = []
        while size := int(self._handler.rfile.readline().split(b";")[0], 16):
            parts.append(self._handler.rfile.read(size))
            self._handler.rfile.readline()
        while self._handler.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)
