"""A loopback server that plays sidecar (keeps what it is sent) and model provider (echoes the prompt)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Sink:
    """What arrived. `answers` are HTTP statuses for the next requests to the sidecar, then 200."""

    port: int = 0
    bodies: list[bytes] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """Where spans go."""
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def spans(self) -> list[dict[str, object]]:
        """Name and attributes of each span that arrived; each request answered 200 counts."""
        return [
            {"name": span.name, **{pair.key: _read_value(pair.value) for pair in span.attributes}}
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def open_sink() -> Iterator[Sink]:
    """A sink that listens while the block runs."""
    sink = Sink()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                self._take_spans(body)
            else:
                self._complete(json.loads(body))

        def _take_spans(self, body: bytes) -> None:
            status = sink.answers.pop(0) if sink.answers else 200
            sink.connections.add(self.client_address[1])
            sink.tokens.append(self.headers["Authorization"])
            if status == 200:
                sink.bodies.append(body)
            self._answer(status, "application/x-protobuf", b"")

        def _complete(self, request: dict[str, object]) -> None:
            prompt = request["messages"][0]["content"]  # type: ignore[index]
            answer = render_completion(prompt, is_stream=bool(request.get("stream")))
            self._answer(200, "text/event-stream" if request.get("stream") else "application/json", answer)

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sink.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def render_completion(prompt: str, *, is_stream: bool) -> bytes:
    """A chat completion that echoes `prompt` and whose id ends in the prompt's first word."""
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    common = {"id": f"chatcmpl-{prompt.split()[0]}", "created": 1, "model": "gpt-4o-2024-08-06"}
    if not is_stream:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": prompt}}
        return json.dumps({**common, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    deltas = [{"index": 0, "delta": {"content": prompt}}, {"index": 0, "delta": {}, "finish_reason": "stop"}]
    chunks: list[dict[str, object]] = [
        {**common, "object": "chat.completion.chunk", "choices": [delta]} for delta in deltas
    ]
    chunks.append({**common, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Run:
    """A program that has ended; `exit_seconds` from its last statement to its end."""

    status: int
    output: str
    errors: str
    exit_seconds: float


def run_app(script: str, *, prefix: tuple[str, ...] = (), path: tuple[str, ...] = (), **environment: str) -> Run:
    """Run `script` in a fresh interpreter and wait for its end. The clock is the machine's, the same in both."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    python_path = os.pathsep.join([*path, str(REPOSITORY), str(REPOSITORY / "collector")])
    finished = subprocess.run(
        [sys.executable, *prefix, "-c", f"{script}\nimport time; print('\\nended', time.monotonic())"],
        env={**kept, "PYTHONPATH": python_path, "OTEL_METRICS_EXPORTER": "none", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ended_at = time.monotonic()
    before, _, stamp = finished.stdout.rpartition("\nended ")
    is_stamped = finished.returncode == 0 and "\nended " in finished.stdout
    output = (before if is_stamped else finished.stdout).strip()
    return Run(finished.returncode, output, finished.stderr, ended_at - float(stamp) if is_stamped else float("nan"))


def _read_value(value: object) -> object:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    return getattr(value, kind) if kind is not None else None
