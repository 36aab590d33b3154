"""Child programs of the demo and of the tests of the examples: their ports, environment, log and end.

Owns processes only; what a program is asked once it runs is up to the caller.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.1
_LOG_TAIL_LINES = 12
# What would lead a child elsewhere: settings of the user's own deployment, and proxies that cannot reach loopback.
_FOREIGN_PREFIXES = ("OTEL_", "OTELBILL_", "OPENAI_", "STRIPE_")
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


class ProgramFailed(RuntimeError):
    """A child program did not do what it was started for; the message quotes the end of its log."""


def find_free_ports(count: int) -> list[int]:
    """Loopback TCP ports that are free now, all different."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


def build_environment(around: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: the one around without what would lead it elsewhere, and what is given."""
    kept = {
        name: value
        for name, value in around.items()
        if not name.startswith(_FOREIGN_PREFIXES) and name.lower() not in _PROXIES
    }
    return {**kept, "PYTHONUNBUFFERED": "1", **given}


def await_condition(check: Callable[[], bool], seconds_max: float) -> bool:
    """Poll until `check` holds; False when the time is over."""
    deadline = time.monotonic() + seconds_max
    while not check():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


class Program:
    """One child process, all of whose output goes to a log file. Leaving the block ends it, gently first."""

    def __init__(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._log = log
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._require_process().poll()

    def read_lines(self) -> list[str]:
        """What it has written so far, whole lines only."""
        return self._log.read_text(errors="replace").split("\n")[:-1]

    def await_ready(self, check: Callable[[], bool], seconds_max: float) -> None:
        """Wait until `check` holds. Raises ProgramFailed when the program ends or takes too long."""
        await_condition(lambda: self.exit_status is not None or check(), seconds_max)
        if self.exit_status is not None:
            raise ProgramFailed(self._describe(f"ended with status {self.exit_status}"))
        if not check():
            raise ProgramFailed(self._describe(f"was not ready after {seconds_max:.0f} s"))

    def await_success(self, seconds_max: float, observe: Callable[[], None] = lambda: None) -> None:
        """Wait for exit status 0, calling `observe` now and then. Raises ProgramFailed."""

        def has_ended() -> bool:
            observe()
            return self.exit_status is not None

        if not await_condition(has_ended, seconds_max):
            raise ProgramFailed(self._describe(f"was not done after {seconds_max:.0f} s"))
        if self.exit_status != 0:
            raise ProgramFailed(self._describe(f"ended with status {self.exit_status}"))

    def send_signal(self, number: signal.Signals) -> None:
        """Send it to this process alone."""
        self._require_process().send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that does not help; returns the exit status."""
        process = self._require_process()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait()

    def _require_process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "use the program in a with block"
        return self._process

    def _describe(self, what: str) -> str:
        tail = "\n".join(f"  | {line}" for line in self.read_lines()[-_LOG_TAIL_LINES:])
        return f"{' '.join(self._command)} {what}; the end of {self._log}:\n{tail or '  | (nothing)'}"


def start_python(arguments: Sequence[str], *, log: Path, given: Mapping[str, str]) -> Program:
    """A program under this interpreter."""
    return Program([sys.executable, *arguments], log=log, environment=build_environment(os.environ, given))
