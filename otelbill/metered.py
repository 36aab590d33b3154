"""Owns `@metered`: a span and a step around every run of a function, whatever its shape.
Does not own the shapes (`shapes`) nor the frame (`frame`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar, overload

from opentelemetry import trace
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import Span, StatusCode

from otelbill import attributes, config
from otelbill.attribution import is_identifier
from otelbill.errors import AttributionError
from otelbill.frame import NO_FRAME, Entry, Frame, find_entry, holds_entry, set_entry
from otelbill.guard import Guard, report
from otelbill.shapes import wrap_callable
from otelbill.tracer import find_tracer

F = TypeVar("F", bound=Callable[..., Any])  # Any: a decorator accepts every signature and returns the same one

_OPEN = Guard("metered.open")
_SPAN = Guard("metered.span")
_CLOSE = Guard("metered.close")


@overload
def metered(function: F, /) -> F: ...


@overload
def metered(step: str, /) -> Callable[[F], F]: ...


@overload
def metered(*, step: str | None = None) -> Callable[[F], F]: ...


def metered(function: F | str | None = None, /, *, step: str | None = None) -> F | Callable[[F], F]:
    """Make every run of a function one span, and everything below it usage of this step.

    Takes plain functions, coroutine functions, generator functions and async generator functions, also as methods and
    above or below `@staticmethod` and `@classmethod`. The result has the same name, signature and shape, returns and
    raises the same objects. `step` defaults to the function's name. A class is returned as it is, and reported:
    decorate its methods.

    Raises:
        AttributionError: in strict mode only, for a class, or a step that is not printable text of 1 to 128
            characters.
    """
    if isinstance(function, str):  # @metered("plan") is how people write it before they look
        return metered(step=function)
    if function is None:
        return lambda decorated: _meter(decorated, step)
    return _meter(function, step)


class Step:
    """A named step, with its frame in the frame it last ran in, as most runs are in the same one."""

    __slots__ = ("_last", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._last = (NO_FRAME, Frame(step=name))

    def find_frame(self, around: Frame) -> Frame:
        """`around` with this step."""
        seen, frame = self._last
        if seen is not around:
            frame = replace(around, step=self.name)
            self._last = (around, frame)
        return frame


class StepSpan:
    """One run of a step: its span and its frame. Made anew for each run."""

    __slots__ = ("_entry", "_inside", "_outside", "_span", "_step")

    def __init__(self, step: Step) -> None:
        self._step = step
        self._span: Span | None = None
        self._entry: Entry | None = None
        self._outside: Context | None = None
        self._inside: Context | None = None

    def __enter__(self) -> StepSpan:
        with _OPEN:
            if config.current().enabled:
                self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _CLOSE:
            if self._outside is not None and self._is_inside():
                attach(self._outside)
        with _SPAN:
            if self._span is not None:
                _end_span(self._span, error)

    def _open(self) -> None:
        outside = get_current()
        outer = find_entry(outside)
        frame = self._step.find_frame(NO_FRAME if outer is None else outer.frame)
        self._entry = Entry(frame, self, outer)
        inside = set_entry(self._entry, outside)
        with _SPAN:  # another span processor may raise here; the step is metered all the same
            self._span = find_tracer().start_span(self._step.name, inside, attributes=frame.span_attributes)
            inside = trace.set_span_in_context(self._span, inside)
        self._outside, self._inside = outside, inside
        attach(inside)

    def _is_inside(self) -> bool:
        """Whether the current context is ours, or one that code below us left behind; not that of another task."""
        present = get_current()
        return present is self._inside or holds_entry(find_entry(present), self)


def _meter(function: F, step: str | None) -> F:
    name = _find_name(function) if step is None else step
    if not is_identifier(name):
        hint = "pass printable text of 1 to 128 characters, the same for every call"
        report(AttributionError("step_invalid", "step is not usable", hint=hint), place="metered")
        name = _find_name(function)
    named = Step(name)
    return wrap_callable(function, lambda: StepSpan(named))


def _find_name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))[:128]


def _end_span(span: Span, error: BaseException | None) -> None:
    """End `span`. Of an error only the type is kept: its message may quote what the user wrote."""
    if error is not None and not isinstance(error, GeneratorExit):
        span.set_attribute(attributes.ERROR_TYPE, type(error).__qualname__)
        if isinstance(error, Exception):
            span.set_status(StatusCode.ERROR)
    span.end()
