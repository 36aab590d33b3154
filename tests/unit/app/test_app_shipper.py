"""Every span that is taken has one counted fate, memory and exit are bounded, and the host hears of trouble once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

from otelbill import guard
from otelbill.config import Settings
from otelbill.delivery import Outcome, Post, judge_status
from otelbill.shipper import Shipper, ShipperCounts, pack_spans

MakeShipper = Callable[..., Shipper]

DELIVERED = Outcome("delivered", "HTTP 200")
LATER = Outcome("later", "ConnectionRefusedError")
REFUSED = Outcome("refused", "HTTP 400")


class ScriptedPost:
    """Answers in the given order, then `DELIVERED`; keeps the names of the spans of each request."""

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[list[str]] = []

    def __call__(self, body: bytes) -> Outcome:
        """Take one request."""
        request = ExportTraceServiceRequest.FromString(body)
        self.requests.append([s.name for r in request.resource_spans for g in r.scope_spans for s in g.spans])
        return self.outcomes.pop(0) if self.outcomes else DELIVERED


@pytest.fixture
def make_shipper() -> Iterator[Callable[..., Shipper]]:
    """Makes shippers whose threads have ended when the test has."""
    made: list[Shipper] = []

    def make(post: Post, **settings: int) -> Shipper:
        made.append(Shipper(post, Settings(**settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for shipper in made:
        shipper.shutdown()
    for thread in threading.enumerate():
        if thread.name == "otelbill-shipper":
            thread.join(10)
            assert not thread.is_alive()


def test_spans_arrive_in_order_and_batches(make_shipper: MakeShipper) -> None:
    """Flushing hands over everything, oldest first, at most a batch at a time."""
    post = ScriptedPost()
    shipper = make_shipper(post, batch_max_spans=2)
    _end_spans(shipper, 5)
    assert shipper.force_flush(5_000)
    assert [name for request in post.requests for name in request] == ["0", "1", "2", "3", "4"]
    assert max(len(request) for request in post.requests) <= 2
    assert shipper.counts() == ShipperCounts(taken=5, delivered=5, refused=0, waiting=0, overflowed=0)


def test_an_absent_sidecar_costs_one_warning_and_no_span(
    make_shipper: MakeShipper, caplog: pytest.LogCaptureFixture
) -> None:
    """Spans wait while the sidecar is away and arrive once when it is back; the log has one line."""
    post = ScriptedPost([LATER] * 6)
    shipper = make_shipper(post)
    _end_spans(shipper, 3)
    while post.outcomes:
        shipper.force_flush(5_000)
    assert shipper.force_flush(5_000)
    assert shipper.counts().delivered == 3
    assert [record.getMessage() for record in caplog.records if "sidecar_unreachable" in record.getMessage()] != []
    assert len(caplog.records) == 1


def test_a_full_queue_takes_no_more_and_counts_them(
    make_shipper: MakeShipper, caplog: pytest.LogCaptureFixture
) -> None:
    """The memory a missing sidecar can take is bounded; what was not taken is a number, and one warning."""
    shipper = make_shipper(ScriptedPost([LATER] * 1_000), queue_max_spans=4)
    _end_spans(shipper, 10)
    counts = shipper.counts()
    assert (counts.taken, counts.waiting, counts.overflowed) == (4, 4, 6)
    assert sum("queue_full" in record.getMessage() for record in caplog.records) == 1


def test_a_refused_batch_does_not_hold_up_the_next(make_shipper: MakeShipper) -> None:
    """What the sidecar will never take is counted, and the rest goes on."""
    shipper = make_shipper(ScriptedPost([REFUSED]), batch_max_spans=2)
    _end_spans(shipper, 4)
    shipper.force_flush(5_000)
    counts = shipper.counts()
    assert counts.taken == 4
    assert counts.refused in {1, 2}
    assert counts.delivered == 4 - counts.refused
    assert guard.list_faults() == {"spans_refused": 1}


def test_a_hanging_sidecar_does_not_hold_the_exit(make_shipper: MakeShipper) -> None:
    """Shutdown returns within its time, though a request has not been answered; a second call adds none."""
    answer = threading.Event()

    def hang(_body: bytes) -> Outcome:
        answer.wait(30)
        return LATER

    shipper = make_shipper(hang, exit_timeout_millis=200)
    _end_spans(shipper, 2)
    started = time.monotonic()
    shipper.flush_at_exit()
    shipper.shutdown()
    elapsed = time.monotonic() - started
    answer.set()
    assert elapsed < 2
    assert guard.list_faults() == {"spans_lost_at_exit": 1}


def test_a_shipper_that_has_been_shut_down_counts_late_spans(make_shipper: MakeShipper) -> None:
    """A span that ends after shutdown is not taken silently."""
    shipper = make_shipper(ScriptedPost())
    _end_spans(shipper, 1)
    shipper.shutdown()
    _end_spans(shipper, 2)
    assert shipper.counts() == ShipperCounts(taken=1, delivered=1, refused=0, waiting=0, overflowed=2)


def test_a_post_that_raises_keeps_the_spans_and_the_thread(make_shipper: MakeShipper) -> None:
    """A bug in delivery is counted and the spans are tried again."""
    failures = [RuntimeError("x")]
    post = ScriptedPost()

    def fail_once(body: bytes) -> Outcome:
        if failures:
            raise failures.pop()
        return post(body)

    shipper = make_shipper(fail_once)
    _end_spans(shipper, 2)
    assert shipper.force_flush(5_000)
    assert shipper.counts().delivered == 2
    assert guard.list_faults() == {"shipper.round.RuntimeError": 1}


def test_a_span_that_ends_inside_our_own_lock_does_not_hang_the_host(make_shipper: MakeShipper) -> None:
    """The garbage collector may end a generator's span in the middle of our code, in the same thread."""
    shipper = make_shipper(ScriptedPost())

    def end_inside() -> None:
        with shipper._lock:
            _end_spans(shipper, 2)

    thread = threading.Thread(target=end_inside, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_unsampled_spans_are_not_sent(make_shipper: MakeShipper) -> None:
    """A span that the host samples out stays here; it is not taken."""
    shipper = make_shipper(ScriptedPost())
    _end_spans(shipper, 2, sampler=ALWAYS_OFF)
    assert shipper.counts().taken == 0


def test_one_unserialisable_span_does_not_take_its_batch_along() -> None:
    """Where a batch cannot be serialised, each span that can be is sent alone."""
    good, bad = _make_spans(2)
    bad._name = object()  # type: ignore[assignment]  # no API lets such a span through; a later SDK might
    assert [package.spans for package in pack_spans([good, bad])] == [1]


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "seconds"),
    [
        (200, None, "delivered", None),
        (429, "2", "later", 2.0),
        (503, "9999", "later", 30.0),
        (503, "Wed, 21 Oct 2026 07:28:00 GMT", "later", None),
        (401, None, "later", None),
        (302, None, "refused", None),
        (400, None, "refused", None),
        (413, None, "refused", None),
    ],
)
def test_an_answer_decides_whether_spans_are_kept(
    status: int, retry_after: str | None, kind: str, seconds: float | None
) -> None:
    """What can be put right later keeps the spans, a wrong token included; the wait is bounded."""
    outcome = judge_status(status, retry_after)
    assert (outcome.kind, outcome.retry_after_seconds) == (kind, seconds)


def _make_spans(count: int, sampler: Sampler | None = None) -> list[ReadableSpan]:
    tracer = TracerProvider(sampler=sampler, shutdown_on_exit=False).get_tracer("test")
    return [tracer.start_span(str(number)) for number in range(count)]  # type: ignore[misc]


def _end_spans(shipper: Shipper, count: int, sampler: Sampler | None = None) -> None:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(shipper)
    for number in range(count):
        provider.get_tracer("test").start_span(str(number)).end()
