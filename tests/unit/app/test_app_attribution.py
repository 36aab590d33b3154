"""A block says who pays for what runs below it, and for nothing else."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.threading import ThreadingInstrumentor  # type: ignore[attr-defined]

import otelbill
from otelbill import config, guard
from otelbill.config import Settings
from otelbill.testing import capture_spans, frame


def test_nested_blocks_keep_what_is_the_same_customers() -> None:
    """Project and run go on within one customer and never to another; the step goes on anyway."""
    with otelbill.customer("acme", project="app", run="r1"):
        with otelbill.customer("acme", run="r2"):
            assert (frame().project, frame().run) == ("app", "r2")
        with otelbill.customer("globex"):
            assert (frame().customer, frame().project, frame().run) == ("globex", None, None)
        assert frame().run == "r1"


def test_a_block_works_as_async_block_and_as_decorator() -> None:
    """The same object serves `with`, `async with` and four shapes of decorated functions."""
    acme = otelbill.customer("acme")

    @acme
    def stream() -> Iterator[str | None]:
        yield frame().customer

    @acme
    async def fetch() -> str | None:
        return frame().customer

    async def run() -> list[str | None]:
        async with acme:
            inside = frame().customer
        return [inside, frame().customer, await fetch()]

    assert asyncio.run(run()) == ["acme", None, "acme"]
    generator = stream()
    assert [next(generator), frame().customer] == ["acme", None]
    assert acme(lambda: frame().customer)() == "acme"


@pytest.mark.parametrize(
    "bad", ["", " ", " acme", "x" * 129, "line\nbreak", "\ud800", 42, None, 1.5, b"acme", object()]
)
def test_a_bad_customer_is_reported_and_nobody_pays(bad: object, caplog: pytest.LogCaptureFixture) -> None:
    """Usage meant for a customer we cannot name goes to suspense, not to the customer around it; the app runs on."""
    with otelbill.customer("acme", project="app"):
        for _ in range(2):
            with otelbill.customer(bad, project="p"):  # type: ignore[arg-type]
                assert (frame().customer, frame().project) == (None, None)
        assert frame().customer == "acme"
    assert len(caplog.records) == 1
    assert guard.list_faults() == {"customer_id_invalid": 2}
    config.use(Settings(strict=True))
    with pytest.raises(otelbill.OtelbillError, match="customer_id is not usable"):
        otelbill.customer(bad)  # type: ignore[arg-type]


def test_a_bad_project_does_not_cost_the_attribution() -> None:
    """A project that cannot be used is left out; the customer pays all the same."""
    with otelbill.customer("acme", project="", run="r"):
        assert (frame().customer, frame().project, frame().run) == ("acme", None, "r")


def test_one_block_object_serves_threads_and_itself() -> None:
    """A block kept in a module is entered by many threads at once, and inside itself, without mixing them up."""
    acme, globex = otelbill.customer("acme"), otelbill.customer("globex")
    barrier = threading.Barrier(8)

    def work(number: int) -> bool:
        first, second = (acme, globex) if number % 2 else (globex, acme)
        barrier.wait()
        for _ in range(200):
            with first, second, first:
                pass
            with first:
                if frame().customer != ("acme" if number % 2 else "globex"):
                    return False
        return frame().customer is None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_blocks_closed_out_of_order_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Two plain generators with blocks, advanced in turn, must not leave a customer set when both are done."""

    def stream(name: str) -> Iterator[None]:
        with otelbill.customer(name):
            yield

    with otelbill.customer("outer"):
        first, second = stream("acme"), stream("globex")
        next(first)
        next(second)
        assert list(first) == []
        assert frame().customer == "globex"
        assert list(second) == []
        assert frame().customer == "outer"
    assert caplog.records == []


def test_a_block_closed_in_another_context_changes_nothing_there(caplog: pytest.LogCaptureFixture) -> None:
    """A block opened in one context and closed in another (a dependency of a web framework) raises and logs nothing."""
    block = otelbill.customer("acme")
    copy_context().run(block.__enter__)
    with otelbill.customer("globex"):
        block.__exit__(None, None, None)
        assert frame().customer == "globex"
    with caplog.at_level(logging.DEBUG):
        block.__exit__(None, None, None)
    assert caplog.records == []


def test_attempts_are_marked() -> None:
    """A retry says which try it is; a bad number is reported and changes nothing."""
    with otelbill.customer("acme"), otelbill.attempt(2):
        assert (frame().customer, frame().attempt) == ("acme", 2)
        with otelbill.attempt(0):
            assert frame().attempt == 2
    assert guard.list_faults() == {"attempt_invalid": 1}


def test_plain_executors_lose_the_frame_and_carry_keeps_it() -> None:
    """`carry` takes frame and open span into a thread that would lose them, and leaves nothing there."""
    with ThreadPoolExecutor(1) as pool, otelbill.customer("acme"):
        assert pool.submit(lambda: frame().customer).result() is None
        assert pool.submit(otelbill.carry(lambda: frame().customer)).result() == "acme"
        assert pool.submit(lambda: frame().customer).result() is None


def test_threading_instrumentation_carries_the_frame() -> None:
    """With OpenTelemetry's threading instrumentation, threads and executors need no carrying."""
    instrumentor = ThreadingInstrumentor()
    instrumentor.instrument()
    seen: list[str | None] = []
    try:
        with otelbill.customer("acme"):
            thread = threading.Thread(target=lambda: seen.append(frame().customer))
            thread.start()
            thread.join()
            with ThreadPoolExecutor(1) as pool:
                seen.append(pool.submit(lambda: frame().customer).result())
    finally:
        instrumentor.uninstrument()
    assert seen == ["acme", "acme"]


def test_carry_keeps_the_open_span() -> None:
    """Spans made by carried work are children of the span that was open when it was bound."""
    with capture_spans() as spans, ThreadPoolExecutor(1) as pool:
        tracer = trace.get_tracer("test")
        with tracer.start_as_current_span("parent") as parent, otelbill.customer("acme"):
            work = otelbill.carry(lambda: tracer.start_span("child").end())
        pool.submit(work).result()
    [child] = [span for span in spans if span.name == "child"]
    assert child.parent is not None
    assert child.parent.span_id == parent.get_span_context().span_id
    assert (child.attributes or {})["otelbill.customer.id"] == "acme"
