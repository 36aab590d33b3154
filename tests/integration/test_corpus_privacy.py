"""Prompts reach the sidecar and go nowhere from there: not to disk, log, metrics, API, tracing backend or Stripe."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import pytest

from otelbill_collector.ledger.segments import decode_table
from otelbill_collector.testing.loopback import LoopbackServer, Reply, Request
from otelbill_collector.testing.stripe_server import StripeServer
from tests.corpus import Sent, build_body, load_cases, make_distinct, parse_sent
from tests.otlp_requests import NANOS, now_nanos
from tests.sidecar_process import Sidecar, await_value
from tests.spans import build_any

CANARY = b"CANARY-"
CUSTOMER = "acme-of-the-test"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
Send = Callable[[Sidecar, Sequence[bytes]], None]


class Sink(LoopbackServer):
    """A tracing backend that keeps what it is sent, unpacked, headers included."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[bytes] = []

    def respond(self, request: Request) -> Reply:
        """Take anything."""
        packed = request.headers.get("content-encoding") == "gzip"
        body = request.read_body()
        self.received.append(gzip.decompress(body) if packed else body)
        self.received.append(repr((request.path, request.headers)).encode())
        return Reply(200, b"", {"Content-Type": "application/x-protobuf"})


class WatchedStripe(StripeServer):
    """The local Stripe, with every request it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[bytes] = []

    def respond(self, request: Request) -> Reply:
        """Note and answer."""
        body = request.read_body()
        self.received.append(repr((request.method, request.path, request.query, request.headers)).encode() + body)
        return super().respond(replace(request, read_body=lambda: body))


@pytest.fixture
def stripe() -> Iterator[WatchedStripe]:
    with WatchedStripe() as server:
        server.add_customer("cus_acme")
        yield server


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        yield server


@pytest.fixture(scope="module")
def bodies(shared_data: Path) -> list[bytes]:
    """Every case with a customer on its spans, in the last two hours; prompts and all."""
    start = now_nanos() - 7_200 * NANOS
    made: list[list[Sent]] = []
    for number, case in enumerate(load_cases(shared_data)):
        sent = parse_sent(make_distinct(case, start + number * 20 * NANOS).body)
        for item in sent:
            item.span.attributes.add(key="otelbill.customer.id").value.CopyFrom(build_any(CUSTOMER))
        made.append(sent)
    # Several cases in a request, as a Collector would send them.
    return [build_body(chain.from_iterable(made[at : at + 8])) for at in range(0, len(made), 8)]


def send_over_http(sidecar: Sidecar, bodies: Sequence[bytes]) -> None:
    """One POST per request."""
    for body in bodies:
        assert sidecar.export(body).status_code == 200


def send_over_grpc(sidecar: Sidecar, bodies: Sequence[bytes]) -> None:
    """One call per request."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{sidecar.grpc_port}", options) as channel:
        export = channel.unary_unary(EXPORT, request_serializer=None, response_deserializer=None)
        for body in bodies:
            export(body, timeout=60, wait_for_ready=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("send", [send_over_http, send_over_grpc], ids=["http", "grpc"])
def test_no_prompt_leaves_the_sidecar(
    new_sidecar: Callable[..., Sidecar], stripe: WatchedStripe, sink: Sink, bodies: list[bytes], send: Send
) -> None:
    """Nothing that the sidecar writes, shows or sends holds a canary of any recorded prompt, nor what rejects it.

    Every place is also searched for what must stand there, so that looking in the wrong place would fail.
    """
    assert sum(body.count(CANARY) for body in bodies) > 500
    sidecar = new_sidecar(_settings(stripe, sink))
    applied = sidecar.run("stripe", "apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    sidecar.start()
    send(sidecar, bodies)
    broken = sidecar.export(bodies[0][: len(bodies[0]) // 2])
    places = {"refusal": broken.content, "api": _read_api(sidecar), "commands": _run_commands(sidecar)}
    sent_on = sum(len(parse_sent(body)) for body in bodies)
    await_value(lambda: _count_forwarded(sidecar) >= sent_on, "every span is forwarded")
    places["metrics"] = sidecar.get("/metrics").content
    places["files while it runs"] = _read_files(sidecar.data_dir)
    assert sidecar.stop() == 0
    places["files"] = _read_files(sidecar.data_dir)
    places["ledger"] = _dump_ledger(sidecar.data_dir)
    places["log"] = sidecar.read_log().encode()
    places["forwarded"] = b"".join(sink.received)
    places["stripe"] = b"".join(stripe.received) + json.dumps(stripe.list_events()).encode()
    assert [name for name, found in places.items() if CANARY in found] == []
    expected = {
        "api": CUSTOMER,
        "commands": CUSTOMER,
        "ledger": CUSTOMER,
        "forwarded": "/v1/traces",
        "files": "SQLite",
    }
    expected |= {"stripe": "cus_acme", "metrics": "otelbill_spans_total", "log": "otelbill collector"}
    assert [name for name, text in expected.items() if text.encode() not in places[name]] == []


def _settings(stripe: WatchedStripe, sink: Sink) -> dict[str, Any]:
    return {
        "claims": {"grace_seconds": 1},
        "forward": {
            "endpoint": f"{sink.base_url}/v1/traces",
            "cost_names": ["otelbill", "gen_ai", "openinference", "langfuse"],
        },
        "customers": {CUSTOMER: {"stripe": "cus_acme"}},
        "stripe": {"api_key": "sk_test_1234567890", "api_base": stripe.base_url, "rate_per_second": 500},
    }


def _count_forwarded(sidecar: Sidecar) -> int:
    return int(sidecar.metrics("otelbill_forward_spans_total").get('result="sent"', 0))


def _read_api(sidecar: Sidecar) -> bytes:
    """Everything the API shows: sums by every name that a span gives, held usage, dead letters, explanations."""
    by = "customer,project,step,provider,model"
    paths = ["/", f"/v1/usage?by={by}", "/v1/held", "/v1/dead-letters", "/v1/stripe/status", "/v1/explain/nothing"]
    answers = [sidecar.get(path) for path in paths]
    held = answers[2].json()
    assert held
    answers += [sidecar.get(f"/v1/explain/{row['trace_id']}") for row in held[:5]]
    return b"".join(answer.content for answer in answers)


def _run_commands(sidecar: Sidecar) -> bytes:
    """Operator commands through the running sidecar: a held call gets its numbers, Stripe all that is due."""
    held = sidecar.list_json("held")[0]["event_id"]
    numbers = ("--input-tokens", "12", "--output-tokens", "5", "--reason", "provider console")
    done = sidecar.run("resolve", held, *numbers, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["kind"] for row in json.loads(done.stdout)["booked"]] == ["reversal", "usage"]
    again = sidecar.run("resolve", held, *numbers, "--json")
    assert json.loads(again.stdout) == {"booked": []}
    unknown = sidecar.run("resolve", "0" * 32, *numbers)
    assert unknown.returncode == 1
    flushed = sidecar.run("stripe", "flush", "--json")
    assert flushed.returncode == 0, flushed.stdout + flushed.stderr
    shown = [sidecar.run(*command) for command in (("held",), ("suspense", "--json"), ("dead-letters", "list"))]
    texts = [item.stdout + item.stderr for item in (done, again, unknown, flushed, *shown)]
    return "".join(texts).encode()


def _read_files(folder: Path) -> bytes:
    """Every byte under the data folder, database, write-ahead log and all."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def _dump_ledger(folder: Path) -> bytes:
    """Every row of every table; the columns of segments, which are compressed on disk, unpacked."""
    (path,) = (path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:6] == b"SQLite")
    parts: list[str] = []
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert "segment" in tables
        for table in tables:
            parts += [repr(row) for row in connection.execute(f"SELECT * FROM {table}")]
        for (body,) in connection.execute("SELECT body FROM segment"):
            parts += [repr(row) for row in decode_table(body).to_pylist()]
    return "\n".join(parts).encode()
