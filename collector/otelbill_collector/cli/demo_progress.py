"""The demo's progress: a live line per step on a terminal, a plain line per finished step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from otelbill_collector.testing.demo.play import Reporter, Step

_TITLE_CHARS = 34


def open_reporter(console: Console) -> Reporter:
    """The reporter that suits where `console` writes."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)


class PlainReporter:
    """One line for each step, when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    @contextmanager
    def open_step(self, title: str) -> Iterator[Step]:
        """See `Reporter`."""
        step = _PlainStep()
        try:
            yield step
        except BaseException:
            self._print("FAILED", title, step.detail)
            raise
        self._print("done", title, step.detail)

    def _print(self, verdict: str, title: str, detail: str) -> None:
        seconds = time.monotonic() - self._started
        line = f"{seconds:5.1f} s  {verdict}  {title:{_TITLE_CHARS}} {detail}".rstrip()
        self._console.print(line, markup=False, soft_wrap=True)


class _PlainStep:
    def __init__(self) -> None:
        self.detail = ""

    def show(self, detail: str, *, done: int = 0, total: int = 0) -> None:  # noqa: ARG002 a plain line has no bar
        self.detail = detail


class LiveReporter:
    """A spinner while a step runs, with a bar where its length is known; the line stays when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def open_step(self, title: str) -> Iterator[Step]:
        """See `Reporter`."""
        columns = (
            SpinnerColumn(),
            TextColumn(f"{title:{_TITLE_CHARS}}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            step = _LiveStep(progress, progress.add_task(title, total=None, detail=""))
            try:
                yield step
            except BaseException:
                verdict = "[red]✗[/red]"
                raise
            else:
                verdict = "[green]✓[/green]"
            finally:
                progress.stop()
                self._console.print(f"{verdict} {escape(f'{title:{_TITLE_CHARS}} {step.detail}')}", soft_wrap=True)


class _LiveStep:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.detail = ""

    def show(self, detail: str, *, done: int = 0, total: int = 0) -> None:
        self.detail = detail
        self._progress.update(self._task, completed=done, total=total or None, detail=detail)
