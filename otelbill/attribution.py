"""Owns the blocks that say who pays: `customer()`, `attempt()`, and `carry()` for threads that lose the context.
Does not own spans (`metered`), nor how a frame travels to another process (`propagation`).

Blocks restore by value, never by token: a token is bound to the thread and task it came from, and resetting it
elsewhere raises into the host and leaves the customer set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from opentelemetry.context import Context, attach, get_current

from otelbill import config
from otelbill.errors import AttributionError
from otelbill.frame import NO_FRAME, Entry, Frame, find_entry, holds_entry, set_entry, without_entry
from otelbill.guard import Guard, report
from otelbill.shapes import wrap_callable

ID_MAX_CHARS = 128

_ENTER = Guard("attribution.enter")
_EXIT = Guard("attribution.exit")

F = TypeVar("F", bound=Callable[..., Any])  # Any: a decorator accepts every signature and returns the same one


class FrameBlock:
    """A block of code with its own frame: `with`, `async with`, or a decorator.

    Holds no state of its own between enter and exit, so one object may be entered by many threads and tasks at once,
    and again inside itself. Blocks closed out of order (two generators, advanced in turn) take out their own entry
    only, and nothing stays behind when all are closed.
    """

    __slots__ = ("_derive", "_last")

    def __init__(self, derive: Callable[[Frame], Frame | None]) -> None:
        """`derive` makes the block's frame from the one around it; `None` leaves that one in force."""
        self._derive = derive
        self._last: tuple[Frame | None, Frame | None] = (None, None)

    def __enter__(self) -> FrameBlock:
        with _ENTER:
            if config.current().enabled:
                outer = find_entry()
                frame = self._find_frame(NO_FRAME if outer is None else outer.frame)
                if frame is not None:
                    attach(set_entry(Entry(frame, self, outer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _EXIT:
            entry = find_entry()
            if holds_entry(entry, self):
                attach(set_entry(without_entry(entry, self)))

    async def __aenter__(self) -> FrameBlock:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: F) -> F:
        """Run every call of `function` inside such a block; generators too, from first step to last."""
        return wrap_callable(function, lambda: self)

    def _find_frame(self, around: Frame) -> Frame | None:
        """The block's frame within `around`; the last one is kept, as blocks are entered in the same place again."""
        seen, frame = self._last
        if seen is not around:
            frame = self._derive(around)
            self._last = (around, frame)
        return frame


def customer(identifier: str, *, project: str | None = None, run: str | None = None) -> FrameBlock:
    """A block, or a decorator, whose usage `identifier` pays for.

    Within a block of the same customer, a project or run that is not given is kept; another customer starts without.
    The step is kept. An identifier must be printable text of 1 to 128 characters. One that is not is reported and the
    block runs without a customer: not even the customer around it pays for usage that was meant for somebody else.

    Raises:
        AttributionError: in strict mode only, where an identifier is not valid.
    """
    values = (("customer_id", identifier), ("project_id", project), ("run_id", run))
    problems = [problem for name, value in values if (problem := _find_problem(name, value)) is not None]
    for problem in problems:
        report(problem, place="customer()")
    bad_names = {problem.code for problem in problems}

    def derive(outer: Frame) -> Frame:
        if "customer_id_invalid" in bad_names:
            return Frame(step=outer.step, attempt=outer.attempt)
        keep = outer if outer.customer == identifier else NO_FRAME
        return Frame(
            customer=identifier,
            project=None if "project_id_invalid" in bad_names else project or keep.project,
            run=None if "run_id_invalid" in bad_names else run or keep.run,
            step=outer.step,
            attempt=outer.attempt,
        )

    return FrameBlock(derive)


def attempt(number: int) -> FrameBlock:
    """A block whose spans say which try of the same work they belong to; 1 is the first.

    Raises:
        AttributionError: in strict mode only, where `number` is not a whole number above zero.
    """
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1_000_000:
        problem = AttributionError("attempt_invalid", "attempt is not a count", hint="pass 1 for the first try")
        report(problem, place="attempt()")
        return FrameBlock(lambda _outer: None)
    return FrameBlock(lambda outer: replace(outer, attempt=number))


def carry(function: F) -> F:
    """Bind the present frame and open span to `function`, for an executor or thread that does not carry them."""
    context = get_current()
    return wrap_callable(function, lambda: ContextBlock(context))


class ContextBlock:
    """Runs in `context` and restores the one before. Made anew for each call."""

    __slots__ = ("_context", "_outer")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._outer = context

    def __enter__(self) -> ContextBlock:
        self._outer = get_current()
        attach(self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        attach(self._outer)


def is_identifier(value: object) -> bool:
    """Whether `value` may name a customer, project, run, meter or event: printable, 1 to 128 characters."""
    return isinstance(value, str) and 0 < len(value) <= ID_MAX_CHARS and value.isprintable() and value == value.strip()


def _find_problem(name: str, value: object) -> AttributionError | None:
    if is_identifier(value) or (value is None and name != "customer_id"):
        return None
    seen = f"text of {len(value)} characters" if isinstance(value, str) else type(value).__name__
    hint = f"pass printable text of 1 to {ID_MAX_CHARS} characters, such as str(account.id)"
    return AttributionError(f"{name}_invalid", f"{name} is not usable: {seen}", hint=hint)
