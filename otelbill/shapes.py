"""Owns how a callable of each of the four shapes (plain, coroutine, generator, async generator) runs inside a block.
Does not own what the block does; `metered` and `attribution` bring it.

A generator suspends in the middle of its block, so the block must not stay in force in the code that consumes it.
Each generator therefore has an OpenTelemetry context of its own, in force only while it runs. Only that one variable
is exchanged, not the whole `contextvars.Context`: the host's own context variables behave as if we were not there.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from types import CodeType, MethodType, coroutine
from typing import Any, TypeVar, cast

from opentelemetry.context import attach, get_current

from otelbill.errors import AttributionError
from otelbill.frame import find_frame
from otelbill.guard import report

# Any throughout: the wrapped callable's arguments, items and result are the host's, and pass through unseen.
AnyCallable = Callable[..., Any]
F = TypeVar("F", bound=AnyCallable)
OpenBlock = Callable[[], AbstractContextManager[Any]]


def wrap_callable(function: F, open_block: OpenBlock) -> F:
    """A callable like `function`, of the same shape and signature, whose body runs inside `open_block()`.

    Accepts `staticmethod` and `classmethod` objects, so the order of decorators does not matter. A class is reported
    and returned as it is: a function in its place would break `isinstance` and inheritance in the host.
    """
    if inspect.isclass(function):
        problem = AttributionError("decorated_class", "a class was decorated", hint="decorate its methods instead")
        report(problem, place="decorator")
        return cast(F, function)
    if isinstance(function, staticmethod | classmethod):
        kind = type(function)
        return cast(F, kind(wrap_callable(function.__func__, open_block)))
    for has_shape, wrap in _SHAPES:
        if has_shape(function):
            return cast(F, wrap(function, open_block))
    return cast(F, wrap_plain(function, open_block))


def wrap_plain(function: AnyCallable, open_block: OpenBlock) -> AnyCallable:
    """Block around the call."""

    @functools.wraps(function)
    def run_plain(*args: Any, **kwargs: Any) -> Any:
        with open_block():
            return function(*args, **kwargs)

    return run_plain


def wrap_coroutine(function: AnyCallable, open_block: OpenBlock) -> AnyCallable:
    """Block from the first step of the coroutine to its end; calling without awaiting opens nothing."""

    @functools.wraps(function)
    async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
        with open_block():
            return await function(*args, **kwargs)

    return run_coroutine


def wrap_generator(function: AnyCallable, open_block: OpenBlock) -> AnyCallable:
    """Block from the first item to exhaustion, close, or error."""
    return GeneratorFunction(function, open_block, drive_generator)


def wrap_async_generator(function: AnyCallable, open_block: OpenBlock) -> AnyCallable:
    """Block from the first item to exhaustion, close, or error."""
    return GeneratorFunction(function, open_block, drive_async_generator)


def _is_coroutine_function(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_find_call(function))


def _is_generator_function(function: object) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(_find_call(function))


def _is_async_generator_function(function: object) -> bool:
    return inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(_find_call(function))


def _find_call(function: object) -> object:
    """The `__call__` of an object that is called like a function; `None` for functions themselves."""
    return None if inspect.isroutine(function) else inspect.getattr_static(type(function), "__call__", None)


_SHAPES: tuple[tuple[Callable[[object], bool], Callable[[AnyCallable, OpenBlock], AnyCallable]], ...] = (
    (_is_coroutine_function, wrap_coroutine),
    (_is_async_generator_function, wrap_async_generator),
    (_is_generator_function, wrap_generator),
)


class Home:
    """The OpenTelemetry context of one generator, exchanged for the caller's while the generator runs."""

    __slots__ = ("context",)

    def __init__(self) -> None:
        self.context = get_current()

    def run(self, step: AnyCallable, *args: Any) -> Any:
        """Call `step` at home; what it changes in the context stays at home."""
        outside = get_current()
        attach(self.context)
        try:
            return step(*args)
        finally:
            self.context = get_current()
            attach(outside)


class GeneratorFunction:
    """Takes the place of a generator function; keeps the context of the *call*, which a generator body never sees.

    A stream is often made inside `with customer(...)` and consumed by a web framework after the block has ended; it
    belongs to the customer it was made for. Looks like a function to `inspect`, binds as a method, pickles by name.
    """

    __code__: CodeType
    __qualname__: str

    def __init__(self, function: AnyCallable, open_block: OpenBlock, drive: AnyCallable) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._open_block = open_block
        self._drive = drive
        body = function if hasattr(function, "__code__") else None
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if body is not None:
                setattr(self, name, getattr(body, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        generator = self._function(*args, **kwargs)
        driven = self._drive(Home(), generator, self._open_block)
        driven.__name__, driven.__qualname__ = generator.__name__, generator.__qualname__
        return driven

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> str:
        return str(self.__qualname__)


def drive_generator(home: Home, generator: Generator[Any, Any, Any], open_block: OpenBlock) -> Generator[Any, Any, Any]:
    """Run `generator` at home, inside a block, passing items, sent values, errors and the result through."""
    block = _enter_at_home(home, open_block)
    try:
        result = yield from pump(home, generator)
    except BaseException as error:
        home.run(block.__exit__, type(error), error, error.__traceback__)
        raise
    home.run(block.__exit__, None, None, None)
    return result


async def drive_async_generator(
    home: Home, generator: AsyncGenerator[Any, Any], open_block: OpenBlock
) -> AsyncGenerator[Any, Any]:
    """Run `generator` at home, inside a block, passing items, sent values and errors through."""
    block = _enter_at_home(home, open_block)
    try:
        step = _start_unregistered(generator)
        while True:
            try:
                item = await await_at_home(home, step)
            except StopAsyncIteration:
                break
            try:
                step = generator.asend((yield item))
            except GeneratorExit:
                await await_at_home(home, generator.aclose())
                raise
            except BaseException as error:  # noqa: BLE001 - not kept: the generator is asked what to do with it
                step = generator.athrow(error)
    except BaseException as error:
        home.run(block.__exit__, type(error), error, error.__traceback__)
        raise
    home.run(block.__exit__, None, None, None)


def pump(home: Home, generator: Any) -> Generator[Any, Any, Any]:
    """`yield from generator`, each of its steps run at home."""
    step: AnyCallable = generator.send
    argument: Any = None
    while True:
        try:
            item = home.run(step, argument)
        except StopIteration as stop:
            return stop.value
        try:
            argument = yield item
            step = generator.send
        except BaseException as error:  # noqa: BLE001 - not kept: the generator is asked what to do with it
            step, argument = generator.throw, error


@coroutine
def await_at_home(home: Home, awaitable: Any) -> Generator[Any, Any, Any]:
    """`await awaitable`, each of its steps run at home; between them the awaiting task has its own context."""
    return (yield from pump(home, awaitable.__await__()))


def _enter_at_home(home: Home, open_block: OpenBlock) -> AbstractContextManager[Any]:
    made_for = find_frame(home.context)
    if made_for is None or made_for.customer is None:
        home.context = get_current()  # nobody paid where it was made, so whoever starts it may
    block = open_block()
    home.run(block.__enter__)
    return block


def _start_unregistered(generator: AsyncGenerator[Any, Any]) -> Any:
    """The first step of `generator`, unseen by the event loop.

    The loop closes the async generators it knows when it ends. It knows ours, which closes `generator` itself; were it
    to know both, it would close them at once, and one of the two fails with "already running".
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=None)
    try:
        return generator.asend(None)
    finally:
        sys.set_asyncgen_hooks(firstiter=hooks.firstiter, finalizer=hooks.finalizer)
