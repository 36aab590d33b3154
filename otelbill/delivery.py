"""Owns one HTTP request to the sidecar and what its answer means for the spans in it.
Does not own the queue, the timing or the retries (`shipper`).

Uses `http.client`, so that no instrumentation of the host's HTTP clients sees our requests, and nothing but our own
log lines is written when the sidecar is away.
"""

from __future__ import annotations

import http.client
import os
from dataclasses import dataclass
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

RETRY_AFTER_MAX_SECONDS: Final = 30.0

_LATER_STATUSES = frozenset({401, 403, 404, 408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. `later` keeps the spans; `refused` gives them up, as no retry could succeed."""

    kind: Literal["delivered", "later", "refused"]
    reason: str
    retry_after_seconds: float | None = None


class Post(Protocol):
    """Sends one serialised `ExportTraceServiceRequest`; never raises for what the network or the sidecar does."""

    def __call__(self, body: bytes) -> Outcome:
        """Send `body` and wait for the answer."""


class HttpPost:
    """A kept-alive connection to one endpoint. Used by one thread at a time."""

    def __init__(self, endpoint: str, *, token: str | None, timeout_seconds: float) -> None:
        parts = urlsplit(endpoint)
        self._host = parts.hostname or ""
        self._port = parts.port
        self._path = parts.path or "/"
        self._is_tls = parts.scheme == "https"
        self._timeout_seconds = timeout_seconds
        self._headers = {"Content-Type": "application/x-protobuf", "User-Agent": "otelbill"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection: http.client.HTTPConnection | None = None
        self._process = os.getpid()

    def __call__(self, body: bytes) -> Outcome:
        """Send `body`; once more on a fresh connection where a kept one has gone stale. Resending is safe: the sidecar
        knows spans by their identity."""
        if self._process != os.getpid():  # a forked child must not write into its parent's connection
            self._connection, self._process = None, os.getpid()
        is_reused = self._connection is not None
        try:
            return self._send(body)
        except (http.client.HTTPException, OSError) as error:
            self._close()
            if not is_reused or isinstance(error, TimeoutError):
                return Outcome("later", type(error).__name__)
        return self(body)

    def _send(self, body: bytes) -> Outcome:
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
            self._connection = kind(self._host, self._port, timeout=self._timeout_seconds)
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        response.read()
        return judge_status(response.status, response.getheader("Retry-After"))

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def judge_status(status: int, retry_after: str | None) -> Outcome:
    """What an HTTP status means for the spans. A wrong token or path can be put right, so their spans are kept."""
    reason = f"HTTP {status}"
    if 200 <= status < 300:
        return Outcome("delivered", reason)
    if status not in _LATER_STATUSES:
        return Outcome("refused", reason)
    seconds = (
        float(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdigit() else None
    )
    return Outcome("later", reason, None if seconds is None else min(seconds, RETRY_AFTER_MAX_SECONDS))
