"""`@metered` is invisible to the function it wraps, in every shape, and never bills one customer for another."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import pickle
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar, copy_context

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

import otelbill
from otelbill import config, guard
from otelbill.config import Settings
from otelbill.testing import capture_spans, frame


@otelbill.metered(step="answer")
def answer(question: str, *, loud: bool = False) -> str:
    """Answer a question."""
    return f"{frame().customer}:{frame().step}:{question}{'!' if loud else ''}"


@otelbill.metered(step="fetch")
async def fetch(question: str) -> str:
    """Fetch an answer."""
    await asyncio.sleep(0)
    return f"{frame().customer}:{frame().step}:{question}"


@otelbill.metered(step="stream")
def stream(count: int) -> Iterator[str | None]:
    """Stream answers."""
    for _ in range(count):
        yield frame().customer


@otelbill.metered(step="astream")
async def astream(count: int) -> AsyncIterator[str | None]:
    """Stream answers, asynchronously."""
    for _ in range(count):
        await asyncio.sleep(0)
        yield frame().customer


@pytest.mark.parametrize(
    ("function", "has_shape"),
    [
        (answer, inspect.isfunction),
        (fetch, inspect.iscoroutinefunction),
        (stream, inspect.isgeneratorfunction),
        (astream, inspect.isasyncgenfunction),
    ],
)
def test_a_metered_function_keeps_shape_name_doc_and_signature(
    function: Callable[..., object], has_shape: Callable[[object], bool]
) -> None:
    """Frameworks that inspect a function see the same one."""
    assert has_shape(function)
    assert function.__doc__
    assert function.__name__ in {"answer", "fetch", "stream", "astream"}
    assert inspect.signature(function) == inspect.signature(function.__wrapped__)  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(function)) is function


def test_each_shape_is_one_span_with_step_and_customer() -> None:
    """One run is one span, whatever the shape, and it says who pays and for which step."""

    async def run_async() -> list[object]:
        return [await fetch("b"), [item async for item in astream(2)]]

    with capture_spans() as spans, otelbill.customer("acme", project="app", run="r1"):
        results = [answer("a", loud=True), list(stream(2)), *asyncio.run(run_async())]
    assert results == ["acme:answer:a!", ["acme", "acme"], "acme:fetch:b", ["acme", "acme"]]
    assert [span.name for span in spans] == ["answer", "stream", "fetch", "astream"]
    for span in spans:
        assert dict(span.attributes or {}) == {
            "otelbill.customer.id": "acme",
            "otelbill.project.id": "app",
            "otelbill.run.id": "r1",
            "otelbill.step": span.name,
            "otelbill.schema.version": "1",
        }


def test_steps_nest_as_spans_do() -> None:
    """A step called by a step is its child, and the outer step is in force again after it."""

    @otelbill.metered
    def outer() -> str | None:
        answer("q")
        return frame().step

    with capture_spans() as spans:
        assert outer() == "outer"
    inner_span, outer_span = spans
    assert inner_span.parent is not None
    assert inner_span.parent.span_id == outer_span.context.span_id  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError, StopIteration])
def test_the_hosts_exception_passes_untouched(kind: type[BaseException]) -> None:
    """The very object that was raised arrives, also one that is no `Exception`; its message is on no span."""
    error = kind("secret text of the user")

    @otelbill.metered
    def fail() -> None:
        raise error

    with capture_spans() as spans, pytest.raises(kind) as caught:
        fail()
    assert caught.value is error
    [span] = spans
    assert span.attributes is not None
    assert span.attributes["error.type"] == kind.__qualname__
    assert (span.status.status_code is StatusCode.ERROR) is issubclass(kind, Exception)
    assert "secret" not in span.to_json()


def test_exceptions_pass_untouched_through_generators() -> None:
    """A generator that raises, and one that is thrown into, raise the very object; the span ends."""
    error = ValueError("x")

    @otelbill.metered
    def fail() -> Iterator[int]:
        yield 1
        raise error

    with capture_spans() as spans:
        generator = fail()
        assert next(generator) == 1
        with pytest.raises(ValueError) as caught:
            next(generator)
        assert caught.value is error
        thrown = stream(3)
        next(thrown)
        with pytest.raises(ValueError) as caught:
            thrown.throw(error)  # type: ignore[attr-defined]
        assert caught.value is error
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR, StatusCode.ERROR]


def test_generators_pass_sent_values_thrown_errors_and_results() -> None:
    """The whole protocol of a generator goes through: send, throw that is handled, return value."""

    @otelbill.metered
    def echo():  # type: ignore[no-untyped-def]
        got = yield "first"
        try:
            yield got
        except KeyError as error:
            yield f"handled {error.args[0]}"
        return "done"

    generator = echo()
    assert inspect.isgenerator(generator)
    assert next(generator) == "first"
    assert generator.send("sent") == "sent"
    assert generator.throw(KeyError("k")) == "handled k"
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == "done"


def test_a_generator_that_ignores_close_behaves_as_without_us() -> None:
    """Python's own complaint about a generator that yields while it is closed stays the same."""

    @otelbill.metered
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    generator = stubborn()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()  # type: ignore[attr-defined]
    with contextlib.suppress(StopIteration):
        next(generator)


def test_interleaved_generators_bill_their_own_customers() -> None:
    """Two streams advanced in turn never see each other's customer, nor does the consumer see theirs."""
    with otelbill.customer("acme"):
        first = stream(2)
    with otelbill.customer("globex"):
        second = stream(2)
    seen = [next(first), next(second), frame().customer, next(first), next(second)]
    assert seen == ["acme", "globex", None, "acme", "globex"]


def test_a_stream_belongs_to_whom_it_was_made_for() -> None:
    """A stream handed to a web framework and consumed after the block still bills the block's customer."""
    with otelbill.customer("acme"):
        made_inside = stream(1)
    made_outside = stream(1)
    with otelbill.customer("globex"):
        assert list(made_inside) == ["acme"]
        assert list(made_outside) == ["globex"]


def test_frames_opened_inside_a_generator_stay_inside() -> None:
    """A customer that a generator sets across a yield is not seen by its consumer, only by its next step."""

    @otelbill.metered
    def switch() -> Iterator[str | None]:
        with otelbill.customer("inner"):
            yield frame().customer
            yield frame().customer
        yield frame().customer

    with otelbill.customer("outer"):
        generator = switch()
        assert [next(generator), frame().customer, next(generator), frame().customer] == [
            "inner",
            "outer",
            "inner",
            "outer",
        ]
        assert next(generator) == "outer"


def test_a_generator_leaves_the_hosts_context_variables_alone() -> None:
    """What a generator sets in a context variable of the host is seen by its consumer, as without us."""
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    @contextlib.contextmanager
    @otelbill.metered
    def set_variable() -> Iterator[None]:
        variable.set("set")
        yield

    with set_variable():
        assert variable.get() == "set"


@pytest.mark.parametrize("place", ["other thread", "other context", "garbage collector"])
def test_a_generator_closed_elsewhere_ends_its_span_and_leaks_nothing(place: str) -> None:
    """Closing a half-consumed stream in another thread or context, or dropping it, ends it once, for its payer."""
    closed_as: list[str | None] = []

    @otelbill.metered
    def watched() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed_as.append(frame().customer)

    with capture_spans() as spans:
        with otelbill.customer("acme"):
            generators = [watched()]
            next(generators[0])
        if place == "other thread":
            thread = threading.Thread(target=generators[0].close)  # type: ignore[attr-defined]
            thread.start()
            thread.join()
        elif place == "other context":
            copy_context().run(generators[0].close)  # type: ignore[attr-defined]
        else:
            generators.clear()
            gc.collect()
        assert frame().customer is None
    assert closed_as == ["acme"]
    [span] = spans
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in (span.attributes or {})


def test_a_generator_never_started_makes_no_span() -> None:
    """A stream that nobody consumed did nothing, and is not metered."""
    with capture_spans() as spans:
        stream(1)
        gc.collect()
    assert spans == []


def test_an_abandoned_async_generator_ends_for_its_payer() -> None:
    """A `break` out of an async stream closes it in another task; its clean-up still runs as its customer, once."""
    closed_as: list[str | None] = []

    @otelbill.metered
    async def watched() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed_as.append(frame().customer)

    async def run() -> None:
        with otelbill.customer("acme"):
            stream_of_acme = watched()
        async for _ in stream_of_acme:
            break
        with otelbill.customer("globex"):
            await stream_of_acme.aclose()  # type: ignore[attr-defined]
        assert frame().customer is None
        held = watched()
        await anext(held)
        still_held.append(held)

    still_held: list[object] = []
    problems: list[object] = []

    async def run_watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
        await run()

    with capture_spans() as spans:
        asyncio.run(run_watched())  # closes the one that is still held when the loop ends
    assert closed_as == ["acme", None]
    assert len(spans) == 2
    assert problems == []


def test_async_generators_pass_sent_values_and_thrown_errors() -> None:
    """The whole protocol of an async generator goes through: asend, athrow, the very exception."""
    error = ValueError("x")

    @otelbill.metered
    async def echo():  # type: ignore[no-untyped-def]
        got = yield "first"
        try:
            yield got
        except KeyError:
            yield "handled"
        raise error

    async def run() -> None:
        generator = echo()
        assert inspect.isasyncgen(generator)
        assert await anext(generator) == "first"
        assert await generator.asend("sent") == "sent"
        assert await generator.athrow(KeyError()) == "handled"
        with pytest.raises(ValueError) as caught:
            await anext(generator)
        assert caught.value is error

    asyncio.run(run())


def test_concurrent_tasks_never_cross_bill() -> None:
    """Two customers' tasks, interleaved at every await, each see their own customer and step."""

    async def work(name: str) -> set[str | None]:
        with otelbill.customer(name):
            seen = {(await fetch("q")).split(":")[0] for _ in range(20)}
            async for payer in astream(20):
                seen.add(payer)
                seen.add(frame().customer)
            return seen

    async def run() -> list[set[str | None]]:
        return await asyncio.gather(*(work(name) for name in ("acme", "globex", "initech")))

    with capture_spans() as spans:
        assert asyncio.run(run()) == [{"acme"}, {"globex"}, {"initech"}]
    assert {name: _count_of(spans, name) for name in ("acme", "globex", "initech")} == {
        "acme": 21,
        "globex": 21,
        "initech": 21,
    }


def test_a_cancelled_task_ends_its_step() -> None:
    """Cancelling a task passes through a metered coroutine and ends its span without calling it an error."""

    @otelbill.metered
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        task = asyncio.create_task(wait_for_ever())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with capture_spans() as spans:
        asyncio.run(run())
    [span] = spans
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["error.type"] == "CancelledError"


class Agent:
    """One metered method of each kind."""

    @otelbill.metered
    def plan(self) -> str | None:
        """Plan."""
        return frame().step

    @otelbill.metered
    @staticmethod
    def above() -> str | None:
        """Decorator above `staticmethod`."""
        return frame().step

    @staticmethod
    @otelbill.metered
    def below() -> str | None:
        """Decorator below `staticmethod`."""
        return frame().step

    @otelbill.metered
    @classmethod
    def build(cls) -> str:
        """Decorator above `classmethod`."""
        return f"{cls.__name__} {frame().step}"

    @otelbill.metered
    def items(self) -> Iterator[object]:
        """A generator method."""
        yield self


def test_methods_of_every_kind_are_metered() -> None:
    """Methods bind as before, whichever decorator is on top."""
    agent = Agent()
    assert [agent.plan(), Agent.above(), agent.below(), Agent.build()] == ["plan", "above", "below", "Agent build"]
    assert list(agent.items()) == [agent]
    assert inspect.isgeneratorfunction(agent.items)


def test_partials_and_callable_objects_keep_their_shape() -> None:
    """What is called like a coroutine function is metered as one."""

    class Fetcher:
        async def __call__(self) -> str | None:
            await asyncio.sleep(0)
            return frame().step

    assert asyncio.run(otelbill.metered(step="object")(Fetcher())()) == "object"
    assert (
        asyncio.run(otelbill.metered(step="partial")(functools.partial(fetch.__wrapped__, "q"))()) == "None:partial:q"
    )  # type: ignore[attr-defined]


def test_a_class_and_a_bad_step_are_reported_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Misuse at decoration does not stop the host from importing; strict mode raises it."""

    class Plain:
        pass

    assert otelbill.metered(Plain) is Plain
    assert otelbill.customer("acme")(Plain) is Plain
    assert otelbill.metered(step="")(lambda: frame().step)() == "<lambda>"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    config.use(Settings(strict=True))
    with pytest.raises(otelbill.OtelbillError, match="decorate its methods"):
        otelbill.metered(Plain)


def test_a_step_may_be_named_without_its_keyword() -> None:
    """`@metered("plan")` means what it looks like."""
    assert otelbill.metered("plan")(lambda: frame().step)() == "plan"


def test_disabled_metering_is_absent() -> None:
    """Switched off, a metered function runs without span and frame."""
    config.use(Settings(enabled=False))
    with capture_spans() as spans, otelbill.customer("acme"):
        assert answer("q") == "None:None:q"
        otelbill.record_usage("queries", 1)
    assert spans == []


def test_a_raising_tracer_does_not_reach_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """If tracing itself fails, the function runs, its frame holds, and the fault is counted."""

    def fail() -> None:
        raise RuntimeError("tracing is broken")

    monkeypatch.setattr(sys.modules["otelbill.metered"], "find_tracer", fail)
    with otelbill.customer("acme"):
        assert answer("q") == "acme:answer:q"
        assert list(stream(1)) == ["acme"]
    assert guard.list_faults() == {"metered.span.RuntimeError": 2}


def _count_of(spans: list[ReadableSpan], customer: str) -> int:
    return sum((span.attributes or {}).get("otelbill.customer.id") == customer for span in spans)
