"""A metered program starts, runs and ends as it would without us, whatever state tracing and the sidecar are in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.contract.app_sink import open_sink, run_app

WORK = """
with otelbill.customer("acme"):
    for number in range({count}):
        otelbill.record_usage("queries", 1)
"""
APP = "import otelbill\notelbill.configure(instrument=False)\n" + WORK


@pytest.fixture
def dead_endpoint() -> str:
    """An address where nobody listens."""
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1/traces"


@pytest.fixture
def hanging_endpoint() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces"


def test_an_unreachable_sidecar_costs_one_warning(dead_endpoint: str) -> None:
    """The app runs on, exits within two seconds, and its log has one line about the sidecar and one about the loss."""
    run = run_app(APP.format(count=5_000), OTELBILL_ENDPOINT=dead_endpoint)
    assert run.status == 0, run.errors
    assert run.errors.count("sidecar_unreachable") == 1
    assert run.errors.count("spans_lost_at_exit") == 1
    assert len(run.errors.splitlines()) == 2, run.errors
    assert run.exit_seconds < 2


def test_a_hanging_sidecar_does_not_hold_the_exit(hanging_endpoint: str) -> None:
    """A sidecar that accepts and never answers delays the exit by the setting, not by its request's time."""
    run = run_app(APP.format(count=10), OTELBILL_ENDPOINT=hanging_endpoint, OTELBILL_EXIT_TIMEOUT_MILLIS="500")
    assert run.status == 0, run.errors
    assert run.exit_seconds < 2
    assert "spans_lost_at_exit" in run.errors


def test_spans_wait_for_a_sidecar_that_starts_late_or_is_busy() -> None:
    """Refusals for overload lose nothing: what was answered 503 and 429 arrives once it is taken."""
    with open_sink() as sink:
        sink.answers = [503, 429, 401]
        settle = "import time\nwhile not otelbill.flush(): pass\nprint(otelbill.status().spans)"
        run = run_app(APP.format(count=1_500) + settle, OTELBILL_ENDPOINT=sink.endpoint)
    assert run.status == 0, run.errors
    assert "taken=1500, delivered=1500, refused=0, waiting=0" in run.output
    assert len(sink.spans()) == 1_500
    assert len(run.errors.splitlines()) == 1


def test_a_burst_of_spans_arrives_whole() -> None:
    """Twenty thousand spans in a tight loop, which the SDK's own batch processor would cut, all arrive by exit."""
    with open_sink() as sink:
        run = run_app(APP.format(count=20_000), OTELBILL_ENDPOINT=sink.endpoint, OTELBILL_EXIT_TIMEOUT_MILLIS="60000")
    assert (run.status, run.errors) == (0, "")
    assert len(sink.spans()) == 20_000


def test_an_existing_provider_is_joined_and_keeps_its_exporter() -> None:
    """The user's own tracing goes on, sees the attributes too, and its content capture is not ours to strip."""
    script = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
theirs = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(theirs))
import otelbill
otelbill.configure(instrument=False, strict=False)
otelbill.configure()
with otelbill.customer("acme"):
    trace.get_tracer("theirs").start_span("s", attributes={"gen_ai.input.messages": "CANARY"}).end()
[span] = theirs.get_finished_spans()
print(dict(span.attributes))
"""
    with open_sink() as sink:
        run = run_app(script, OTELBILL_ENDPOINT=sink.endpoint)
    assert (run.status, run.errors) == (0, "")
    assert "'gen_ai.input.messages': 'CANARY', 'otelbill.customer.id': 'acme'" in run.output
    assert sink.spans() == [{"name": "s", "otelbill.customer.id": "acme", "otelbill.schema.version": "1"}]


@pytest.mark.parametrize(
    ("script", "environment", "code"),
    [
        (APP, {"OTEL_SDK_DISABLED": "true"}, "sdk_disabled"),
        (
            "from opentelemetry import trace\ntrace.set_tracer_provider(trace.NoOpTracerProvider())\n" + APP,
            {},
            "provider_unusable",
        ),
        ("import otelbill\notelbill.configure(colour='blue')\n" + WORK, {}, "setting_unknown"),
        (APP, {"OTELBILL_ENDPOINT": "nonsense"}, "setting_invalid"),
        (APP + "\notelbill.configure(queue_max_spans=7)", {}, "configured_twice"),
    ],
)
def test_tracing_that_cannot_be_joined_is_one_warning(
    script: str, environment: dict[str, str], code: str, dead_endpoint: str
) -> None:
    """Each way in which metering cannot start is said once, with what to do, and the program ends as it would."""
    run = run_app(script.format(count=2), **{"OTELBILL_ENDPOINT": dead_endpoint, **environment})
    assert run.status == 0, run.errors
    assert run.errors.count(code) == 1
    assert "Traceback" not in run.errors


def test_a_forked_child_sends_its_own_spans_and_none_of_its_parents() -> None:
    """After a fork each process sends what it made, once, over its own connection."""
    script = """
import os, otelbill
otelbill.configure(instrument=False)
otelbill.record_usage("before", 1); otelbill.flush()
otelbill.record_usage("waiting", 1)
child = os.fork()
otelbill.record_usage("child" if child == 0 else "parent", 1)
otelbill.flush()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""
    with open_sink() as sink:
        # Python 3.12 and later warn of every fork in a program with threads; the host has decided to fork.
        run = run_app(script, OTELBILL_ENDPOINT=sink.endpoint, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert (run.status, run.errors) == (0, "")
    assert sorted(str(span["otelbill.meter"]) for span in sink.spans()) == ["before", "child", "parent", "waiting"]
    assert len(sink.connections) == 2


def test_import_is_light() -> None:
    """Importing otelbill loads neither protobuf nor instrumentations: a command-line tool may import it for nothing."""
    script = "import sys, otelbill\nprint(sorted({'google.protobuf', 'requests', 'openai'} & set(sys.modules)))"
    run = run_app(script)
    assert (run.status, run.errors, run.output) == (0, "", "[]")
